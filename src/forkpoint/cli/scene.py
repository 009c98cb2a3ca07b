"""The option `--scene` of the commands that compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forkpoint.cli.language import words
from forkpoint.errors import SceneError

if TYPE_CHECKING:
    from forkpoint.result import Result

SceneFolder = Annotated[
    Path | None,
    typer.Option(
        "--scene",
        metavar="DIR",
        help="Save the op at which the runs part ways, to replay it alone.",
        rich_help_panel="Output",
        show_default=False,
    ),
]


def check(directory: Path | None) -> None:
    """Fail before hours of work rather than after.

    Raises:
        SceneError: no scene can be written there.
    """
    if directory is not None:
        from forkpoint.scene import check_directory

        check_directory(directory)


def save(result: Result, directory: Path | None) -> tuple[str, ...]:
    """Save the scene, if one is wanted; what the report should say of it.

    A scene that can't be saved is no reason to lose the report.
    """
    if directory is None:
        return ()
    if result.first is None:
        return ("No scene was saved: no op differs.",)
    try:
        result.save_scene(directory, confirm=_confirmed)
    except SceneError as error:
        return (f"No scene was saved: {error}",)
    return (f"`forkpoint replay {directory}` repeats the op alone",)


def _confirmed(size: int) -> bool:
    """Ask on the terminal whether to write so many bytes; without a terminal the answer is no."""
    if not sys.stdin.isatty():
        return False
    return typer.confirm(words()("scene.confirm", size=f"{size / (1 << 30):.1f}"), err=True)
