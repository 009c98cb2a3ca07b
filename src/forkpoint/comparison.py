"""`compare`: both runs are made as their user would make them, and handed to the `investigation`.

While the runs are made, a thread imports `forkpoint.investigation` and all that it needs; so this file must not import it
at the top.

The decorators, from the outermost: the result says how `compare` was called (`says_call`), one comparison is made at a time
(`alone`), whatever ends it leaves nothing changed (`restored`), and function modes of the caller see nothing of it
(`by_itself`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forkpoint.capture import digest
from forkpoint.errors import InputError
from forkpoint.explain.untraced import named_alike, run_untraced
from forkpoint.runs.batches import paired
from forkpoint.runs.contents import noted_once
from forkpoint.runs.generating import unrolled
from forkpoint.runs.listening import Listening
from forkpoint.runs.run import Run
from forkpoint.support.background import importing
from forkpoint.support.called import says_call
from forkpoint.support.memory import Memory
from forkpoint.support.progress import SILENT, Progress
from forkpoint.support.restoring import alone, by_itself, restored
from forkpoint.support.sizes import parse_size

if TYPE_CHECKING:
    from forkpoint.ports.mapping import Mapping
    from forkpoint.result import Result


@says_call
@alone
@restored
@by_itself
def compare(
    a: Run,
    b: Run,
    *,
    probes: bool = True,
    sources: bool = False,
    tokenizer: Any = None,
    notes: Sequence[str] = (),
    max_memory: int | str | None = None,
    progress: Progress = SILENT,
    mapping: Mapping | None = None,
    backward: bool = False,
) -> Result:
    """Find the first operation at which two runs part ways, and say why.

    Args:
        a, b: the runs.
        probes: False to stop after the first divergence, without experiments and so without a verdict.
        sources: whether to look for every op that parts ways on equal inputs, not for the first alone (`Result.sources`);
            needs two runs with every value kept, and one more.
        tokenizer: gives tokens their text in reports; anything with `decode([id])`.
        notes: remarks to carry into the report.
        max_memory: how much host memory the digests, and the values that probes keep, may take, in bytes or as
            "4GB" or "2GiB"; what goes beyond it lies in a temporary file. The result is the same. By default
            there is no limit.
        progress: is told of each stage as it begins, and how far it is.
        mapping: of a port (run A) and its reference (run B), which parameters are which: what `fp.mapping` found, perhaps
            changed by hand. By default it is looked for where ops don't meet by name.
        backward: whether to go back from the losses that the models return (as `loss.backward()` does after each call),
            and to compare the gradient of every op's output and of every parameter, too: `Result.backward`.

    Returns:
        The result; `print(result)` is the report.

    Raises:
        LayoutError: the runs share no sample.
        CaptureError: a model returned no tensor, or the temporary folder is full.
        InputError: something that is not a `Run`, or not a size; with `backward`, a run that returns no loss.

    >>> import torch
    >>> linear = torch.nn.Linear(4, 4)
    >>> x = torch.randn(1, 3, 4)
    >>> compare(Run(linear, {"input": x}), Run(linear, {"input": x}), probes=False).identical
    True
    """
    for name, run in (("a", a), ("b", b)):
        if not isinstance(run, Run):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"{name} is a {type(run).__name__}", "an fp.Run(model, inputs)")
        run.check_weights()
    memory = Memory(None if max_memory is None else parse_size(max_memory))
    # Which samples of both runs belong together.
    a, b, pairing, remarks = paired(a, b)
    # What the models' tensors hold is noted once for all runs of the comparison, not anew before each.
    with noted_once(digest.of_memory):
        with importing("forkpoint.investigation"):
            heard = Listening(), Listening()  # calls of `generate` that each run makes
            untraced = [
                run_untraced(run, progress=progress, name=name, listening=listening)
                for run, name, listening in ((a, "A", heard[0]), (b, "B", heard[1]))
            ]
            if any(listening.outermost for listening in heard):
                # A run that generates is replaced by one of the forward calls that it made, and these are made anew.
                a, b, unrolling = unrolled((a, b), heard)
                a, b, pairing, remarks = paired(a, b)
                remarks = (*unrolling, *remarks)
                untraced = [
                    run_untraced(run, progress=progress, name=name) for run, name in ((a, "A"), (b, "B"))
                ]
        # A result that one run returns without a name gets the name that the other gives it.
        a, b, named = named_alike(a, b, untraced)
        from forkpoint.investigation import investigate

        gradients = None
        if backward:
            from forkpoint.backward.comparing import go_back

            shelf = memory.shelf()  # records in memory, with a file behind it
            gradients = go_back(a, untraced[0], shelf, "A"), go_back(b, untraced[1], shelf, "B")
        return investigate(
            a,
            b,
            untraced,
            pairing,
            memory,
            probes=probes,
            sources=sources,
            tokenizer=tokenizer,
            notes=(*remarks, *named, *notes),
            progress=progress,
            mapping=mapping,
            backward=gradients,
        )
