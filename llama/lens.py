"""What happens inside: where heads look, what each layer would say next, and which block made a token likely.

    python -m llama.lens "The capital of France is"
    python -m llama.lens "The capital of France is" --token " Paris" --layer 20 --head 3 --plot lens.png
    python -m llama.lens "你是谁？" --adapter adapters/identity --json

From Python, `ids` being a list or a tensor of (T,):

    lens.attention(model, ids)           # (L, H, T, T): the weights of every head
    lens.logit_lens(model, ids)          # by layer and position: pieces with their probabilities
    lens.contributions(model, ids)       # what each block added to the logit of a token

Everything is read by hooks from outside while the model runs as it always does; no other thread may run it meanwhile.
Attention weights are those of `naive_attention`, which is asked for them by values of its own: with the identity for v,
softmax(q kᵀ / √K) v is the weights. The logit lens (nostalgebraist, «interpreting GPT: the logit lens», 2020) applies
the model's last norm and its head to the residual stream after each block. A logit is linear in that stream once the
last norm's scale is held as it is, so it is a sum over what was added to the stream: the embedding, and each attention
and feed-forward part (direct logit attribution; «A Mathematical Framework for Transformer Circuits», 2021).

Try: in `residual_stream` read the input of `post_attention_layernorm` for every model; tests/test_lens.py
(test_two_ways_contributions_are_the_outputs_of_the_parts) fails for OLMo 2, where that norm stands behind attention.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch
    from torch import Tensor, nn

    from llama.checkpoint import PretrainedLlama
    from llama.commands import flags
    from llama.config import require_llama
    from llama.generation import encode_prompt, eval_mode
    from llama.heads import check_editable, head_config, require_lm_head
    from llama.masks import bidirectional_mask
    from llama.model import naive_attention
    from llama.runtime import cli
    from llama.runtime.destinations import file_to_write
    from llama.runtime.figures import figure_to, need_matplotlib
    from llama.runtime.progress import display_width, pad_to_width
    from llama.runtime.ranges import MANY, Range
    from llama.runtime.terminal import visible

HEAT = " ░▒▓█"                                                      # of a weight: below 1/16, 1/4, 1/2, 3/4, and above
BOUNDS = (1 / 16, 1 / 4, 1 / 2, 3 / 4)
CELL = 11                                                           # columns of a piece in a table

Said = list[list[list[tuple[str, float]]]]                          # by layer and position: pieces, probabilities


class Contributions(NamedTuple):
    """What made the logit of `token` after `position`: `values` (2 L + 1,), float32, sum to `logit`.

    `names` are "embedding", "layers.0.self_attn", "layers.0.mlp", "layers.1.self_attn" …
    """

    position: int
    token: int
    logit: float
    names: list[str]
    values: Tensor


@torch.no_grad()
def attention(model: PretrainedLlama, ids: Sequence[int] | Tensor) -> Tensor:
    """Weights of attention by layer and head: (L, H, T, T), float32; rows are queries, sum to 1, columns are keys."""
    weights: list[Tensor] = []

    def watched(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attend_and_keep(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            B, G, S, _ = k.shape
            identity = torch.eye(S, device=k.device).expand(B, G, S, S)
            weights.append(naive_attention(q.float(), k.float(), identity, mask)[0])            # (H, T, T)
            return attend(q, k, v, mask)
        return attend_and_keep

    with ExitStack() as swaps:
        for layer in model.layers:
            swaps.enter_context(swapped_attend(layer.self_attn, watched(layer.self_attn.attend)))
        _run(model, ids)
    return torch.stack(weights)


@torch.no_grad()
def residual_stream(model: PretrainedLlama, ids: Sequence[int] | Tensor) -> Tensor:
    """What the blocks add to: as embedded, then after each attention and each feed-forward part.

    ->  (2 L + 1, T, D) float32, of which [2::2] is after each block

    Raises ValueError for a fused model, whose blocks hold nothing between the two.
    """
    check_editable(model)
    between = "mlp" if model.config.norm_after else "post_attention_layernorm"      # whose input is after attention
    modules = [module for layer in model.layers for module in (layer, layer.get_submodule(between))]
    embedded, *stream = _inputs([*modules, model.norm], model, ids)
    return torch.stack([embedded * model.config.embedding_multiplier, *stream])     # Granite's first block begins so


@torch.no_grad()
def logit_lens(model: PretrainedLlama, ids: Sequence[int] | Tensor, top: int = 5) -> Said:
    """What would come next if the model ended after a block: by layer and position, the `top` likeliest pieces.

    The last layer's are what the model itself says.
    """
    require_lm_head(model)
    found = []
    with eval_mode(model):
        for state in _inputs([*model.layers[1:], model.norm], model, ids):              # after each block: (T, D)
            logits = model.head(model.norm(state.to(model.dtype)))                  # (T, V)
            best = logits.float().softmax(-1).topk(min(top, logits.shape[-1]))
            found.append([[(piece(model, token), chance) for token, chance in zip(tokens, chances, strict=True)]
                          for tokens, chances in zip(best.indices.tolist(), best.values.tolist(), strict=True)])
    return found


@torch.no_grad()
def contributions(model: PretrainedLlama, ids: Sequence[int] | Tensor, position: int = -1,
                  token: int | None = None) -> Contributions:
    """What the embedding and each part of each block added to the logit of `token` after `position`.

    With the stream x = Σ c there, a logit is head · (w ⊙ x / rms(x)): with rms(x) held, the sum over c of the same. In
    float32 the sum is the model's own logit up to rounding, in bfloat16 up to what the model itself rounds.

    token  whose logit; None for the likeliest

    Raises ValueError for a position or a token that is not there.
    """
    require_lm_head(model)
    T, V = len(_row(model, ids)[0]), model.config.vocab_size
    if not -T <= position < T:
        raise ValueError(f"position {position} is not in a text of {T} tokens; give one of {-T} to {T - 1}")
    if token is not None and not 0 <= token < V:
        raise ValueError(f"token {token} is not in this vocabulary of {V} tokens; give one of 0 to {V - 1}")
    stream = residual_stream(model, ids)[:, position]               # (2 L + 1, D)
    parts = stream.diff(dim=0, prepend=torch.zeros_like(stream[:1]))
    rms = stream[-1].square().mean().sqrt()
    gain = model.norm(torch.full_like(stream[-1], rms)) / rms       # what the norm multiplies each feature of x by
    with torch.enable_grad(), eval_mode(model):
        state = model.norm(stream[-1].to(model.dtype)).detach().requires_grad_()
        logits = model.head(state)
        token = int(logits.argmax()) if token is None else token
        direction = torch.autograd.grad(logits[token], state)[0]    # the head is linear: its row, with its adapter
    names = [f"layers.{i}.{part}" for i in range(len(model.layers)) for part in ("self_attn", "mlp")]
    return Contributions(position % T, token, logits[token].item(), ["embedding", *names],
                         parts @ (gain * direction.float()))


def piece(model: PretrainedLlama, token: int) -> str:
    """A token in a form to look at; a row of the head that the tokenizer does not know by its number."""
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer, so its tokens have no text; give a model folder")
    return model.tokenizer.piece(token) if token < model.tokenizer.vocab_size else f"<{token}>"


def _row(model: PretrainedLlama, ids: Sequence[int] | Tensor) -> Tensor:
    row = torch.as_tensor(ids, device=model.device)
    if row.dim() != 1 or not len(row) or row.is_floating_point():
        raise ValueError(f"ids have the shape {tuple(row.shape)}; give the ids of one text, at least one")
    if not 0 <= int(row.min()) <= int(row.max()) < model.config.vocab_size:
        raise ValueError(f"ids go from {int(row.min())} to {int(row.max())}; this vocabulary has 0 to "
                         f"{model.config.vocab_size - 1}")
    return row[None]


def _inputs(modules: Sequence[nn.Module], model: PretrainedLlama, ids: Sequence[int] | Tensor) -> list[Tensor]:
    """What goes into each of these modules, in the order in which they run: (T, D), float32."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0][0].float())

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(keep).remove)
        _run(model, ids)
    return found


