"""Files ↔ tensors: one format a file, and two commands, `python -m weights.fetch` and `python -m weights.convert`.

The formats trade plain values, never classes of ours: a config dict with Hugging Face's keys, a vocabulary dict, a
ledger (what tensors there are: name, shape, dtype) and an iterator of (name, tensor) in the ledger's order. The ledger
comes first and the tensors one by one, so that a model larger than the memory can pass through.

Names are Hugging Face's without the leading `model.`, rotary pairs are (i, i + K/2). The letters of the shapes are
explained in llama/config.py.

Try: hand the tensors to `huggingface.write_folder` in another order than the ledger's; tests/test_huggingface.py
(test_refusal_tensors_that_differ_from_the_ledger) has the sentence that stops you.
"""
