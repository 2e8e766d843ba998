"""The compiled step: equal to the model in every type of weight, for every variant it takes; refusals in words."""

import hashlib
import os
import shutil
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import same_choices

import llama
from llama.cache import KVCache
from llama.checkpoint import PretrainedLlama
from llama.config import RopeScaling, preset
from llama.fast import compiled_step
from llama.fast.compiled_step import MAX_TOKENS, CompiledStep, compile_step
from llama.generation import generate
from llama.lora import LoRAConfig, add_lora
from llama.masks import causal_mask
from llama.quantization import swap
from llama.quantization.layers import QuantizedLinear
from llama.quantize import quantize
from llama.sampling import SamplingConfig
from llama.serve.batch import Batch, Request

TINY = preset("test", hidden_size=64, intermediate_size=96, vocab_size=118)
VARIANTS = {
    "grouped queries, tied": TINY,
    "untied, multi-head": replace(TINY, tie_word_embeddings=False, num_key_value_heads=4),
    "one key-value head, wide heads": replace(TINY, num_key_value_heads=1, head_dim=32),
    "window": replace(TINY, sliding_window=7, tie_word_embeddings=False),
    "biases": replace(TINY, attention_bias=True),
    "Qwen's biases": replace(TINY, qkv_bias=True),
    "yarn": replace(TINY, rope_scaling=RopeScaling("yarn", 4.0, original_max_position_embeddings=64)),
}  # fmt: skip

WHERE = compiled_step._cache_folder                                  # which a fixture replaces for the other tests
STEPS = (1,) * 20 + (3, 5, 8, 4, 1)                                  # tokens that run at a time, behind a prompt

# What compilers call processors, and a feature in /proc/cpuinfo without which their code cannot run.
PROCESSORS = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512vl"}

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here")


@pytest.fixture(scope="module")
def place(tmp_path_factory, module_patch):
    """One folder for all libraries of this file: models of equal shape share one."""
    folder = tmp_path_factory.mktemp("compiled")
    module_patch.setattr(compiled_step, "_cache_folder", lambda: folder)
    return folder


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def tiny(config=TINY, *, dtype=torch.float32):
    torch.manual_seed(0)
    model = PretrainedLlama(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.5 if name.endswith("bias") else 0.2)
                            + (1.0 if name.endswith("norm.weight") else 0.0))
    return model.to(dtype).eval()


def both(model, *, prompt=9, steps=(1, 1, 3, 1, 5), cache_dtype=None, padding=(0, 0), slots=64):
    """Logits of the same tokens by the compiled step and by the model, whose caches were filled alike."""
    B = len(padding)
    tokens = torch.randint(0, model.config.vocab_size, (B, prompt + sum(steps)))
    blank = torch.tensor(padding)
    outputs = []
    for step in (model.step, None):
        model.step = step
        cache = KVCache(model.config, B, slots, dtype=cache_dtype or model.dtype, device="cpu")
        decoder = DecoderFor(model, blank, cache)
        decoder.run(tokens[:, :prompt])
        rest, logits = tokens[:, prompt:], []
        for count in steps:
            logits.append(decoder.run(rest[:, :count]))
            rest = rest[:, count:]
        outputs.append(torch.cat(logits, dim=1))
    return outputs


def rounded(x):
    """What decode.cpp multiplies whole numbers by: 8 bits with a scale for 32 numbers, halves away from zero."""
    groups = x.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scale.clamp(min=1e-30)).abs().add(0.5).floor().copysign(groups) * scale).flatten(-2)


def round_inputs(model):
    """Let the layers of whole numbers round what they read, as the step does."""
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            layer.register_forward_pre_hook(lambda layer, inputs: (rounded(inputs[0]),))
    return model


def assert_rounded_alike(ours, theirs):
    """Equal but for the few numbers that lie half way between two and are rounded the other way."""
    apart = (ours - theirs).abs() / theirs.abs().max()
    assert apart.median() < 1e-5 and apart.max() < 2e-2, (apart.median(), apart.max())


class DecoderFor:
    """Both ways to run the next tokens of padded rows, with all their logits."""

    def __init__(self, model, padding, cache):
        self.model, self.padding, self.cache = model, padding, cache

    @torch.inference_mode()
    def run(self, tokens):
        step = self.model.step
        if step is not None and step.fits(tokens, self.cache):
            return step(tokens, padding=self.padding, cache=self.cache)
        from llama.masks import padding_mask
        T, S = tokens.shape[1], self.cache.length + tokens.shape[1]
        positions = (torch.arange(S - T, S) - self.padding[:, None]).clamp(min=0)
        return self.model(tokens, positions=positions, mask=padding_mask(self.padding, T, S), cache=self.cache)


