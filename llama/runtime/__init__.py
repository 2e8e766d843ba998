"""What every command needs and no model is known to: refusals, progress, interruption, processes and workers."""
