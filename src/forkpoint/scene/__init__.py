"""The scene of a divergence: one op with its inputs and outputs in both runs, to replay alone.

    scene = forkpoint.scene.load("scene")
    print(forkpoint.scene.replay(scene).outputs)

A scene is a folder of a JSON manifest and safetensors; docs/scene-format.md says what is in it.
"""

from forkpoint.scene.folder import check_directory, load
from forkpoint.scene.records import Scene
from forkpoint.scene.replay import Replay, replay
from forkpoint.scene.save import SIZE_LIMIT, build, save
from forkpoint.scene.script import Script, write_script
from forkpoint.scene.witness import look

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
