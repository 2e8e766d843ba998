import pytest
import torch

from llama.fast import compile_blocks, custom_autograd


def test_property_other_lengths_need_no_other_code(tiny_model):
    custom_autograd.use_custom_autograd(tiny_model)
    torch._dynamo.reset()
    compile_blocks.compile_blocks(tiny_model, backend="aot_eager")  # all but the C++
    losses, before = [], 0
    for T in (7, 9, 12):
        loss = tiny_model.hidden(torch.arange(2 * T).view(2, T)).square().sum()
        loss.backward()
        losses.append(loss.item())
        before = before or compile_blocks.compilations()
    assert compile_blocks.compilations() == before > 0
    compile_blocks.uncompile_blocks(tiny_model)
    custom_autograd.restore_autograd(tiny_model)
    plain = [tiny_model.hidden(torch.arange(2 * T).view(2, T)).square().sum().item() for T in (7, 9, 12)]
    assert losses == pytest.approx(plain, rel=1e-5)


def test_refusal_without_a_compiler(tiny_model, monkeypatch):
    monkeypatch.setattr(compile_blocks.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"--compile needs a C\+\+ compiler, and none is here"):
        compile_blocks.compile_blocks(tiny_model)
