"""Random programs: tracing changes no bit of them, and says of them what a slow and obvious oracle says.

`blocks` has what models may do, `state` what they may hold, `program` puts both into source text; `check` runs a program with
and without forkpoint, with the part in C and without, and compares the answer with that of `oracle`.
"""
