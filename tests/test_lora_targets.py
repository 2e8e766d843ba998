import json
import re
from pathlib import Path

import pytest

from llama.lora.peft_folder import ABOUT, NOT_BUILT, READ, config_from_peft
from llama.lora.targets import LoRAConfig, drop_missing, select_modules
from weights.formats.huggingface import stored_name

PEFT = Path(__file__).parent / "fixtures" / "peft"                 # written by python -m tests.parity.variants
CHOSEN = json.loads((PEFT / "chosen.json").read_text(encoding="utf-8"))
LINEAR = [f"layers.{i}.{name}_proj" for i in range(2)
          for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")]
LINEAR += ["lm_head"]
PATHS = ["embed_tokens", "layers", *(f"layers.{i}{name}" for i in range(2) for name in (
    "", ".self_attn", ".mlp", ".input_layernorm", ".post_attention_layernorm")), "norm", *LINEAR]


@pytest.mark.parametrize("rule", CHOSEN, ids=[json.dumps(rule["options"])[:60] for rule in CHOSEN])
def test_two_ways_chosen_modules_are_those_of_peft(rule):
    """Modules, ranks and scales as peft gave them for the same rule; None where it refused."""
    try:
        config = drop_missing(config_from_peft({"r": 8, "lora_alpha": 8, **rule["options"]}, "here"), PATHS)
        adapted, _ = select_modules(config, PATHS, LINEAR, tied=False)
    except ValueError:
        assert rule["modules"] is None
        return
    assert {stored_name(f"{path}.weight").removesuffix(".weight"): [config.rank_of(path), config.scale_of(path)]
            for path in adapted} == rule["modules"]


def test_property_every_key_of_peft_is_known():
    """A key that is new in a later peft would be refused where it is set, but not said to be what it is."""
    defaults = json.loads((PEFT / "defaults.json").read_text(encoding="utf-8"))
    assert defaults.keys() <= READ | ABOUT | NOT_BUILT.keys()
    assert not any(defaults[key] for key in NOT_BUILT)


@pytest.mark.parametrize("change, words", [
    ({"targets": "q_proj"}, "pattern 'q_proj' fits no module's whole name; a name here is model.layers.0.self_attn.q"),
    ({"targets": ".*mlp.*"}, "fits model.layers.0.mlp, which is no linear layer"),
    ({"targets": ".*(q_proj"}, "'.*(q_proj' is no regular expression"),
    ({"targets": ("q_proj",), "exclude": ("q_proj",)}, "are all excluded"),
    ({"targets": ("q_proj",), "layers": (7,)}, "are all excluded .*layers (7,)"),
    ({"targets": "all-linear", "layers": (0,)}, "layers goes with targets by name, not with 'all-linear'"),
    ({"layers": (-1,)}, "layers is -1; it must be"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern is {'q_proj': 0}"),
    ({"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern is {'q_proj': '8'}"),
    ({"alpha_pattern": {"(": 8}}, "alpha_pattern: '(' is no regular"),
    ({"exclude": "["}, "exclude: '[' is no regular"),
    ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'"),
])
def test_refusal_rules_that_fit_nothing_or_contradict(change, words):
    with pytest.raises(ValueError, match=re.escape(words).replace(r"\.\*", ".*")):
        select_modules(LoRAConfig(**change), PATHS, LINEAR, tied=False)


@pytest.mark.parametrize("rule", [{"targets": "(.+)+x"}, {"exclude": "((a|o|.)*)*x"}, {"rank_pattern": {"(.+)+x": 4}}])
def test_refusal_of_patterns_that_never_end(rule, monkeypatch):
    monkeypatch.setattr("llama.lora.targets._PATIENCE", 0.5)
    with pytest.raises(ValueError, match=r"the patterns .* did not come to an end within 0.5 s"):
        select_modules(LoRAConfig(**rule), PATHS, LINEAR, tied=False)
