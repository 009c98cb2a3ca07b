"""Takes the digests of a run to the host, and to the shelf if there is one, once the device has them."""

from __future__ import annotations

from forkpoint.capture import digest
from forkpoint.capture.cells import collect
from forkpoint.capture.ledger import Ledger
from forkpoint.capture.marks import Treatment
from forkpoint.capture.trace import Digests, Trace


def complete(trace: Trace, ledger: Ledger, digests: digest.Digests | digest.ShelvedDigests) -> None:
    """All digests of a run that is over."""
    for row, treatment in ledger.opened:
        slot = trace.slots[row]
        _keep(trace, row, treatment, [digests[slot + 1], digests[slot]])
    ledger.opened.clear()
    keep_computed(trace, ledger)


def shelve(trace: Trace, ledger: Ledger) -> None:
    """Those that are on the host already go to the shelf, if there is one."""
    if trace.shelf is not None and all(t.device.type == "cpu" for _, _, ts in ledger.computed for t in ts):
        keep_computed(trace, ledger)


def keep_computed(trace: Trace, ledger: Ledger) -> None:
    """Those that are not simply rows, which were computed one by one."""
    for row, treatment, tensors in ledger.computed:
        _keep(trace, row, treatment, [t.cpu().numpy() for t in tensors])
    ledger.computed.clear()


def _keep(trace: Trace, row: int, treatment: Treatment, found: list[Digests]) -> None:
    shelf = trace.shelf
    digests, flat = collect(treatment.cut, treatment.form.shape, found)
    trace.odd[row] = (
        (digests, flat)
        if shelf is None
        else (shelf.keep_array(digests), None if flat is None else shelf.keep_array(flat))
    )
