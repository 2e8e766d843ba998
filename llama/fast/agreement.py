"""Is a fast version what its definition says? Found by running both, before one takes the other's place.

Whoever edits a definition (`Block.forward`, `apply_rotary`, `LoRALinear`, a loss) must see the edit at work. So before
a model gets fast parts, the definitions, as their files now stand, and the fast versions compute the same on a tiny
random model with the options of the large one: biases, window, rotary scaling, adapters, dtype, bits. Where the numbers
differ the swap is not made, one line on stderr says so, and the definition runs, slower. Nothing is hashed and nothing
is configured. The compiled step, which is built for one shape, is compared on the model itself.

    use_fused_blocks(model)              # for generating
    use_custom_gradients(model)          # for training
    compile_step(model)                  # for generating, through a C++ compiler
    readable(model)                      # the definitions again, without asking

Try: let `MLP.forward` in model.py return x * 0.0 and run generate.py: one line says that the file runs, and the text is
another one; tests/test_learners.py makes such edits.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from llama.cache import KVCache
from llama.checkpoint import PretrainedLlama
from llama.config import LlamaConfig
from llama.fast import compiled_step
from llama.fast.custom_autograd import restore_autograd, use_custom_autograd
from llama.fast.fused_block import fuse, unfuse
from llama.fast.numbers import EXACT, ROUNDED, agree, relative_difference
from llama.generation import BatchDecoder
from llama.lora.swap import add_lora, has_lora
from llama.lora.targets import LoRAConfig
from llama.masks import Documents, document_mask
from llama.model import Llama, attention, naive_attention
from llama.quantization.layers import QuantizedLinear

WHERE = "model.py"


def use_fused_blocks(model: Llama) -> None:
    """`fuse` where blocks and fused blocks agree, in float32 and as this model computes; else nothing but a line."""
    if not has_twins(model) or not _use_attention(model):
        return
    for dtype, within in ({model.dtype: ROUNDED} | {torch.float32: EXACT}).items():
        tiny = tiny_like(model.config).to(dtype)
        expected = _logits(tiny)
        fuse(tiny)
        if not agree(_logits(tiny), expected, WHERE, "fast/fused_block.py", within=within):
            return
    fuse(model)


def use_custom_gradients(model: Llama) -> None:
    """`use_custom_autograd` where states and gradients agree with those of autograd through the definitions."""
    if not has_twins(model) or model.device.type != "cpu" or not _use_attention(model):
        return
    tiny = tiny_like(model.config)
    if has_lora(model):
        generator = torch.Generator().manual_seed(1)
        add_lora(tiny, LoRAConfig(rank=2, alpha=3.0), generator=generator)
        with torch.no_grad():
            for name, parameter in tiny.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, 0.3, generator=generator)
    expected = _gradients(tiny)
    use_custom_autograd(tiny)
    where = f"{WHERE} or lora/layers.py" if has_lora(model) else WHERE
    if agree(_gradients(tiny), expected, where, "fast/custom_autograd.py"):
        use_custom_autograd(model)


def compile_step(model: Llama, *, precise: bool = True, say: Callable[[str], None] = lambda text: None) -> None:
    """`compiled_step.compile_step` where it gives the logits that the model itself gives for the same tokens."""
    if has_twins(model) and not _use_attention(model):
        return
    compiled_step.compile_step(model, precise=precise, say=say)
    if not _unpacks_alike(model):
        compiled_step.remove_step(model)
        return
    step, decoder = model.step, BatchDecoder(model, [0], 8, vocab_size=model.config.vocab_size)
    if not step.fits(torch.zeros(2, 4, dtype=torch.int64), decoder.cache):
        return
    found, model.step = _written(model), None
    expected, model.step = _written(model), step
    pairs = list(zip(found, expected, strict=True))
    # Of bfloat16 and few bits a single token may come out a fifth apart, by rounding alone; an edit moves all of them.
    pairs.sort(key=lambda pair: relative_difference(*pair))
    if not agree(*pairs[1], "model.py, cache.py or generation.py", "fast/decode.cpp", within=ROUNDED):
        compiled_step.remove_step(model)


@torch.inference_mode()
def _written(model: Llama) -> list[Tensor]:
    """As generation goes, in a cache of its own: the logits of two short prompts, one of them padded, and of two tokens
    behind each."""
    V = model.config.vocab_size
    tokens = torch.arange(12).mul(V // 13).add(V // 14).view(2, 6)
    decoder = BatchDecoder(model, [0, 2], 8, vocab_size=V)
    prompts = decoder.read(tokens[:, :4], 4)
    return [torch.cat([prompts[0], prompts[1, 2:]]), decoder.step(tokens[:, 4:5]), decoder.step(tokens[:, 5:])]


def _unpacks_alike(model: Llama) -> bool:
    """Whether few bits become the floats that their definition says, in a layer of each kind."""
    kinds = {type(layer): layer for layer in model.modules() if isinstance(layer, QuantizedLinear)}
    return all(agree(layer.unpacked(0, 8, layer.dtype), type(layer).unpacked(layer, 0, 8, layer.dtype),
                     "quantization/layers.py or weights/formats/quantized_matrix.py", "fast/decode.cpp")
               for layer in kinds.values())


def has_twins(model: Llama) -> bool:
    """Whether there are fast versions of this model's parts: of a Llama's and its siblings', of no other's."""
    return isinstance(model.config, LlamaConfig)


def readable(model: Llama) -> None:
    """Let the model run its definitions alone, as they stand in the files: the inverse of all swaps here."""
    unfuse(model)
    restore_autograd(model)
    compiled_step.remove_step(model)
    for layer in model.layers:
        layer.self_attn.attend = naive_attention


def losses_agree(definition: Callable[[Tensor, Tensor, nn.Module], Tensor],
                 fast: Callable[[Tensor, Tensor, nn.Module], Tensor], where: str) -> bool:
    """Whether two losses of (states, targets, head) and their gradients agree; `where` the definition stands."""
    generator = torch.Generator().manual_seed(0)
    head = nn.utils.skip_init(nn.Linear, 16, 40, bias=False)
    with torch.no_grad():
        head.weight.normal_(generator=generator)
    states = torch.randn(12, 16, generator=generator)
    targets = torch.randint(40, (12,), generator=generator)
    numbers = []
    for loss in (definition, fast):
        h, head.weight.grad = states.clone().requires_grad_(), None
        with torch.enable_grad():
            total = loss(h, targets, head)
            total.backward()
        numbers.append(torch.cat([total.detach().view(1), h.grad.flatten(), head.weight.grad.flatten()]))
    return agree(numbers[1], numbers[0], where, "fast/fused_cross_entropy.py")


def tiny_like(config: LlamaConfig) -> Llama:
    """A random float32 model of two small blocks with the options of a large one; torch's own generator stays put.

    Norms are no ones and biases no zeros: else an edit that leaves them out would not show.
    """
    G = min(config.num_key_value_heads, 2)
    H = G * min(config.num_attention_heads // config.num_key_value_heads, 3)
    small = replace(config, vocab_size=64, hidden_size=32 * H, intermediate_size=96, num_hidden_layers=2,
                    num_attention_heads=H, num_key_value_heads=G, head_dim=32,
                    sliding_window=6 if config.sliding_window else 0, no_rope_layers=config.no_rope_layers and (1,))
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = PretrainedLlama(small)
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.2, generator=generator)
    return model.eval()


def _use_attention(model: Llama) -> bool:
    """Whether torch's fused attention is `naive_attention`, as it stands. Where not, the model gets the latter."""
    generator = torch.Generator().manual_seed(0)
    found, expected = [], []
    for T, S in ((5, 5), (3, 7), (1, 7)):
        q, k, v = (torch.randn(2, heads, length, 16, generator=generator) for heads, length in ((4, T), (2, S), (2, S)))
        for made, attend in ((found, attention), (expected, naive_attention)):
            made.append(attend(q, k, v).flatten())
    if agree(torch.cat(found), torch.cat(expected), "model.py (naive_attention)", "model.py (attention)"):
        return True
    for layer in model.layers:
        layer.self_attn.attend = naive_attention
    return False


