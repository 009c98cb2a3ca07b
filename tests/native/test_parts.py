"""Each part in C against the Python that says what it does; and wrong arguments, which must not crash."""

from __future__ import annotations

import os
import runpy
import shutil
from collections import OrderedDict
from dataclasses import replace
from typing import Any, ClassVar
from weakref import ref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trust.wrapping import Wrapping
from torch import Tensor, nn

from forkpoint.capture import inventory, mode, pattern
from forkpoint.capture.digest import places
from forkpoint.capture.functions import resolve
from forkpoint.capture.marks import LEAVING, Frame, Mark, python_versions, version_of
from forkpoint.capture.pattern import Guards, PythonPattern
from forkpoint.capture.sites import NOWHERE
from forkpoint.capture.trace import Form
from forkpoint.native import choice, compiled
from forkpoint.runs.modules import c_survey, python_survey
from forkpoint.runs.state import PythonHeld

compiled_only = pytest.mark.skipif(compiled is None, reason="not compiled")


def test_it_is_compiled_where_there_is_a_compiler():
    if compiled is None and shutil.which("cc") is None:
        pytest.skip("no compiler")
    assert (compiled is None) == bool(os.environ.get("FORKPOINT_PURE_PYTHON"))


@compiled_only
def test_what_was_built_from_another_version_is_left_aside(monkeypatch):
    monkeypatch.setattr(compiled, "FORM", 0)
    with pytest.warns(RuntimeWarning, match="built from another version"):
        found = runpy.run_path(choice.__file__)
    assert found["compiled"] is None
    assert not found["IN_USE"]


# ---------------------------------------------------------------------- what modules hold


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.register_buffer("table", torch.zeros(2))
        self.register_buffer("nothing", None)
        self.plain = torch.ones(2)
        self.items, self.none, self.some, self.number = [1], [], {"a"}, 3
        self.words, self.order, self.bare = {"a": 1}, OrderedDict(a=1, b=2), set[int]()
        self.pair, self.thing = (1, 2), object()


NOTHING: set[type] = {type(None), bool, int, str}


CHANGES: dict[str, Any] = {
    "a new attribute": lambda m: setattr(m, "fresh", 1),
    "another value": lambda m: setattr(m, "number", 4),
    "an equal value": lambda m: setattr(m, "plain", m.plain.clone()),
    "deleted": lambda m: delattr(m, "number"),
    "another order": lambda m: m.__dict__.update(number=m.__dict__.pop("number")),
    "a child replaced": lambda m: setattr(m, "inner", nn.Linear(2, 2)),
    "a parameter replaced": lambda m: setattr(m.inner, "weight", nn.Parameter(torch.ones(2, 2))),
    "a buffer replaced": lambda m: setattr(m, "table", torch.ones(2)),
    "a list filled": lambda m: m.none.append(1),
    "a list longer": lambda m: m.items.append(1),
    "a set filled": lambda m: m.bare.add(1),
    "a dict's value": lambda m: m.words.update(a=2),
    "a dict's key": lambda m: m.words.update(b=2),
    "an ordered dict's order": lambda m: m.order.move_to_end("a"),
    "an ordered dict's value": lambda m: m.order.update(b=3),
    "a hook": lambda m: m.inner.register_forward_hook(lambda *_: None),
}


def told(held: Any) -> Any:
    """What is held, by the ids of objects."""
    changed = [
        (id(entries), [*map(id, keys)], [*map(id, values)]) for entries, keys, values in held.changed()
    ]
    containers = [(id(value), copy) for value, copy in held.containers]
    others = sorted(map(id, held.others))
    return changed, containers, [*map(id, held.filled())], sorted(map(id, held.tensors)), others


@compiled_only
@given(st.lists(st.sampled_from(sorted(CHANGES)), max_size=4))
@settings(deadline=None, max_examples=150)
def test_what_modules_hold(names):
    model = Holder()
    modules = list(model.modules())
    slow, fast = PythonHeld(modules, Tensor, NOTHING), compiled.Held(modules, Tensor, NOTHING)
    for name in names:
        try:
            CHANGES[name](model)
        except (AttributeError, KeyError):  # no longer there
            continue
    found = told(fast)
    assert tuple(map(sorted, found)) == tuple(map(sorted, told(slow)))
    assert bool(found[0] or found[2]) or all(name.endswith("longer") for name in names)


