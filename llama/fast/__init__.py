"""Fast versions of definitions that stand elsewhere, put in their place only where both compute the same."""
