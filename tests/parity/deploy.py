"""A tuned model elsewhere, as docs/deploy.md shows it: the same chat with it here, in transformers, vLLM and llama.cpp.

A small model learns examples/identity.jsonl, at last by LoRA; the adapter is merged, the folder goes to transformers
and vLLM, and a GGUF made of it to llama.cpp. Each applies the chat template that lies in what it was given.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from llama.checkpoint import PretrainedLlama, load_model
from llama.config import preset
from llama.datasets.instructions import InstructionDataset
from llama.generation import Completion, SamplingConfig, generate
from llama.lora.swap import add_lora
from llama.lora.targets import LoRAConfig
from llama.merge import merge_and_save
from llama.tasks.instruction import InstructionTask
from llama.trainer import Trainer
from llama.training.optimizer import TrainConfig
from tests.parity.judges import Check, Judges
from tokenizer import bpe
from tokenizer.chat import FORMATS
from weights.convert import convert
from weights.formats.paths import home

JUDGE = "judge_deploy.py"
CHATS = [[{"role": "user", "content": text}] for text in ("你是谁？", "What is your name?", "介绍一下你自己。")]
CHATS += [[{"role": "system", "content": "Be brief."}, *CHATS[0]],
          [*CHATS[0], {"role": "assistant", "content": "我是小驼。"}, *CHATS[1]]]
NEW = 24


def checks(judges: Judges) -> Iterator[Check]:
    folder, file = judges.folder / "tuned", judges.folder / "tuned.gguf"
    tune(folder)
    convert(folder, file)
    model = load_model(folder)
    prompts = [FORMATS["chatml"].encode(chat, model.tokenizer, reply=True, apart=False)[0] for chat in CHATS]
    ours = [found.text for found in answers(model, prompts)]
    for name, path in (("transformers", folder), ("llama.cpp", file)):
        yield compared(ours, judges, name, path)
    if judges.vllm:
        own = judges.folder / "vllm"
        own.mkdir()
        with Judges(judges.vllm, own) as others:
            yield compared(ours, others, "vLLM", folder)


def compared(ours: list[str], judges: Judges, name: str, path: Path) -> Check:
    theirs = judges.ask(JUDGE, what=name.lower().replace(".", "_"), path=str(path), chats=CHATS, new=NEW)
    differ = sum(a.strip() != b.strip() for a, b in zip(ours, theirs, strict=True))
    return Check("a tuned and merged model: what it says in a chat", name, f"{len(CHATS)} chats", f"{differ} differ",
                 not differ and all(text.strip() for text in ours))


def answers(model: torch.nn.Module, prompts: list[list[int]]) -> list[Completion]:
    return generate(model, prompts, tokenizer=model.tokenizer, sampling=SamplingConfig(temperature=0.0),
                    max_new_tokens=NEW)


def tune(folder: Path) -> None:
    """A model of a million parameters that has read the examples, with an adapter in it that learned them further."""
    data = InstructionDataset(home() / "examples" / "identity.jsonl")
    texts = [message["content"] for example in data for message in example["messages"]]
    tokenizer = bpe.train(texts, 800, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.chat_template = FORMATS["chatml"].template
    torch.manual_seed(0)
    model = PretrainedLlama(preset("tiny-1m", vocab_size=tokenizer.vocab_size), tokenizer)
    task = InstructionTask(max_length=128)
    Trainer(model, task, data, config=TrainConfig(max_steps=100, batch_size=16, lr=4e-3, epochs=20)).train()
    add_lora(model, LoRAConfig(rank=4), generator=torch.Generator().manual_seed(0))
    Trainer(model, task, data, config=TrainConfig(max_steps=20, batch_size=16, lr=5e-3, epochs=20)).train()
    merge_and_save(model, folder)
