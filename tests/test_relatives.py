"""GPT and T5: what they compute by hand, and that the rest of the house treats them as it treats a Llama."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

import llama
from llama.checkpoint import load_model, new_model, save_model
from llama.config import preset as llama_preset
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.fast.agreement import compile_step, use_custom_gradients, use_fused_blocks
from llama.freeze import freeze, trainable_parameters
from llama.generation import generate
from llama.heads import HeadConfig, add_head
from llama.lora import LoRAConfig, add_lora, load_adapter, merge_lora, save_adapter
from llama.masks import Prefix
from llama.quantize import quantize
from llama.relatives.families import PRESETS, config_from_dict, config_to_dict, for_vocabulary, given_of_block, preset
from llama.relatives.gpt import LayerNorm, banded
from llama.relatives.t5 import relative_bucket
from llama.sampling import SamplingConfig
from llama.tasks.generation import TextGenerationTask
from llama.tasks.task import Sample, Task
from llama.trainer import Trainer
from llama.training.objective import Plain
from llama.training.optimizer import TrainConfig
from llama.training.packing import mask_of, pack, should_pack
from tokenizer import bpe, load_tokenizer
from tokenizer.spm_train import train_spm

TEXT = ["the cat sat on the mat and the cat ran", "a dog ran after the cat over the mat"]
GREEDY = SamplingConfig(temperature=0)


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(TEXT, 280)


SHAPES = {
    "gpt": preset("gpt3-tiny", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                  max_position_embeddings=64),
    "banded gpt": preset("gpt3-tiny", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         max_position_embeddings=64, attention_window=3),
    "t5": preset("t5-tiny", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_encoder_layers=1,
                 num_attention_heads=2, head_dim=8),
    "t5 1.1": preset("t5-v1.1-small", hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_encoder_layers=2,
                     num_attention_heads=2, head_dim=8),
}


@pytest.fixture(params=SHAPES)
def model(request, tokenizer):
    """Of every kind a tiny one, with norms and biases that are no ones and zeros."""
    model = new_model(for_vocabulary(SHAPES[request.param], tokenizer), tokenizer).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3, generator=generator)
    return model


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_worked_example_layer_norm():
    """(1, 2, 3, 6): mean 3, deviations (-2, -1, 0, 3), variance 14/4, standard deviation 1.8708."""
    norm = LayerNorm(4, eps=0.0)
    with torch.no_grad():
        norm.bias.fill_(0.5)
        found = norm(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    expected = [0.5 + deviation / math.sqrt(3.5) for deviation in (-2, -1, 0, 3)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_worked_example_banded_mask():
    """Two keys for each of five queries; with the first slot padding, the same less its column."""
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert banded(None, 5, 5, 2).int().tolist() == expected
    assert banded(None, 2, 5, 2).int().tolist() == expected[3:]                         # the last two of five
    unpadded = torch.tensor([False, True, True, True, True]).expand(5, 5)
    assert banded(unpadded, 5, 5, 2)[1].int().tolist() == [0, 1, 0, 0, 0]


def test_property_even_layers_are_dense_and_odd_ones_banded(tokenizer):
    """The first token reaches the last row through layer 0; with both layers banded it would not."""
    def last_row_sees(*, both: bool) -> bool:
        torch.manual_seed(0)
        model = new_model(for_vocabulary(SHAPES["banded gpt"], tokenizer)).eval()
        if both:
            model._masks = lambda mask, T, S, device: (banded(mask, T, S, 3),) * 2
        tokens = torch.arange(12)[None]
        other = tokens.clone()
        other[0, 0] = 99
        with torch.no_grad():
            return not torch.equal(model(tokens)[0, -1], model(other)[0, -1])

    assert last_row_sees(both=False) and not last_row_sees(both=True)


def test_worked_example_buckets_of_a_decoder():
    """8 buckets up to distance 16: 0, 1, 2, 3 by themselves, then 4–5, 6–7, 8–11, from 12 on; what is behind is 0."""
    distances = torch.tensor([0, -1, -2, -3, -4, -5, -6, -8, -11, -12, -16, -99, 1, 7])
    found = relative_bucket(distances, both_ways=False, buckets=8, max_distance=16)
    # 4 + 4 · log(d / 4) / log(16 / 4), rounded down: 5 -> 4.64, 6 -> 5.17, 8 -> 6, 11 -> 6.92, 12 -> 7.17
    assert found.tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 6, 7, 7, 7, 0, 0]


def test_worked_example_buckets_of_an_encoder():
    """Half of the buckets look ahead: 4 a side, 0 and 1 by themselves, then 2 + 2 · log(d / 2) / log(16 / 2)."""
    distances = torch.tensor([0, -1, -2, -5, -6, -20, 1, 2, 5, 6, 20])
    found = relative_bucket(distances, both_ways=True, buckets=8, max_distance=16)
    assert found.tolist() == [0, 1, 2, 2, 3, 3, 5, 6, 6, 7, 7]


def test_worked_example_where_a_row_is_divided(tokenizer):
    """What is before the first target is the encoder's: of ids 0 1 2 | 3 4, where 3 and 4 are learned, three."""
    model = new_model(for_vocabulary(SHAPES["t5"], tokenizer), tokenizer)
    batch = Task().collate([Sample([5, 6, 7, 8, 9], [False, False, False, True, True]),
                            Sample([5, 6, 7], [False, True, True])])
    assert mask_of(model, batch).lengths.tolist() == [3, 1]


