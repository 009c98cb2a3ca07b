"""Saving the scene of a divergence: which op, what it was given, and what goes on inside it."""