@needs_compiler
@pytest.mark.parametrize("name", VARIANTS)
def test_two_ways_step_equals_model(name, place):
    model = tiny(VARIANTS[name])
    compile_step(model)
    ours, theirs = both(model, steps=STEPS)
    torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    same_choices(ours, theirs, gap=1e-4)


@needs_compiler
def test_two_ways_ragged_rows_equal_model(place):
    model = tiny()
    compile_step(model)
    ours, theirs = both(model, steps=(1, 1, 2), padding=(0, 5, 3))
    torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)


@needs_compiler
def test_two_ways_rolling_cache_equals_model(place, monkeypatch):
    monkeypatch.setattr("llama.cache.EVICTION_SLACK", 4)
    monkeypatch.setattr("llama.cache.ROLLBACK_SLOTS", 2)
    model = tiny(VARIANTS["window"])
    compile_step(model)
    ours, theirs = both(model, prompt=12, steps=(1, 3, 1, 2, 1, 1, 4, 1, 1, 1, 1, 1), padding=(0, 2), slots=64)
    torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)


@needs_compiler
@pytest.mark.parametrize("precise", (True, False))
@pytest.mark.parametrize("bits", (8, 4))
def test_two_ways_quantised_step_equals_model(bits, precise, place):
    model = tiny(replace(TINY, tie_word_embeddings=bits == 8))
    quantize(model, bits=bits)
    compile_step(model, precise=precise)
    assert "amx" in compiled_step._processor() or model.step.max_tokens > 1000
    ours, theirs = both(model if precise else round_inputs(model), steps=(*STEPS, 11))
    if precise:                                                     # the very numbers, up to 16 bits of activations
        torch.testing.assert_close(ours, theirs, atol=5e-4 * theirs.abs().max().item(), rtol=0)
        return same_choices(ours, theirs, gap=1e-3)
    assert_rounded_alike(ours, theirs)


@needs_compiler
@pytest.mark.parametrize("kind", ("float32", "bfloat16", "8 bits", "8 bits, a row", "4 bits"))
@pytest.mark.parametrize("processor", PROCESSORS)
def test_two_ways_step_of_every_processor_equals_model(processor, kind, place, monkeypatch):
    """Each has products of its own (test_products.py); the largest weights and zeros are among these."""
    if PROCESSORS[processor] not in compiled_step._processor().split():
        pytest.skip(f"this processor has no {PROCESSORS[processor]}")
    monkeypatch.setattr(compiled_step, "FLAGS", tuple(
        f"-march={processor}" if flag == compiled_step.NATIVE else flag for flag in compiled_step.FLAGS))
    monkeypatch.setattr(compiled_step, "WIDE", "-DNOTHING")
    model = tiny(dtype=torch.bfloat16 if kind == "bfloat16" else torch.float32)
    with torch.no_grad():
        model.layers[0].mlp.down_proj.weight[:3] = torch.tensor([[1.0], [-1.0], [0.0]])
    if "bits" in kind:
        monkeypatch.setattr(swap, "GROUP", 10**6 if "row" in kind else swap.GROUP)      # columns that fill no group
        quantize(model, bits=int(kind[0]))
    compile_step(model)
    model.step.max_tokens = 99
    steps = (1, 3, 1, 21) if kind != "bfloat16" else (1, 3, 1)      # torch would round more and more
    ours, theirs = both(model, steps=steps, cache_dtype=torch.float32)
    bound = {"f": 1e-4, "b": 2e-2}.get(kind[0], 5e-4)               # beside bfloat16's rounding; beside that to 16 bits
    torch.testing.assert_close(ours.float(), theirs.float(), atol=bound * theirs.abs().max().item(), rtol=0)
    if "bits" in kind:
        compile_step(model, precise=False)
        model.step.max_tokens = 99
        assert_rounded_alike(*both(round_inputs(model), steps=(1, 3, 1, 31), cache_dtype=torch.float32))


