"""Ports: another implementation of a model, whose names and places in the source are others.

`weights` finds parameters that are the same, or parts of each other; `mapping` makes of them which module is which.
"""
