"""Probes: small experiments that tell causes apart, one a file, each with what it did and what it saw."""
