"""Causes that are errors of layout: positions, masks, caches, packing, pooling; and tables chosen by length."""

from __future__ import annotations

from forkpoint.mechanisms.case import Case
from forkpoint.mechanisms.mechanism import Mechanism
from forkpoint.probes.bench import benches
from forkpoint.probes.cache import reads_cache
from forkpoint.probes.earlier import changed_by_earlier_calls
from forkpoint.probes.packing import reads_packed
from forkpoint.probes.pooling import other_token, pools_columns, pools_padding, takes_what_was_given
from forkpoint.probes.positions import other_positions, positions_at
from forkpoint.probes.rotation import rotary_by_length

_CLOSES_NOTHING = 0.01
"""Share of the gap below which putting a value right has closed nothing."""


def packing(case: Case) -> Mechanism | None:
    """One packed sample's content moves another's token at an origin."""
    shown_at = ((part, reads_packed(case.session, part)) for part in case.parts)
    part, shown = next((pair for pair in shown_at if pair[1] is not None), (None, None))
    if part is None or shown is None or case.are_two_functions(part):
        return None
    case.evidence.append(shown)
    return Mechanism(
        "packing", False, "tokens of one packed sample reach another sample of the same row",
        "Give the attention a block-diagonal mask (or cu_seqlens), and reset convolutions and states at each sample.",
    )  # fmt: skip


def attention_mask(case: Case) -> Mechanism | None:
    """A query has a weight on other keys in the first attention that the difference reaches."""
    shown = case.sees_other_keys
    if shown is None or case.are_two_functions(case.origin):
        return None
    case.evidence.append(shown)
    return Mechanism(
        "attention_mask", False, "a token attends to keys that it should not see, or misses keys that it should",
        "Pass the attention mask that the tokenizer returned, and check its window and offset.",
    )  # fmt: skip


def length_dependent_rope(case: Case) -> Mechanism | None:
    """A table of angles by position, which turns queries and keys, changes with a longer row."""
    shown, root = case.by_length, case.root
    if shown is None or root is None or other_positions(case.session, root, *case.benches) is not None:
        return None
    rotary = rotary_by_length(*case.benches, shown)
    if rotary is None:
        return None
    case.evidence.append(rotary)
    return Mechanism(
        "length_dependent_rope", True, "the rotary table is chosen by the longest row (dynamic NTK, LongRoPE), so a "
        "token's rotation depends on the others' length",
        "Compare runs whose longest row is on the same side of the original context length, or fix the table "
        "(rope_scaling of type linear or yarn).",
        rotary,
    )  # fmt: skip


def of_length(case: Case) -> Mechanism | None:
    """A value that no token's content enters changes with a longer row, whatever it is."""
    shown = case.by_length
    if shown is None or case.are_two_functions(case.origin):
        return None
    case.evidence.append(shown)
    return Mechanism(
        None, None, "what is made from positions or sizes alone changes with the number of columns of a row",
        "Look at the origin: a length that enters there has to be that of the token's own row without padding, or one "
        "number for all rows.",
    )  # fmt: skip


def position_ids(case: Case) -> Mechanism | None:
    """The same token has another position, or looks up another row, than in the other run."""
    origin, leaks = case.origin, case.content is not None and case.content.leaks
    if origin is None or case.ids_enter or (leaks and origin.closes <= _CLOSES_NOTHING):
        return None  # they differ, but what others hold reaches the result besides
    shown_at = ((part, positions_at(case.session, part)) for part in case.parts)
    part, shown = next((pair for pair in shown_at if pair[1] is not None), (None, None))
    if part is None or shown is None or case.are_two_functions(part):
        return None
    case.evidence.append(shown)
    return Mechanism(
        "position_ids", False, f"the same token is given another position in the two runs ({shown.text})",
        "Pass position_ids made from the mask: (mask.cumsum(-1) - 1).clamp(min=0).",
    )  # fmt: skip


def pooling(case: Case) -> Mechanism | None:
    """A sample's vector is taken from another token, or made from its padding too."""
    origin = case.origin
    if origin is None:
        return None
    seen = reversed(
        tuple(benches(case.session, origin, origin.seen))
    )  # what is chosen by the origin's numbers
    choices = ((other_token(case.session, *both), both) for both in (case.benches, tuple(seen)))
    shown, choice = next((pair for pair in choices if pair[0] is not None), (None, case.benches))
    if shown is None and case.coupling is not None:
        if pools_padding(case.session, origin, case.coupling, *case.benches):
            shown = case.coupling.result
    elif shown is None:
        shown = pools_columns(case.session, origin.root, *case.benches)
    if shown is None or not case.same_function:
        return None  # whether two models take one token was to be known first
    if shown not in case.evidence:
        case.evidence.append(shown)
    if shown.outcome == "other token" and takes_what_was_given(*choice):
        return Mechanism(
            None, None, "the two runs were given the places of other tokens",
            "Give each run the columns of the same tokens, which padding on the left moves.",
        )  # fmt: skip
    return Mechanism(
        "pooling", False, "the tokens of a sample are pooled together with its padding, or the wrong token is taken",
        "Pool with the attention mask: sum(x * mask) / sum(mask), or take the last real token of each row.",
    )  # fmt: skip


def module_state(case: Case) -> Mechanism | None:
    """Calls on other rows, made before, have left something in the model that changes a later one."""
    shown = changed_by_earlier_calls(case.session)
    if shown is None:
        return None
    case.evidence.append(shown)
    return length_dependent_rope(case) or Mechanism(
        "module_state", False, "an earlier call, on other rows, has left something in the model that changes a later one",
        "Look for what the model's modules keep from call to call (buffers, running statistics, attributes), and have it set "
        "back, or load the model anew.",
    )  # fmt: skip


def cache_state(case: Case) -> Mechanism | None:
    """The origin reads what an earlier call left, and nothing in it that both runs have differs; or another cache that was given."""
    shown = None if case.origin is None else reads_cache(*case.benches)
    if shown is None or case.are_two_functions(case.origin):
        return None
    case.evidence.append(shown)
    return Mechanism(
        "cache_state", False, "an op that reads what was cached gives something else than in the other run",
        "Check that the cache is fresh for each sequence, that positions go on from its length, and that its mask "
        "covers the cached tokens.",
    )  # fmt: skip
