"""Files become examples: plain dicts, each with the place it came from. One file a format family; none knows a model.

    lines.py                numbered lines of UTF-8, JSON records: what every text format starts from
    language_modeling.py    .txt and .jsonl with `text`             -> {"text", "place"}
    instructions.py         Alpaca and chat records, .json, .jsonl  -> {"messages", "place"}
    token_file.py           text turned into ids once, memory-mapped afterwards

A data set has a length and gives its examples by index; `place` is "file:line", which errors and inspection name.

Try: open a .txt of yours in UTF-16; tests/test_lines.py shows the sentence that refuses it.
"""