@needs_compiler
@pytest.mark.parametrize("cache_dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("name", VARIANTS)
def test_two_ways_many_tokens_equal_few(name, cache_dtype, place):
    """A prompt in one go, in more lanes than go through a block together, beside its tokens a few at a time; then what
    is written behind it. Rows that are padding for long, and windows, hide most of what a block of queries meets."""
    model = tiny(replace(VARIANTS[name], max_position_embeddings=512))
    quantize(model, bits=8 if "tied" in name else 4)
    compile_step(model)
    model.step.max_tokens = 10**6
    padding, tokens = torch.tensor([0, 170, 31]), torch.randint(0, 118, (3, 187))
    logits = []
    for pieces in ((180,), (2,) * 90):
        cache = KVCache(model.config, 3, 200, dtype=cache_dtype, device="cpu")
        run = partial(model.step, padding=padding, cache=cache)
        found = torch.cat([run(piece) for piece in tokens[:, :180].split(pieces, dim=1)], dim=1)
        behind = torch.cat([run(tokens[:, 180:186]), run(tokens[:, 186:], count=1)], dim=1)
        logits.append(torch.cat([found[0], found[1, 170:], found[2, 31:], *behind]))
    bound = 2e-4 if cache_dtype == torch.float32 else 2e-2             # of bfloat16's rounding, which a hair can tip
    torch.testing.assert_close(*logits, atol=bound * logits[1].abs().max().item(), rtol=0)


@needs_compiler
def test_property_interrupted_while_rotary_tables_grow(place, monkeypatch):
    """Ctrl-C between new tables and what points at them: the next token finds tables all the same."""
    model, made = tiny(), []

    class Interrupted(tuple):
        def __iter__(self):
            made.append(self)
            raise KeyboardInterrupt

    compile_step(model)
    tokens, blank = torch.arange(4)[None], torch.zeros(1, dtype=torch.int64)
    run = partial(model.step, tokens, padding=blank)
    with monkeypatch.context() as patch:
        patch.setattr(compiled_step, "rotary_tables", lambda *_: Interrupted((torch.zeros(256, 32),) * 2))
        with pytest.raises(KeyboardInterrupt):
            run(cache=KVCache(model.config, 1, 8, dtype=torch.float32, device="cpu"))
    assert made
    found = run(cache=KVCache(model.config, 1, 8, dtype=torch.float32, device="cpu"))
    torch.testing.assert_close(found, model(tokens), atol=1e-4, rtol=0)


@needs_compiler
def test_property_logits_that_are_not_wanted_are_not_made(place):
    model = tiny()
    quantize(model, bits=4)
    compile_step(model)
    model.step.max_tokens = 10**6
    tokens, blank = torch.arange(2 * 300).view(2, 300) % 118, torch.zeros(2, dtype=torch.int64)
    made = []
    for count in (None, 3):
        cache = KVCache(model.config, 2, 300, dtype=torch.float32, device="cpu")
        made.append(model.step(tokens, padding=blank, cache=cache, count=count))
    assert made[1].shape == (2, 3, 118)
    torch.testing.assert_close(made[1], made[0][:, -3:], atol=1e-5, rtol=0)


@needs_compiler
@pytest.mark.parametrize("bits", (8, 4))
def test_property_no_number_is_not_rounded_to_one(bits, place):
    """NaN compares to nothing, so the largest of 32 numbers would be one of the others: logits as if all were well."""
    model = tiny()
    quantize(model, bits=bits)
    with torch.no_grad():
        model.norm.weight[5] = torch.nan
    compile_step(model)
    model.step.max_tokens = 99
    assert both(model, steps=(1, 3, 20))[0].isnan().all()


@needs_compiler
def test_two_ways_bfloat16_within_its_rounding(place):
    """The step keeps activations in float32, so it is nearer to the float32 model than torch's bfloat16 is."""
    model = tiny(dtype=torch.bfloat16)
    compile_step(model)
    exact = tiny().to(torch.bfloat16).float()                       # the same weights, computed in float32
    torch.manual_seed(1)
    ours, theirs = both(model, steps=STEPS)
    exact.step = None
    torch.manual_seed(1)
    reference = both(exact, steps=STEPS)[1]
    assert (ours - reference).abs().mean() < (theirs - reference).abs().mean()
    assert (ours - reference).abs().max() < 0.05 * reference.abs().max()                # the prompt ran through torch
    same_choices(ours, reference, gap=0.05)


@needs_compiler
def test_property_generation_with_and_without_is_one_text(place):
    model = tiny()
    tokenizer = Numbers(model.config.vocab_size)
    options = {"tokenizer": tokenizer, "sampling": SamplingConfig(temperature=0.0), "max_new_tokens": 12,
               "ignore_eos": True}
    prompts = [[5, 9, 2], [7, 1, 1, 3, 8]]
    plain = [row.token_ids for row in generate(model, prompts, **options)]
    compile_step(model)
    calls = []
    model.step.__class__ = type("Counted", (type(model.step),), {
        "__call__": lambda self, *a, **k: calls.append(1) or compiled_step.CompiledStep.__call__(self, *a, **k)})
    assert [row.token_ids for row in generate(model, prompts, **options)] == plain
    assert calls
    model.step = None
    assert model.step is None


@needs_compiler
def test_two_ways_requests_that_join_and_leave_share_compiled_steps(place):
    """Five of them, of other lengths and at other times; no step has more tokens than the compiled one takes."""
    model = tiny()
    model.tokenizer = Numbers(model.config.vocab_size)
    prompts, options = [[5, 9, 2], [7], [1, 3, 8, 4], [6, 2], [11, 12, 13]], {"max_new_tokens": 9, "ignore_eos": True}
    alone = [generate(model, [prompt], tokenizer=model.tokenizer, sampling=SamplingConfig(temperature=0.0),
                      **options)[0].text for prompt in prompts]
    compile_step(model)
    called, texts, batch = [], [""] * len(prompts), Batch(model, places=3)
    model.step.__class__ = type("Counted", (type(model.step),), {
        "__call__": lambda self, tokens, **k: called.append(len(tokens)) or compiled_step.CompiledStep.__call__(
            self, tokens, **k)})
    with torch.inference_mode():
        for i, prompt in enumerate(prompts):
            def add(piece, i=i):
                texts[i] += piece.text
            batch.waiting.append(Request(model, prompt, add, sampling=SamplingConfig(temperature=0.0), **options))
            batch.advance()
        while batch.busy:
            batch.advance()
    assert texts == alone
    assert max(called) == 3 and len(called) > 15


class Numbers:
    """A tokenizer whose pieces are the ids themselves."""

    eos_ids, adds_bos = (), False

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size

    def decode(self, ids, *, skip_special=False):
        return " ".join(map(str, ids))

    def stream(self):
        class Stream:
            def push(self, token):
                return f"{token} "

            def flush(self):
                return ""
        return Stream()


@needs_compiler
def test_property_built_once_for_a_shape_and_again_for_another(place):
    said = []
    model = tiny()
    compile_step(model, say=said.append)
    said.clear()
    compile_step(model, say=said.append)
    assert not said                                                 # it lay there
    compile_step(tiny(replace(TINY, intermediate_size=128)), say=said.append)
    assert said and "compiling" in said[0]


@needs_compiler
def test_property_loading_it_leaves_arithmetic_alone(place):
    compile_step(tiny())
    smallest = torch.tensor([1e-40])                                # -ffast-math would make it 0, everywhere
    assert (smallest * 1).item() > 0 and (smallest / 2).item() > 0


def test_property_more_lanes_than_it_takes_go_to_the_model():
    model = tiny()
    step = compiled_step.CompiledStep.__new__(compiled_step.CompiledStep)
    step.max_tokens = MAX_TOKENS
    cache = KVCache(model.config, 1, 64, dtype=torch.float32, device="cpu")
    assert step.fits(torch.zeros(1, 1, dtype=torch.int64), cache)               # a short prompt, too
    model(torch.zeros(1, 4, dtype=torch.int64), cache=cache)
    assert step.fits(torch.zeros(1, MAX_TOKENS, dtype=torch.int64), cache)
    assert not step.fits(torch.zeros(1, MAX_TOKENS + 1, dtype=torch.int64), cache)


def test_refusal_without_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler \(g\+\+ or clang\+\+\), and none is installed"):
        compile_step(tiny())


@needs_compiler
def test_refusal_of_adapters_and_odd_shapes(place):
    model = tiny()
    add_lora(model, LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="no kernel for LoRALinear; merge adapters first"):
        compile_step(model)
    with pytest.raises(ValueError, match="intermediate_size is 100"):
        compile_step(tiny(replace(TINY, intermediate_size=100)))


@needs_compiler
def test_refusal_of_what_the_compiler_refuses(place, tmp_path, monkeypatch):
    broken = shutil.copytree(compiled_step.SOURCE.parent, tmp_path / "fast") / "decode.cpp"
    broken.write_text("this is not C++", encoding="utf-8")
    monkeypatch.setattr(compiled_step, "SOURCE", broken)
    with pytest.raises(ValueError, match=r"the C\+\+ compiler refused decode.cpp"):
        compile_step(tiny())
    assert not list(place.glob("tmp*"))                             # nothing half-built stays


def test_property_no_library_out_of_a_models_folder(tmp_path, monkeypatch):
    """Who packs a model knows the name that a library has on many machines; it would be run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled_step, "_cache_folder", WHERE)
    built = []
    monkeypatch.setattr(compiled_step, "_build", lambda command, library: built.append(library))
    monkeypatch.setattr(compiled_step, "CompiledStep", lambda model, library, **_: library)
    monkeypatch.setattr(shutil, "which", lambda name: sys.executable)
    model = tiny()
    model.source = tmp_path / "downloaded"
    (model.source / ".compiled").mkdir(parents=True)
    compile_step(model)
    (model.source / ".compiled" / built[0].name).write_bytes(b"not ours")
    compile_step(model)
    assert built[0] == built[1] == model.step and not model.step.is_relative_to(model.source)


@pytest.mark.skipif(os.name != "posix", reason="this system has no owners of files")
def test_refusal_of_a_folder_that_others_can_open(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = WHERE()
    assert folder.is_relative_to(tmp_path) and folder.stat().st_mode & 0o777 == 0o700
    for mode in (0o777, 0o750):
        folder.chmod(mode)
        with pytest.raises(ValueError, match="open to others.*remove it, or leave --compile out"):
            WHERE()
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        WHERE()


def test_property_a_library_that_is_not_whole_is_built_again(tmp_path):
    library = tmp_path / "decode-1.so"
    assert not compiled_step._is_whole(library)
    library.write_bytes(b"built")
    compiled_step._sum_of(library).write_text(hashlib.sha256(b"built").hexdigest(), encoding="ascii")
    assert compiled_step._is_whole(library)
    library.write_bytes(b"buil")                                    # cut short: «Bus error» at every use
    assert not compiled_step._is_whole(library)


@needs_compiler
def test_property_the_short_door_builds_a_step_and_a_plain_model_has_none(place):
    model = tiny()
    assert model.step is None
    llama.compile_step(model)
    assert isinstance(model.step, CompiledStep)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["8 bits", "8 bits, a row", "4 bits"])
def test_two_ways_weights_unpacked_for_prompts_equal_their_definition(kind, dtype, place, monkeypatch):
    """To the bit: products of numbers so short are exact."""
    monkeypatch.setattr(swap, "GROUP", 10**6 if "row" in kind else swap.GROUP)
    model = tiny(dtype=dtype)
    quantize(model, bits=int(kind[0]))
    compile_step(model)
    for layer in (module for module in model.modules() if isinstance(module, QuantizedLinear)):
        expected = layer.packed.dequantize(dtype)
        assert torch.equal(layer.unpacked(0, layer.out_features, dtype), expected)
        assert torch.equal(layer.unpacked(3, 7, dtype), expected[3:7])
    compiled_step.remove_step(model)
    assert not any("unpacked" in vars(module) for module in model.modules())


@needs_compiler
@pytest.mark.parametrize("window", [0, 5])
def test_two_ways_a_short_prompt_goes_through_the_step_as_through_the_model(window, place):
    model, tokens = tiny(replace(TINY, sliding_window=window)), torch.arange(8)[None] * 7 % 118
    expected = model(tokens)
    compile_step(model)
    cache = KVCache(model.config, 1, 16, dtype=torch.float32, device="cpu")
    assert model.step.fits(tokens, cache)
    found = model.step(tokens, padding=torch.zeros(1, dtype=torch.int64), cache=cache)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def forgetful(self, places, k, v):
    self.keys[:, :, places] = k
    self.keys[:, :, 0] = 0
    self.values[:, :, places] = v


@needs_compiler
@pytest.mark.parametrize("bits", [0, 8, 4])
@pytest.mark.parametrize("edited", ["a cache that forgets its first key", "padding that is looked at"])
def test_refusal_of_a_step_that_would_hide_an_edit_of_what_it_goes_around(edited, bits, place, monkeypatch, capsys):
    """A short prompt never meets the cache's own writing, nor the mask of padding."""
    model = tiny()
    if bits:
        quantize(model, bits=bits)
    llama.compile_step(model)
    assert model.step is not None and not capsys.readouterr().err
    if "cache" in edited:
        monkeypatch.setattr("llama.cache.LayerCache._write", forgetful)
    else:
        monkeypatch.setattr("llama.generation.padding_mask",
                            lambda padding, T, S: causal_mask(T, S).expand(len(padding), 1, T, S))
    llama.compile_step(model)
    assert model.step is None and "what stands in the file runs, slower" in capsys.readouterr().err
