"""What quality costs: a grid of runs within a budget of time, and what follows from it."""