@compiled_only
@given(st.lists(st.sampled_from(sorted(CHANGES)), max_size=4))
@settings(deadline=None, max_examples=50)
def test_surveys(names):
    model = nn.Sequential(Holder(), nn.Linear(2, 2), nn.ModuleList([Holder()]))
    model.append(model[1])  # once more
    model._modules["nothing"] = None
    for name in names:
        try:
            CHANGES[name](model[0])
        except (AttributeError, KeyError):
            continue
    slow, fast = python_survey(model), c_survey(model)
    assert [*map(id, fast.modules)] == [*map(id, slow.modules)]
    assert {*map(id, slow.modules)} == {*map(id, model.modules())}
    assert fast.structure == slow.structure
    assert [*map(id, fast.weights)] == [*map(id, slow.weights)]


@compiled_only
@pytest.mark.parametrize("change", ["nothing", "another tensor", "another dtype", "another shape", "a weight less", "one more"])  # fmt: skip
def test_same_weights(change):
    weights: list[Any] = [nn.Parameter(torch.ones(2, 3)), None, torch.ones(4)]
    before = [None if weight is None else id(weight) for weight in weights]
    held = list(weights)  # so that their ids stay theirs
    forms = [None if weight is None else inventory._form(weight) for weight in weights]
    match change:
        case "another tensor":
            weights[2] = weights[2].clone()
        case "another dtype":
            weights[0].data = weights[0].data.half()
        case "another shape":
            weights[0].data = weights[0].data.t()
        case "a weight less":
            weights[2] = None
        case "one more":
            weights[1] = torch.ones(1)
    given = weights, before, forms, pattern.size_of, pattern.device_of
    same = change == "nothing"
    assert compiled.same_weights(*given) == inventory.python_same_weights(*given) == same
    assert len(held) == len(before)


# ---------------------------------------------------------------------- patterns


def likeness() -> tuple[Guards, list[Tensor], dict[int, Any]]:
    """That of two functions and a module's return: the second uses what the first made, a list, a keyword and more."""
    outside, made, last = torch.ones(2, 3), torch.ones(2, 3), torch.ones(3, 2).t()
    mark = Mark(None, outside.size(), outside.dtype, -1, "")
    like = Guards(
        functions=[0, 1], n_outputs=[1, 1], sizes=[2, 1, 1], names=[None, ("dim",), None], groups=[2],
        group_kinds=[list], group_sizes=[2], constants=[3, 6], kinds=[int, int], valued=[3], values=[2],
        inner=[7, 5], sources=[0, 1], dtypes=[torch.float32] * 2, looked_at=[1], shapes=[last.size()],
        strides=[last.stride()], devices=[-1], externals=[2, 8], external_marks=[mark] * 2,
        external_strides=[(3, 1)] * 2, external_states=[None, (False, False, False)], external_forms=[None] * 2, updated=[0, 1],
        updated_marks=[mark] * 2, updated_rows=[0, 1], updated_homes=[10, 11], tensor_groups=[4], updated_holders=[4, 4],
        queued=[0, 1], queued_rows=[0, 2], pushed=[0, 1, 1],
    )  # fmt: skip
    return like, [outside, made, last], {id(outside): (ref(outside), mark, -1, -1)}


SPOILT: dict[str, Any] = {
    "nothing": lambda e, _: e,
    "another number": lambda e, _: swapped(e, 0, 2, (e[0][2][0], 3)),
    "True for 1": lambda e, _: swapped(e, 0, 2, (e[0][2][0], True)),
    "one argument less": lambda e, _: swapped(e, 0, 2, e[0][2][:1]),
    "a keyword of another name": lambda e, _: swapped(e, 1, 3, {"axis": 1}),
    "no keyword": lambda e, _: swapped(e, 1, 3, None),
    "a keyword too many": lambda e, _: swapped(e, 0, 3, {"dim": 1}),
    "another keyword's value": lambda e, _: swapped(e, 1, 3, {"dim": 7}),
    "a tuple for a list": lambda e, _: swapped(e, 1, 2, (tuple(e[1][2][0]),)),
    "a shorter list": lambda e, _: swapped(e, 1, 2, (e[1][2][0][:1],)),
    "another tensor in the list": lambda e, _: swapped(e, 1, 2, ([torch.ones(2, 3), e[1][2][0][1]],)),
    "another dtype": lambda e, _: swapped(e, 0, 4, e[0][4].double()),
    "another shape": lambda e, _: swapped(e, 1, 4, torch.ones(2, 3)),
    "one output in a tuple": lambda e, _: swapped(e, 0, 4, (e[0][4],)),
    "two outputs": lambda e, _: swapped(e, 1, 4, (e[1][4],) * 2),
    "another tensor from before": lambda e, _: swapped(e, 0, 2, (torch.ones(2, 3), 2)),
    "a transposed tensor from before": lambda e, t: (t[0].t_(), e)[1],
    "a tensor from before that is known no more": lambda e, t: (t.clear(), e)[1],
    "another module's output": lambda e, _: swapped(e, 2, 2, (torch.ones(2, 3),)),
}


