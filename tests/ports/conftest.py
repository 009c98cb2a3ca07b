"""What is collected: conversions of litgpt where it is installed."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("litgpt") else ["of_litgpt.py"]
