"""The server under judges and under load: `make serve-check`, `python -m tests.serve.load`."""
