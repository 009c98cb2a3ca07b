"""Semantic faults, planted in run B alone: a wrong mask, a shifted position, a leak, a swapped expert, a scaled head.

    >>> fault = next(draw(seed=0))
    >>> exact_gap(fault.sound) < SOUND < EFFECT < exact_gap(fault.comparison)
    True

A fault is planted while run B calls the model, and taken out again: in the inputs on their way to the model, in what
a module's forward is given or returns, or in a function of transformers. No parameter is touched. Where `shared`,
the stand-in is in place in both runs, and wrong in B alone, so that both runs make the same ops; else the ops of the
fault are B's own.

What a fault does is not taken on trust: without it the two runs are equal in float64, with it they are not.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from tests.architectures import ARCHITECTURES, answer
from tests.architectures import Side as PaddingSide
from tests.sound import DTYPES, LEFT, SOUND, Comparison, Draw, Row, Side, batch, exact_gap, native_gap
from torch import Tensor, nn
from transformers import masking_utils

EFFECT = 1e-7
"""What a fault does to the result in float64, relative to the largest value, at the least."""
LEAK = 1e-3
"""Weight with which a padding token's value is added to a real token's."""

__all__ = ["EFFECT", "SOUND", "Fault", "draw", "exact_gap"]


# --- Where an architecture has what --------------------------------------------------------------


@dataclass(frozen=True)
class Anatomy:
    """Paths of modules; those after `layers` are within a layer."""

    layers: str
    attention: str
    projection: str
    """The linear layer behind the heads."""
    mlp: str
    rotary: str | None = None
    embedding: str | None = None
    """What looks positions up."""
    query: str | None = None
    experts: str | None = None

    def layer(self, index: int) -> str:
        return f"{self.layers}.{index}"

    def part(self, index: int, name: str) -> str:
        return f"{self.layers}.{index}.{name}"


_LLAMA = Anatomy(
    "model.layers",
    "self_attn",
    "self_attn.o_proj",
    "mlp",
    rotary="model.rotary_emb",
    query="self_attn.q_proj",
)
_EXPERTS = replace(_LLAMA, experts="mlp.experts")

ANATOMY: dict[str, Anatomy] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "gemma2": _LLAMA,
    "qwen3": _LLAMA,
    "cohere": _LLAMA,
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "gpt2": Anatomy("transformer.h", "attn", "attn.c_proj", "mlp", embedding="transformer.wpe"),
    "gpt_neox": Anatomy("gpt_neox.layers", "attention", "attention.dense", "mlp", rotary="gpt_neox.rotary_emb"),
    "falcon": Anatomy("transformer.h", "self_attention", "self_attention.dense", "mlp", rotary="transformer.rotary_emb"),
    "opt": Anatomy(
        "model.decoder.layers", "self_attn", "self_attn.out_proj", "fc1", query="self_attn.q_proj",
        embedding="model.decoder.embed_positions",
    ),
    "bert": Anatomy(
        "encoder.layer", "attention.self", "attention.output.dense", "intermediate", query="attention.self.query",
        embedding="embeddings.position_embeddings",
    ),
    "distilbert": Anatomy(
        "transformer.layer", "attention", "attention.out_lin", "ffn", query="attention.q_lin",
        embedding="embeddings.position_embeddings",
    ),
    "t5": Anatomy(
        "encoder.block", "layer.0.SelfAttention", "layer.0.SelfAttention.o", "layer.1.DenseReluDense",
        query="layer.0.SelfAttention.q",
    ),
    "bart": Anatomy(
        "model.encoder.layers", "self_attn", "self_attn.out_proj", "fc1", query="self_attn.q_proj",
    ),
}  # fmt: skip

LAYERS, HEADS = 2, 4


# --- A fault -------------------------------------------------------------------------------------

Plant = Callable[[nn.Module], AbstractContextManager[None]]
"""Puts a fault in place in the model that is called, for as long as it runs."""


@dataclass
class Fault:
    """A comparison with a fault in run B.

    Attributes:
        kind, variant: what was planted, and how.
        comparison, sound: the two runs with the fault, and without.
        mechanisms: every right answer.
        origins: paths of modules, in or under one of which the first op is that the fault shows in.
    """

    kind: str
    variant: str
    comparison: Comparison
    sound: Comparison
    mechanisms: frozenset[str | None]
    origins: tuple[str, ...]

    @property
    def title(self) -> str:
        return self.comparison.title

    def origin_right(self, origin: Any) -> bool:
        """Whether an origin is the planted op itself, or in a module that is the first to take its value."""
        if origin is None:
            return False
        return origin.source.startswith("faults.py") or any(
            _within(origin.module, path) for path in self.origins
        )


def _within(module: str, path: str) -> bool:
    """A path that ends with `!` stands for that module alone, not for those in it."""
    if path.endswith("!"):
        return module == path[:-1]
    return module == path or module.startswith(f"{path}.")


@dataclass
class Planting:
    """What a variant makes.

    Attributes:
        place: puts it in place; given False, only the stand-in, which does nothing then.
        given: or else: what becomes of the inputs.
        shared: whether the stand-in can be in place in run A too.
    """

    detail: str
    origins: tuple[str, ...]
    place: Callable[[nn.Module, bool], AbstractContextManager[None]] | None = None
    given: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    shared: bool = False

    def call(self, armed: bool) -> Callable[[Any, dict[str, Any]], Any]:
        def call(model: Any, inputs: dict[str, Any]) -> Any:
            if self.given is not None:
                return model(**self.given(inputs))
            assert self.place is not None
            with self.place(model, armed):
                return model(**inputs)

        return call


@dataclass
class Scene:
    """The batch that a fault is planted in.

    Attributes:
        rows, width, side: how run B lays it out.
        row: the row that is hit; it has padding.
    """

    draw: Draw
    anatomy: Anatomy
    rows: list[Row]
    width: int
    side: PaddingSide
    row: int

    @property
    def numbers(self) -> random.Random:
        return self.draw.numbers

    @property
    def causal(self) -> bool:
        return self.draw.architecture.causal

    @property
    def tokens(self) -> list[int]:
        """Columns of the row's tokens."""
        length = len(self.rows[self.row].tokens)
        start = 0 if self.side == "right" else self.width - length
        return list(range(start, start + length))

    @property
    def padding(self) -> list[int]:
        return [column for column in range(self.width) if column not in self.tokens]

    def some_layer(self) -> int:
        return self.numbers.randrange(LAYERS)


