"""From experiments to a verdict: `table` asks them in their order, the other files word what came of it."""

from forkpoint.verdict.judgement import Judgement
from forkpoint.verdict.origins import locate_meeting
from forkpoint.verdict.table import judge
from forkpoint.verdict.unproved import without_probes

__all__ = ["Judgement", "judge", "locate_meeting", "without_probes"]
