"""The corpus of verdicts: pairs of runs whose truth is known, and what must be said of them.

`python -m tests.corpus` prints the scoreboard. Cases are registered by their modules; ids begin with
the row of the table of cases that they stand for, `m-` where users meet more of the kind.
"""

# pyright: reportUnusedImport=false
from __future__ import annotations

from . import (  # noqa: F401  (each registers its cases)
    cases_beside,
    cases_by_value,
    cases_claims,
    cases_computed,
    cases_coupling,
    cases_couplings,
    cases_couplings_recurrent,
    cases_couplings_scales,
    cases_decisions,
    cases_embeddings,
    cases_functions,
    cases_given,
    cases_identical,
    cases_inputs,
    cases_inputs_by_name,
    cases_kernels,
    cases_loss_terms,
    cases_masks,
    cases_mechanisms,
    cases_mechanisms_known,
    cases_nan,
    cases_not_finite,
    cases_origin,
    cases_packing,
    cases_padding,
    cases_precision,
    cases_remaining,
    cases_reports,
    cases_results,
    cases_review_couplings,
    cases_review_kinds,
    cases_review_results,
    cases_rounding,
    cases_safety,
    cases_same_function,
    cases_sound,
    cases_state,
)
from .case import CASES, Case

__all__ = ["CASES", "Case"]
