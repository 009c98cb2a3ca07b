"""A run: the calls of a model, where the tokens are in them, and making them so that nothing stays changed."""