@pytest.mark.parametrize("name, millions", [
    ("gpt3-small", 125), ("gpt3-medium", 356), ("gpt3-175b", 174_604), ("gpt2", 124), ("gpt2-xl", 1_558),
    ("t5-small", 61), ("t5-base", 223), ("t5-11b", 11_307), ("t5-v1.1-base", 248)])
def test_worked_example_published_sizes(name, millions):
    with torch.device("meta"):
        model = new_model(preset(name))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


# ---- two ways --------------------------------------------------------------------------------------------------------


def test_two_ways_a_row_in_two_parts_equals_encoder_and_decoder(tokenizer):
    """`hidden` of a row laid out flat, and the two sides called by themselves, token by token through a cache."""
    from llama.cache import KVCache

    torch.manual_seed(0)
    model = new_model(for_vocabulary(SHAPES["t5"], tokenizer)).eval()
    row = torch.randint(3, 99, (1, 12))
    with torch.no_grad():
        flat = model.hidden(row, mask=Prefix(torch.tensor([5])))[:, 4:]
        source = model.read(row[:, :5], torch.tensor([5]))
        written = torch.cat([torch.full((1, 1), model.config.decoder_start_token_id), row[:, 5:]], 1)
        cache = KVCache(model.config, 1, 9, dtype=torch.float32, device="cpu")
        single = torch.cat([model.decode(token, source, cache=cache) for token in written.split(1, dim=1)], 1)
    assert torch.allclose(flat, single, atol=1e-5)


def test_two_ways_a_source_that_is_closed_already_is_not_closed_again(tokenizer):
    model = new_model(for_vocabulary(SHAPES["t5"], tokenizer)).eval()
    end = model.config.eos_token_id
    open_, closed = torch.tensor([[7, 8, 9]]), torch.tensor([[7, 8, 9, end]])
    with torch.no_grad():
        (ours, seen), (theirs, _) = (model.encode(x, torch.tensor([x.shape[1]])) for x in (open_, closed))
    assert torch.allclose(ours[:, :4], theirs[:, :4], atol=1e-6) and seen.shape[-1] == 4


def test_two_ways_cached_in_pieces_equals_at_once(tokenizer):
    from llama.cache import KVCache

    for kind in ("gpt", "banded gpt"):
        torch.manual_seed(0)
        model = new_model(for_vocabulary(SHAPES[kind], tokenizer)).eval()
        tokens = torch.randint(0, 99, (2, 20))
        cache = KVCache(model.config, 2, 20, dtype=torch.float32, device="cpu")
        with torch.no_grad():
            pieces = [model(piece, cache=cache) for piece in tokens.split([11, 1, 1, 7], dim=1)]
            assert torch.allclose(torch.cat(pieces, 1), model(tokens), atol=1e-5)


def test_two_ways_a_ragged_batch_of_prompts(model, tokenizer):
    """Rows of other lengths, which end at other times, write what each writes alone."""
    prompts = [tokenizer.encode(text) for text in ("the cat", "a", "a dog ran after the")]
    options = {"tokenizer": tokenizer, "sampling": GREEDY, "max_new_tokens": 12, "stop": ["c"]}
    together = generate(model, prompts, num_samples=2, **options)
    alone = [generate(model, [prompt], **options)[0] for prompt in prompts for _ in range(2)]
    assert [row.token_ids for row in together] == [row.token_ids for row in alone]


