"""How many tokens does each expert get? A small mixture learns neutral.txt: python examples/experts.py [--balance 0]

Four experts, two for each token, sixty steps on fourteen paragraphs; then the routers of both layers are asked about
the same text, and their choices counted. The last page of the tour (docs/tour/19-mixture-of-experts.md) shows the
outcome.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from llama.checkpoint import new_model  # noqa: E402
from llama.config import preset  # noqa: E402
from llama.datasets.language_modeling import LanguageModelingDataset  # noqa: E402
from llama.relatives.mixture_of_experts import Balanced, use_experts, watch_routers  # noqa: E402
from llama.runtime import cli  # noqa: E402
from llama.runtime.ranges import Range  # noqa: E402
from llama.tasks.generation import TextGenerationTask  # noqa: E402
from llama.trainer import Trainer  # noqa: E402
from llama.training.optimizer import TrainConfig  # noqa: E402
from tokenizer import bpe  # noqa: E402

EXPERTS, TOP_K, BLOCK = 4, 2, 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="python examples/experts.py", description=__doc__.splitlines()[0])
    parser.add_argument("--balance", type=Range(0.0, 100.0), default=0.01, metavar="X",
                        help="weight of the balance loss (default: 0.01; 0 leaves the routers alone)")
    balance = parser.parse_args().balance
    texts = (HOME / "examples" / "neutral.txt").read_text(encoding="utf-8").split("\n\n")
    tokenizer = bpe.train(texts, 400)
    torch.manual_seed(0)
    model = new_model(preset("test", vocab_size=tokenizer.vocab_size), tokenizer)
    use_experts(model, experts=EXPERTS, top_k=TOP_K)
    config = TrainConfig(epochs=1000, max_steps=60, batch_size=4, lr=0.01, pack="off")
    Trainer(model, TextGenerationTask(), LanguageModelingDataset(texts, block_size=BLOCK), config=config,
            objective=partial(Balanced, weight=balance)).train()

    ids = torch.tensor(tokenizer.encode(" ".join(texts)))
    rows = ids[: len(ids) // BLOCK * BLOCK].view(-1, BLOCK)         # (B, T)
    with torch.no_grad(), watch_routers(model.eval()) as said:
        logits = model(rows)
    print(f"loss on the text {functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()):.2f}")
    for number, (scores, top_k) in enumerate(said):
        counts = torch.bincount(scores.topk(top_k).indices.flatten(), minlength=EXPERTS)
        print(f"layer {number}, tokens of each expert: " + " ".join(f"{count:5}" for count in counts.tolist())
              + f"   of {rows.numel()}")


if __name__ == "__main__":
    cli.run(main)
