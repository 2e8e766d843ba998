"""Files become examples: plain dicts, each with the place it came from. One file a format family; none knows a model.

    text_files.py           bytes of text, unpacked, in their encoding; what is no text is called by its name
    reading.py              what becomes of what is wrong in a file, or is left aside
    lines.py                numbered lines, JSON records: what every text format starts from
    tables.py               rows of cells as records, by header, by order or as it is said
    examples.py             what data sets in memory share
    language_modeling.py    .txt and .jsonl with `text`             -> {"text", "place"}
    conversations.py        every name that a conversation's parts go by, as OpenAI's messages
    instructions.py         their files, .json, .jsonl, .csv        -> {"messages", "tools", "place"}
    preferences.py          two answers, one preferred, .jsonl      -> {"messages", "chosen", "rejected", "place"}
    records.py              .jsonl, .tsv, .csv: labels, dates       -> {"text", "label" | "labels", "date", "place"}
                            or pairs                                -> {"source", "target", "place"}
    columns.py              a token and its tag a line, word/tag    -> {"tokens", "tags", "text", "starts", "place"}
    tagged_words.py         the People's Daily's lines, word/tag
    tags.py                 BIO and BMES: spans, conversions, which tag may follow which
    squad.py                SQuAD and CMRC, .json                   -> {"question", "context", "answers", "place", …}
    multiple_choice.py      CMMLU and C-Eval, .csv, folders         -> {"question", "options", "answer", "subject", …}
    words.py                lists of words, questions of analogy
    token_file.py           text turned into ids once, memory-mapped afterwards
    split.py                parts of a data set, near-duplicates on one side

A data set has a length and gives its examples by index; `place` is "file:line", which errors and inspection name.

Try: open a .txt of yours in UTF-16; tests/test_text_files.py shows the sentence that refuses it.
"""
