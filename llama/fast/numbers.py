"""How far two results of the same computation may be apart, and what is said where they are."""

import sys

from torch import Tensor

EXACT = 1e-3        # of float32 in another order: some 1e-6; an edit that means anything moves far more
ROUNDED = 5e-2      # of bfloat16 and of few bits, which every product rounds anew


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖, in float32."""
    found, expected = found.float(), expected.float()
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def agree(found: Tensor, expected: Tensor, definition: str, fast: str, *, within: float = EXACT) -> bool:
    """Whether a fast version gave what its definition gives; where not (or no number), one line on stderr says so."""
    if found.shape == expected.shape and relative_difference(found, expected) <= within:
        return True
    print(f"llama/{definition} gives other numbers than llama/{fast}: what stands in the file runs, slower",
          file=sys.stderr)
    return False
