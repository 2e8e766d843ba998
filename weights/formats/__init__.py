"""One format a file: files ↔ plain values (a config dict, a vocabulary, a ledger and tensors), no classes of ours."""
