"""`python -m forkpoint` is the command `forkpoint`."""

from forkpoint.cli import main

main()