def _run(model: PretrainedLlama, ids: Sequence[int] | Tensor) -> None:
    """The blocks as they always run; a model whose head of labels was tuned to see the whole text sees it here."""
    tokens = _row(model, ids)
    head, T = head_config(model), tokens.shape[1]
    full = head is not None and head.attention == "full"
    mask = bidirectional_mask(torch.tensor([T], device=model.device), T) if full else None
    with eval_mode(model):
        model.hidden(tokens, mask=mask)


@contextmanager
def swapped_attend(module: nn.Module, function: Callable[..., Tensor]) -> Iterator[None]:
    """`module.attend` is `function` for a while."""
    before = vars(module).get("attend")
    module.attend = function
    try:
        yield
    finally:
        del module.attend
        if before is not None:
            module.attend = before


# ---- the command -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = cli.Parser(
        "python -m llama.lens", "Where heads look, what each layer would say next, and what made a token likely.",
        most=("text", "token", "position", "layer", "head", "top", "model", "adapter", "plot", "json"),
        example='python -m llama.lens "The capital of France is" --token " Paris"')
    parser.add_argument("text", metavar="TEXT", help="what the model reads")
    parser.add_argument("--token", default="", metavar="TEXT", help="explain the logit of its first token (default: of "
                        "the likeliest)")
    parser.add_argument("--position", type=Range(-MANY, MANY), default=-1, metavar="N",
                        help="after which token, from 0, or from the end below it")
    parser.add_argument("--layer", type=Range(-MANY, MANY), default=-1, metavar="N", help="whose attention is shown")
    parser.add_argument("--head", type=Range(0, MANY), metavar="N", help="show what this head sees from every token "
                        "(default: what all heads of the layer see from --position)")
    parser.add_argument("--top", type=Range(1, MANY), default=5, metavar="N", help="pieces of each layer")
    parser.add_argument("--plot", type=file_to_write, metavar="FILE", help="draw all three, as .png, .svg or .pdf")
    cli.add_flags(parser, flags.ModelFlags, skip=("compile",))
    arguments = parser.parse_args()
    if arguments.plot:
        need_matplotlib(arguments.plot)
    model = flags.load(cli.from_flags(flags.ModelFlags, arguments), purpose="measure")
    require_llama(model.config, "these views are", "give the folder of one")
    require_lm_head(model)
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer, so it reads no text; give a model folder")
    L, H = model.config.num_hidden_layers, model.config.num_attention_heads
    if not -L <= arguments.layer < L:
        raise ValueError(f"--layer {arguments.layer}: this model has the layers 0 to {L - 1}")
    if arguments.head is not None and arguments.head >= H:
        raise ValueError(f"--head {arguments.head}: this model has the heads 0 to {H - 1}")
    ids = encode_prompt(model.tokenizer, arguments.text, special=True)
    token = model.tokenizer.encode_continuation(arguments.token)[0] if arguments.token else None
    found = contributions(model, ids, arguments.position, token)
    pieces, said = [piece(model, each) for each in ids], logit_lens(model, ids, arguments.top)
    weights = attention(model, ids)
    if arguments.plot:
        draw(arguments.plot, model, pieces, said, weights, found, layer=arguments.layer % L, head=arguments.head)
    if arguments.json:
        print(json.dumps({
            "ids": ids, "pieces": pieces, "attention": [[[[round(w, 6) for w in row] for row in head] for head in layer]
                                                        for layer in weights.tolist()],
            "logit_lens": said, "contributions": found._asdict() | {
                "piece": piece(model, found.token), "values": found.values.tolist()}}, ensure_ascii=False))
        return
    shown = (grid(pieces, said), table(pieces, said, found.position), bars(model, pieces, found),
             heat(pieces, weights, found.position, layer=arguments.layer % L, head=arguments.head))
    print("\n\n".join(map(visible, shown)))


