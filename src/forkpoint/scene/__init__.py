"""The scene of a divergence: one op with its inputs and outputs in both runs, to replay alone.

    scene = forkpoint.scene.load("scene")
    print(forkpoint.scene.replay(scene).outputs)

A scene is a folder of a JSON manifest and safetensors; docs/scene-format.md says what is in it.
"""

from forkpoint.scene.format.folder import check_directory, load
from forkpoint.scene.format.records import Scene
from forkpoint.scene.replaying.replay import Replay, replay
from forkpoint.scene.saving.save import SIZE_LIMIT, build, save
from forkpoint.scene.saving.witness import look
from forkpoint.scene.script.script import Script, write_script

__all__ = [
    "SIZE_LIMIT",
    "Replay",
    "Scene",
    "Script",
    "build",
    "check_directory",
    "load",
    "look",
    "replay",
    "save",
    "write_script",
]
