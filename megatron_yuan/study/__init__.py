"""Comparisons of trained models: which runs there are, how they are run, and what they show."""