def swapped(entries: list[Any], entry: int, field: int, value: Any) -> list[Any]:
    changed = [list(e) for e in entries]
    changed[entry][field] = value
    return [tuple(e) for e in changed]


@compiled_only
@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.parametrize("before", [0, 2])
def test_patterns(name, before):
    like, tensors, known = likeness()
    outside, made, last = tensors
    add, cat = resolve(torch.add), resolve(torch.cat)
    entries: list[Any] = [
        (add, NOWHERE, (outside, 2), None, made),
        (cat, NOWHERE, ([made, outside],), {"dim": 1}, last),
        (LEAVING, NOWHERE, (last,), None, None),
    ]
    entries = entries[:before] + SPOILT[name](entries, tensors)
    if not tensors:
        known = {}

    class NoTape:
        rows: tuple[()] = ()

    columns = pattern.TapeColumns(*map(list, zip(*entries, strict=True)), versions=[0, 0])
    answers: list[Any] = []
    for kind in (PythonPattern, compiled.Pattern):
        made_of = kind(like)
        pool = made_of.pool(columns.args, columns.kwargs, columns.made, before)
        rows = None if pool is None else made_of.rows_before(pool, known, NoTape())
        noted: dict[int, Any] = {}
        if pool is not None:
            made_of.note(pool, noted, 100, columns.args, columns.kwargs, columns.made, before)
            values, waiting = [outside], [7]
            pushed = made_of.queue(pool, 100, values, waiting)
            assert [*map(id, pushed)] == [id(pool[0]), id(pool[1]), id(pool[1])]
            assert [*map(id, values)] == [id(outside), id(pool[0]), id(pool[1])]
            assert waiting == [7, 100, 102]
        answers.append((None if pool is None else [*map(id, pool)], rows, noted))
    assert answers[0] == answers[1]
    fine = name in ("nothing", "another keyword's value", "one output in a tuple")
    assert (answers[0][1] == [-1, -1]) == fine


@compiled_only
@pytest.mark.parametrize(
    ("event", "form", "state", "fits"),
    [
        (-1, None, (False, False, False), True),
        (-1, "the first", (True, True, False), False),
        (0, None, (False, False, False), False),
        (0, "the first", "never looked at", True),
        (0, "another", (True, True, False), True),
        (0, "another", (True, False, False), False),
        (1, "the first", (True, True, True), True),
    ],
)
def test_the_state_of_what_comes_from_before(event, form, state, fits):
    """A row whose form is the same object as before is in the same state; of all others the state is compared."""
    like, (outside, made, last), _ = likeness()
    mark = like.external_marks[0]
    forms = {"the first": Form("digest", outside.shape, "", True, None, 1, ""), None: None}
    forms["another"] = replace(forms["the first"])
    view = replace(forms["the first"], status="view")
    known = {id(outside): (ref(outside), mark, event, -1)}
    like.external_states, like.external_forms = [None, state], [None, forms[form]]
    entries = [((outside, 2), None, made), (([made, outside],), {"dim": 1}, last), ((last,), None, None)]
    columns = [*map(list, zip(*entries, strict=True))]

    class Rows:
        rows: ClassVar = [(None, 0, forms["the first"], 0, 0), (None, 0, view, 0, 0)]

    for kind in (compiled.Pattern, PythonPattern):
        if state == "never looked at" and kind is PythonPattern:
            continue  # it always looks
        made_of = kind(like)
        pool = made_of.pool(*columns, 0)
        assert made_of.rows_before(pool, known, Rows()) == ([event] * 2 if fits else None)


@compiled_only
@pytest.mark.parametrize(
    ("unknown", "stack", "below", "expected"),
    [
        ((), "rst", 0, "ab"),
        ((), "rst", 2, "abst"),
        ((), "rst", 3, "abrst"),
        ((), "rst", 4, None),
        ((), "", 0, None),
        ((), "bst", 1, None),
        ("b", "rst", 1, None),
    ],
)
def test_the_frames_of_a_stretch(unknown, stack, below, expected):
    like = Guards(sizes=[0, 0, 0], names=[None] * 3, entering=[0, 2])
    modules = {name: nn.ReLU() for name in "ab"}
    frames: dict[Any, Any] = {name: Frame(name) for name in "abrst"}
    made = [None, modules["a"], None, modules["b"]]
    given = {id(module): frames[name] for name, module in modules.items() if name not in unknown}
    for kind in (compiled.Pattern, PythonPattern):
        found = kind(like).frames(made, 1, given, [frames[name] for name in stack], below)
        assert found == (None if expected is None else tuple(frames[name] for name in expected))


