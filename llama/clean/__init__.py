"""Raw text made fit to learn from: `python -m llama.clean`, and the parts that it is made of."""
