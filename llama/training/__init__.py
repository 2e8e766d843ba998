"""What the loop of llama/trainer.py calls: losses, optimizers, packing, checks of data, and what a run leaves."""