HELD: dict[str, tuple[Any, set[int]]] = {
    "by nobody": (lambda _: None, set()),
    "the first": (lambda e: e[0][4], {0}),
    "the last": (lambda e: e[1][4], {1}),
    "a view of the first": (lambda e: e[0][4].view(3, 2), {0}),
    "a weak reference": (lambda e: ref(e[1][4]), set()),
    "what a function was given": (lambda e: e[1][2], {0, 1}),
    "a list that it was given": (lambda e: e[1][2][0], {0, 1}),
    "its keywords": (lambda e: e[1][3], {0, 1}),
    "what came out of a module": (lambda e: e[2][2], {0, 1}),
}


@compiled_only
@pytest.mark.parametrize("name", HELD)
def test_only_what_somebody_else_holds_is_noted(name):
    like, (outside, *_), _ = likeness()
    hold, expected = HELD[name]
    made, last = torch.ones(2, 3), torch.ones(3, 2).t()
    entries: list[Any] = [
        (None, NOWHERE, (outside, 2), None, made),
        (None, NOWHERE, ([made, outside],), {"dim": 1}, last),
        (LEAVING, NOWHERE, (last,), None, None),
    ]
    held = hold(entries)
    places = {id(made): 0, id(last): 1}
    columns = pattern.TapeColumns(*map(list, zip(*entries, strict=True)), versions=[0, 0])
    del entries, made, last
    found: list[set[int]] = []
    for kind in (compiled.Pattern, PythonPattern):
        made_of, noted = kind(like), dict[int, Any]()
        pool = made_of.pool(columns.args, columns.kwargs, columns.made, 0)
        made_of.note(pool, noted, 100, columns.args, columns.kwargs, columns.made, 0)
        found.append({places[key] for key in noted})
        del pool
    assert found == [expected, {0, 1}], held


@compiled_only
def test_a_reel_holds_what_is_put_on_it():
    for kind in (compiled.Reel, mode.PythonReel):
        reel = kind()
        for number in range(3):
            reel.add_entry(LEAVING, NOWHERE, (number,), None, number)
        assert (reel.whats, reel.places, reel.args) == ([LEAVING] * 3, [NOWHERE] * 3, [(0,), (1,), (2,)])
        assert (reel.kwargs, reel.made, reel.befores) == ([None] * 3, [0, 1, 2], [])


# ---------------------------------------------------------------------- values


@compiled_only
def test_versions_and_addresses():
    with torch.inference_mode():
        uncounted = torch.ones(2)
    written = torch.ones(3)
    written.add_(1).add_(1)
    own = torch.ones(2).as_subclass(type("Own", (Tensor,), {}))
    tensors = [
        written,
        uncounted,
        nn.Parameter(torch.ones(1)),
        own,
        torch.view_as_complex(torch.ones(2, 2)).conj().imag,
    ]
    assert compiled.versions(tensors) == python_versions(tensors) == [*map(version_of, tensors)]
    assert compiled.versions(tensors)[:2] == [2, -1]
    tensors.append(torch.arange(8, dtype=torch.uint8)[3:])
    tensors += [*without_memory(), torch.ones(8)[5:]]
    given = tensors, places.PLAIN, places.FUNCTIONS, places.place_of
    assert compiled.places(*given) == places.python_places(*given)
    rooms = np.frombuffer(compiled.places(*given)[1], dtype=np.int64).tolist()
    assert rooms == [12, 8, 4, 8, 12, 5, *[0] * 3, 12]


def without_memory() -> list[Tensor]:
    """A tensor whose storage was let go of, one that wraps another, and one that has none at all."""
    freed = torch.ones(4)
    freed.untyped_storage().resize_(0)
    return [freed, Wrapping(torch.ones(4)), torch.ones(4).to_sparse()]


@compiled_only
@given(
    st.recursive(
        st.integers() | st.text() | st.none(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x) | st.lists(x).map(tuple),
    )
)
@settings(deadline=None)
def test_arguments_are_kept_as_they_were_at_the_call(value):
    expected = mode.frozen((value,))
    entries = called_with(value)
    spoil(value)
    assert entries == expected


def called_with(value: Any) -> Any:
    """The arguments that a tap puts on a tape for a call with them."""
    return entry_of(lambda x, y: x + 1, (torch.ones(1), value))[2][1:]


