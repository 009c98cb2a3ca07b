"""`python -m tests.traces.ports_board`: every bug of `tests.ports.board`, and the ports without one."""

from __future__ import annotations

import sys
import warnings

from tests.ports.board import BUGS, FAMILIES, HARMLESS, sound, wrong_about


def main(arguments: list[str]) -> int:
    """Plant the bugs; the exit status is 1 if one is not found at its op."""
    warnings.simplefilter("ignore")
    missed = 0
    for number, bug in enumerate(BUGS):
        if arguments and str(number) not in arguments:
            continue
        wrong = wrong_about(bug)
        missed += bool(wrong)
        if wrong:
            print(f"{number} {bug.family}: {bug.wrong}: {wrong}", flush=True)
    right = [(family, "", "") for family in FAMILIES] + [(b.family, b.right, b.wrong) for b in HARMLESS]
    false = [f"{one[0]} without a bug: {one[2]}: {wrong}" for one in right if (wrong := sound(*one))]
    print("\n".join(false))
    print(
        f"{len(BUGS) - missed} of {len(BUGS)} bugs found at their op; {len(false)} false alarms in {len(right)} sound ports"
    )
    return 1 if missed or false else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
