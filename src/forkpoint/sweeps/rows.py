"""The rows of a table out of what the command of a cell wrote as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from forkpoint.support.records import from_plain
from forkpoint.sweeps.answer import SweepRow

if TYPE_CHECKING:
    from forkpoint.sweeps.cells import Cell, CellOutcome

_APART = ("model", "revision", "prompt")
"""What has a column of its own, beside the options."""


def rows_of(cell: Cell, answer: CellOutcome) -> tuple[SweepRow, ...]:
    """A row for each answer in what the command wrote; one with the reason where there is none."""
    options = {key: value for key, value in cell.given.items() if key not in _APART}
    prompts = cell.given.get("prompt") or ()
    whole: dict[str, Any] = {
        "cell": cell.key, "model": cell.given["model"], "revision": cell.given.get("revision"),
        "question": cell.question, "options": json.dumps(options, sort_keys=True, ensure_ascii=False),
        "prompt": prompts[0] if len(prompts) == 1 else json.dumps(prompts, ensure_ascii=False) if prompts else "",
        "seconds": answer.seconds, "status": answer.status, "reason": answer.reason, **cell.versions,
    }  # fmt: skip
    columns = [{}] if answer.document is None else _columns(answer.document)
    return tuple(from_plain(SweepRow, {**whole, **one}) for one in columns)


def _columns(data: dict[str, Any]) -> list[dict[str, Any]]:
    """What each answer says, told by its keys as `forkpoint report` tells them."""
    if "breaks" in data:
        return _audited(data)
    if "matters" in data:
        return [_factor(row) for row in data["rows"]]
    if "tokens_a" in data:
        return [{} if data["result"] is None else _result(data["result"])]
    if "prompts" in data:
        return [{"prompt": item["prompt"], **_result(item["result"])} for item in data["prompts"]]
    return [_engine(data) if "agrees" in data else _result(data)]


def _result(data: dict[str, Any]) -> dict[str, Any]:
    verdict, impact = data["verdict"], data["impact"] or {}
    figures = ("loss_gap", "max_abs", "max_rel", "max_kl", "top1_flips", "tokens", "nonfinite_apart")
    return {
        "verdict": verdict["kind"], "mechanism": verdict["mechanism"], "by_design": verdict["by_design"],
        "origin": _op(data["origin"]), "first": _op(data["first"]), **{name: impact.get(name) for name in figures},
    }  # fmt: skip


def _factor(row: dict[str, Any]) -> dict[str, Any]:
    names = (
        "setting", "verdict", "mechanism", "origin", "first", "loss_gap", "max_abs", "max_kl", "top1_flips",
        "tokens", "nonfinite_apart", "seconds", "reason",
    )  # fmt: skip
    return {name: row[name] for name in names}


def _audited(data: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each kind of layout in which bits differ, with the least length that shows it; one where there is none."""
    if data["breaks"]:
        return [
            {"setting": f"{one['kind']}, length {one['size']}", "first": one["op"], "max_abs": one["gap"]}
            for one in data["breaks"]
        ]
    if not data["tried"]:
        return [{"status": None, "reason": f"no layout was tried: {data['unfinished']}"}]
    return [{"setting": f"without {data['unfinished']}" if data["unfinished"] else "", "max_abs": 0.0}]


def _engine(data: dict[str, Any]) -> dict[str, Any]:
    cost = data["cost"] or {}
    figures = ("max_abs", "max_kl", "top1_flips", "tokens")
    return {
        "verdict": data["verdict"], "mechanism": data["mechanism"], "first": _op(data["first"]),
        **{name: cost.get(name) for name in figures},
    }  # fmt: skip


def _op(divergence: dict[str, Any] | None) -> str | None:
    return None if divergence is None else divergence["op"]
