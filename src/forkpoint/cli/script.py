"""`forkpoint script`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forkpoint.cli import options
from forkpoint.cli.language import say, words
from forkpoint.cli.replay import Folder
from forkpoint.printable import printable
from forkpoint.support.progress import error_console, status


def script(
    scene: Folder,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Where to; by default it is printed.", show_default=False
        ),
    ] = None,
    synthetic: Annotated[
        bool,
        typer.Option(
            "--synthetic", help="Random data in place of the scene's own; the script then needs no scene."
        ),
    ] = False,
    lang: options.Language = options.LANGUAGE,  # noqa: ARG001 - the command line was read for it before
) -> None:
    """Write a scene as a script that needs only torch and safetensors, and run it before handing it over.

    The script takes the scene's folder as its one argument. Exit status: 0 if it reproduced here, 1 if it did not
    (it is written all the same), 2 if there is no script to write.
    """
    from forkpoint.support.files import check_writable

    check_writable(output)
    with status("writing and running the script"):
        from forkpoint.scene import write_script

        done = write_script(scene, output, synthetic=synthetic)
    if output is None:
        typer.echo(done.text, nl=False)
    console = error_console()
    how = "python script.py" if synthetic else f"python script.py {scene}"
    if done.reproduced:
        text = words()("script.random" if synthetic else "script.reproduced", how=how)
    else:
        text = words()("script.not", note=say(done.note)).rstrip()
    console.print(printable(text), highlight=False, markup=False)
    raise typer.Exit(0 if done.reproduced else 1)
