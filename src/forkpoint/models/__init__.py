"""A model and its tokenizer, by name; and the model called `demo`."""

from forkpoint.models.loading import LoadedModel, load

__all__ = ["LoadedModel", "load"]
