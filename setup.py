"""Builds the extension, if there is a compiler; without it the package does the same in Python."""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PARTS = ("module", "tap", "passage", "values", "held", "shortcut")


class BuildAnew(build_ext):
    """Leaves nothing of an earlier build where this one fails."""

    def run(self) -> None:
        self._remove()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        self._remove()  # here, too: it is built in another folder first
        super().build_extension(ext)

    def _remove(self) -> None:
        for ext in self.extensions:
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)


setup(
    cmdclass={"build_ext": BuildAnew},
    ext_modules=[
        Extension(
            "forkpoint.native.compiled",
            [f"src/forkpoint/native/{part}.c" for part in PARTS],
            depends=["src/forkpoint/native/native.h"],
            optional=True,
        )
    ],
)
