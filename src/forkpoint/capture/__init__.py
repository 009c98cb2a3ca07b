"""Capture: what passes through a model, op by op, without an edit to it."""