def test_two_ways_packed_equals_padded(tokenizer):
    """Learned positions begin anew with every text of a row."""
    torch.manual_seed(0)
    model = new_model(for_vocabulary(SHAPES["banded gpt"], tokenizer), tokenizer)
    samples = [Sample(list(range(i, i + n)), [False] + [True] * (n - 1)) for i, n in ((3, 9), (40, 5), (20, 7))]
    objective = Plain(model, Task())
    with torch.no_grad():
        packed, padded = objective(pack(Task(), samples)), objective(Task().collate(samples))
    assert packed[0].item() == pytest.approx(padded[0].item(), rel=1e-5) and packed[1] == padded[1]
    assert should_pack(model, Task(), "auto")


def test_two_ways_saved_and_loaded(model, tmp_path):
    """As a folder and as a file: the same config, logits and text. In the folder, names are those of other programs."""
    tokens = torch.arange(3, 20)[None]
    for name in ("folder", "file.pt"):
        save_model(model, tmp_path / name)
        again = load_model(tmp_path / name)
        assert again.config == model.config
        with torch.no_grad():
            assert torch.equal(again(tokens), model(tokens))
        assert again.generate("the cat", max_new_tokens=8, temperature=0) == \
            model.generate("the cat", max_new_tokens=8, temperature=0)
    names = load_file(tmp_path / "folder" / "model.safetensors").keys()
    assert {"transformer.h.1.attn.c_attn.weight"} <= names or {"shared.weight",
            "decoder.block.0.layer.1.EncDecAttention.q.weight"} <= names
    config = json.loads((tmp_path / "folder" / "config.json").read_text(encoding="utf-8"))
    assert not [name for name in config if "rope" in name]


def test_two_ways_adapter_merged_saved_and_loaded(model, tmp_path):
    """LoRA finds its layers by their names, and what a gate has not, by default it leaves out."""
    add_lora(model, LoRAConfig(rank=2), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = model(tokens)
        save_adapter(model, tmp_path / "adapter")
        assert "adapter 'default'" in trainable_parameters(model)
        merge_lora(model, keep_undo=False)
        assert torch.allclose(model(tokens), expected, atol=1e-4)
        save_model(model, tmp_path / "merged")
        assert torch.allclose(load_model(tmp_path / "merged")(tokens), expected, atol=1e-4)
    fresh = new_model(model.config)
    load_adapter(fresh, tmp_path / "adapter")                       # strictly: all names are found again


def test_two_ways_gpt2s_files(tmp_path, tokenizer):
    """vocab.json and merges.txt hold what tokenizer.json holds."""
    spec = json.loads(tokenizer.files()["tokenizer.json"])
    vocabulary, merges = spec["model"]["vocab"], spec["model"]["merges"]
    vocabulary["<|endoftext|>"] = len(vocabulary)
    lines = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    found = load_tokenizer(tmp_path)
    assert found.decode(found.encode("the cat sat 123")) == "the cat sat 123"
    assert max(map(len, map(found.token_bytes, found.encode(TEXT[0])))) > 2             # merges are at work
    assert found.eos_ids == (vocabulary["<|endoftext|>"],)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}', encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="no tokenizer in"):                     # splits otherwise
        load_tokenizer(tmp_path)


def test_two_ways_t5s_files(tmp_path):
    """spiece.model is what others call tokenizer.model; the tokenizer.json of a Unigram beside it is no BPE."""
    learned = train_spm(TEXT * 20, 300, kind="spm-unigram")
    (tmp_path / "spiece.model").write_bytes(learned.files()["tokenizer.model"])
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": []}}', encoding="utf-8")
    found = load_tokenizer(tmp_path)
    assert [found.encode(text) for text in TEXT] == [learned.encode(text) for text in TEXT]


# ---- properties ------------------------------------------------------------------------------------------------------


def test_property_llama_and_its_relatives_answer_the_same_questions(model):
    plain = new_model(llama_preset("test"))
    for name in ("embed_tokens", "layers", "norm", "lm_head", "head", "head_name", "device", "dtype", "tie_weights",
                 "tokenizer", "source", "step", "generate", "save"):
        assert hasattr(plain, name) and hasattr(model, name), name
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim", "context",
                 "rope_stable_length", "tie_word_embeddings", "sliding_window", "rope_scaling"):
        assert hasattr(plain.config, name) and hasattr(model.config, name), name
    assert config_from_dict(config_to_dict(model.config)) == model.config


def test_property_every_part_learns(model):
    """No parameter is left out of the loss: not a bias, not a bucket that is used, neither side."""
    batch = Task().collate([Sample(list(range(3, 15)), [False] * 5 + [True] * 7)])
    Plain(model, Task())(batch)[0].backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("kind", ["gpt", "t5"])
