"""Builds the extension, if there is a compiler; without it the package does the same in Python."""

from setuptools import Extension, setup

PARTS = ("module", "tap", "passage", "values", "held")

setup(
    ext_modules=[
        Extension(
            "forkpoint.native.compiled",
            [f"src/forkpoint/native/{part}.c" for part in PARTS],
            depends=["src/forkpoint/native/native.h"],
            optional=True,
        )
    ]
)
