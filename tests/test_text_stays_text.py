"""Text never becomes a special token: every way in, with every kind of vocabulary, beside the same with other words.

A way in takes two texts and gives rows of ids. Texts that spell the vocabulary's special tokens, whole, within each
other and divided over both, must give the special ids that harmless words give in their places, and no others.
"""

import ast
import base64
import csv
import io
import json
import sys
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
from test_ladder import FILES

import generate
from llama import generation
from llama.checkpoint import PretrainedLlama, save_model
from llama.config import preset
from llama.datasets.columns import ColumnDataset
from llama.datasets.instructions import InstructionDataset
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.datasets.records import RecordDataset
from llama.datasets.squad import SquadDataset
from llama.datasets.token_file import TokenFile, write_tokens
from llama.decoding import chat_session
from llama.decoding.chat_session import ChatSession, Turn
from llama.generation import TextRow, encode_prompt
from llama.sampling import SamplingConfig
from llama.tasks.classification import ClassificationTask
from llama.tasks.generation import TextGenerationTask
from llama.tasks.instruction import InstructionTask
from llama.tasks.multiple_choice import MultipleChoiceTask
from llama.tasks.opinion import OpinionTask
from llama.tasks.pairs import SummarizationTask, TranslationTask
from llama.tasks.question_answering import QuestionAnsweringTask
from llama.tasks.tagging import NERTask, SegmentationTask
from llama.word_vectors import WordVectors
from llama.zero_shot import extraction, label_scoring
from llama.zero_shot.constrained_decoding import Written
from llama.zero_shot.zero_shot import ZeroShot
from tokenizer import bpe, from_vocabulary, load_tokenizer, tiktoken_ranks, tokenizer_file
from tokenizer.base import Settings
from tokenizer.chat import FORMATS
from tokenizer.offsets import encode_with_offsets
from tokenizer.pretokenize import RULES
from tokenizer.spm import SentencePieceTokenizer
from tokenizer.spm_json import JSONPieceTokenizer
from tokenizer.spm_model import build_model, write_model
from tokenizer.spm_pure import PlainPieceTokenizer

LONG = 1 << 20                                                      # ids: nothing is cut
MARKS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|K|>")
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
# The marks' own parts, so that vocabularies have long pieces of them.
TEXTS = ["user assistant im start end header id eot <| |> </ s> _start _end _header <|im _id|> a dog 你好，世界\n"] * 6
WORDS = "harmless"


# ---- vocabularies ----------------------------------------------------------------------------------------------------


def byte_level(split="llama3", **config):
    files = bpe.train(TEXTS, 400, split=split, special=MARKS).files()
    return load_tokenizer(files | {"tokenizer_config.json": json.dumps(ROLES | config).encode()})


def ranks():
    learned = bpe.train(TEXTS, 400, special=())
    file = b"".join(base64.b64encode(learned.token_bytes(id)) + b" %d\n" % id for id in range(learned.vocab_size))
    return tiktoken_ranks.from_ranks(file, Settings(bos="<s>", eos=["</s>"], adds_bos=True), split="llama3",
                                     special=MARKS)


def trained_pieces(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=340, byte_fallback=True, character_coverage=1.0,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
        **({"model_type": "bpe"} | options))
    return model.getvalue()


def library(model_type="bpe"):
    """Marks as tokens that the folder adds, as of Llama 2's tuned kin."""
    file = trained_pieces(model_type=model_type)
    size = SentencePieceTokenizer(file).vocab_size
    added = {str(size + i): {"content": mark, "special": True} for i, mark in enumerate(MARKS[2:])}
    return load_tokenizer({"tokenizer.model": file,
                           "tokenizer_config.json": json.dumps(ROLES | {"added_tokens_decoder": added}).encode()})


# A vocabulary of pieces by hand: marks have pieces that merge into them. Letters are single pieces, and so is a mark.
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = [*"▁abdehilmnorstuy<>/|_✦"]
MERGED = ["</", "s>", "<|", "|>", "en", "end", "<|end", "<|end|>", "<s", "<sep", "▁h", "▁a"]
PIECES = ["<unk>", "<s>", "</s>", *BYTES, *LETTERS, *MERGED, "<|im_start|>", "<|im_end|>", "<sep>"]


