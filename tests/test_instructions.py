import json

import pytest

from llama.datasets.instructions import InstructionDataset

ALPACA = {"instruction": "Translate.", "input": "你好", "output": "Hello", "id": 3}
CHAT = {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"},
                     {"role": "assistant", "content": "Hi!", "weight": 1}]}


def _file(tmp_path, records, name="a.jsonl"):
    path = tmp_path / name
    as_list = json.dumps(records, ensure_ascii=False, indent=1)
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text(as_list if path.suffix == ".json" else lines, encoding="utf-8")
    return path


def test_worked_example_both_forms_in_one_file(tmp_path):
    path = _file(tmp_path, [ALPACA, CHAT, {"instruction": "Hi", "output": "Ho"}])
    assert list(InstructionDataset(path)) == [
        {"messages": [{"role": "user", "content": "Translate.\n\n你好"}, {"role": "assistant", "content": "Hello"}],
         "place": f"{path}:1"},
        {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"},
                      {"role": "assistant", "content": "Hi!"}], "place": f"{path}:2"},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], "place": f"{path}:3"},
    ]


def test_two_ways_a_list_and_one_a_line_hold_the_same(tmp_path):
    a, b = _file(tmp_path, [ALPACA, CHAT]), _file(tmp_path, [ALPACA, CHAT], "b.json")
    a, b = InstructionDataset(a), InstructionDataset(b)
    assert [example["messages"] for example in a] == [example["messages"] for example in b]
    assert [example["place"].rpartition(":")[2] for example in b] == ["2", "8"]
    assert len(a) == len(b) == 2


def test_property_every_example_ends_with_the_assistant(tmp_path):
    dataset = InstructionDataset(_file(tmp_path, [ALPACA, CHAT]), _file(tmp_path, [CHAT], "b.json"))
    assert {example["messages"][-1]["role"] for example in dataset} == {"assistant"} and len(dataset) == 3


def test_worked_example_tools_and_parts(tmp_path):
    """What chat templates write beside the text of a message; what they do not write is left out."""
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    talk = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": None, "tool_calls": calls, "id": 7},
            {"role": "tool", "content": "1", "tool_call_id": "x"},
            {"role": "assistant", "content": "One.", "reasoning_content": "so", "tool_calls": []}]
    tools = [{"name": "f"}]
    records = [{"messages": talk, "tools": tools}, {"messages": talk, "tools": json.dumps(tools)}, {"messages": talk}]
    first, second, third = InstructionDataset(_file(tmp_path, records))
    assert first["messages"] == [{"role": "user", "content": "Hi"},
                                 {"role": "assistant", "content": "", "tool_calls": calls}, talk[2],
                                 {"role": "assistant", "content": "One.", "reasoning_content": "so"}]
    named = [{"type": "function", "function": tools[0]}]
    assert first["tools"] == second["tools"] == named and "tools" not in third


def _chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(("record", "words"), [
    ({"title": "?", "body": "!"}, "neither 'messages' .* nor 'instruction' .* it has title, body"),
    ({"text": "Once"}, "it has text; plain text is learned with --task generation"),
    ({}, "it has no fields"),
    ({"instruction": "Hi"}, "the field 'output' is missing; the record has instruction"),
    ({"instruction": "Hi", "output": " \n"}, "the field 'output' is empty; write an answer, or remove the record"),
    ({"instruction": 5, "output": "a"}, "the field 'instruction' is 5; it must be a text"),
    ({"instruction": "Hi", "input": 5, "output": "a"}, "the field 'input' is 5; it must be a text"),
    ({"messages": "Hi"}, "'messages' must be a list of objects"),
    ({"messages": []}, "'messages' must be a list of objects"),
    ({"chosen": None}, "there is no message, and nobody answers"),
    ({"messages": ["Hi", 5]}, "'messages' must be a list of objects"),
    ({"messages": [{"role": "user"}]}, "the field 'content' is missing; the record has role"),
    (_chat(("user", "Hi")), "the last message is the user's, and nobody answers; what the assistant says is"),
    (_chat(("narrator", "Hi"), ("assistant", "Hi")), "the role 'narrator' is not known; roles are system, dev"),
    (_chat(("user", "Hi"), ("assistant", "")), "the assistant says nothing"),
])
def test_refusal_names_the_line_of_the_record(tmp_path, record, words):
    with pytest.raises(ValueError, match=r"a\.jsonl:2: .*" + words):
        InstructionDataset(_file(tmp_path, [ALPACA, record]))


def test_worked_example_skip_bad_goes_on_without_them_and_counts(tmp_path, caplog):
    path = _file(tmp_path, [ALPACA, {"instruction": 5, "output": "a"}, CHAT, {"messages": []}])
    assert [example["place"] for example in InstructionDataset(path, skip_bad=True)] == [f"{path}:1", f"{path}:3"]
    assert (f"{path}: 2 left out by --skip-bad, the first: {path}:2: the field 'instruction' is 5; it must be a text, "
            f"in quotation marks · {path}:4: 'messages' must be") in caplog.text
    with pytest.raises(ValueError, match=r"b\.jsonl: the file holds no conversations to learn: .*jsonl:1: the record"):
        InstructionDataset(_file(tmp_path, [{}], "b.jsonl"), skip_bad=True)


def test_two_ways_a_table_and_json_hold_the_same(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('instruction,input,output\nTranslate.,你好,Hello\n"Say ""a"",\nb",,"a, b"\n', encoding="utf-8")
    assert [example["messages"] for example in InstructionDataset(path)] == [
        example["messages"] for example in InstructionDataset(_file(tmp_path, [
            ALPACA, {"instruction": 'Say "a",\nb', "output": "a, b"}]))]


def test_refusal_of_no_files():
    with pytest.raises(ValueError, match="no files given; name at least one .json or .jsonl file"):
        InstructionDataset()
