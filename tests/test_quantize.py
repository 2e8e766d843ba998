"""Models in 8 and 4 bits: the swap and its inverse, folders, GGUF's blocks, LoRA on top, the command."""

import json
import sys
import weakref
from copy import deepcopy

import pytest
import torch
from conftest import TEXT, matrix, same_choices

import finetune
from llama import quantize
from llama.cache import KVCache
from llama.checkpoint import fingerprint, load_model, plain_tensors, save_model
from llama.commands import flags
from llama.lora import LoRAConfig, add_lora, load_adapter, merge_lora, save_adapter
from llama.merge import merge_report
from llama.quantization import layers, swap
from llama.quantization.layers import GroupedInt8Linear, Int4Linear, Int8Linear, Quantized
from llama.quantization.loading import iter_quantized
from llama.quantize import dequantize, is_quantized
from llama.training.verify_saved import prove_adapter, prove_model
from weights.convert import convert
from weights.formats.quantized_matrix import QuantizedMatrix
from weights.formats.sources import open_source

BITS = pytest.mark.parametrize("bits", [8, 4])
TOKENS = torch.arange(24).reshape(2, 12) * 5 % 300


@pytest.fixture
def folder(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "floats")
    return tmp_path / "floats"


def stored(model):
    return {name: tensor.clone() for name, tensor in plain_tensors(model).items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- the swap --------------------------------------------------------------------------------------------------------


@BITS
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_two_ways_quantised_model_equals_its_dequantised_one(bits, tied, tiny_model):
    if not tied:
        tiny_model.config = deepcopy(tiny_model.config)
        object.__setattr__(tiny_model.config, "tie_word_embeddings", False)
        tiny_model.lm_head.weight = torch.nn.Parameter(matrix(tiny_model.config.vocab_size, 32) * 0.1)
    floats = tiny_model(TOKENS)
    errors = quantize.quantize(tiny_model, bits=bits)
    quantised = tiny_model(TOKENS)
    assert is_quantized(tiny_model) and ("lm_head" in errors) != tied
    assert max(errors.values()) < {8: 0.01, 4: 0.09}[bits] and errors["embed_tokens"] < 0.01
    assert (quantised - floats).abs().max() < {8: 0.02, 4: 0.2}[bits] * floats.abs().max()
    assert (tiny_model.lm_head.weight is tiny_model.embed_tokens.weight) == tied
    dequantize(tiny_model)
    assert not is_quantized(tiny_model)
    assert (tiny_model.lm_head.weight is tiny_model.embed_tokens.weight) == tied
    torch.testing.assert_close(tiny_model(TOKENS), quantised, atol=1e-5, rtol=0)


@BITS
def test_property_layers_under_adapters_are_rounded_as_without(bits, tiny_model):
    plain = deepcopy(tiny_model)
    quantize.quantize(plain, bits=bits)
    add_lora(tiny_model, LoRAConfig(targets=("v_proj", "lm_head")))
    quantize.quantize(tiny_model, bits=bits)
    found = {path.removesuffix(".base"): type(layer) for path, layer in tiny_model.named_modules()
             if isinstance(layer, Quantized)}
    assert found == {path: type(layer) for path, layer in plain.named_modules() if isinstance(layer, Quantized)}
    assert found["lm_head"] is GroupedInt8Linear


def test_property_8_bits_have_a_scale_a_row_only_where_columns_fill_no_groups(tiny_model):
    tiny_model.layers[0].mlp.down_proj = torch.nn.Linear(72, 32, bias=False)        # 72 columns are no groups of 32
    quantize.quantize(tiny_model, bits=8)
    coarse = {path for path, layer in tiny_model.named_modules() if type(layer) is Int8Linear}
    assert coarse == {"layers.0.mlp.down_proj"}


@BITS
def test_property_tied_layers_stay_one_wherever_the_model_goes(bits, tiny_model):
    quantize.quantize(tiny_model, bits=bits)
    for model in (tiny_model.to(torch.bfloat16), deepcopy(tiny_model), tiny_model.float()):
        assert model.lm_head.weight is model.embed_tokens.weight and model.lm_head.scale is model.embed_tokens.scale
    assert tiny_model.dtype == torch.float32 and tiny_model(TOKENS).dtype == torch.float32


def test_property_a_layer_at_a_time(tiny_model, monkeypatch):
    """The old matrices go as the new ones come, forwards and back."""
    alive = weakref.WeakSet(module.weight for module in tiny_model.modules() if isinstance(module, torch.nn.Linear))
    left = []
    install = swap.replace_layer
    monkeypatch.setattr(swap, "replace_layer", lambda *given: left.append(len(alive)) or install(*given))
    quantize.quantize(tiny_model, bits=8, report=False)
    assert left[2:] == list(range(len(left) - 2, 0, -1))            # the embedding's went with the head's, both last


@BITS
def test_two_ways_token_by_token_in_bfloat16_equals_the_readable_path(bits, tiny_model):
    """Kernels, bfloat16 and a cache against the weights that are meant, in float32, the whole text at once.

    Both within bfloat16's 8 bits of each of some ten products in a row; kernels of 4 bits round weights so, too.
    """
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(3 if parameter.dim() == 2 else 1)        # so that tokens differ in what they say
    quantize.quantize(tiny_model, bits=bits)
    plain, fast = deepcopy(tiny_model), tiny_model.to(torch.bfloat16)
    dequantize(plain, dtype=torch.float32)
    text = torch.arange(1, 121)[None] * 37 % 300
    cache = KVCache(fast.config, 1, 120, dtype=torch.bfloat16, device="cpu")
    with torch.inference_mode():
        ours = torch.cat([fast(piece, cache=cache) for piece in text.split([40] + [1] * 60 + [5] * 4, dim=1)], dim=1)
        theirs = plain(text)
    torch.testing.assert_close(ours.float(), theirs, atol=0.05 * theirs.abs().max().item(), rtol=0)
    same_choices(ours, theirs, gap=0.05)


def test_refusal_of_what_cannot_be_quantised(tiny_model):
    with pytest.raises(ValueError, match="bits is 5; weights are quantised to 8 or 4"):
        quantize.quantize(tiny_model, bits=5)
    quantize.quantize(tiny_model, bits=8)
    with pytest.raises(ValueError, match="quantised already; quantise the one that it was made from"):
        quantize.quantize(tiny_model, bits=8)
    with pytest.raises(ValueError, match="q_proj has 40 columns, no multiple of 32; 4 bits need that, so take 8"):
        swap.quantize_weight("q_proj", matrix(4, 40), 4)
    with pytest.raises(ValueError, match="q_proj: the largest weight is inf"):
        swap.quantize_weight("q_proj", matrix() / 0, 8)


# ---- folders ---------------------------------------------------------------------------------------------------------


@BITS
@pytest.mark.parametrize("name", ["model", "model.pt"])
def test_two_ways_saved_and_loaded(bits, name, tiny_model, tmp_path, capsys):
    quantize.quantize(tiny_model.to(torch.bfloat16), bits=bits)
    save_model(tiny_model, tmp_path / name)
    again = load_model(tmp_path / name)
    assert same(stored(again), stored(tiny_model)) and again.dtype == torch.bfloat16
    assert torch.equal(again(TOKENS), tiny_model(TOKENS))
    assert again.lm_head.weight is again.embed_tokens.weight
    prove_model(again, tmp_path / name)
    with torch.no_grad():
        tiny_model.layers[1].mlp.up_proj.scale[1] *= 2
    with pytest.raises(RuntimeError, match=r"does not hold the model in memory: layers.1.mlp.up_proj.scale differs"):
        prove_model(tiny_model, tmp_path / name)


def test_worked_example_config_tells_other_tools(tiny_model, tmp_path):
    """Without `quant_method` transformers refuses; with an unknown one it would load whole numbers as weights."""
    quantize.quantize(tiny_model, bits=4)
    save_model(tiny_model, tmp_path / "q")
    config = json.loads((tmp_path / "q" / "config.json").read_bytes())
    assert config["quantization_config"] == {"method": "int4-in-groups", "bits": 4, "dtype": "float32",
                                             "fingerprint": ""}
    assert config["torch_dtype"] == "float32"


@BITS
def test_two_ways_rounded_while_loading_and_afterwards(bits, folder):
    model = load_model(folder)
    errors = quantize.quantize(model, bits=bits)
    told = {}
    loaded = load_model(folder, bits=bits, errors=told)
    assert same(stored(loaded), stored(model)) and told == errors


def test_property_one_float_matrix_at_a_time(folder, monkeypatch):
    source, alive, read = open_source(folder), weakref.WeakSet(), None
    read = source.read

    def watched(name):
        tensor = read(name)
        if tensor.dim() == 2:
            assert not alive, name
            alive.add(tensor)
        return tensor

    source.read = watched
    assert sum(isinstance(tensor, QuantizedMatrix) for _, tensor in iter_quantized(source, 8)) == 15


@BITS
def test_two_ways_converted_to_floats_and_dequantised(bits, tiny_model, tmp_path):
    """All that reads model folders reads these, as numbers."""
    quantize.quantize(tiny_model, bits=bits)
    save_model(tiny_model, tmp_path / "q")
    dequantize(tiny_model)
    assert same(stored(load_model(convert(tmp_path / "q", tmp_path / "plain"))), stored(tiny_model))


def test_refusal_of_other_bits_than_the_folder_has(tiny_model, tmp_path):
    quantize.quantize(tiny_model, bits=8)
    save_model(tiny_model, tmp_path / "q")
    assert same(stored(load_model(tmp_path / "q", bits=8)), stored(tiny_model))
    with pytest.raises(ValueError, match="holds 8 bits a weight and cannot be had in 4; take the model"):
        load_model(tmp_path / "q", bits=4)


# ---- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing, bits", [("Q8_0", 8), ("Q4_0", 4), ("Q4_1", 4)])
def test_two_ways_blocks_of_a_gguf_are_kept_as_they_are(packing, bits, folder, tmp_path):
    """Bit for bit what the file's own unpacking gives; of 4-bit files embedding and head are Q8_0, and stay so."""
    source = open_source(convert(folder, tmp_path / "x.gguf", quantization=packing))
    told = {}
    model = load_model(source.path, bits=bits, errors=told)
    assert not told
    layers = {path: module for path, module in model.named_modules() if isinstance(module, Quantized)}
    assert len(layers) == 16 and isinstance(model.layers[0].self_attn.q_proj, Int8Linear if bits == 8 else Int4Linear)
    for path, module in layers.items():
        name = path.replace("lm_head", "embed_tokens") + ".weight"
        assert torch.equal(module.dequantized(), source.read(name)), name
    torch.testing.assert_close(model(TOKENS), load_model(source.path)(TOKENS), atol=1e-5, rtol=0)
    if packing != "Q8_0":                                           # the floats that it became give the same again
        rounded = load_model(convert(source.path, tmp_path / "unpacked"), bits=bits)
        assert all(torch.equal(module.dequantized(), rounded.get_submodule(path).dequantized())
                   for path, module in layers.items())


def test_property_a_gguf_in_more_bits_is_rounded(folder, tmp_path):
    told = {}
    model = load_model(convert(folder, tmp_path / "x.gguf", quantization="Q8_0"), bits=4, errors=told)
    assert len(told) == 14 and isinstance(model.lm_head, Int8Linear)                # embeddings in 8 bits were kept
    assert min(told.values()) > 0.01


@pytest.mark.parametrize("packing", ["Q4_0", "Q4_1", "Q5_0", "Q8_0"])
def test_property_what_few_bits_hold_exactly_is_held_so_and_nothing_else(packing, folder, tmp_path):
    """In a GGUF as in the floats that it became, of which those of Q5_0 are not known again."""
    gguf = convert(folder, tmp_path / "x.gguf", quantization=packing)
    for source in (gguf, *([] if packing == "Q5_0" else [convert(gguf, tmp_path / "unpacked")])):
        model, floats = load_model(source, lossless=True), load_model(source)
        kinds = [type(module) for module in model.modules() if isinstance(module, layers.Quantized)]
        assert len(kinds) == 16 and kinds.count(Int4Linear if packing[1] == "4" else GroupedInt8Linear) >= 14
        assert not is_quantized(floats)
        swap.dequantize(model)
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), floats.parameters(), strict=True))
    assert not is_quantized(load_model(folder, lossless=True))


