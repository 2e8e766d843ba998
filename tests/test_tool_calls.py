"""Calls of tools: as data, by a template in Qwen's form, learned, and asked for."""

import json

import pytest

import generate
from llama.commands.prompts import BadPrompts, Conversation, read_prompts, read_tools
from llama.datasets.instructions import InstructionDataset
from llama.tasks.instruction import InstructionTask
from llama.training.inspect_samples import show_sample
from tests.test_generate import door, folder, records  # noqa: F401  (fixtures)

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>"
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
    "{% if m.role == 'tool' %}<tool_response>\n{{ m.content }}\n</tool_response>{% else %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ call.function.name }}\", \"arguments\": "
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
TOOL = {"type": "function", "function": {"name": "get"}}
CALL = {"name": "get", "arguments": {"city": "北京"}}
TALK = [{"role": "user", "content": "天气？"}, {"role": "assistant", "content": "", "tool_calls": [{"function": CALL}]},
        {"role": "tool", "content": "21°"}]
RECORD = {"conversations": [{"from": "human", "value": "天气？"}, {"from": "function_call", "value": json.dumps(CALL)},
                            {"from": "observation", "value": "21°"}, {"from": "gpt", "value": "今天天气很好。"}],
          "tools": json.dumps([TOOL["function"]])}


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "qwen.jinja"
    path.write_text(TEMPLATE, encoding="utf-8")
    return str(path)


def test_worked_example_calls_are_learned_and_what_tools_say_is_read(tiny_tokenizer, template, tmp_path):
    (tmp_path / "calls.jsonl").write_text(json.dumps(RECORD), encoding="utf-8")
    task = InstructionTask(template, max_length=2048)
    sample, = task.samples(InstructionDataset(tmp_path / "calls.jsonl"), tiny_tokenizer)
    learned = tiny_tokenizer.decode([id for id, learn in zip(sample.ids, sample.loss_mask, strict=True) if learn])
    call = '<tool_call>\n{"name": "get", "arguments": {"city": "北京"}}\n</tool_call><|im_end|>'
    assert learned == call + "今天天气很好。<|im_end|>"
    read = tiny_tokenizer.decode([id for id, learn in zip(sample.ids, sample.loss_mask, strict=True) if not learn])
    assert '"name": "get"' in read and "<tool_response>\n21°\n</tool_response>" in read
    shown = [line.split() for line in show_sample(sample, tiny_tokenizer, colour=False).splitlines()]
    assert sum(line[2:3] == ["●"] for line in shown) == sum(sample.loss_mask)


def test_two_ways_an_answer_is_asked_for_as_it_is_learned(door, template, tiny_tokenizer, tmp_path):  # noqa: F811
    """A conversation that a tool has answered, and tools of a file beside a question."""
    task = InstructionTask(template, max_length=2048)
    example = {"messages": [*TALK, {"role": "assistant", "content": "Fine."}], "tools": [TOOL]}
    prompts = list(task.prompts(example, tiny_tokenizer))
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": TALK, "tools": [TOOL]}), encoding="utf-8")
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]), encoding="utf-8")
    flags = ["--chat", "--chat-format", template, "--max-new-tokens", 2, "--json"]
    after, = records(door("--prompt-file", tmp_path / "talks.jsonl", *flags))
    before, = records(door("--prompt", TALK[0]["content"], "--tools", tmp_path / "tools.json", *flags))
    assert [before["prompt_tokens"], after["prompt_tokens"]] == list(map(len, prompts))
    assert [before["prompt"], after["prompt"]] == ["天气？", "21°"]
    talk = read_prompts([], str(tmp_path / "talks.jsonl"), BadPrompts(skip=False))[0][1].messages
    assert [generate.encode_chat(task.format(tiny_tokenizer), talk[:count], [TOOL], tiny_tokenizer)
            for count in (1, 3)] == prompts
    door("--prompt-file", tmp_path / "talks.jsonl", code=2)
    assert "talks.jsonl:1 is a conversation, and not a raw text to continue; add --chat" in door.stderr
    door("--prompt", "?", "--tools", tmp_path / "tools.json", code=2)
    assert "--tools means nothing to a raw prompt; add --chat" in door.stderr
    door("--prompt", "?", "--chat", "--chat-format", "chatml", "--tools", tmp_path / "tools.json", code=2)
    assert "the chat format 'chatml' has no place for tools" in door.stderr


def test_worked_example_prompts_that_are_conversations(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(RECORD | {"conversations": RECORD["conversations"][:3]}) + '\n{"prompt": "one"}\n',
                    encoding="utf-8")
    (_, talk), (_, text) = read_prompts([], str(path), BadPrompts(skip=False))
    assert isinstance(talk, Conversation) and str(talk) == "21°" and text == "one"
    assert [message["role"] for message in talk.messages] == ["user", "assistant", "tool"]
    assert talk.tools == [{"type": "function", "function": TOOL["function"]}]


@pytest.mark.parametrize(("content", "words"), [("[]", "describes no tool"), ("{oops", "is not JSON"),
                                                ("[3]", "a tool is 3; it must be an object")])
def test_refuses_what_describes_no_tool_and_what_asks_nothing(tmp_path, content, words):
    path = tmp_path / "tools.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        read_tools(path)
    (tmp_path / "f.jsonl").write_text(json.dumps(RECORD), encoding="utf-8")
    with pytest.raises(ValueError, match="the last message is the assistant's, so nothing is asked"):
        read_prompts([], str(tmp_path / "f.jsonl"), BadPrompts(skip=False))
