"""Capture: what passes through a model, op by op, without an edit to it."""

from __future__ import annotations

from . import library

__all__ = ["library"]  # which registers its rules
