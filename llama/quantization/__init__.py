"""Fewer bits: how numbers are rounded, the layers that hold them, and how a model changes to them and back."""