def entry_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    class Tape(mode.Reel):
        def __init__(self) -> None:
            super().__init__()
            self.last = torch.ones(1)
            self.n_bytes = self.entry_bytes = 0
            self.room, self.deferred, self.fresh = 1 << 30, True, False

    tape = Tape()
    mode.Tap(tape).__torch_function__(func, (), args, kwargs or {})
    return tape.whats[0], tape.places[0], tape.args[0], tape.kwargs[0], tape.made[0]


def spoil(value: Any) -> None:
    """Change every list and dict."""
    if isinstance(value, (list, tuple)):
        for item in value:
            spoil(item)
    if isinstance(value, dict):
        for item in value.values():
            spoil(item)
        value["?"] = 0
    if isinstance(value, list):
        value.append("?")


# ---------------------------------------------------------------------- wrong arguments


@compiled_only
def test_wrong_arguments_raise():
    like, *_ = likeness()
    good = compiled.Pattern(like)
    empty = compiled.Reel()
    tap = compiled.Tap.__new__(compiled.Tap)
    wrong: list[tuple[Any, tuple[Any, ...]]] = [
        (compiled.Tap, (None,)),
        (compiled.Gate, (None, len, len, len, True)),
        (tap.__torch_function__, (torch.add, ())),
        (compiled.Tap(empty).__torch_function__, (torch.add, (), (1, 2))),
        (compiled.Tap(empty).__torch_function__, ()),
        (good.pool, ((), (), (), 0)),
        (good.pool, ([], [], [], 0)),
        (good.pool, ([], [], [], -1)),
        (empty.add_entry, (1, 2, 3, 4)),
        (good.pool, (1,)),
        (good.rows_before, ([], {}, None)),
        (good.rows_before, ([None] * 10, None, None)),
        (good.frames, ([], 0, {}, [], 0)),
        (good.frames, ([None] * 3, -1, {}, [], 0)),
        (good.frames, ([None] * 3, 0, {}, [], -1)),
        (good.frames, ((), 0, {}, [], 0)),
        (good.frames, ([None] * 3, None, {}, [], 0)),
        (good.queue, ([], 0, [], [])),
        (good.queue, ([None] * 9, None, [], [])),
        (good.queue, ([None] * 9, 0, [], ())),
        (good.note, ([], {}, 0)),
        (good.note, ([], {}, 0, [], [], [], 0)),
        (good.note, ([None] * 9, None, 0, [], [], [], 0)),
        (good.note, ([None] * 9, {}, 0, [], [], [], 0)),
        (good.note, ([None] * 9, {}, 0, (), (), (), 0)),
        (good.note, ([None] * 9, {}, None, [], [], [], 0)),
        (good.note, ([None] * 9, {}, 0, [1] * 3, [1] * 3, [1] * 3, 0)),
        (compiled.same_weights, ([None], [], [], len, len)),
        (compiled.same_weights, ((), (), (), len, len)),
        (compiled.same_weights, ([], [], [])),
        (compiled.versions, ((),)),
        (compiled.versions, ([1],)),
        (compiled.places, ((), places.PLAIN, places.FUNCTIONS, len)),
        (compiled.places, ([1], places.PLAIN, places.FUNCTIONS, len)),
        (compiled.places, ([], (int,), places.FUNCTIONS, len)),
        (compiled.places, ([], places.PLAIN, (), len)),
        (compiled.places, ([1], (int, int), (len,) * 4, len)),
        (compiled.Held, ([], Tensor)),
        (compiled.Held, ((), Tensor, set())),
        (compiled.Held, ([], Tensor, {})),
        (compiled.Held, ([1], Tensor, set())),
        (compiled.Pattern, (None,)),
        (compiled.survey, (None,)),
        (compiled.connect_taps, ({}, 1)),
        (compiled.connect_passages, (len,)),
    ]
    for function, args in wrong:
        with pytest.raises((TypeError, ValueError, RuntimeError, AttributeError)):
            function(*args)


@compiled_only
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("constants", [99, 6]),
        ("inner", [7]),
        ("updated", [-1, 0]),
        ("kinds", [int]),
        ("looked_at", [2]),
        ("groups", [50]),
        ("groups", [5]),
        ("tensor_groups", [9]),
        ("updated_holders", [4]),
        ("entering", [3]),
        ("queued", [0]),
        ("pushed", [9]),
        ("external_forms", [None]),
        ("group_kinds", [dict]),
        ("names", []),
        ("names", [None, "dim", None]),
        ("n_outputs", [5, -3]),
    ],
)
def test_patterns_that_do_not_fit_their_entries_are_refused(name, value):
    like, *_ = likeness()
    setattr(like, name, value)
    with pytest.raises(ValueError, match="pattern"):
        compiled.Pattern(like)
