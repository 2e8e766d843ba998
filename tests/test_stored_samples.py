import sys

import pytest

from llama.tasks.instruction import InstructionTask
from llama.tasks.pairs import TranslationTask
from llama.tasks.stored_samples import StoredSamples
from llama.tasks.task import Sample
from llama.training.digest import samples_digest

PAIRS = [{"source": "The dog sleeps.", "target": "狗在睡觉。", "place": "f:1"},
         {"source": "A long road " * 40, "target": "路很长。", "place": "f:2"},
         {"source": "Yes.", "target": "是。" * 60}]


@pytest.mark.parametrize("most", [48, 512])
def test_two_ways_stored_samples_are_those_of_a_list(most, tiny_tokenizer):
    task = TranslationTask(chat_format="plain", max_length=most)
    stored, listed = task.samples(PAIRS, tiny_tokenizer), [task.encode(pair, tiny_tokenizer) for pair in PAIRS]
    assert isinstance(stored, StoredSamples) and any(sample.cut or sample.lost for sample in listed) == (most == 48)
    assert list(stored) == listed and stored[1:] == listed[1:] and stored[-1] == listed[-1]
    assert [sample.example for sample in stored] == [sample.example for sample in listed]
    assert samples_digest(stored) == samples_digest(listed)
    with pytest.raises(IndexError):
        stored[len(PAIRS)]


def test_property_what_found_no_room_is_left_out_and_the_rest_keep_their_examples(tiny_tokenizer, caplog):
    talks = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "No."}], "place": place}
             for text, place in (("Yes?", "a"), ("No?", "c"))]
    crowded = {"messages": [*[{"role": "user", "content": "The dog? " * 9}] * 3, talks[0]["messages"][1]], "place": "b"}
    task = InstructionTask("plain", max_length=16)
    assert not task.encode(crowded, tiny_tokenizer).targets
    kept = task.samples([talks[0], crowded, talks[1]], tiny_tokenizer)
    assert [(sample.place, sample.example) for sample in kept] == [(talk["place"], talk) for talk in talks]
    assert "1 have no room for an answer, and are left out" in caplog.text


def test_property_an_id_takes_five_bytes():
    """Of a list it would be eight for its place, and 28 more for each number above 256."""
    long = [(Sample(list(range(1000, 2000)), [False] + [True] * 999), {}) for _ in range(50)]
    stored = StoredSamples(long, dict)
    taken = sum(map(sys.getsizeof, (stored._ids, stored._marks)))
    assert taken < 1.2 * 5 * 50_000                                 # arrays grow by an eighth at a time
