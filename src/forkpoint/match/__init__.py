"""Which op of run A is which op of run B, on which coordinates, and where they differ.

`numbering` gives a coordinate one number in both runs, `join` goes through the ops of both traces and decides how the
digests of each are compared: by coordinate (`coordinates`), pass by pass (`repeated`, `passes`), or, where no token
is known to be in them, whole or lined up by their sizes (`tables`, `grids`, `columns`). What comes of it are the
records of `joined`. `elements` does for the elements of two such tables what the join does for their digests.
"""

from forkpoint.match.join import Join
from forkpoint.match.joined import Difference, Joined
from forkpoint.match.numbering import Ints, Shared

__all__ = ["Difference", "Ints", "Join", "Joined", "Shared"]
