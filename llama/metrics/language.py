"""Which language's definition of a word and of a match fits some texts: a score says which one it was made with.

Try: count every character instead of letters; tests/test_metrics_language.py
(test_worked_example_signs_and_figures_do_not_count) fails.
"""

from collections.abc import Iterable


def is_chinese(texts: Iterable[str]) -> bool:
    """Whether more than half of the letters are ideographs. Of no letters: no."""
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    return 2 * sum("\u3400" <= letter <= "\u9fff" for letter in letters) > len(letters)
