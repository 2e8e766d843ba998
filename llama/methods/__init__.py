"""Methods of cheap and robust adaptation, a file each, on the seam of training/objective.py."""