def grid(pieces: Sequence[str], said: Said) -> str:
    """The likeliest piece after each token, by layer; of a long text its end."""
    fits = max(1, (shutil.get_terminal_size((120, 24)).columns - CELL) // CELL)
    lines = ["what each layer would say next" + (f", after the last {fits} tokens" if len(pieces) > fits else ""),
             _cell("") + "".join(map(_cell, pieces[-fits:]))]
    return "\n".join([*lines, *(_cell(f"layers.{i}") + "".join(_cell(best[0][0]) for best in layer[-fits:])
                                for i, layer in enumerate(said))])


def table(pieces: Sequence[str], said: Said, position: int) -> str:
    """The likeliest pieces after one token with their probabilities, a line a layer."""
    return "\n".join([f"after «{pieces[position]}», token {position}, with probabilities", *(
        _cell(f"layers.{i}") + "".join(f"{_cell(text)}{chance:.3f}   " for text, chance in layer[position]).rstrip()
        for i, layer in enumerate(said))])


def bars(model: PretrainedLlama, pieces: Sequence[str], found: Contributions) -> str:
    """What each part added, as a bar to the left of zero or to its right."""
    half = 24
    most = float(found.values.abs().max())
    lines = [f"what made the logit of «{piece(model, found.token)}» after «{pieces[found.position]}», token "
             f"{found.position}"]
    for name, value in zip(found.names, found.values.tolist(), strict=True):
        bar = "█" * round(abs(value) / most * half) if most else ""
        lines.append(f"{name:<20}{value:9.3f}  {bar if value < 0 else '':>{half}}│{bar if value > 0 else ''}".rstrip())
    return "\n".join([*lines, f"{'sum':<20}{float(found.values.sum()):9.3f}",
                      f"{'the logit itself':<20}{found.logit:9.3f}"])


def heat(pieces: Sequence[str], weights: Tensor, position: int, *, layer: int, head: int | None) -> str:
    """A character a weight: by head from one token, or of one head from every token."""
    if head is None:
        names, rows = [f"head {h}" for h in range(weights.shape[1])], weights[layer, :, position, : position + 1]
        title = f"where the heads of layers.{layer} look from «{pieces[position]}», token {position}"
    else:
        names, rows = [f"{i:3} {text}" for i, text in enumerate(pieces)], weights[layer, head]
        title = f"where head {head} of layers.{layer} looks from each token"
    legend = "  ".join(f"{shade} from {bound:.2g}" for shade, bound in zip(HEAT[1:], BOUNDS, strict=True))
    lines = [f"{title}; a column a token, {legend}"]
    for name, row in zip(names, rows.tolist(), strict=True):
        shades = "".join(HEAT[sum(weight >= bound for bound in BOUNDS)] for weight in row)
        most = sorted(range(len(row)), key=lambda key: -row[key])[:3]
        lines.append(f"{pad_to_width(_shortened(name, 14), 15)}│{shades}│  "
                     + "  ".join(f"{pieces[key]} {row[key]:.2f}" for key in most))
    return "\n".join(lines)


def _cell(text: str) -> str:
    return pad_to_width(_shortened(text, CELL - 1), CELL)


def _shortened(text: str, most: int) -> str:
    """At most so many columns of a terminal."""
    if display_width(text) <= most:
        return text
    while display_width(text) > most - 1:
        text = text[:-1]
    return text + "…"


def draw(path: str, model: PretrainedLlama, pieces: Sequence[str], said: Said, weights: Tensor, found: Contributions, *,
         layer: int, head: int | None) -> None:
    """The same three as a figure: the likeliest piece by layer and token; attention; contributions."""
    L, T = len(said), len(pieces)
    with figure_to(path, max(8, 0.9 * T + 4), max(5, 0.3 * L + 5)) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=(L, 14))
        axes, (left, right) = above.subplots(), below.subplots(1, 2)
        axes.imshow([[best[0][1] for best in row] for row in said], vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for i, row in enumerate(said):
            for j, ((text, chance), *_) in enumerate(row):
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if chance > 0.6 else "black")
        axes.set(title="what each layer would say next", ylabel="layer", yticks=range(L))
        axes.set_xticks(range(T), pieces)
        seen = weights[layer].mean(0) if head is None else weights[layer, head]
        left.imshow(seen.tolist(), vmin=0, cmap="Blues", aspect="auto")
        left.set(title=f"attention of layers.{layer}, {'mean of heads' if head is None else f'head {head}'}")
        left.set_xticks(range(T), pieces, rotation=90)
        left.set_yticks(range(T), pieces)
        right.bar(range(len(found.names)), found.values.tolist(), color=["gray", *("tab:blue", "tab:orange") * L])
        right.set(title=f"what made «{piece(model, found.token)}» after «{pieces[found.position]}»", ylabel="logit",
                  xlabel="blue: attention, orange: MLP")


if __name__ == "__main__":
    cli.run(main)
