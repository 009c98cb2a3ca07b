"""`forkpoint replay`."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forkpoint.printable import printable
from forkpoint.support.progress import status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import RenderableType
    from rich.text import Text

    from forkpoint.scene import Replay, Scene
    from forkpoint.scene.replaying.exactness import Exactness
    from forkpoint.scene.replaying.replay import Check

Folder = Annotated[Path, typer.Argument(metavar="SCENE", help="The folder of a scene.", show_default=False)]


def replay(
    scene: Folder,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default every one that is here.", show_default=False)
    ] = None,
) -> None:
    """Repeat the op of a scene on the inputs of both runs, on every device present, and compare.

    Exit status: 0 if both outputs are the recorded ones, bit for bit, on the device that they were recorded on;
    1 if they aren't; 2 if the scene can't be used.
    """
    with status("replaying"):
        from rich.console import Console

        from forkpoint.scene import load
        from forkpoint.scene import replay as run
        from forkpoint.scene.format.machine import devices

        loaded = load(scene)
        replays = [run(loaded, one) for one in ([device] if device is not None else devices())]
    console = Console()
    for part in report(loaded, replays):
        console.print(part, highlight=False, soft_wrap=False)
    raise typer.Exit(0 if any(one.reproduces for one in replays) else 1)


# ---------------------------------------------------------------------- the report


def report(scene: Scene, replays: Sequence[Replay]) -> Iterator[RenderableType]:
    """The parts of the report, from the place of the op to the outcome."""
    from rich.padding import Padding

    from forkpoint.scene.format.kernels import evidence

    place = scene.place
    yield _text(place.op, "bold")
    yield _text(f"{place.source}  {place.code}")
    for run, side in (("A", scene.a), ("B", scene.b)):
        layout = scene.layouts[side.outputs[scene.output]]
        dtype = str(scene.storages[layout.storage].dtype).removeprefix("torch.")
        yield _text(f"run {run}: {side.run}, {side.function}, output {list(layout.shape)} {dtype}")
    torch_version = scene.machine.libraries.get("torch", "?")
    yield _text(f"recorded on {scene.machine.device}: {scene.machine.text}, torch {torch_version}")
    yield _text("")
    yield table(replays)
    lines = scene.inside.lines if scene.inside is not None else ()
    if lines:
        yield _text("")
        yield _text("Inside the op, when the scene was saved", "bold")
        yield from (Padding(_text(line), (0, 0, 0, 2)) for line in lines)
    for one in replays:
        yield _text("")
        yield _text(f"{one.device}: {evidence(one.kernels_a, one.kernels_b)}")
    remarks = [*scene.notes, *(remark for one in replays for remark in one.remarks)]
    if remarks:
        yield _text("")
        yield from (_text(f"note: {remark}", "yellow") for remark in dict.fromkeys(remarks))
    yield _text("")
    yield _text(_outcome(scene, replays), "bold")


def _text(line: str, style: str = "") -> Text:
    """A line of text, whoever it is from: the one way from here to the terminal."""
    from rich.text import Text

    return Text(printable(line), style)


def _lines(*lines: str) -> Text:
    from rich.text import Text

    return Text("\n").join(map(_text, lines))


def table(replays: Sequence[Replay]) -> RenderableType:
    """One column a device, one row a check."""
    from rich import box
    from rich.table import Table

    from forkpoint.scene.format.kernels import short_name

    found = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    found.add_column("")
    for one in replays:
        head = _lines(one.device, one.machine.text, f"torch {one.machine.libraries['torch']}")
        found.add_column(head, overflow="fold")

    def row(label: str, show: Callable[[Replay], Text]) -> None:
        found.add_row(_text(label), *(show(one) for one in replays))

    for kind in ("weights", "inputs"):
        for index, check in enumerate(getattr(replays[0], kind)):
            suffix = " equal" if kind == "weights" else " equal where shared"
            row(check.name + suffix, lambda one, kind=kind, index=index: _check(getattr(one, kind)[index]))
    row("A's output as recorded", lambda one: _check(one.recorded_a, expected=one.recorded_here))
    row("B's output as recorded", lambda one: _check(one.recorded_b, expected=one.recorded_here))
    row("outputs equal to each other", lambda one: _check(one.outputs, neutral=True))
    row("first unequal element", _first)
    for index, (atol, _) in enumerate(replays[0].allclose):
        row(
            f"allclose, atol {atol:.0e}",
            lambda one, index=index: _text("yes" if one.allclose[index][1] else "no"),
        )
    row("error of A against float64", lambda one: _exactness(one.exact_a))
    row("error of B against float64", lambda one: _exactness(one.exact_b))
    for run, of in (("A", attrgetter("kernels_a")), ("B", attrgetter("kernels_b"))):
        row(
            f"kernels of {run}",
            lambda one, of=of: _lines(
                *(map(short_name, of(one).names) if of(one).names else [of(one).reason])
            ),
        )
    return found


def _check(check: Check, *, expected: bool = True, neutral: bool = False) -> Text:
    """How a comparison came out; in red only where it should have come out otherwise."""
    if check.equal is None:
        return _text(check.reason or "not compared", "dim")
    if check.equal:
        return _text("yes", "" if neutral else "green")
    text = "no"
    if check.compared and not check.reason:
        text += f": {check.differing:,} of {check.compared:,} differ, by up to {check.max_abs:.3g}"
    elif check.reason:
        text += f": {check.reason}"
    return _text(text, "red" if expected and not neutral else "")


def _first(one: Replay) -> Text:
    if one.first is None:
        return _text("none")
    first = one.first
    values = f"A{list(first.index_a)} {first.value_a!r}", f"B{list(first.index_b)} {first.value_b!r}"
    return _lines(*values, *(() if first.ulps is None else (f"{first.ulps:.3g} ULP apart",)))


def _exactness(found: Exactness) -> Text:
    if found.median is None or found.largest is None:
        return _text(found.reason)
    there = "" if found.first is None else f"{found.first:.3g} ULP there; "
    return _text(f"{there}median {found.median:.3g}, largest {found.largest:.3g}")


def _outcome(scene: Scene, replays: Sequence[Replay]) -> str:
    home = scene.machine.device
    if any(one.reproduces for one in replays):
        return f"It reproduces: on {home} both outputs are the recorded ones, bit for bit."
    here = [one for one in replays if one.recorded_here]
    if not here:
        return f"It was recorded on {home}, and was not replayed there."
    wrong = " and ".join(
        name for name, check in (("A", here[0].recorded_a), ("B", here[0].recorded_b)) if not check.equal
    )
    changed = [
        f"{what} {then} then, {now} now"
        for what, then, now in (
            ("torch", scene.machine.libraries.get("torch", "?"), here[0].machine.libraries["torch"]),
            ("device", scene.machine.text, here[0].machine.text),
        )
        if then != now
    ]
    why = f" ({'; '.join(changed)})" if changed else ""
    return f"It does not reproduce: on {home} the output of {wrong} is not the recorded one{why}."