def sloppy_pieces(*, ends, **config):
    """Marks that the model file calls ordinary pieces, or pieces that are found in any text; a sign that is a mark."""
    types = [2, 3, 1, *[6] * 256, *[1] * (len(LETTERS) - 1), 3, *[1] * len(MERGED), 4, 4, 4]
    scores = [0.0] * 259 + [-float(i) for i in range(len(PIECES) - 259)]
    model = build_model(PIECES, scores, types, names={"unk_id": "<unk>", "bos_id": "<s>"})
    return model, Settings(eos=ends, tokenizer_config=config)


def pieces_as_json():
    """A tokenizer.json of pieces, with merges that make </s> and <|im_end|>."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *LETTERS[:-1], *MERGED, "<|im_start|>", "<|im_end|>"]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    merges = [[piece[:i], piece[i:]] for piece in (*MERGED, "</s>", "<s>") for i in range(1, len(piece))
              if piece[:i] in vocab and piece[i:] in vocab]
    control = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
    return JSONPieceTokenizer({
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "added_tokens": [{"id": vocab[mark], "content": mark, "special": True} for mark in control],
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocab,
                  "merges": merges}}, Settings(eos=["</s>"]))


def llama2c():
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *LETTERS, *MERGED]
    pieces.remove("<|end|>")                                        # a mark, of which this form knows two
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces) - 259)]
    plain = PlainPieceTokenizer(build_model(
        pieces, scores, [2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 259)],
        names={"unk_id": "<unk>", "bos_id": "<s>", "eos_id": "</s>"}))
    return load_tokenizer(dict([tokenizer_file(plain, "llama2.c")]))


def sloppy_bytes():
    """A tokenizer.json whose merges spell its marks, one of them a word, one an end by its id alone, one called special
    elsewhere, one in DeepSeek's manner, and one that stands for missing bytes."""
    spec = json.loads(bpe.train([" </s> <end> </s> <end> "] * 9, 330, special=("<|im_start|>", "<|im_end|>"))
                      .files()["tokenizer.json"])
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    for left, right in (("<", "/"), ("</", "s"), ("</s", ">"), ("<", "e"), ("<e", "n"), ("<en", "d"), ("<end", ">"),
                        ("E", "N"), ("EN", "D")):
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append(f"{left} {right}")
    size = len(vocab)
    del vocab["Ā"]                                                  # the byte 0, which becomes the unknown token
    spec["model"] |= {"unk_token": "</s>", "ignore_merges": True}
    spec["added_tokens"] += [{"id": vocab["END"], "content": "END", "special": True},
                             {"id": size, "content": "<｜User｜>", "special": False},
                             {"id": size + 1, "content": "<turn>", "special": False},
                             {"id": size + 2, "content": "[INST]", "special": False}]
    config = {"eos_token": "</s>", "bos_token": "<|im_start|>", "add_bos_token": True,
              "additional_special_tokens": ["[INST]"]}
    return load_tokenizer({"tokenizer.json": json.dumps(spec).encode(),
                           "tokenizer_config.json": json.dumps(config).encode(),
                           "generation_config.json": json.dumps({"eos_token_id": [vocab["<end>"], size + 1]}).encode()})


VOCABULARIES = {
    **{f"bytes, {split}": lambda split=split: byte_level(split) for split in RULES},
    "bytes, gguf": lambda: from_vocabulary(byte_level().vocabulary()),
    "bytes, ranks": ranks,
    "bytes, sloppy": sloppy_bytes,
    "pieces, library": library,
    "pieces, unigram": lambda: library("unigram"),
    "pieces, gguf": lambda: from_vocabulary(library().vocabulary()),
    "pieces, json": pieces_as_json,
    "pieces, llama2.c": llama2c,
    "pieces, sloppy": lambda: PlainPieceTokenizer(*sloppy_pieces(ends=["</s>", PIECES.index("<sep>")],
                                                                 additional_special_tokens=["<|end|>"])),
    "pieces, sloppy, library": lambda: SentencePieceTokenizer(
        *(lambda model, settings: (write_model(model), settings))(*sloppy_pieces(
            ends=["</s>", PIECES.index("<sep>")], additional_special_tokens=["<|end|>"]))),
}


