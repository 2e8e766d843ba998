"""The cache against running whole texts anew: in every number format, rolling under a window, cut back and moved."""

import dataclasses

import pytest
import torch
from conftest import same_choices
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from llama import cache as module
from llama.cache import Int8LayerCache, KVCache, LayerCache
from llama.checkpoint import PretrainedLlama
from llama.config import preset
from llama.decoding.prefix_cache import PrefixCache
from llama.generation import BatchDecoder

PLAIN = preset("test", initializer_range=0.3)
WINDOW = dataclasses.replace(PLAIN, sliding_window=6)


def make(config=PLAIN):
    torch.manual_seed(0)
    return PretrainedLlama(config).eval()


def new(config, B=1, max_length=64, dtype=torch.float32):
    return KVCache(config, B, max_length, dtype=dtype, device="cpu")


def tokens_of(T, B=1):
    return torch.randint(0, 512, (B, T), generator=torch.Generator().manual_seed(1))


def run(model, tokens, cache, chunks):
    with torch.no_grad():
        return torch.cat([model(piece, cache=cache) for piece in tokens.split(chunks, dim=1)], dim=1)


def close(a, b, bound=1e-5):
    assert_close(a, b, rtol=0, atol=bound * b.abs().max().item())


@pytest.fixture
def short_roll(monkeypatch):
    """Windows that roll after a few tokens, not after hundreds."""
    monkeypatch.setattr(module, "EVICTION_SLACK", 4)
    monkeypatch.setattr(module, "ROLLBACK_SLOTS", 3)


# Number formats

def test_worked_example_int8():
    layer = Int8LayerCache(preset("test", num_key_value_heads=1, head_dim=4), 1, 2, dtype=torch.int8, device="cpu")
    k = torch.tensor([1.27, -0.50, 0.014, 0.0]).view(1, 1, 1, 4)
    keys, values = layer.update(k, torch.zeros(1, 1, 1, 4))
    assert layer.keys[0, 0, 0].tolist() == [127, -50, 1, 0]
    assert_close(keys.flatten(), torch.tensor([1.27, -0.50, 0.01, 0.0]))
    assert not values.any()                                         # and no division of zero by zero
    _, values = layer.update(k, 2 * k)
    assert layer.values[0, 0, 1].tolist() == [127, -50, 1, 0]
    assert_close(values[0, 0, 1], torch.tensor([2.54, -1.00, 0.02, 0.0]))


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 2**-8), (torch.int8, 1 / 254)])
def test_property_no_number_is_further_off_than_its_format_allows(dtype, bound):
    k, v = torch.randn(2, 3, 2, 7, 8).mul(torch.tensor([10.0] + [0.1] * 7)).unbind()
    config = preset("test", num_key_value_heads=2)
    kind = Int8LayerCache if dtype == torch.int8 else LayerCache
    for stored, x in zip(kind(config, 3, 7, dtype=dtype, device="cpu").update(k, v), (k, v), strict=True):
        largest = x.abs() if dtype == torch.bfloat16 else x.abs().amax(-1, keepdim=True)
        assert stored.dtype == x.dtype and ((stored - x).abs() <= 1.001 * bound * largest).all()
        assert not torch.equal(stored, x)


@pytest.mark.parametrize("config", [PLAIN, WINDOW], ids=["plain", "window"])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.int8, 0.06)])
def test_two_ways_each_format_equals_running_the_whole_text_within_its_bound(short_roll, config, dtype, bound):
    model, tokens = make(config), tokens_of(40, 2)
    with torch.no_grad():
        whole = model(tokens)
    logits = run(model, tokens, new(config, 2, dtype=dtype), [11, 1, 1, 1, 6, 20])
    close(logits, whole, bound)
    same_choices(logits, whole, gap=bound)
    if dtype != torch.float32:
        assert (logits - whole).abs().max() > 1e-4 * whole.abs().max()      # it is really stored so


def test_worked_example_bytes_of_a_slot():
    config = preset("test", num_hidden_layers=30, num_key_value_heads=3, num_attention_heads=9, hidden_size=576)
    sizes = {dtype: new(config, 1, 1, dtype).nbytes() for dtype in (torch.float32, torch.bfloat16, torch.int8)}
    assert list(sizes.values()) == [46_080, 23_040, 12_240]


def test_property_float_numbers_lie_where_a_compiled_step_looks_for_them():
    """(B, G, slots, K), the last two without gaps, also after rows were chosen and room was made."""
    cache = new(PLAIN, 3, 20, torch.bfloat16)
    cache.select([2, 0], start=4)
    cache.reserve(40)
    for layer in cache.layers:
        for x in (layer.keys, layer.values):
            assert x.shape == (2, PLAIN.num_key_value_heads, 40, PLAIN.head_dim) and x.dtype == torch.bfloat16
            assert x.stride()[2:] == (PLAIN.head_dim, 1)


def test_two_ways_slots_counted_and_written_by_hand_equal_slots_appended(short_roll):
    for config in (PLAIN, WINDOW):
        model, tokens = make(config), tokens_of(30)
        usual, by_hand = new(config), new(config)
        for piece in tokens.split([7, 1, 1, 3, 8, 10], dim=1):
            T = piece.shape[1]
            run(model, piece, usual, T)
            by_hand.advance(piece)
            for theirs, ours in zip(usual.layers, by_hand.layers, strict=True):
                end = ours.length - ours.evicted
                ours.keys[:, :, end - T : end] = theirs.keys[:, :, end - T : end]
                ours.values[:, :, end - T : end] = theirs.values[:, :, end - T : end]
        assert torch.equal(by_hand.tokens, usual.tokens) and by_hand.length == usual.length == 30
        more = tokens_of(4)
        assert torch.equal(run(model, more, by_hand, 4), run(model, more, usual, 4))