def test_property_the_trainer_teaches_and_saves_it(kind, tokenizer, tmp_path):
    """Of running text a T5 is given half of each block. What was saved is proven by loading it, as ever."""
    torch.manual_seed(0)
    model = new_model(for_vocabulary(SHAPES[kind], tokenizer), tokenizer)
    data = LanguageModelingDataset(TEXT * 4, block_size=8, overlap=given_of_block(model.config, 8))
    trainer = Trainer(model, TextGenerationTask(), data, data, config=TrainConfig(max_steps=12, epochs=9, lr=1e-2),
                      output=tmp_path / "model")
    result = trainer.train()
    assert result["eval"]["loss"] < result["eval_before"]["loss"] - 0.5
    assert load_model(tmp_path / "model").config == model.config


def test_property_fast_versions_leave_relatives_as_they_are(model):
    kinds = [type(module) for module in model.modules()]
    use_fused_blocks(model)
    use_custom_gradients(model)
    assert [type(module) for module in model.modules()] == kinds
    with pytest.raises(ValueError, match="--compile builds the step of a Llama"):
        compile_step(model)


def test_property_freezing_by_blocks_and_by_names(model):
    freeze(model, layers=1, pattern="norms", embeddings=True)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {"embed_tokens.weight", "layers.0.self_attn.q_proj.weight", "norm.weight"} <= frozen


def test_property_small_ones_by_their_kinds_names():
    """The article's own words: a kind's name gives one that can be trained at once."""
    for name in ("gpt3", "t5"):
        model = llama.get_model(name)
        assert model.tokenizer is not None and model.config.vocab_size == model.tokenizer.vocab_size
        assert sum(parameter.numel() for parameter in model.parameters()) < 12e6
        del model


def test_property_of_a_block_of_text_an_encoder_is_given_half():
    assert given_of_block(PRESETS["t5-tiny"], 64) == 32 and given_of_block(PRESETS["gpt3-tiny"], 64) == 0


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_refusal_what_is_not_built(tokenizer, tmp_path):
    gpt, t5 = (new_model(for_vocabulary(SHAPES[name], tokenizer), tokenizer) for name in ("gpt", "t5"))
    with pytest.raises(ValueError, match="65 positions exceed the model's context of 64"):
        gpt(torch.zeros(1, 65, dtype=torch.int64))
    with pytest.raises(ValueError, match="built for decoders alone"):
        from llama.decoding.beam_search import BeamConfig, beam_search
        beam_search(t5, [[3, 4]], BeamConfig(beams=2), tokenizer=tokenizer, max_new_tokens=3)
    with pytest.raises(ValueError, match="heads of labels are built for Llamas"):
        add_head(gpt, HeadConfig(("a", "b")))
    for few in (lambda: quantize(gpt, bits=8), lambda: llama.get_model("t5", bits=8)):
        with pytest.raises(ValueError, match="few bits are built for Llamas, .* by a (GPT|T5)Config"):
            few()
    with pytest.raises(ValueError, match="--pack: an encoder reads one text a row"):
        should_pack(t5, Task(), "on")
    with pytest.raises(ValueError, match="gpt3-tiny has no num_key_value_heads"):
        preset("gpt3-tiny", num_key_value_heads=2)
    with pytest.raises(ValueError, match="not a multiple of num_attention_heads"):
        preset("gpt3-tiny", num_attention_heads=5)
    with pytest.raises(ValueError, match="activation_function = 'relu'"):
        config_from_dict(config_to_dict(gpt.config) | {"activation_function": "relu"})
    with pytest.raises(ValueError, match="feed_forward_proj = 'gated-silu'"):
        config_from_dict(config_to_dict(t5.config) | {"feed_forward_proj": "gated-silu"})
    save_model(gpt, tmp_path / "gpt")
    config = tmp_path / "gpt" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"n_layer": 2', '"n_layer": 3'), encoding="utf-8")
    with pytest.raises(ValueError, match="lacks layers.2.input_layernorm.bias"):
        load_model(tmp_path / "gpt")


def test_refusal_to_call_banded_layers_a_gpt2():
    """Other programs would read it and compute something else: they are told another kind."""
    banded_config = dataclasses.replace(SHAPES["gpt"], attention_window=4)
    assert config_to_dict(banded_config)["model_type"] == "gpt3"
    assert config_to_dict(SHAPES["gpt"])["model_type"] == "gpt2"
