"""Every variant of LoRA that is built here: made by peft and loaded here, saved here and loaded there, merged by both.

The same answers of peft lie in tests/fixtures/peft, so that `make test` asks about the same facts without peft:

    python -m tests.parity.variants --judges .venv-parity/bin/python

writes them anew: a tiny model, a folder for each variant with the logits that peft computes, which modules peft chooses
by what rules, and the keys of its configuration.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from llama.checkpoint import PretrainedLlama, load_model, save_model
from llama.config import LlamaConfig
from llama.lora import add_lora, load_adapter, merge_lora, peft_folder, save_adapter
from llama.lora.layers import LoRALinear
from llama.lora.swap import wrappers
from llama.lora.targets import drop_missing
from llama.model import Llama
from tests.parity.judges import Check, Judges
from weights.formats.huggingface import stored_name

FIXTURES = Path(__file__).parent.parent / "fixtures" / "peft"
SHAPE = LlamaConfig(vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True)
IDS = [(7 * i * i + 3) % 48 for i in range(24)]
BOUND = 5e-5            # of logits that reach tens: sums over a head that was drawn anew differ by 1.4e-5 at times

VARIANTS = {
    "plain": {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["v_proj"]},
    "dora": {"r": 2, "use_dora": True, "target_modules": ["k_proj", "up_proj"]},
    "dora-rslora-dropout": {"r": 3, "use_dora": True, "use_rslora": True, "lora_dropout": 0.1,
                            "target_modules": ["o_proj"]},
    "patterns": {"r": 2, "lora_alpha": 4, "target_modules": r".*\.(q|v)_proj", "use_rslora": True,
                 "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 3, "v_proj": 1},
                 "alpha_pattern": {"self_attn.v_proj": 7}},
    "layers": {"r": 2, "target_modules": ["q_proj", "gate_proj"], "layers_to_transform": [1],
               "layers_pattern": "layers"},
    "all-linear-but": {"r": 1, "target_modules": "all-linear", "exclude_modules": ["mlp.up_proj", "k_proj", "v_proj"]},
    "head": {"r": 2, "target_modules": ["q_proj", "lm_head"]},
    "head-dora": {"r": 2, "use_dora": True, "target_modules": ["lm_head"]},
    "embeddings-alone": {"r": 1, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head-alone": {"r": 1, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both-tied": {"r": 1, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"],
                  "ensure_weight_tying": True},
    "rows": {"r": 1, "target_modules": ["q_proj"], "trainable_token_indices": [3, 40, 47]},
    "only-rows": {"token_indices": [3, 40, 47], "target_modules": ["embed_tokens"]},
    "mica": {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": "mica"},
}

# Merging these, peft 0.21.2 writes the head's part into the embeddings, too, since they are one tensor: its merged
# model is not its model with the adapter. Here the merged model must equal the latter.
MERGED_AWRY = ("head", "head-dora")

RULES = [
    {"target_modules": ["q_proj", "mlp.up_proj"]},
    {"target_modules": ["proj"]},
    {"target_modules": ["layers.1.self_attn.q_proj", "v_proj"], "layers_to_transform": [0]},
    {"target_modules": ["model.layers.1.self_attn.q_proj", "v_proj"], "layers_to_transform": [0]},
    {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": 1},
    {"target_modules": ["q_proj"], "layers_to_transform": []},
    {"target_modules": ["q_proj"], "layers_to_transform": [0, 1], "layers_pattern": ["layers"]},
    {"target_modules": "q_proj"},
    {"target_modules": ".*q_proj"},
    {"target_modules": r"model\.layers\.0\..*_proj"},
    {"target_modules": r"layers\.0\..*_proj"},
    {"target_modules": r".*\.mlp\.(gate|up)_proj|lm_head"},
    {"target_modules": ".*mlp.*"},
    {"target_modules": "all-linear"},
    {"target_modules": "All-Linear", "exclude_modules": r".*layers\.1.*"},
    {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["self_attn.k_proj"]},
    {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["attn.k_proj"]},
    {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]},
    {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]},
    {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, "proj": 3, r"layers\.0\.mlp\..*": 4},
     "alpha_pattern": {r"model\.layers\.1\..*": 5, "up_proj": 6}},
    {"target_modules": "all-linear", "rank_pattern": {".*": 5, "q_proj": 2}, "use_rslora": True},
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2, "_proj": 7}},
]


def checks(judges: Judges) -> Iterator[Check]:
    base = build(judges.folder / "variants")
    positions = f"{len(IDS)} positions"
    for name, options in VARIANTS.items():
        folder = judges.folder / f"variant-{name}"
        theirs = judges.ask("judge_adapters.py", what="make", folder=str(base), options=options, ids=IDS,
                            adapter=str(folder))
        model = load_model(base)
        load_adapter(model, folder)
        worst = compare(model, theirs, name)
        yield Check(f"adapter, {name}: theirs here, merged too", "peft", positions, f"Δ {worst:.1e}", worst < BOUND)

        model = load_model(base)
        load_adapter(model, folder)
        again = judges.folder / f"variant-{name}-again"
        stir(model)
        save_adapter(model, again)
        theirs = judges.ask("judge_adapters.py", what="merged", folder=str(base), adapter=str(again), ids=IDS)
        worst = compare(model, theirs, name)
        yield Check(f"adapter, {name}: ours there, merged too", "peft", positions, f"Δ {worst:.1e}", worst < BOUND)

    theirs = judges.ask("judge_adapters.py", what="targets", folder=str(base), options=RULES)
    differ = [rule for rule, modules in zip(RULES, theirs, strict=True) if chosen_here(rule) != modules]
    yield Check("adapters: modules chosen, ranks, scales", "peft", f"{len(RULES)} rules", f"{len(differ)} differ",
                not differ)
    keys = judges.ask("judge_adapters.py", what="defaults").keys()
    unknown = keys - peft_folder.READ - peft_folder.ABOUT - peft_folder.NOT_BUILT.keys()
    yield Check("adapters: keys of the configuration", "peft", f"{len(keys)} keys", f"{len(unknown)} unknown",
                not unknown)


@torch.no_grad()
def build(folder: Path) -> Path:
    """The tiny model, saved; its numbers are large enough that an adapter in the wrong place shows in the logits."""
    model = PretrainedLlama(SHAPE)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.dim() == 1))
    save_model(model, folder)
    return folder


@torch.no_grad()
def stir(model: Llama) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += torch.randn(parameter.shape, generator=generator) * 0.05


def compare(model: Llama, theirs: dict[str, torch.Tensor], name: str) -> float:
    """Largest difference of logits with the adapter, and of logits and matrices once it is merged, in both."""
    worst = difference(model, theirs["logits"])
    merge_lora(model)
    if name in MERGED_AWRY:
        return max(worst, difference(model, theirs["logits"]))
    weights = {stored_name(name): parameter for name, parameter in model.named_parameters()}
    there = [difference_of(weights[name], theirs[name]) for name in weights.keys() & theirs.keys()]
    return max(worst, difference(model, theirs["merged"]), *there)


@torch.inference_mode()
def difference(model: Llama, theirs: torch.Tensor) -> float:
    return difference_of(model(torch.tensor([IDS]))[0], theirs)


def difference_of(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours - theirs).abs().max().item()


def chosen_here(options: dict) -> dict[str, list[float]] | None:
    """{module: [rank, scale]} for a rule of `RULES`, or None where it is refused."""
    model = PretrainedLlama(SHAPE)
    try:
        config = peft_folder.config_from_peft({"r": 8, "lora_alpha": 8, **options}, "here")
        add_lora(model, drop_missing(config, [path for path, _ in model.named_modules()]))
    except ValueError:
        return None
    parts = {path: wrapper.adapters["default"] for path, wrapper in wrappers(model).items()
             if isinstance(wrapper, LoRALinear)}
    return {stored_name(f"{path}.weight").removesuffix(".weight"): [part.lora_A.shape[0], part.scale]
            for path, part in parts.items()}


def write_fixtures(judges: Judges) -> None:
    shutil.rmtree(FIXTURES, ignore_errors=True)
    base = build(FIXTURES / "base")
    for name, options in VARIANTS.items():
        theirs = judges.ask("judge_adapters.py", what="make", folder=str(base), options=options, ids=IDS,
                            adapter=str(FIXTURES / name))
        save_file({"logits": theirs["logits"]}, FIXTURES / name / "logits.safetensors")
        (FIXTURES / name / "README.md").unlink()                    # peft's empty model card
        path = FIXTURES / name / peft_folder.CONFIG
        config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": ""}
        path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    chosen = judges.ask("judge_adapters.py", what="targets", folder=str(base), options=RULES)
    (FIXTURES / "chosen.json").write_text(json.dumps(
        [{"options": options, "modules": modules} for options, modules in zip(RULES, chosen, strict=True)],
        indent=1) + "\n", encoding="utf-8")
    defaults = judges.ask("judge_adapters.py", what="defaults")
    (FIXTURES / "defaults.json").write_text(json.dumps(defaults, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.parity.variants", description="Write the fixtures anew.")
    parser.add_argument("--judges", required=True, metavar="PYTHON", help="one that has requirements-parity.txt")
    with tempfile.TemporaryDirectory() as temporary, Judges(parser.parse_args().judges, Path(temporary)) as asked:
        write_fixtures(asked)