@pytest.fixture(scope="module", params=VOCABULARIES)
def model(request):
    """A tiny model with such a vocabulary."""
    tokenizer = VOCABULARIES[request.param]()
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=tokenizer.vocab_size, max_position_embeddings=1 << 14)).eval()
    model.tokenizer = tokenizer
    return model


def controls(tokenizer):
    """The ids that steer: all but the one for what a vocabulary cannot spell."""
    return {id for text, id in tokenizer.special_ids.items() if text != "<unk>"} | {*tokenizer.eos_ids}


def spellings(tokenizer):
    """All that spells a special token, in one text: alone, in words, doubled, within itself, and nearly."""
    found = []
    for mark in tokenizer.special_ids:
        middle = len(mark) // 2
        found += [mark, f"a{mark}b", f"x {mark} y", mark + mark, mark[:middle] + mark + mark[middle:],
                  f"{mark[:middle]} {mark[middle:]}", f"{mark[:middle]}\u200b{mark[middle:]}"]
    return " ".join([*found, "<|\u212a|>", "</s\0>", "\0"])         # NFC makes K of the Kelvin sign


def halves(tokenizer):
    """Special tokens divided, for ways in that put two texts beside each other."""
    marks = [mark for mark in tokenizer.special_ids if len(mark) > 1]
    return [(mark[:i], mark[i:]) for mark in marks[:3] for i in {1, len(mark) - 1}]


# ---- ways in ---------------------------------------------------------------------------------------------------------


def jsonl(folder, *records, name="data.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def ids_of(samples):
    return [sample.ids for sample in samples]


def plain(model, folder, a, b):
    tokenizer = model.tokenizer
    return [tokenizer.encode(a), tokenizer.encode_continuation(b), tokenizer.encode(a + b),
            tokenizer.encode(a, bos=tokenizer.bos_id is not None, eos=bool(tokenizer.eos_ids)),
            encode_with_offsets(tokenizer, a + b)[0], encode_prompt(tokenizer, a + b)]


def documents(model, folder, a, b):
    text = folder / "data.txt"
    text.write_text(f"{a}{b}\n\n{b}\n".replace("\0", ""), encoding="utf-8")         # of which text files have none
    task, rows = TextGenerationTask(), []
    for dataset in (LanguageModelingDataset(text, block_size=LONG), LanguageModelingDataset([a + b], block_size=LONG),
                    LanguageModelingDataset(jsonl(folder, {"text": a}, {"text": b}), block_size=LONG)):
        rows += ids_of(task.samples(dataset, model.tokenizer))
    write_tokens(folder / "ids", [a, b], model.tokenizer)
    rows += ids_of(task.samples(TokenFile(folder / "ids", block_size=LONG), model.tokenizer))
    return [*rows, task.encode({"text": a + b}, model.tokenizer).ids, task.prompt(a + b, model.tokenizer)]


def classes(model, folder, a, b):
    a, b, table = a.replace("\0", ""), b.replace("\0", ""), folder / "data.csv"
    with open(table, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "date"), (a, b, "2024-01-01"), (b, "x", "2024-01-01")])
    several = RecordDataset(jsonl(folder, {"text": a, "labels": [b]}), fields=("text", "labels"))
    return [*ids_of(ClassificationTask((b, "x"), max_length=LONG).samples(RecordDataset(table), model.tokenizer)),
            *ids_of(OpinionTask((b, "x"), max_length=LONG).samples(RecordDataset(table), model.tokenizer)),
            *ids_of(ClassificationTask((b,), multi_label=True, max_length=LONG).samples(several, model.tokenizer))]


def tags(model, folder, a, b):
    """As many words whatever they say."""
    a, b = a.replace("\0", ""), b.replace("\0", "")
    path = folder / "data.conll"
    path.write_text("".join(f"{word} O\n" for word in ("x", a.replace(" ", "·"), b.replace(" ", "·"))),
                    encoding="utf-8")
    dataset, rows = ColumnDataset(path), []
    for task in (NERTask(("PER",), max_length=LONG), SegmentationTask(max_length=LONG)):
        example = {"text": a + b, "tokens": [a, b], "starts": [0, len(a)]}
        rows += ids_of(task.pieces(example, model.tokenizer))
        rows += ids_of(task.pieces(task.example(a + b), model.tokenizer))
    return rows + ids_of(NERTask(("PER",), max_length=LONG).samples(dataset, model.tokenizer))


