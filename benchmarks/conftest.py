"""Benchmarks whose modules need what is only where a GPU is are not imported elsewhere."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["batchinvariant.py"]
