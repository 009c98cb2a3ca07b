"""`forkpoint replay`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forkpoint.progress import status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import RenderableType
    from rich.text import Text

    from forkpoint.scene import Replay, Scene
    from forkpoint.scene.exactness import Exactness
    from forkpoint.scene.replay import Check

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
        from forkpoint.scene.machine import devices

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
    from rich.text import Text

    from forkpoint.scene.kernels import evidence

    place = scene.place
    yield Text(f"{place.op}", style="bold")
    yield Text(f"{place.source}  {_printable(place.code)}")
    for run, side in (("A", scene.a), ("B", scene.b)):
        layout = scene.layouts[side.outputs[scene.output]]
        dtype = str(scene.storages[layout.storage].dtype).removeprefix("torch.")
        yield Text(f"run {run}: {_printable(side.run)}, {side.function}, output {list(layout.shape)} {dtype}")
    torch_version = scene.machine.libraries.get("torch", "?")
    yield Text(
        f"recorded on {scene.machine.device}: {_printable(scene.machine.text)}, torch {_printable(torch_version)}"
    )
    yield Text()
    yield table(replays)
    lines = list(_inside(scene))
    if lines:
        yield Text("\nInside the op, when the scene was saved", style="bold")
        yield from (Padding(Text(line), (0, 0, 0, 2)) for line in lines)
    for one in replays:
        yield Text(f"\n{one.device}: {_printable(evidence(one.kernels_a, one.kernels_b))}")
    remarks = [*scene.notes, *(remark for one in replays for remark in one.remarks)]
    if remarks:
        yield Text()
        yield from (Text(f"note: {_printable(remark)}", style="yellow") for remark in dict.fromkeys(remarks))
    yield Text(f"\n{_outcome(scene, replays)}", style="bold")


def _printable(text: str) -> str:
    from forkpoint.report.safe import printable

    return printable(text)


def table(replays: Sequence[Replay]) -> RenderableType:
    """One column a device, one row a check."""
    from rich import box
    from rich.table import Table

    from forkpoint.scene.kernels import short_name

    found = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    found.add_column("")
    for one in replays:
        found.add_column(
            f"{one.device}\n{one.machine.text}\ntorch {one.machine.libraries['torch']}", overflow="fold"
        )

    def row(label: str, show: Callable[[Replay], Text | str]) -> None:
        found.add_row(label, *(show(one) for one in replays))

    for kind in ("weights", "inputs"):
        for index, check in enumerate(getattr(replays[0], kind)):
            suffix = " equal" if kind == "weights" else " equal where shared"
            row(check.name + suffix, lambda one, kind=kind, index=index: _check(getattr(one, kind)[index]))
    row("A's output as recorded", lambda one: _check(one.recorded_a, expected=one.recorded_here))
    row("B's output as recorded", lambda one: _check(one.recorded_b, expected=one.recorded_here))
    row("outputs equal to each other", lambda one: _check(one.outputs, neutral=True))
    row("first unequal element", _first)
    for index, (atol, _) in enumerate(replays[0].allclose):
        row(f"allclose, atol {atol:.0e}", lambda one, index=index: _yes(one.allclose[index][1]))
    row("error of A against float64", lambda one: _exactness(one.exact_a))
    row("error of B against float64", lambda one: _exactness(one.exact_b))
    row("kernels of A", lambda one: "\n".join(map(short_name, one.kernels_a.names)) or one.kernels_a.reason)
    row("kernels of B", lambda one: "\n".join(map(short_name, one.kernels_b.names)) or one.kernels_b.reason)
    return found


def _yes(value: bool) -> Text:
    from rich.text import Text

    return Text("yes") if value else Text("no")


def _check(check: Check, *, expected: bool = True, neutral: bool = False) -> Text:
    """How a comparison came out; in red only where it should have come out otherwise."""
    from rich.text import Text

    if check.equal is None:
        return Text(check.reason or "not compared", style="dim")
    if check.equal:
        return Text("yes", style="" if neutral else "green")
    text = Text("no", style="red" if expected and not neutral else "")
    if check.compared and not check.reason:
        text.append(f": {check.differing:,} of {check.compared:,} differ, by up to {check.max_abs:.3g}")
    elif check.reason:
        text.append(f": {check.reason}")
    return text


def _first(one: Replay) -> str:
    if one.first is None:
        return "none"
    first = one.first
    apart = "" if first.ulps is None else f"\n{first.ulps:.3g} ULP apart"
    return f"A{list(first.index_a)} {first.value_a!r}\nB{list(first.index_b)} {first.value_b!r}{apart}"


def _exactness(found: Exactness) -> str:
    if found.median is None or found.largest is None:
        return found.reason
    there = "" if found.first is None else f"{found.first:.3g} ULP there; "
    return f"{there}median {found.median:.3g}, largest {found.largest:.3g}"


def _inside(scene: Scene) -> Iterator[str]:
    if scene.inside is not None:
        yield from map(_printable, scene.inside.lines)


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
        f"{what} {_printable(then)} then, {now} now"
        for what, then, now in (
            ("torch", scene.machine.libraries.get("torch", "?"), here[0].machine.libraries["torch"]),
            ("device", scene.machine.text, here[0].machine.text),
        )
        if then != now
    ]
    why = f" ({'; '.join(changed)})" if changed else ""
    return f"It does not reproduce: on {home} the output of {wrong} is not the recorded one{why}."
