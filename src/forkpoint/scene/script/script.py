"""The script of a scene: some sixty lines that anyone with torch and safetensors can run.

It spells out the two calls and the comparison; the numbers come from the scene's folder or, with synthetic
data, from a seed. It is run before it is handed over.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from forkpoint.errors import SceneError
from forkpoint.scene.format import flags
from forkpoint.scene.format.folder import load
from forkpoint.scene.format.records import Scene
from forkpoint.scene.replaying.replay import compare_input
from forkpoint.scene.script.source import ScriptWriter
from forkpoint.scene.script.synthetic import SEEDS, find_seed, plan
from forkpoint.support.files import check_writable, write_atomically

TIME_LIMIT = 600
"""Seconds that the script may take before it is handed over."""


@dataclass(frozen=True)
class Script:
    """A script and what came of running it."""

    text: str
    synthetic: bool
    reproduced: bool
    """Whether it ended with status 0: the recorded bits again or, with synthetic data, other bits in the two runs."""
    output: str
    """What it printed."""
    note: str = ""

    @property
    def lines(self) -> int:
        return self.text.count("\n")


def write_script(directory: str | Path, path: str | Path | None = None, *, synthetic: bool = False) -> Script:
    """Write the script of a scene, after having run it.

    Args:
        directory: the scene's folder.
        path: the file to write; None to only return the text.
        synthetic: random data in place of the scene's own; the script then needs no folder.

    Raises:
        SceneError: a scene that can't be loaded, or, with `synthetic`, random data that don't show the effect.
    """
    if path is not None:
        check_writable(Path(path))
    scene = load(directory)
    try:
        script = synthetic_script(scene) if synthetic else scene_script(scene, Path(directory))
    except (RuntimeError, MemoryError, OverflowError) as error:  # no room for what the scene asks for, say
        raise SceneError(f"no script can be written of the scene: {error}") from error
    if path is not None:
        write_atomically(Path(path), script.text)
    return script


def scene_script(scene: Scene, directory: Path) -> Script:
    """The script that reads the scene's folder, and what it says here."""
    text = ScriptWriter(scene).text()
    done = run_script(text, scene, [str(directory.absolute())])
    if not done.reproduced and any(layout.alignment for layout in scene.layouts):
        aligned = run_script(ScriptWriter(scene, aligned=True).text(), scene, [str(directory.absolute())])
        if aligned.reproduced:
            return aligned
    return done


def synthetic_script(scene: Scene) -> Script:
    """The script that makes its own data.

    Raises:
        SceneError: it would not show the effect.
    """
    checks = [compare_input(scene, index) for index in range(len(scene.inputs))]
    differing = [check.name for check in checks if check.equal is False]
    if differing:
        raise SceneError(
            f"the inputs of the op differ already ({', '.join(differing)})",
            "an op with equal inputs for --synthetic",
        )
    if scene.a.random or scene.b.random:
        raise SceneError("an op that draws random numbers", "one that doesn't for --synthetic")
    recipe = plan(scene)
    seed = find_seed(scene, recipe)
    if seed is None:
        raise SceneError(
            f"random data of the same shapes don't show the effect (seeds 0 to {SEEDS - 1} tried)",
            "an effect that doesn't depend on the values", "leave out --synthetic",
        )  # fmt: skip
    script = run_script(ScriptWriter(scene, recipe=recipe, seed=seed).text(), scene, [], synthetic=True)
    if not script.reproduced:
        raise SceneError(
            "the script with random data did not show the effect when it ran alone", "the effect, as it showed within "
            "forkpoint", "leave out --synthetic",
        )  # fmt: skip
    return script


def run_script(text: str, scene: Scene, arguments: list[str], *, synthetic: bool = False) -> Script:
    """Run a script by itself: isolated from the user's settings for Python, in an empty folder."""
    environment = {
        k: v for k, v in os.environ.items() if k not in flags.ENVIRONMENT and not k.startswith("PYTHON")
    }
    environment |= {k: str(v) for k, v in scene.a.flags.items() if k in flags.ENVIRONMENT}
    command = [sys.executable, "-I", "script.py", *arguments]
    try:
        with tempfile.TemporaryDirectory(prefix="forkpoint-") as folder:
            (Path(folder) / "script.py").write_text(text, encoding="utf-8")
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIME_LIMIT, cwd=folder, env=environment, check=False,
                encoding="utf-8", errors="replace",
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Script(text, synthetic, reproduced=False, output="", note=f"it took more than {TIME_LIMIT} s")
    except OSError as error:
        raise SceneError(
            f"the script can't be run: {error.strerror or error}",
            "a temporary folder with room",
            "set TMPDIR",
        ) from error
    note = ""
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        last = done.stderr.strip().splitlines()
        note = f"it failed: {last[-1] if last else f'status {done.returncode}'}"
    return Script(text, synthetic, done.returncode == 0, done.stdout, note)
