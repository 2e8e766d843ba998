"""AWQ, GPTQ and fp8: packed here by their descriptions, bit by bit, and read as the numbers that they stand for."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama.checkpoint import PretrainedLlama, load_model, save_model
from llama.config import preset
from weights.formats.packed_elsewhere import AWQ_ORDER, unpack
from weights.formats.tensor_files import stored_tensors

C, R, GROUPS = 32, 16, 2                                            # two groups of 16 inputs


def draw(seed=0):
    """q, zero points and scales, as every form of 4 bits has them: (R, C), (groups, R), (groups, R)."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 16, (R, C), generator=generator), torch.randint(1, 16, (GROUPS, R), generator=generator),
            torch.rand(GROUPS, R, generator=generator).half() + 0.01)


def words(nibbles, order=tuple(range(8))):
    """(…, 8 N) of 0 … 15 -> (…, N) int32: the value at order[j] of each eight lies in bits 4 j to 4 j + 3."""
    eights = nibbles.long().unflatten(-1, (-1, 8))
    word = sum(eights[..., order[j]] << 4 * j for j in range(8))
    return torch.where(word >= 2**31, word - 2**32, word).int()


def gptq(q, zeros, scales, group):
    return {"qweight": words(q).T.contiguous(), "qzeros": words(zeros - 1), "scales": scales, "g_idx": group.int()}


def awq(q, zeros, scales):
    return {"qweight": words(q.T.contiguous(), AWQ_ORDER), "qzeros": words(zeros, AWQ_ORDER), "scales": scales}


def read(tmp_path, parts, **values):
    save_file({f"model.layers.0.x.{part}": tensor for part, tensor in parts.items()}, tmp_path / "model.safetensors")
    found = unpack(values, stored_tensors(tmp_path), tmp_path)
    tensor = found["layers.0.x.weight"].read()
    assert (found["layers.0.x.weight"].shape, found["layers.0.x.weight"].dtype) == (tuple(tensor.shape), tensor.dtype)
    return tensor


def test_worked_example_gptq(tmp_path):
    q, zeros, scales = draw()
    for group in (torch.arange(C) // 16, torch.randperm(C, generator=torch.Generator().manual_seed(2)) % 2):
        expected = ((q - zeros.T[:, group]) * scales.T.float()[:, group]).half()
        assert torch.equal(read(tmp_path, gptq(q, zeros, scales, group), quant_method="gptq", bits=4), expected)
    newer = gptq(q, zeros + 1, scales, group)                       # whose zeros are as they are
    assert torch.equal(read(tmp_path, newer, quant_method="gptq", bits=4, checkpoint_format="gptq_v2"), expected)


def test_worked_example_awq(tmp_path):
    q, zeros, scales = draw(1)
    group = torch.arange(C) // 16
    expected = ((q - zeros.T[:, group]) * scales.T.float()[:, group]).half()
    assert torch.equal(read(tmp_path, awq(q, zeros, scales), quant_method="awq", bits=4), expected)


def test_worked_example_one_word():
    """The published order of AWQ, by hand: outputs 0 2 4 6 1 3 5 7 from the lowest four bits up."""
    assert words(torch.arange(8), AWQ_ORDER).item() & 0xFFFFFFFF == 0x75316420
    assert words(torch.arange(8)).item() & 0xFFFFFFFF == 0x76543210


@pytest.mark.parametrize("scale, values", [
    (torch.rand(2, 3) + 0.5, {"weight_block_size": [8, 16]}), (torch.rand(16, 1).bfloat16() + 0.5, {}),
    (torch.tensor(0.25), {})])
def test_worked_example_fp8(tmp_path, scale, values):
    weight = torch.randn(16, 40).to(torch.float8_e4m3fn)
    name = "weight_scale_inv" if values else "weight_scale"
    tensor = read(tmp_path, {"weight": weight, name: scale}, quant_method="fp8", **values)
    for r, c in ((0, 0), (7, 15), (8, 16), (15, 39)):
        factor = scale[r // 8, c // 16] if values else scale.flatten()[r if scale.numel() > 1 else 0]
        assert tensor[r, c] == (weight[r, c].float() * factor.float()).bfloat16()


def test_two_ways_a_folder_packed_by_awq_is_the_model_of_its_numbers(tmp_path, tiny_model):
    """What is not packed, as norms and embeddings, stays; the model says what it was."""
    save_model(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors, config = load_file(path), json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    stem = "model.layers.1.mlp.up_proj"
    rows, columns = tensors.pop(f"{stem}.weight").shape
    q = torch.randint(0, 16, (rows, columns), generator=torch.Generator().manual_seed(0))
    zeros, scales = torch.full((2, rows), 8), torch.full((2, rows), 0.01).half()
    tensors |= {f"{stem}.{part}": tensor for part, tensor in awq(q, zeros, scales).items()}
    save_file(tensors, path)
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": columns // 2, "version": "gemm"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_model(tmp_path / "model", dtype=torch.float32)
    expected = ((q - 8) * torch.tensor(0.01).half().float()).half().float()
    assert torch.equal(model.layers[1].mlp.up_proj.weight, expected)
    assert torch.equal(model.layers[0].mlp.up_proj.weight, tiny_model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("values, words", [
    ({"quant_method": "bitsandbytes"}, "packed by bitsandbytes; read here are AWQ and GPTQ in 4 bits and fp8"),
    ({"quant_method": "gptq", "bits": 3}, "packed by gptq .bits 3.; read here"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors .format pack-quantized."),
    ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "by AWQ in its version gemv; read here is gemm"),
    ({"quant_method": "gptq", "bits": "4"}, "quantization_config: bits is '4'; it must be a whole number")])
def test_refusal_of_other_methods_by_name(tmp_path, values, words):
    with pytest.raises(ValueError, match=words):
        read(tmp_path, awq(*draw()), **values)


@pytest.mark.parametrize("change, words", [
    ({"scales": None}, "scales is missing"), ({"qzeros": torch.zeros(2, 3).int()}, "qzeros has the shape .2, 3."),
    ({"scales": torch.ones(5, R).half(), "qzeros": torch.zeros(5, 2).int()}, "5 groups, which 32 inputs cannot share"),
    ({"g_idx": torch.full((C,), 9).int()}, "g_idx names groups beyond the 2"),
    ({"qweight": torch.zeros(4).int()}, "qweight has the shape .4,. of torch.int32; it must have two axes")])
def test_refusal_of_parts_that_do_not_fit(tmp_path, change, words):
    parts = gptq(*draw(), torch.arange(C) // 16) | change
    with pytest.raises(ValueError, match=words):
        read(tmp_path, {name: tensor for name, tensor in parts.items() if tensor is not None}, quant_method="gptq",
             bits=4)


def test_refusal_of_float8_without_a_word_about_it(tmp_path):
    model = PretrainedLlama(preset("test"))
    save_model(model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(path)
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, path)
    with pytest.raises(ValueError, match="up_proj.weight is stored as float8_e4m3fn and config.json does not say how"):
        load_model(tmp_path / "model")
