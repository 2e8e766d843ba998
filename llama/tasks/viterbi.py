"""The best legal row of tags: exactly, in one pass (Viterbi 1967; Forney 1973).

Scores of tags are independent given the text, only the rules bind them: I-PER follows B-PER or I-PER, and nothing else.
So the best row is the longest way through a table of n × C, whose steps are those that the rules allow:

    best[t][tag] = score[t][tag] + max over the tags that it may follow of best[t - 1]

Try: take the best tag of each token and mend the row afterwards; tests/test_viterbi.py
(test_two_ways_equals_trying_all_rows) fails.
"""

import numpy as np


def viterbi_decode(scores: np.ndarray, first: np.ndarray, follows: np.ndarray, last: np.ndarray) -> list[int]:
    """The tags whose scores have the largest sum among all rows that keep the rules; of equal ones the first.

    scores   (n, C), n at least 1: log-probabilities, or anything that differs from them by a constant a token
    first, follows, last  (C,), (C, C), (C,) of bool, as `llama.datasets.tags.transitions` gives them

    Raises ValueError where no row keeps the rules.
    """
    scores = scores.astype(np.float64)
    steps = np.where(follows, 0.0, -np.inf)                         # (C, C): from row to column
    best, came_from = scores[0] + np.where(first, 0.0, -np.inf), []
    for row in scores[1:]:
        ways = best[:, None] + steps
        came_from.append(ways.argmax(0))
        best = ways.max(0) + row
    best = best + np.where(last, 0.0, -np.inf)
    tag = int(best.argmax())
    if best[tag] == -np.inf:
        raise ValueError(f"no row of {len(scores)} tags keeps the rules of their scheme; give all tags of each type")
    tags = [tag]
    for back in reversed(came_from):
        tags.append(int(back[tags[-1]]))
    return tags[::-1]