@torch.inference_mode()
def _logits(model: Llama) -> Tensor:
    """Of a prompt, single tokens and a few at once through a cache, and of a batch with a row padded on its left."""
    tokens = torch.arange(14).view(1, 14) * 5 % model.config.vocab_size
    cache = KVCache(model.config, 1, 14, dtype=model.dtype, device="cpu")
    pieces = [model(piece, cache=cache) for piece in tokens.split([9, 1, 1, 3], dim=1)]
    return torch.cat([*pieces, model(tokens.view(2, 7)).flatten(0, 1)[None]], dim=1)


def _gradients(model: Llama) -> Tensor:
    """States, and the gradients of what learns, for a batch and for two texts behind each other in one row."""
    tokens = torch.arange(16) * 5 % model.config.vocab_size
    lengths = (10, 6)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    texts = Documents(lengths) if model.layers[0].self_attn.takes_documents else document_mask(torch.tensor(lengths))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        states = torch.cat([model.hidden(tokens.view(2, 8)).flatten(0, 1),
                            model.hidden(tokens[None], positions=positions, mask=texts)[0]])
        weights = torch.arange(states.numel()).sin().view_as(states)
        gradients = torch.autograd.grad((states * weights).sum(), learned, allow_unused=True, materialize_grads=True)
    return torch.cat([states.detach().flatten(), *(gradient.flatten() for gradient in gradients)])
