"""The errors that a user can cause: each says what was given, what was expected and what to do."""

from __future__ import annotations

from typing import Any

from forkpoint.printable import one_line

_MOST_GIVEN, _MOST_OF_THE_REST = 1000, 400
"""Most characters of what was given, and of what was expected and what to do."""


class ForkpointError(Exception):
    """What was given, what was expected and what to do, worded into one line, whatever the given text holds.

    >>> str(ForkpointError("a prompt of 60 tokens for pad_to=50", "pad_to of 60 or more", "--pad-to 64"))
    'a prompt of 60 tokens for pad_to=50; expected pad_to of 60 or more (--pad-to 64)'
    """

    def __init__(self, given: str, expected: str = "", hint: str = "") -> None:
        self.given = given
        self.expected = expected
        self.hint = hint
        message, expected, hint = (
            one_line(given, _MOST_GIVEN),
            one_line(expected, _MOST_OF_THE_REST),
            one_line(hint, _MOST_OF_THE_REST),
        )
        message = f"{message}; expected {expected}" if expected else message
        super().__init__(f"{message} ({hint})" if hint else message)

    def __reduce__(self) -> tuple[type[ForkpointError], tuple[str, str, str]]:
        return type(self), (
            self.given,
            self.expected,
            self.hint,
        )  # the default would pickle the worded message


class InputError(ForkpointError):
    """An argument or an input that can't be used."""


class LayoutError(ForkpointError):
    """Token coordinates that contradict each other, or two runs that share none."""


class ModelError(ForkpointError):
    """A model or a tokenizer that can't be loaded."""


class CaptureError(ForkpointError):
    """A run that could not be traced."""


class ShelfError(CaptureError):
    """What was kept out of memory can't be written to the temporary file, or not be read back."""


class SceneError(ForkpointError):
    """A scene that can't be saved, loaded or replayed."""


class InvarianceError(ForkpointError):
    """A model, or an operation in it, that has no layout-invariant form."""


class DifferenceError(AssertionError):
    """Two runs differ by more than is allowed, or one by anything from its baseline.

    Attributes:
        result: the `Result` of the comparison, with whose short report the message ends; None for a baseline.
        op, source: for a baseline, the op at which the run begins to differ, and its `file.py:line`.
    """

    def __init__(self, message: str, result: Any = None, *, op: str = "", source: str = "") -> None:
        super().__init__(message)
        self.result, self.op, self.source = result, op, source


_SHORT = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch says, of GPUs with a class of its own, of the CPU without."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, or that the file is full which stands for it.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    (True, True)
    """
    says_so = isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORT)
    return says_so or isinstance(error, (MemoryError, ShelfError))


def reraise_out_of_memory(error: BaseException) -> None:
    """Raise an error again if memory is short: that is no answer to what was tried."""
    if is_out_of_memory(error):
        raise error
