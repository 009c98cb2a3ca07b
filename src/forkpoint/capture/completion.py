"""Takes the digests of a run to the host, and to the shelf if there is one, once the device has them."""

from __future__ import annotations

from forkpoint.capture import digest
from forkpoint.capture.cells import collect
from forkpoint.capture.ledger import Ledger
from forkpoint.capture.marks import Treatment
from forkpoint.capture.trace import Digests, Trace


def complete(trace: Trace, ledger: Ledger, digests: digest.Digests | digest.ShelvedDigests) -> None:
    """Put all digests of a finished run into its trace; waits for the device.

    Args:
        trace: of the run.
        ledger: which rows have open cells, or digests that were computed one by one.
        digests: those that the batch computed.
    """
    for row, treatment in ledger.opened:
        slot = trace.slots[row]
        _keep(trace, row, treatment, [digests[slot + 1], digests[slot]])
    ledger.opened.clear()
    keep_computed(trace, ledger)


def shelve(trace: Trace, ledger: Ledger) -> None:
    """Put digests that were computed one by one on the shelf, if there is one and all of them are on the host."""
    if trace.shelf is not None and all(t.device.type == "cpu" for _, _, ts in ledger.computed for t in ts):
        keep_computed(trace, ledger)


def keep_computed(trace: Trace, ledger: Ledger) -> None:
    """Put the digests that were computed one by one (cells of several rows, or pairs) into the trace."""
    for row, treatment, tensors in ledger.computed:
        _keep(trace, row, treatment, [t.cpu().numpy() for t in tensors])
    ledger.computed.clear()


def _keep(trace: Trace, row: int, treatment: Treatment, parts: list[Digests]) -> None:
    shelf = trace.shelf
    digests, flat = collect(treatment.cut, treatment.form.shape, parts)
    trace.odd[row] = (
        (digests, flat)
        if shelf is None
        else (shelf.keep_array(digests), None if flat is None else shelf.keep_array(flat))
    )