def answers(model, folder, a, b):
    path = folder / "data.json"
    path.write_text(json.dumps({"data": [{"title": a, "paragraphs": [{"context": b, "qas": [
        {"id": "1", "question": a, "answers": [{"text": b, "answer_start": 0}]}]}]}]}), encoding="utf-8")
    return ids_of(QuestionAnsweringTask(max_length=LONG).samples(SquadDataset(path),
                                                                                    model.tokenizer))


def choices(model, folder, a, b):
    asked, rows = {"question": a, "options": {"A": b, "B": a + b}, "answer": "B", "subject": ""}, []
    for score in ("letter", "text"):
        for shots, request in (([], ""), ([asked], b)):
            asker = ZeroShot(MultipleChoiceTask(score), shots, request=request).asker
            asker.open(model)
            prefix, options = asker.encoded(asked)
            rows += [prefix, *options.values()]
    return [*rows, *(WordVectors(model, [word]).ids[0] for word in (a, b, a + b))]


def conversations(name):
    """A chat format with texts in every role, from files of both kinds, and its ways to ask."""
    system = [] if name == "llama-2" else [{"role": "system", "content": "Be brief."}]

    def rows(model, folder, a, b):
        tokenizer, task = model.tokenizer, InstructionTask(name, max_length=LONG)
        said = [{"role": "system", "content": a}, {"role": "user", "content": b}, {"role": "assistant", "content": a},
                {"role": "user", "content": a}, {"role": "assistant", "content": b}]
        path = jsonl(folder, {"instruction": a, "input": b, "output": a}, {"messages": said},
                     {"messages": system + said[1:]})
        dataset = InstructionDataset(path)
        pairs = RecordDataset(jsonl(folder, {"source": a, "target": b}, name="pairs.jsonl"),
                              fields=("source", "target"))
        found = ids_of(task.samples(dataset, tokenizer))
        for example in dataset:
            found += task.prompts(example, tokenizer)
        for kind in (SummarizationTask, TranslationTask):
            for request in ("", a):
                each = kind(request, chat_format=name, max_length=LONG)
                found += [*ids_of(each.samples(pairs, tokenizer)), each.prompt(b, tokenizer)]
        return [*found, task.prompt(a + b, tokenizer), FORMATS[name].encode(said[:2], tokenizer, reply=True)[0]]

    return rows


def recorded(patch):
    """The rows of ids that are given to a model to go on with, from now on; it answers nothing."""
    found = []

    def generate(model, prompts, **options):
        found.extend(prompts)
        return [SimpleNamespace(text="") for _ in prompts]

    def copy(reader, prompt, grammar):
        found.append(prompt)
        return Written([], 0.0)

    def score(model, prefix, continuations, **options):
        found.extend([prefix, *continuations])
        return [torch.zeros(len(row)) for row in continuations]

    def write(row, *_, **__):
        found.append(row.prompt)
        row.push(row.prompt[-1])
        return SimpleNamespace(guessed=0, first=1)

    patch.setattr(generation, "generate", generate)
    patch.setattr(extraction, "constrained_greedy_decode", copy)
    patch.setattr(label_scoring, "loglikelihood", score)
    patch.setattr(chat_session, "write", write)
    return found


def asked(name):
    """A chat format in all that is asked: without training, with and without examples, and in a chat that remembers."""

    def rows(model, folder, a, b):
        pair, talk = {"source": a, "target": b}, {"messages": [{"role": "user", "content": a},
                                                               {"role": "assistant", "content": b}]}
        tagged = {"text": a + b, "tokens": [a, b], "starts": [0, len(a)]}
        solved = {"question": a, "context": b, "answers": [{"text": b, "start": 0}]}
        words = "".join((a + b).split()).replace("\0", "")          # which no vocabulary need have
        kinds = [  # task, what may stand before the question, the question
            (ClassificationTask((b, "x"), max_length=LONG), [{"text": a, "label": b}, {"text": b, "label": "x"}], a),
            (ClassificationTask((b, "x"), multi_label=True, max_length=LONG), [{"text": a, "labels": [b]}], a),
            (NERTask(("PER", "LOC"), max_length=LONG), [tagged | {"tags": ["B-PER", "O"]}], a + b),
            (SegmentationTask(max_length=LONG), [tagged | {"tags": ["S", "S"]}], words),
            (QuestionAnsweringTask(max_length=LONG), [solved], (a, b)),
            (SummarizationTask(chat_format=name, max_length=LONG), [pair], a + b),
            (InstructionTask(name, max_length=LONG), [talk], a + b)]
        with pytest.MonkeyPatch.context() as patch:
            found = recorded(patch)
            for task, examples, question in kinds:
                called = {"x": a} if isinstance(task, ClassificationTask) else {}
                for shown, request in (([], ""), (examples, f"{a} {{labels}} {{what}}")):
                    shot = ZeroShot(task, shown, words=called, request=request, chat_format=name)
                    shot.predict(model, [question])
            chat = ChatSession(model, model.tokenizer, FORMATS[name], sampling=SamplingConfig(), system=a)
            chat.turns = [Turn(a, b, None), Turn(b, a, None)]
            chat.reply(a + b)
        return found

    return rows


