"""Replaying a scene: the op alone, as either run called it, on any device."""