# ---- LoRA ------------------------------------------------------------------------------------------------------------


@BITS
@pytest.mark.parametrize("config", [LoRAConfig(rank=2), LoRAConfig(rank=2, dora=True)], ids=["lora", "dora"])
def test_two_ways_lora_on_quantised_equals_lora_on_dequantised(bits, config, tiny_model):
    quantize.quantize(tiny_model, bits=bits)
    plain = deepcopy(tiny_model)
    dequantize(plain)
    gradients, outputs = [], []
    for model in (tiny_model, plain):
        add_lora(model, config, generator=torch.Generator().manual_seed(0))
        learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert all(".adapters." in name for name in learning)
        with torch.no_grad():
            for number, parameter in enumerate(learning.values()):
                parameter += matrix(1, parameter.numel(), seed=number).view(parameter.shape) * 0.05
        outputs.append(model(TOKENS))
        outputs[-1].square().sum().backward()
        gradients.append([parameter.grad for parameter in learning.values()])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=0)


def test_two_ways_an_adapter_learned_on_few_bits_fits_the_floats_and_the_folder(folder, tmp_path):
    """All three are one base by their fingerprint, and the adapter records where it was learned."""
    model = load_model(folder, bits=8)
    save_model(model, tmp_path / "q")
    add_lora(model, LoRAConfig(rank=2))
    save_adapter(model, tmp_path / "a")
    prove_adapter(model, tmp_path / "a")
    assert fingerprint(tmp_path / "q") == fingerprint(folder)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == str(folder)
    for base in (load_model(folder), load_model(tmp_path / "q")):
        load_adapter(base, tmp_path / "a")
    merged = load_model(folder)
    load_adapter(merged, tmp_path / "a")
    merge_lora(merged, keep_undo=False)
    assert quantize.quantize(merged, bits=8)


