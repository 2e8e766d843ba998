"""What a sample looks like to the model: which ids it reads, and which of them it is to learn.

Most failures of tuning are visible here before they cost an hour: an answer that is masked, an end token that is not
learned, a doubled beginning, a template printed as plain letters.

Try: tune on examples/identity.jsonl and see in this list that <|im_end|> is learned; tests/test_inspect.py
(test_property_what_is_marked_is_what_is_learned) says that the marks are the targets of the batch.
"""

from typing import Any

from llama.tasks.task import Sample

GREEN, PLAIN = "\x1b[32m", "\x1b[0m"


def show_sample(sample: Sample, tokenizer: Any, *, colour: bool, most: int = 100) -> str:
    """One sample, a line an id: position, id, ● if it is learned, its piece; then their numbers.

    Behind the last part of a character that is spelt by several ids stands the character. Of a sample longer than
    `most` lines, the middle is left out.
    """
    characters = tokenizer.stream()
    lines = [f"{sample.place or 'a sample'}, as the model sees it (● is learned, the rest is only read):"]
    if sample.cut:
        lines.append(f"  … {sample.cut} ids before these are cut off: the sample is too long")
    for position, token in enumerate(sample.ids):
        piece, text = tokenizer.piece(token), characters.push(token).strip()
        if len(sample.ids) > most and most // 2 <= position < len(sample.ids) - most // 2:
            if position == most // 2:
                lines.append(f"  … {len(sample.ids) - 2 * (most // 2)} more …")
            continue
        learned = position > 0 and sample.learned[position]         # the first id has nothing to be predicted from
        line = f"{position:6} {token:7} {'●' if learned else ' '} {piece}"
        if "\\x" in piece and text and text.isprintable():          # an escape sequence in the data stays spelt out
            line += f"  {text}"
        lines.append(f"{GREEN}{line}{PLAIN}" if colour and learned else line)
    lines.append(f"{len(sample.ids)} ids: {sample.targets} learned, {len(sample.ids) - sample.targets} only read")
    return "\n".join(lines)
