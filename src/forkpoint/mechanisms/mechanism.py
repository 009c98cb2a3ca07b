"""What a known cause is, and what may be said of it."""

from __future__ import annotations

from dataclasses import dataclass

from forkpoint.result import ProbeResult


@dataclass(frozen=True)
class Mechanism:
    """A known cause.

    Attributes:
        slug: its name in verdicts.
        by_design: True for a coupling that is meant, False for an error, None where nobody can know.
        summary: what it is, in a clause that ends "the runs differ in exact arithmetic: …".
        advice: what to do.
        coupling: the experiment that showed a coupling; there is no `by_design=True` without one.
        whole: whether the experiments explain the whole gap, wherever else a difference enters.

    Raises:
        ValueError: a coupling that is meant, and was not shown.
    """

    slug: str | None
    by_design: bool | None
    summary: str
    advice: str
    coupling: ProbeResult | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        shown = self.coupling is not None and (self.coupling.name, self.coupling.outcome) == (
            "coupling",
            "coupled",
        )
        if self.by_design and not shown:
            raise ValueError(f"{self.slug}: meant, but no experiment shows a coupling")


LOSS_NORMALISATION = Mechanism(
    "loss_normalisation", None, "the same terms enter the loss at every token that both have, but they are divided by "
    "other counts",
    "Divide the sum over all labels that count by their number, once for the whole batch: neither for each micro-batch "
    "nor over padding.",
)  # fmt: skip

TWO_FUNCTIONS = Mechanism(
    None, None, "the two runs compute different functions here",
    "Look at the origin: what it is called with, and which code runs it, differs between the runs.",
)  # fmt: skip

_LAYOUTS = "Look at the origin: what it is called with differs between the layouts."

ONE_MODEL = Mechanism(
    None, None, "one model computes something else in the other layout, and no known cause explains it",
    _LAYOUTS,
)  # fmt: skip
"""Both runs make the same call of one model."""

NO_KNOWN_CAUSE = Mechanism(
    None, None, "given the same inputs both runs compute the same, and no known cause explains what they do in their own "
    "layouts",
    _LAYOUTS,
)  # fmt: skip

UNTOLD = Mechanism(
    None, None, "no known cause explains it, and whether the two runs compute one function could not be told",
    "Look at the origin: what it is called with, or which code runs it, differs between the runs.",
)  # fmt: skip

ROUNDING_ADVICE = {
    "reduction_order": "Nothing is wrong. To get the same bits, run rows in the same shapes, or with kernels whose sums "
    "do not depend on the shape.",
    "kernel_choice": "Nothing is wrong. To get the same bits, make both runs take the same kernel (the same attention "
    "implementation, a mask in both or in neither).",
    "low_precision": "Nothing is wrong; the gap is what the narrower dtype costs. Use the wider one where it matters.",
}
"""What to do about each kind of rounding."""