# --- Stand-ins -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _set(owner: Any, name: str, value: Any) -> Generator[None]:
    before = vars(owner).get(name, _set)
    # Not by setattr: a module would take it for one of its parameters.
    if isinstance(owner, nn.Module):
        vars(owner)[name] = value
    else:
        setattr(owner, name, value)
    try:
        yield
    finally:
        if before is not _set:
            setattr(owner, name, before)
        elif isinstance(owner, nn.Module):
            del vars(owner)[name]
        else:
            delattr(owner, name)


def _arguments_of(path: str, change: Callable[..., Any], *names: str) -> Callable[[nn.Module, bool], Any]:
    """A stand-in for a module's forward that changes one of its arguments, the first of these names that it has."""

    def place(model: nn.Module, armed: bool) -> AbstractContextManager[None]:
        module = model.get_submodule(path)
        forward = module.forward
        signature = inspect.signature(forward)
        name = next(name for name in names if name in signature.parameters)

        def planted(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.arguments[name] = change(given.arguments[name], armed)
            return forward(*given.args, **given.kwargs)

        return _set(module, "forward", planted)

    return place


def _result_of(path: str, change: Callable[[Tensor, bool], Any]) -> Callable[[nn.Module, bool], Any]:
    """A stand-in for a module's forward that changes what it returns (the first, of several)."""

    def place(model: nn.Module, armed: bool) -> AbstractContextManager[None]:
        module = model.get_submodule(path)
        forward = module.forward

        def planted(*args: Any, **kwargs: Any) -> Any:
            result = forward(*args, **kwargs)
            if isinstance(result, tuple):
                return (change(result[0], armed), *result[1:])
            return change(result, armed)

        return _set(module, "forward", planted)

    return place


# --- A key masked or unmasked --------------------------------------------------------------------


def mask_given(scene: Scene) -> Planting:
    """The attention mask hides a token, or shows a padding, of one row."""
    hide = scene.numbers.random() < 0.5 or not scene.padding
    # A causal model that hides the last token, or shows padding behind it, changes nothing.
    if hide:
        column = scene.numbers.choice(scene.tokens[:-1])
    else:
        column = (
            scene.padding[-1]
            if scene.side == "left" or not scene.causal
            else scene.numbers.choice(scene.padding)
        )

    def given(inputs: dict[str, Any]) -> dict[str, Any]:
        mask = inputs["attention_mask"].clone()
        mask[scene.row, column] = 1 - mask[scene.row, column]
        return {**inputs, "attention_mask": mask}

    attention = scene.anatomy.part(0, scene.anatomy.attention)
    return Planting(
        f"{'hides' if hide else 'shows'} column {column}", (*_roots(attention), attention), given=given
    )


def mask_layer(scene: Scene) -> Planting:
    """In one layer one query sees a key too few, or one too many."""
    layer = scene.some_layer()
    query = scene.numbers.choice(scene.tokens[1:])
    wrong = ["hides"]
    wrong += ["shows padding"] if scene.padding else []
    wrong += ["shows the future"] if scene.causal and query < scene.tokens[-1] else []
    how = scene.numbers.choice(wrong)
    window = 4  # within the sliding windows
    if how == "hides":
        key = scene.numbers.choice([c for c in scene.tokens if query - window < c < query])
    elif how == "shows padding":
        key = scene.numbers.choice(scene.padding)
    else:
        key = query + 1

    def change(mask: Tensor, armed: bool) -> Tensor:
        wrong = mask.expand(-1, -1, scene.width, -1).clone()
        if mask.dtype == torch.bool:
            wrong[scene.row, :, query, key] = how != "hides"
        else:
            wrong[scene.row, :, query, key] = torch.finfo(mask.dtype).min if how == "hides" else 0.0
        return wrong

    path = scene.anatomy.part(layer, scene.anatomy.attention)
    place = _arguments_of(path, change, "attention_mask", "mask")
    return Planting(f"layer {layer}, query {query} {how}, key {key}", (path,), place)


def mask_causal(scene: Scene) -> Planting | None:
    """Every query sees the next token."""
    if not scene.causal or scene.draw.name in ("mistral", "gemma2"):
        return None

    def place(model: nn.Module, armed: bool) -> AbstractContextManager[None]:
        off = int(armed)

        def causal(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
            return kv_idx <= q_idx + off

        return _set(masking_utils, "causal_mask_function", causal)

    attention = scene.anatomy.part(0, scene.anatomy.attention)
    return Planting("causal mask off by one", (*_roots(attention), attention), place, shared=True)


def mask_window(scene: Scene) -> Planting | None:
    """A sliding window that is one longer, or one shorter."""
    if scene.draw.name not in ("mistral", "gemma2"):
        return None
    by = scene.numbers.choice((-1, 1))

    def place(model: nn.Module, armed: bool) -> AbstractContextManager[None]:
        def overlay(sliding_window: int) -> Any:
            size = sliding_window + by * armed

            def inner(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
                return kv_idx > q_idx - size

            return inner

        return _set(masking_utils, "sliding_window_overlay", overlay)

    attention = scene.anatomy.part(0, scene.anatomy.attention)
    return Planting(f"window {by:+}", (*_roots(attention), attention), place, shared=True)


def _roots(path: str) -> tuple[str, ...]:
    """The modules that make masks and position tables for all layers: those around the layers, themselves only."""
    parts = path.split(".")
    return ("!", *(".".join(parts[:n]) + "!" for n in range(1, len(parts)) if not parts[n - 1].isdigit()))


# --- A position shifted --------------------------------------------------------------------------


def _shift(scene: Scene) -> tuple[str, Callable[[Tensor, bool], Tensor]]:
    column = scene.numbers.choice(scene.tokens)
    on = scene.numbers.random() < 0.4 and column > scene.tokens[0]
    columns = slice(column, None) if on else slice(column, column + 1)

    def change(positions: Tensor, armed: bool) -> Tensor:
        shifted = positions.expand(len(scene.rows), -1).clone()
        shifted[scene.row, columns] += int(armed)
        return shifted

    return f"column {column}{' on' if on else ''}", change


def position_given(scene: Scene) -> Planting | None:
    """The position ids of one row are off."""
    if not scene.draw.architecture.positions:
        return None
    detail, change = _shift(scene)
    anatomy = scene.anatomy
    where = anatomy.rotary or anatomy.embedding
    assert where is not None
    attention = anatomy.part(0, anatomy.attention)
    origins = (where, *_roots(where), attention)
    return Planting(detail, origins, given=lambda i: {**i, "position_ids": change(i["position_ids"], True)})


def position_inside(scene: Scene) -> Planting | None:
    """What looks up the positions is given others."""
    anatomy = scene.anatomy
    where = anatomy.rotary or anatomy.embedding
    if where is None or scene.draw.name == "opt":
        return None
    detail, change = _shift(scene)
    place = _arguments_of(where, change, "position_ids", "input")
    attention = anatomy.part(0, anatomy.attention)
    return Planting(detail, (where, *_roots(where), attention), place, shared=True)


def position_relative(scene: Scene) -> Planting | None:
    """T5: one key is a column farther away than it is."""
    if scene.draw.name != "t5":
        return None
    column = scene.numbers.choice(scene.tokens)

    def place(model: nn.Module, armed: bool) -> AbstractContextManager[None]:
        module = model.get_submodule(scene.anatomy.part(0, scene.anatomy.attention))
        original = type(module)._relative_position_bucket  # pyright: ignore[reportAttributeAccessIssue]

        def planted(relative_position: Tensor, **kwargs: Any) -> Tensor:
            shifted = relative_position.clone()
            shifted[:, column] += int(armed)
            return original(shifted, **kwargs)

        return _set(module, "_relative_position_bucket", planted)

    path = scene.anatomy.part(0, scene.anatomy.attention)
    return Planting(f"column {column}", (path,), place, shared=True)


# --- A padding token leaks -----------------------------------------------------------------------


def _leak(scene: Scene, how: str) -> tuple[str, Callable[[Tensor, bool], Tensor]]:
    into, out_of = scene.numbers.choice(scene.tokens), scene.numbers.choice(scene.padding)

    def change(hidden: Tensor, armed: bool) -> Tensor:
        flat = hidden.dim() == 2  # experts and OPT see the tokens of all rows in one dimension
        wide = hidden.reshape(len(scene.rows), scene.width, -1) if flat else hidden
        if how == "write":
            wide = wide.clone()
            wide[scene.row, into] += LEAK * armed * wide[scene.row, out_of]
        elif how == "unseen":
            with torch._C.DisableTorchFunction():
                wide[scene.row, into] += LEAK * armed * wide[scene.row, out_of]
        elif how == "mix":
            weights = torch.zeros(len(scene.rows), scene.width, scene.width, dtype=wide.dtype)
            weights[scene.row, into, out_of] = LEAK * armed
            wide = wide + torch.matmul(weights, wide)
        else:
            moved = torch.roll(wide, into - out_of, dims=1)
            keep = torch.zeros(len(scene.rows), scene.width, 1, dtype=wide.dtype)
            keep[scene.row, into] = LEAK * armed
            wide = wide + keep * moved
        return wide.reshape(hidden.shape)

    return f"{how}, column {out_of} into {into}", change


def leak_layer(scene: Scene) -> Planting:
    """What a layer returns has a padding token's value added to a token's."""
    layer = scene.some_layer()
    how = scene.numbers.choice(("write", "mix", "roll", "unseen"))
    detail, change = _leak(scene, how)
    anatomy = scene.anatomy
    path = anatomy.layer(layer)
    following = (anatomy.layer(layer + 1),) if layer + 1 < LAYERS else _behind(scene.draw.name)
    place = _result_of(path, change)
    return Planting(f"layer {layer} returns, {detail}", (f"{path}!", *following, *_roots(path)), place)


def leak_mlp(scene: Scene) -> Planting:
    """The same, in what a feed-forward block is given."""
    layer = scene.some_layer()
    detail, change = _leak(scene, scene.numbers.choice(("write", "mix", "roll")))
    path = scene.anatomy.part(layer, scene.anatomy.mlp)
    place = _arguments_of(path, change, "hidden_states", "x", "input", "hidden_state")
    return Planting(f"layer {layer} mlp, {detail}", (path,), place)


def leak_attention(scene: Scene) -> Planting:
    """The same, in what attention returns."""
    layer = scene.some_layer()
    detail, change = _leak(scene, scene.numbers.choice(("write", "mix", "roll", "unseen")))
    path = scene.anatomy.part(layer, scene.anatomy.attention)
    around = path.rsplit(".", 1)[0]
    place = _result_of(path, change)
    outside = (scene.anatomy.layer(layer) + "!", around + "!", *_after_attention(scene.anatomy, layer))
    return Planting(f"layer {layer} attention returns, {detail}", (path, *outside), place)


def _after_attention(anatomy: Anatomy, layer: int) -> tuple[str, ...]:
    """What first takes the output of attention, where that is not the layer itself."""
    names = ("post_attention_layernorm", "attention.output", "sa_layer_norm", "self_attn_layer_norm")
    return tuple(anatomy.part(layer, name) for name in names)


def _behind(name: str) -> tuple[str, ...]:
    """What takes the last layer's output."""
    return {
        "gpt2": ("transformer.ln_f",), "falcon": ("transformer.ln_f",), "gpt_neox": ("gpt_neox.final_layer_norm",),
        "opt": ("model.decoder.final_layer_norm",), "bert": ("encoder!", "pooler"), "distilbert": ("transformer!",),
        "t5": ("encoder.final_layer_norm",), "bart": ("model.encoder!", "model.decoder.layers.0.encoder_attn"),
    }.get(name, ("model.norm",))  # fmt: skip


# --- An expert swapped ---------------------------------------------------------------------------


def expert_routes(scene: Scene) -> Planting | None:
    """In one layer the tokens of two experts go to the other one each."""
    if scene.anatomy.experts is None:
        return None
    layer, (one, other) = scene.some_layer(), scene.numbers.sample(range(5), 2)

    def change(index: Tensor, armed: bool) -> Tensor:
        table = torch.arange(6)
        if armed:
            table[[one, other]] = torch.tensor([other, one])
        return table[index]

    path = scene.anatomy.part(layer, scene.anatomy.experts)
    place = _arguments_of(path, change, "top_k_index")
    return Planting(f"layer {layer}, {one} and {other}", (path,), place, shared=True)


def expert_weights(scene: Scene) -> Planting | None:
    """In one layer two experts compute with each other's weights; the parameters stay where they are."""
    if scene.anatomy.experts is None:
        return None
    layer, (one, other) = scene.some_layer(), scene.numbers.sample(range(5), 2)
    order = list(range(5))
    order[one], order[other] = other, one
    names = scene.numbers.choice((("gate_up_proj",), ("down_proj",), ("gate_up_proj", "down_proj")))
    path = scene.anatomy.part(layer, scene.anatomy.experts)

    def place(model: nn.Module, armed: bool) -> AbstractContextManager[None]:
        module = model.get_submodule(path)
        forward = module.forward

        def planted(*args: Any, **kwargs: Any) -> Any:
            with contextlib.ExitStack() as stack:
                for name in names if armed else ():
                    stack.enter_context(_set(module, name, getattr(module, name)[order]))
                return forward(*args, **kwargs)

        return _set(module, "forward", planted)

    return Planting(f"layer {layer}, {one} and {other}, {' '.join(names)}", (path,), place)


# --- A head scaled -------------------------------------------------------------------------------


def _scaled(scene: Scene, factor: float) -> Callable[[Tensor, bool], Tensor]:
    head = scene.numbers.randrange(HEADS)

    def change(value: Tensor, armed: bool) -> Tensor:
        scales = torch.ones(HEADS, dtype=value.dtype)
        scales[head] = factor if armed else 1.0
        return (value.unflatten(-1, (HEADS, -1)) * scales[:, None]).flatten(-2)

    return change


def head_output(scene: Scene) -> Planting:
    """One head's output is scaled."""
    layer, factor = scene.some_layer(), scene.numbers.choice((0.5, 0.99, 1.25))
    path = scene.anatomy.part(layer, scene.anatomy.projection)
    place = _arguments_of(path, _scaled(scene, factor), "input", "x", "hidden_states")
    attention = scene.anatomy.part(layer, scene.anatomy.attention)
    return Planting(f"layer {layer} output times {factor}", (path, attention + "!"), place, shared=True)


def head_query(scene: Scene) -> Planting | None:
    """One head's queries are scaled, so its softmax has another temperature."""
    if scene.anatomy.query is None or scene.draw.name == "qwen3":  # whose norm undoes it
        return None
    layer, factor = scene.some_layer(), scene.numbers.choice((0.5, 0.99, 1.25))
    path = scene.anatomy.part(layer, scene.anatomy.query)
    attention = scene.anatomy.part(layer, scene.anatomy.attention)
    return Planting(
        f"layer {layer} query times {factor}",
        (path, attention + "!"),
        _result_of(path, _scaled(scene, factor)),
        shared=True,
    )


def head_scaling(scene: Scene) -> Planting | None:
    """The scores of one layer are scaled by another factor."""
    if scene.draw.name in ("falcon", "opt", "t5", "distilbert", "bart"):
        return None
    layer, factor = scene.some_layer(), scene.numbers.choice((0.5, 0.99, 1.25))
    path = scene.anatomy.part(layer, scene.anatomy.attention)

    def place(model: nn.Module, armed: bool) -> AbstractContextManager[None]:
        module = model.get_submodule(path)
        return _set(module, "scaling", module.scaling * factor)  # pyright: ignore[reportOperatorIssue]

    return Planting(f"layer {layer} scaling times {factor}", (path + "!",), place)


# --- Drawing -------------------------------------------------------------------------------------

Variant = Callable[[Scene], "Planting | None"]

KINDS: dict[str, tuple[Variant, ...]] = {
    "mask": (mask_given, mask_layer, mask_causal, mask_window),
    "position": (position_given, position_inside, position_relative),
    "leak": (leak_layer, leak_mlp, leak_attention),
    "expert": (expert_routes, expert_weights),
    "head": (head_output, head_query, head_scaling),
}
"""What is planted, and the ways to plant it."""

MECHANISMS: dict[str, frozenset[str | None]] = {
    "mask": frozenset({"attention_mask"}),
    "position": frozenset({"position_ids"}),
    "leak": frozenset({"padding_leak"}),
    "expert": frozenset({None}),
    "head": frozenset({None}),
}


def draw(
    seed: int, kinds: Sequence[str] = tuple(KINDS), architectures: Sequence[str] = tuple(ANATOMY)
) -> Iterator[Fault]:
    """Faults without end, the kinds in turn; only those that show in float64, and whose runs are sound without."""
    numbers = random.Random(f"faults {seed}")
    ways = [(kind, variant) for kind in kinds for variant in KINDS[kind]]
    while True:
        for kind, variant in numbers.sample(ways, len(ways)):
            fault = None
            names = numbers.sample(list(architectures), len(architectures))
            for name in names:
                chances = random.Random(f"{seed} {name} {kind} {variant.__name__} {numbers.random()}")
                fault = _plant(Draw(ARCHITECTURES[name], chances), kind, variant)
                if fault is not None and _works(fault):
                    yield fault
                    break


def _works(fault: Fault) -> bool:
    # A leak can be lost altogether in a narrow dtype: then the two runs are the same, bit for bit.
    return (
        exact_gap(fault.sound) < SOUND
        and EFFECT < exact_gap(fault.comparison) < float("inf")
        and native_gap(fault.comparison) > 0
    )


def _plant(draw: Draw, kind: str, variant: Variant) -> Fault | None:
    numbers, architecture = draw.numbers, draw.architecture
    # Where position ids are not given, padding on the left would shift them all.
    side = numbers.choice(("left", "right")) if draw.name in LEFT else "right"
    rows = [draw.row(sample, 6, 16) for sample in range(numbers.choice((1, 2, 3)))]
    if architecture.decoder:
        rows = [Row(row.sample, row.tokens, tuple(answer(row.tokens, 5))) for row in rows]
    width = max(len(row.tokens) for row in rows) + numbers.randint(1, 5)
    scene = Scene(draw, ANATOMY[draw.name], rows, width, side, numbers.randrange(len(rows)))
    planting = variant(scene)
    if planting is None:
        return None
    dtype, attention = draw.dtype(), draw.attention()
    model = architecture.build(numbers.randrange(1000), DTYPES[dtype], attention)
    shared = planting.shared and numbers.random() < 0.5
    alone = numbers.random() < 0.6 and not shared
    inputs, places = batch(architecture, rows, width, side)
    if alone:
        a = Side(model, *_listed(batch(architecture, [rows[scene.row]])))
    else:
        a = Side(model, [inputs], [places], call=planting.call(armed=False) if shared else None)
    detail = (
        f"{planting.detail}; {dtype} {attention} {side} row {scene.row} of {[len(row.tokens) for row in rows]} to {width}"
        f"{', A alone' if alone else ''}{', shared' if shared else ''}"
    )
    family = variant.__name__.replace("_", " ")
    right = Side(model, [inputs], [places])
    wrong = Side(model, [inputs], [places], call=planting.call(armed=True))
    return Fault(
        kind,
        family,
        Comparison(draw.name, family, detail, a, wrong),
        Comparison(draw.name, family, detail, replace(a, call=None), right),
        MECHANISMS[kind],
        planting.origins,
    )


def _listed(made: tuple[dict[str, Any], Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    return [made[0]], [made[1]]
