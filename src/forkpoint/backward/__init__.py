"""The backward pass of two runs: the gradients of every op's output and of every parameter, compared.

going_back   makes the backward pass of a run
watching     sees the gradients of ops' outputs arrive
recording    digests them
keeping      keeps them, in float64 or a chosen one
exact        both runs in float64: is a difference rounding?
parameters   the gradients of parameters
comparing    all of it, one stage after the other
"""
