"""GPT-2's own two files, vocab.json and merges.txt, as the tokenizer.json that came after them.

    vocab.json   {"!": 0, …}: every piece and its id          merges.txt   «Ġ t» a line, the best first, below a title

The rule by which words are split is GPT-2's and in no file, so other models' folders of this form are left alone.

Try: keep the title line of merges.txt; tests/test_relatives.py (test_two_ways_gpt2s_files) fails.
"""

import json

from tokenizer.base import read_json

VOCABULARY, MERGES, END = "vocab.json", "merges.txt", "<|endoftext|>"


def with_tokenizer_json(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a folder, with a tokenizer.json where GPT-2's two stand in its place; others as they are."""
    if {"tokenizer.json", "tokenizer.model"} & files.keys() or not {VOCABULARY, MERGES} <= files.keys():
        return files
    settings = read_json(files, "tokenizer_config.json") if "tokenizer_config.json" in files else {}
    config = read_json(files, "config.json") if "config.json" in files else {}
    if not str(settings.get("tokenizer_class", "GPT2Tokenizer")).startswith("GPT2Tokenizer") or \
            config.get("model_type", "gpt2") != "gpt2":
        return files
    vocabulary = read_json(files, VOCABULARY)
    lines = files[MERGES].decode().split("\n")
    merges = [line for line in lines[lines[0].startswith("#version") :] if line]
    special = [{"id": vocabulary[END], "content": END, "special": True, "normalized": False, "single_word": False,
                "lstrip": False, "rstrip": False}] if END in vocabulary else []
    split = {"type": "ByteLevel", "add_prefix_space": bool(settings.get("add_prefix_space", False)),
             "trim_offsets": True, "use_regex": True}
    spec = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": split, "post_processor": None, "decoder": split,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                      "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary,
                      "merges": merges}}
    ends = {"bos_token": END, "eos_token": END} if special else {}
    return files | {"tokenizer.json": json.dumps(spec, ensure_ascii=False).encode(),
                    "tokenizer_config.json": json.dumps(ends | settings, ensure_ascii=False).encode()}