# A rolling window

@pytest.mark.parametrize("chunks", [[1] * 60, [9] * 6 + [6], [50, 1, 1, 8], [2, 30, 1, 1, 1, 25], [60]])
def test_two_ways_a_rolling_cache_equals_the_whole_text(short_roll, chunks):
    model, tokens = make(WINDOW), tokens_of(60, 2)
    cache = new(WINDOW, 2)
    with torch.no_grad():
        close(run(model, tokens, cache, chunks), model(tokens))
    places = cache.layers[0].keys.shape[2]
    assert places <= 6 - 1 + 3 + max(4, *chunks)
    assert cache.layers[0].evicted >= 60 - places and cache.length == 60


def test_two_ways_padded_rows_of_a_rolling_cache_equal_single_runs(short_roll):
    model, tokens = make(WINDOW), tokens_of(50, 3)
    padding = [5, 0, 14]
    batch = BatchDecoder(model, padding, 60, vocab_size=512)
    batch.step(tokens[:, :20])
    batch.step(tokens[:, 20:21])
    batch.select([2, 0])
    assert batch.cache.layers[0].evicted > 0
    for t in range(21, 50):
        logits = batch.step(tokens[[2, 0], t : t + 1])
    for row, blank, ours in ((2, 14, logits[0]), (0, 5, logits[1])):
        with torch.no_grad():
            close(ours, model(tokens[row : row + 1, blank:])[0, -1])


def test_two_ways_a_rolling_cache_cut_back_goes_on_like_a_new_one(short_roll):
    model, tokens, others = make(WINDOW), tokens_of(40), tokens_of(50)[:, 40:]
    cache = new(WINDOW)
    for cut in range(1, 6):
        cache.truncate(0)
        run(model, tokens, cache, [20] + [1] * 20)
        left = cache.truncate(40 - cut)
        assert left == (40 - cut if cut <= 3 else left) and left in (0, 40 - cut)
        text = torch.cat([tokens[:, : 40 - cut], others], dim=1)
        with torch.no_grad():
            close(run(model, text[:, left:], cache, 10)[:, -1], model(text)[:, -1])
    assert cache.truncate(8) == 0 == cache.length                   # far behind what is held


def test_property_a_few_steps_can_always_be_taken_back(short_roll):
    """Wherever the roll is just then: a guess that fails must not cost the whole text."""
    cache = new(WINDOW)
    for token in tokens_of(60).split(1, dim=1):
        cache.advance(token)
        assert all(layer.can_truncate(cache.length - 3) for layer in cache.layers)
    assert cache.layers[0].evicted > 40


def test_two_ways_a_reader_of_a_rolling_cache_reads_anew_what_it_forgot(short_roll):
    model, ids = make(WINDOW), tokens_of(60)[0].tolist()
    reader = PrefixCache(model, vocab_size=512, slots=4, chunk=8)
    for text in (ids[:50], ids[:48] + [1, 2], ids[:20] + ids[30:], ids, ids[:5]):
        with torch.no_grad():
            close(reader.read(text, 2), model(torch.tensor([text]))[0, -2:])
        assert reader.ids == text and reader.decoder.cache.length == len(text)


# Texts that begin alike, and long ones

@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.int8, 0.04)])
def test_two_ways_rows_spread_from_one_text_equal_rows_of_their_own(dtype, bound):
    """Of three rows in 12 slots, one lost the last 3 ids of the text, one none, one all: those run again."""
    model, prefix, tail = make(), tokens_of(12)[0].tolist(), [7, 8, 9]
    first = BatchDecoder(model, [0], 12, vocab_size=512, cache_dtype=dtype)
    first.step(torch.tensor([prefix]))
    texts = [prefix + tail, prefix + 2 * tail, (prefix + tail)[-1:]]
    rows = first.expand([3, 0, 17], 30)
    with torch.no_grad():
        logits = rows.step(torch.tensor([(prefix + tail)[9:], prefix[12:] + 2 * tail, [0] * 5 + texts[2]]))
        for text, ours in zip(texts, logits, strict=True):
            close(ours, model(torch.tensor([text]))[0, -1], bound)
    assert rows.cache.length == 18 and first.cache.length == 12


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that anything made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("window", [0, 64])
def test_property_a_long_prompt_takes_memory_by_the_chunk(window):
    """8,000 tokens: states and logits of all at once would be 8,000 · 1,536 numbers, scores 8,000²."""
    config = preset("test", num_hidden_layers=1, max_position_embeddings=8192, sliding_window=window, vocab_size=64)
    reader = PrefixCache(make(config), vocab_size=64, chunk=256)
    with torch.inference_mode(), Largest() as largest:
        reader.read(tokens_of(8000)[0].remainder(64).tolist())
    assert len(reader.ids) == 8000
    masks, keys = 256 * 8000 * 4, 8192 * config.num_key_value_heads * config.head_dim * 4
    assert largest.numel <= (max(masks, keys) if not window else 1_000_000)