def test_refusal_of_merging_into_few_bits_and_learning_them_whole(tiny_model, tmp_path):
    quantize.quantize(tiny_model, bits=8)
    with pytest.raises(ValueError, match="embed_tokens is quantised, so there are no floats to learn whole"):
        add_lora(tiny_model, LoRAConfig(rank=2, modules_to_save=("embed_tokens",)))
    add_lora(tiny_model, LoRAConfig(rank=2))
    for merge in (merge_lora, merge_report):
        with pytest.raises(ValueError, match="q_proj is a GroupedInt8Linear, .* put it on the model in floats, merge"):
            merge(tiny_model)
    with pytest.raises(ValueError, match="merge its adapter"):
        save_model(tiny_model, tmp_path / "m")


# ---- doors -----------------------------------------------------------------------------------------------------------


def call(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    main()


@BITS
def test_worked_example_the_command(bits, folder, tmp_path, monkeypatch, capsys):
    call(monkeypatch, quantize.main, "--model", folder, "--bits", bits, "--output", tmp_path / "q", "--json")
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["output"] == str(tmp_path / "q") and len(report["errors"]) == 15
    assert "the same text as before saving" in err and "layers.1.mlp.down_proj" in err + out
    assert err.splitlines()[-9].split() == ["layers", "mean", "error", "largest"]
    assert is_quantized(load_model(tmp_path / "q"))
    with pytest.raises(ValueError, match="q exists already; give --overwrite to replace it"):
        call(monkeypatch, quantize.main, "--model", folder, "--bits", bits, "--output", tmp_path / "q")


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_property_every_door_takes_quantize(how, folder):
    chosen = flags.ModelFlags(model=str(folder), quantize=how)
    model = flags.load(chosen, purpose="find")
    assert swap.bits_of(model) == chosen.bits == int(how[3:])
    assert model.dtype == flags.choose_dtype("auto", torch.device("cpu"), purpose="find")


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_property_to_write_few_bits_become_floats_where_no_step_reads_them(how, folder, monkeypatch, capsys):
    """Who has no room for floats keeps the bits, and is told what that costs."""
    chosen = flags.ModelFlags(model=str(folder), quantize=how, dtype="float32")
    expected, tokens = flags.load(chosen, purpose="measure"), torch.arange(9)[None]
    model = flags.load(chosen, purpose="generate")
    assert not swap.is_quantized(model) and "the weights are unpacked once, " in capsys.readouterr().err
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens), expected(tokens), atol=1e-4, rtol=1e-4)
    monkeypatch.setattr(flags, "free_memory", lambda device: 1e5)
    assert swap.bits_of(flags.load(chosen, purpose="generate")) == chosen.bits
    assert "each token unpacks all weights" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["int8", "int4"])