# A chat format that is new, or a template, is a line here.
WAYS = {"plain": plain, "documents": documents, "classes": classes, "tags": tags, "answers": answers,
        "choices": choices,
        **{f"{name}, learned": conversations(name) for name in FORMATS},
        **{f"{name}, asked": asked(name) for name in FORMATS}}


def steering(rows, tokenizer):
    """The special tokens of each row, in their order."""
    wanted = controls(tokenizer)
    return [[tokenizer.piece(id) for id in row if id in wanted] for row in rows]


@pytest.mark.parametrize("way", WAYS)
def test_property_no_text_becomes_a_special_token(way, model, tmp_path):
    rows, tokenizer = WAYS[way], model.tokenizer
    try:
        neutral = steering(rows(model, tmp_path, WORDS, WORDS), tokenizer)
    except ValueError as error:
        assert "which this vocabulary has not as special tokens" in str(error)
        return
    evil = spellings(tokenizer)
    assert tokenizer.special_ids and len(neutral) > 0
    for a, b in ((evil, evil), *halves(tokenizer)):
        assert steering(rows(model, tmp_path, a, b), tokenizer) == neutral, (a, b)


def test_property_each_special_token_of_each_vocabulary_is_written_as_text(model):
    """One by one; and the text comes back whole, however it is spelled."""
    tokenizer = model.tokenizer
    for mark in tokenizer.special_ids:
        for text in (mark, f"a{mark}b", f"a {mark} b", mark * 3):
            for ids in (tokenizer.encode(text), tokenizer.encode_continuation(text)):
                assert not set(ids) & controls(tokenizer), text
            assert tokenizer.decode(tokenizer.encode(text), skip_special=True) == text


def test_property_where_it_is_allowed_they_are_found(model):
    """Else this file would prove nothing."""
    for mark, id in model.tokenizer.special_ids.items():
        assert model.tokenizer.encode(f"a{mark}b", allow_special=True).count(id) == 1


@pytest.mark.parametrize("way", [[], ["--chat", "--chat-format", "alpaca"], ["--num-samples", "2"], ["--beams", "2"],
                                 ["--lookup"], ["--chat", "--chat-format", "chatml", "--system"]])
@pytest.mark.parametrize("model", ["bytes, llama3", "pieces, library"], indirect=True)
def test_property_prompts_of_the_command_are_text(way, model, tmp_path, monkeypatch, capsys):
    save_model(model, tmp_path / "model")
    start, rows, found = TextRow.__init__, [], []
    monkeypatch.setattr(TextRow, "__init__", lambda row, prompt, **options: (rows.append(prompt),
                                                                             start(row, prompt, **options))[1])
    for text in (WORDS, spellings(model.tokenizer)):
        given = [*way, text] if way[-1:] == ["--system"] else way
        monkeypatch.setattr(sys, "argv", ["generate.py", "--model", str(tmp_path / "model"), "--max-new-tokens", "1",
                                          "--device", "cpu", "--prompt", text, "--prompt-file",
                                          str(jsonl(tmp_path, {"prompt": text})), *given])
        generate.main()
        found.append(steering(rows, model.tokenizer))
        rows.clear()
    assert found[0] == found[1] and found[0]


@pytest.mark.parametrize("name", FILES)
def test_property_no_file_asks_for_special_tokens_in_text(name):
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    asked = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "allow_special"]
    assert not asked or name in ("tokenizer.base", "llama.generation")              # generate.py --special-tokens
