"""How a float64 rewriting says that it does not cover a call."""


class CannotRewrite(Exception):
    """This call of a rewritten operation has a form that its rewriting doesn't cover."""
