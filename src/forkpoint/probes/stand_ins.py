"""Parameters that a call puts others in place of, as `torch.func.functional_call` does."""

from __future__ import annotations

from forkpoint.explain.locate import Located, named_inputs
from forkpoint.explain.session import Session
from forkpoint.probes.inputs import Inputs
from forkpoint.result import ProbeResult


def stand_in(session: Session, located: Located | None) -> Inputs | None:
    """Show that the first op that differs reads a parameter of the model in one run, and another tensor in the other.

    Asked of one model in both runs, called in two ways: its parameters are the same before they begin. One that a run
    writes is its own, and buffers (rotary tables) are replaced by models themselves.
    """
    a, b = session.a.run, session.b.run
    if located is None or a.model is not b.model or a.call is b.call or a.modules is None:
        return None
    parameters = {name for name, _ in a.modules.named_parameters()}
    given_a, given_b = named_inputs(located.a), named_inputs(located.b)
    for given in located.divergence.inputs:
        if given.parameter not in parameters or given.status != "differs":
            continue
        own = [
            id(values[given.name]) in call.owned
            for values, call in ((given_a, located.a), (given_b, located.b))
        ]
        if all(own):
            continue
        run = "A" if own[1] else "B"
        text = f"run {run} computes with another tensor in place of the parameter {given.parameter}"
        return Inputs(True, "parameters", ProbeResult("inputs", "differs", 1.0, text))
    return None
