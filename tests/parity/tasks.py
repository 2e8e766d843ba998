"""Models with a head of labels in transformers' classes for them; adapters that bring one, ours in peft and back."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llama.checkpoint import PretrainedLlama, config_dict, load_model, save_model
from llama.config import LlamaConfig, preset
from llama.heads import HeadConfig, add_head, head_of
from llama.lora import LoRAConfig, add_lora, load_adapter, save_adapter
from llama.model import Llama
from llama.tasks.classification import ClassificationTask
from llama.tasks.labelled import Labelled, LabelledTask
from llama.tasks.question_answering import QuestionAnsweringTask
from llama.tasks.tagging import NERTask
from tests.parity import texts
from tests.parity.judges import Check, Judges
from tests.parity.variants import stir
from tokenizer import bpe

JUDGE = "judge_tasks.py"
TEXTS = ["The quick brown fox.", "天气很好，我们去公园。", "x", "Numbers 12345, and   spaces; 你好。"]
LABELS = {"sequence": ("差", "好", "mixed"), "tokens": ("O", "B-PER", "I-PER"), "spans": ("start", "end")}
TASKS: dict[str, type[LabelledTask]] = {"sequence": ClassificationTask, "tokens": NERTask,
                                        "spans": QuestionAnsweringTask}


def checks(judges: Judges) -> Iterator[Check]:
    tokenizer = bpe.train([texts.NEUTRAL], 512, special=("<|endoftext|>",))
    small = replace(preset("test"), tie_word_embeddings=False)
    shapes = {"Llama": small, "Llama, tied": replace(small, tie_word_embeddings=True),
              "Qwen 2": replace(small, qkv_bias=True)}
    cases = [(kind, shape, attention) for kind in LABELS for shape in shapes for attention in ("causal", "full")]
    cases += [("sequence", "Mistral", "causal"), ("spans", "Mistral", "causal")]
    shapes["Mistral"] = replace(small, sliding_window=8)
    for kind, shape, attention in cases:
        model = build(shapes[shape], tokenizer, HeadConfig(LABELS[kind], kind, attention))
        folder = judges.folder / f"{kind}-{shape}-{attention}"
        save_model(model, folder)
        yield compare(judges, f"head of {kind}, {shape}, {attention}: saved folder", load_model(folder), folder)
    yield from _pipeline(judges, judges.folder / "sequence-Llama-causal")
    for kind in LABELS:
        yield from _adapters(judges, kind, build(small, tokenizer, None), judges.folder / f"base-{kind}")


@torch.no_grad()
def build(shape: LlamaConfig, tokenizer: object, head: HeadConfig | None) -> Llama:
    """A random model whose numbers are large enough that whatever is in the wrong place shows."""
    torch.manual_seed(0)
    model = PretrainedLlama(shape).eval()
    model.tokenizer = tokenizer
    if head:
        add_head(model, head)
    for parameter in model.parameters():
        parameter += torch.randn_like(parameter) * 0.2
    return model


def compare(judges: Judges, what: str, model: Llama, folder: Path, *, adapter: str = "", against: str = "transformers",
            theirs: Tensor | None = None) -> Check:
    """Scores of ragged texts, ours as the task computes them in a batch."""
    ids = [model.tokenizer.encode(text) for text in TEXTS]
    head = head_of(model).config
    if theirs is None:
        theirs = judges.ask(JUDGE, what="scores", folder=str(folder), ids=ids, pad=model.tokenizer.eos_ids[0],
                            labels=list(head.labels), adapter=adapter,
                            **{"class": config_dict(model)["architectures"][0]})["scores"]
    whole = head.kind != "sequence"
    task = TASKS[head.kind](attention=head.attention)
    batch = LabelledTask.collate(task, [Labelled(row, [whole] * (len(row) - 1) + [True]) for row in ids])
    ours = task.scores(model, batch)
    if whole:
        theirs = torch.cat([rows[: len(row)] for rows, row in zip(theirs, ids, strict=True)])
    worst = (ours - theirs).abs().max().item()
    return Check(what, against, f"{len(ours)} rows", f"Δ {worst:.1e}", worst < 1e-4)


def _pipeline(judges: Judges, folder: Path) -> Iterator[Check]:
    theirs = judges.ask(JUDGE, what="pipeline", folder=str(folder), texts=TEXTS)
    ours = ClassificationTask().detailed(load_model(folder), TEXTS)
    differ = sum(mine["predicted"] != label for mine, (label, _) in zip(ours, theirs, strict=True))
    worst = max(abs(mine["confidence"] - score) for mine, (_, score) in zip(ours, theirs, strict=True))
    yield Check("head of sequence: labels of texts by the pipeline", "transformers", f"{len(TEXTS)} texts",
                f"{differ} differ, Δ {worst:.1e}", not differ and worst < 1e-4)


def _adapters(judges: Judges, kind: str, model: Llama, base: Path) -> Iterator[Check]:
    """On a plain base; for answers on one with a head, for else transformers' class finds none of its weights."""
    head, ids = HeadConfig(LABELS[kind], kind), model.tokenizer.encode(TEXTS[1])
    if kind == "spans":
        add_head(model, head)
    save_model(model, base)
    model = load_model(base)
    if kind != "spans":
        add_head(model, head)
    add_lora(model, LoRAConfig(rank=4, targets=("q_proj", "down_proj")))
    stir(model)
    ours, name = judges.folder / f"adapter-{kind}", config_dict(model)["architectures"][0]
    save_adapter(model, ours)
    again = load_model(base)
    load_adapter(again, ours)
    yield compare(judges, f"adapter with a head of {kind}: ours there", again, base, adapter=str(ours), against="peft")

    there = judges.folder / f"adapter-{kind}-theirs"
    theirs = judges.ask(JUDGE, what="adapter", folder=str(base), labels=list(head.labels), adapter=str(there), ids=ids,
                        **{"class": name})["scores"]
    again = load_model(base)
    load_adapter(again, there)
    with torch.inference_mode():
        rows = again(torch.tensor([ids]))
    worst = ((rows[:, -1] if kind == "sequence" else rows) - theirs).abs().max().item()
    yield Check(f"adapter with a head of {kind}: theirs here", "peft", f"{len(ids)} positions", f"Δ {worst:.1e}",
                worst < 1e-4)