def test_property_finetune_learns_on_few_bits(how, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text("\n\n".join(TEXT), encoding="utf-8")
    call(monkeypatch, finetune.main, "--model", folder, "--quantize", how, "--lora", "--task", "generation", "--data",
         tmp_path / "text.txt", "--max-length", 32, "--epochs", 20, "--lr", 0.02, "--output", tmp_path / "a")
    out, err = capsys.readouterr()
    losses = [json.loads(line) for line in open(tmp_path / "a.training" / "metrics.jsonl", encoding="utf-8")]
    losses = [line["loss"] for line in losses if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert f"--model {folder} --quantize {how}" in err and "the same tensors, logits" in err


@pytest.mark.parametrize("more, words", [
    ([], "few bits do not learn; add --lora, or leave it out"),
    (["--lora", "--merge"], "--merge cannot fold an adapter into int8 weights; leave it out"),
], ids=["no lora", "merge"])  # fmt: skip
def test_refusal_of_tuning_few_bits(more, words, monkeypatch):
    with pytest.raises(ValueError, match=words):
        call(monkeypatch, finetune.main, "--quantize", "int8", *more)


def test_refusal_of_tuning_a_folder_in_few_bits(tiny_model, tmp_path, monkeypatch):
    quantize.quantize(tiny_model, bits=8)
    save_model(tiny_model, tmp_path / "q")
    for more in ([], ["--lora", "--merge"]):
        with pytest.raises(ValueError, match="a quantised model does not learn, and nothing can be merged into it"):
            call(monkeypatch, finetune.main, "--model", tmp_path / "q", "--output", tmp_path / "o", *more)
