"""Fetching one value of a run by the name that the source gives it."""

from __future__ import annotations

from torch import Tensor

from forkpoint.capture.recorder import CopiedCall, Fetch
from forkpoint.capture.trace import Op
from forkpoint.errors import InputError
from forkpoint.explain.session import Session, Traced
from forkpoint.runs.modules import module_at
from forkpoint.support.restoring import alone, by_itself, restored


@alone
@restored
@by_itself
def fetch_value(session: Session, module: str, name: str, *, run: str, call: int, index: int) -> Tensor:
    """One value of a run; see `Result.value`.

    Raises:
        InputError: no such run, module or name; the names that there are stand in the message.
    """
    if run not in ("a", "b"):
        raise InputError(f"run={run!r}", "'a' or 'b'")
    traced = session.a if run == "a" else session.b
    calls = len(traced.run.calls)
    if not 0 <= call < calls:
        raise InputError(f"call {call} of a run of {calls}", f"0 to {calls - 1}")
    model = traced.run.modules
    if model is not None:
        owner = module_at(model, module)
        if owner is None:
            raise InputError(f"no module {module!r} in the model", "a path of model.named_modules()")
        for table in (owner._parameters, owner._buffers):
            parameter = dict(table.items()).get(name)  # a scripted module's is no dict
            if parameter is not None:
                return parameter.detach().clone()
    ops = [op for op in traced.trace.ops if op.module == module]
    matching = [op for op in ops if _matches(op, name)]
    events = [
        (position, op, event.nth)
        for position, event in enumerate(traced.trace.events)
        if event.call == call and (op := traced.trace.ops[event.op]) in matching
    ]
    where = f"named {name!r} in call {call} of module {module or '(model)'!r}"
    if not events:
        labels = ", ".join(sorted({label for op in ops for label in _labels(op)})[:40])
        raise InputError(f"no value {where}", f"one of: {labels}" if labels else "a module that ran")
    if not -len(events) <= index < len(events):
        raise InputError(f"value {index} of {len(events)} {where}", f"0 to {len(events) - 1}")
    _, op, nth = events[index]
    return _take(traced, op, call, nth)


def _labels(op: Op) -> list[str]:
    variable = None if op.is_boundary else op.site.variable
    return [op.function, *([variable, f"{variable}/{op.function}"] if variable else [])]


def _matches(op: Op, name: str) -> bool:
    return name in _labels(op) or (name == "input" and op.is_input)


def _take(traced: Traced, op: Op, call: int, nth: int) -> Tensor:
    values: list[Tensor] = []

    def keep(call: CopiedCall) -> None:
        values.append(call.outputs[0 if op.is_boundary else op.output])

    output = op.output if op.is_boundary else None
    traced.again([Fetch((op.module, op.function, op.site.chain), call, nth, keep, output)])
    if not values:
        raise InputError(f"{op.name} did not run again", "a model that repeats itself", "see the verdict")
    return values[0]
