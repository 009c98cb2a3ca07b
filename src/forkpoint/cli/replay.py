"""`forkpoint replay`."""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forkpoint.cli import options
from forkpoint.cli.language import say, words
from forkpoint.printable import printable
from forkpoint.support.progress import status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import RenderableType
    from rich.text import Text

    from forkpoint.scene import Replay, Scene
    from forkpoint.scene.replaying.exactness import Exactness
    from forkpoint.scene.replaying.replay import ReplayCheck

Folder = Annotated[Path, typer.Argument(metavar="SCENE", help="The folder of a scene.", show_default=False)]


def replay(
    scene: Folder,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default every one that is here.", show_default=False)
    ] = None,
    lang: options.Language = options.LANGUAGE,  # noqa: ARG001 - the command line was read for it before
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
        shape = list(layout.shape)
        yield _text(
            words()(
                "replay.run", run=run, name=say(side.run), function=side.function, shape=shape, dtype=dtype
            )
        )
    torch_version = scene.machine.libraries.get("torch", "?")
    home = scene.machine
    yield _text(words()("replay.recorded", device=home.device, machine=home.text, torch=torch_version))
    yield _text("")
    yield table(replays)
    lines = scene.inside.lines if scene.inside is not None else ()
    if lines:
        yield _text("")
        yield _text(words()("replay.inside"), "bold")
        yield from (Padding(_text(_inside(line)), (0, 0, 0, 2)) for line in lines)
    for one in replays:
        yield _text("")
        yield _text(one.device + words()("colon") + say(evidence(one.kernels_a, one.kernels_b)))
    remarks = [*scene.notes, *(remark for one in replays for remark in one.remarks)]
    if remarks:
        yield _text("")
        yield from (
            _text(words()("replay.note", text=words().error(remark) or remark), "yellow")
            for remark in dict.fromkeys(remarks)
        )
    yield _text("")
    yield _text(_outcome(scene, replays), "bold")


def _inside(line: str) -> str:
    """A line of what a look into the op showed, in the language of the command."""
    arguments = line.removeprefix("called with other arguments: ")
    if arguments == line:
        return say(line)
    phrase, pattern = words(), re.compile(r"(\S+) (.*) in A, (.*) in B")
    parts = [
        one and phrase("replay.argument", name=one[1], a=say(one[2]), b=say(one[3]))
        for one in map(pattern.fullmatch, arguments.split("; "))
    ]
    return phrase("replay.arguments", what=phrase("semicolon").join(map(str, parts))) if all(parts) else line


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

    grid = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    grid.add_column("")
    for one in replays:
        head = _lines(one.device, one.machine.text, f"torch {one.machine.libraries['torch']}")
        grid.add_column(head, overflow="fold")

    def row(label: str, show: Callable[[Replay], Text]) -> None:
        grid.add_row(_text(label), *(show(one) for one in replays))

    phrase = words()
    for kind in ("weights", "inputs"):
        for index, check in enumerate(getattr(replays[0], kind)):
            label = phrase(f"replay.{kind}", name=check.name)
            row(label, lambda one, kind=kind, index=index: _check(getattr(one, kind)[index]))
    row(phrase("replay.output", run="A"), lambda one: _check(one.recorded_a, expected=one.recorded_here))
    row(phrase("replay.output", run="B"), lambda one: _check(one.recorded_b, expected=one.recorded_here))
    row(phrase("replay.outputs"), lambda one: _check(one.outputs, neutral=True))
    row(phrase("replay.first"), _first)
    for index, (atol, _) in enumerate(replays[0].allclose):
        row(
            phrase("replay.allclose", atol=f"{atol:.0e}"),
            lambda one, index=index: _text(phrase("replay.yes" if one.allclose[index][1] else "replay.no")),
        )
    row(phrase("replay.exact", run="A"), lambda one: _exactness(one.exact_a))
    row(phrase("replay.exact", run="B"), lambda one: _exactness(one.exact_b))
    for run, of in (("A", attrgetter("kernels_a")), ("B", attrgetter("kernels_b"))):
        row(
            phrase("replay.kernels", run=run),
            lambda one, of=of: _lines(
                *(map(short_name, of(one).names) if of(one).names else [say(of(one).reason)])
            ),
        )
    return grid


def _check(check: ReplayCheck, *, expected: bool = True, neutral: bool = False) -> Text:
    """How a comparison came out; in red only where it should have come out otherwise."""
    phrase = words()
    if check.equal is None:
        return _text(say(check.reason) or phrase("replay.unknown"), "dim")
    if check.equal:
        return _text(phrase("replay.yes"), "" if neutral else "green")
    text = phrase("replay.no")
    if check.reason:
        text = phrase("replay.because", reason=say(check.reason))
    elif check.compared:
        numbers = {"n": f"{check.differing:,}", "whole": f"{check.compared:,}", "gap": f"{check.max_abs:.3g}"}
        text = phrase("replay.differ", **numbers)
    return _text(text, "red" if expected and not neutral else "")


def _first(one: Replay) -> Text:
    if one.first is None:
        return _text(words()("replay.none"))
    first = one.first
    values = f"A{list(first.index_a)} {first.value_a!r}", f"B{list(first.index_b)} {first.value_b!r}"
    apart = () if first.ulps is None else (words()("replay.ulps", ulps=f"{first.ulps:.3g}"),)
    return _lines(*values, *apart)


def _exactness(exactness: Exactness) -> Text:
    if exactness.median is None or exactness.largest is None:
        return _text(say(exactness.reason))
    numbers = {"median": f"{exactness.median:.3g}", "largest": f"{exactness.largest:.3g}"}
    if exactness.first is None:
        return _text(words()("replay.spread", **numbers))
    return _text(words()("replay.there", first=f"{exactness.first:.3g}", **numbers))


def _outcome(scene: Scene, replays: Sequence[Replay]) -> str:
    home, phrase = scene.machine.device, words()
    if any(one.reproduces for one in replays):
        return phrase("replay.reproduces", device=home)
    here = [one for one in replays if one.recorded_here]
    if not here:
        return phrase("replay.elsewhere", device=home)
    outputs = ("A", here[0].recorded_a), ("B", here[0].recorded_b)
    wrong = [name for name, check in outputs if not check.equal]
    runs = phrase("replay.and", a="A", b="B") if len(wrong) > 1 else wrong[0]
    changed = [
        phrase("replay.changed", what=what, then=then, now=now)
        for what, then, now in (
            ("torch", scene.machine.libraries.get("torch", "?"), here[0].machine.libraries["torch"]),
            (phrase("replay.device"), scene.machine.text, here[0].machine.text),
        )
        if then != now
    ]
    why = phrase("aside", text=phrase("semicolon").join(changed)) if changed else ""
    return phrase("replay.differs", device=home, runs=runs, why=why)
