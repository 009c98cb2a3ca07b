"""The plain, frozen records of which a result consists."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class InputComparison:
    """How one tensor input of the first divergent op compares between the runs."""

    name: str
    """Parameter of the torch function (`input`, `weight`, `query`)."""
    status: str
    """`equal`, `differs`, `only in a`, `only in b`, or `not compared`."""
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    dtype_a: str | None = None
    dtype_b: str | None = None
    parameter: str | None = None
    """Full name of the model's parameter or buffer, if the input is one."""
    max_abs: float | None = None
    """Largest absolute gap at shared coordinates."""
    reason: str = ""
    """Why the input could not be compared."""


@dataclass(frozen=True)
class ArgumentComparison:
    """Something that is no tensor, with which an op is called or a model is configured, and that differs."""

    name: str
    """Parameter of the torch function (`dim`, `eps`), or entry of the configuration (`rope_parameters.rope_theta`)."""
    value_a: str
    """Run A's value as Python writes it; empty where it is not given."""
    value_b: str


@dataclass(frozen=True)
class NameMatch:
    """A module or parameter of two traces that has another name, or other pieces, in run B, and how it was found there."""

    kind: str
    """`module` or `parameter`."""
    a: tuple[str, ...]
    """Run A's name; of a parameter that run B has fused, those of its pieces."""
    b: tuple[str, ...]
    how: str
    """Of a module `user`, `weights` or `parts`; of a parameter `rows` (the same rows or columns in other pieces) or `transposed`."""


@dataclass(frozen=True)
class Element:
    """One element of an op's value in both runs."""

    sample: Hashable | None
    position: int | None
    token: str | None
    """Text of the token, if a tokenizer is known."""
    index_a: tuple[int, ...]
    """Full index in run A's value."""
    index_b: tuple[int, ...]
    value_a: float | complex | int | bool | None
    value_b: float | complex | int | bool | None


@dataclass(frozen=True)
class Divergence:
    """An op whose values differ between the runs, with its first differing element."""

    op: str
    """`module/function`, as in `model.layers.0.self_attn/scaled_dot_product_attention`."""
    module: str
    """Path of the module in the model; empty for the root."""
    function: str | None
    """The torch function's public name; None where a module hides it."""
    source: str
    """`file.py:line` of the innermost frame outside torch."""
    code: str
    """Text of that line."""
    variable: str | None
    """The variable that the line assigns."""
    sample: Hashable | None
    position: int | None
    token: str | None
    """Text of the token, if a tokenizer is known."""
    index_a: tuple[int, ...]
    """Full index of the first differing element in run A's value."""
    index_b: tuple[int, ...]
    value_a: float | complex | int | bool | None
    value_b: float | complex | int | bool | None
    ulps: float | None
    """Distance of the two values in units in the last place of the narrower dtype."""
    max_abs: float | None
    max_rel: float | None
    differing: int
    """Elements that differ."""
    compared: int
    """Elements compared; 0 where the op makes NaN or infinity of what one run alone has, and only that run's value is shown."""
    inputs: tuple[InputComparison, ...] = ()
    call: int = 0
    """Index of the forward call in run A."""
    dtype_a: str | None = None
    dtype_b: str | None = None
    shape_a: tuple[int, ...] | None = None
    shape_b: tuple[int, ...] | None = None
    between: tuple[str, ...] = ()
    """Ops that only one run has, between equal values and this one, where they hide the cause."""
    note: str = ""
    nonfinite_a: int = 0
    """Compared elements that are NaN or infinite in run A; the gaps leave them out."""
    nonfinite_b: int = 0
    arguments: tuple[ArgumentComparison, ...] = ()
    """Arguments besides tensors that differ: scales, epsilons, dimensions, limits."""
    largest: Element | None = None
    """The element that is farthest apart, where that is another than the first."""
    closes: float | None = None
    """For an origin, the share of the result's gap, 0 to 1, that closes as it is put right after those before it.
    None where that was not tried, and where the gap is infinite."""
    error: float | None = None
    """For a source, how far both runs' values are apart on equal inputs, in units in the last place of the largest."""
    op_b: str = ""
    """Its `op` in run B, where two traces are compared and it has another name or place there; so `source_b`, `code_b`."""
    source_b: str = ""
    code_b: str = ""
    matched: str = ""
    """How the op was found in run B's trace: see `OpRow`."""
    module_matched: str = ""


@dataclass(frozen=True)
class NonFinite:
    """The op of one run that is the first to make NaN or infinity, of those that its results (or the divergence) hold."""

    op: str
    module: str
    function: str | None
    """None where a module hides it, or for one of the model's inputs."""
    source: str
    code: str
    variable: str | None
    call: int
    kind: str
    """`nan`, `inf` or `-inf`."""
    cause: str
    """`overflow`: float64 is finite there. `masked`: a softmax over keys that are all masked. `exact`: float64 has it, too.
    `written`: the code writes it by name. `weight`, `input`: it was there. `hidden`: inside a module, or not known."""
    index: tuple[int, ...]
    """Full index of the first such element."""
    made_of: tuple[float, ...] = ()
    """What an elementwise op made it of."""
    dtype: str | None = None
    name: str = ""
    """Of the weight or input that holds it."""
    leads_to: str = ""
    """The op that makes NaN of it, if it is an infinity."""
    text: str = ""
    """The same in one sentence."""


class VerdictKind(enum.StrEnum):
    """What the probes prove."""

    IDENTICAL = "identical"
    ROUNDING = "rounding"
    SEMANTIC = "semantic"
    NONDETERMINISM = "nondeterminism"
    INPUTS = "inputs"
    UNDETERMINED = "undetermined"


MECHANISMS = (
    "reduction_order", "kernel_choice", "low_precision", "nan", "int8_outliers", "dynamic_scale", "expert_capacity", "packing",
    "length_dependent_rope", "position_ids", "pooling", "batch_statistics", "attention_mask", "module_state", "cache_state", "padding_leak",
    "loss_normalisation", "result_order", "labels", "token_ids", "parameters", "buffers", "quantization", "atomics",
    "random_state",
)  # fmt: skip
"""All that `Verdict.mechanism` can be, but for None."""


@dataclass(frozen=True)
class ProbeResult:
    """One experiment: what was done, what it showed."""

    name: str
    """`nan`, `repeat`, `inputs`, `precision`, `computed`, `tables`, `decisions`, `content`, `whole`, `order`, `terms`, `patch`, `coupling`,
    `length`, `positions`, `attention`, `pooling`, `packing`, `earlier`, `cache`, `swap`, `inside`, `native`, `operations`, `replay`."""
    outcome: str
    """A slug: what the probe found."""
    figure: float | None
    """The number that the outcome rests on."""
    text: str
    """The same in one sentence."""


@dataclass(frozen=True)
class Verdict:
    """What the probes prove, and what to do about it."""

    kind: VerdictKind
    mechanism: str | None
    """Slug of the known cause."""
    by_design: bool | None
    """True for a coupling that is meant, False for an error, None where forkpoint can't know."""
    summary: str
    """One sentence."""
    evidence: tuple[ProbeResult, ...] = ()
    advice: str = ""
    """What to do, in one or two sentences."""
    probed: bool = True
    """Whether probes were asked for; without them only that the results are identical can be proved."""


@dataclass(frozen=True)
class NearTie:
    """A flipped top-1 prediction and how near the two candidates were."""

    sample: Hashable
    position: int
    token_a: int
    token_b: int
    margin_a: float
    """Run A's logit of its choice minus its logit of run B's choice."""
    margin_b: float


@dataclass(frozen=True)
class Impact:
    """Does it matter: the gap of the model's results at shared coordinates."""

    loss_a: float | None
    """The loss, as `loss_source` says; of several calls that return one, the mean (or the sum, if that is what agrees)."""
    loss_b: float | None
    loss_gap: float | None
    """None where the losses are of other tokens."""
    max_abs: float
    """Largest absolute gap of elements that are finite in both runs."""
    max_rel: float
    max_kl: float | None
    """Largest KL divergence of the next-token distributions, in nats."""
    top1_flips: int | None
    tokens: int
    """Coordinates compared."""
    flips: tuple[NearTie, ...] = ()
    result: str = ""
    """Name of the result with the largest gap."""
    elements: int = 0
    """Floating-point elements of the results that were compared; gaps, KL and predictions leave out those that are not finite."""
    nonfinite_a: int = 0
    """How many of them are NaN or infinite in run A."""
    nonfinite_b: int = 0
    nonfinite_apart: int = 0
    """How many are NaN or infinite in one run and something else in the other."""
    predictions: int | None = None
    """Next-token distributions that exist in both runs: of logits without NaN or plus infinity."""
    loss_source: str | None = None
    """`returned` where the models returned it. `recomputed from labels` or `recomputed from input_ids`: the mean
    cross-entropy of the next token, in nats, over the pairs that both runs have; of causal models that return none."""
    losses_a: tuple[float, ...] = ()
    """What each call returned."""
    losses_b: tuple[float, ...] = ()
    discrete_compared: int = 0
    """Integers, bools and texts that were returned and compared: they are the same or not, and enter no gap."""
    discrete_differing: int = 0


@dataclass(frozen=True)
class OpRow:
    """One op of the joined traces and how it compared."""

    op: str
    module: str
    function: str
    variable: str | None
    source: str
    code: str
    output: int
    """Index in a tuple of outputs."""
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    dtype_a: str | None
    dtype_b: str | None
    status: str
    """`equal`, `differs`, `view`, `not compared`, `only in a`, `only in b`."""
    floating: bool
    compared: int = 0
    """Coordinates compared."""
    differing: int = 0
    reason: str = ""
    passes: int = 1
    """How often the op ran (in run A, or in B where A has none)."""
    op_b: str = ""
    """Its `op` in run B, where two traces are compared and it has another name or place there; so `source_b`, `code_b`."""
    source_b: str = ""
    code_b: str = ""
    matched: str = ""
    """How the op was found in run B's trace: `place`, `text`, `function`, `structure` or `value`; empty where runs of one process
    are compared, and for what one run alone has."""
    module_matched: str = ""
    """How its module was found, where run B calls it otherwise: `user`, `weights` or `parts`."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        return self.shape_a if self.shape_a is not None else self.shape_b

    @property
    def dtype(self) -> str | None:
        return self.dtype_a if self.dtype_a is not None else self.dtype_b


@dataclass(frozen=True)
class NotCompared:
    """A value that could not be compared, and why."""

    op: str
    source: str
    reason: str
    floating: bool


@dataclass(frozen=True)
class LayerDrift:
    """The gap of one layer's output between the runs."""

    module: str
    max_abs: float
    max_rel: float
    per_token: tuple[tuple[Hashable, int | None, float], ...]
    """(sample, position, largest absolute gap)."""


@dataclass(frozen=True)
class ReplacedModule:
    """A module whose class is not what the model's source says."""

    module: str
    expected: str
    """Class that the source names, `nn.Linear`."""
    actual: str


@dataclass(frozen=True)
class InputRow:
    """A row of what goes into a forward call, column by column."""

    call: int
    """Index of the forward call."""
    row: int
    width: int
    """How many columns it has; of very many only the first are in `columns`."""
    columns: tuple[tuple[Hashable | None, int | None, str | None], ...]
    """(sample, position, text of the token, if a tokenizer is known); three times None for padding."""


@dataclass(frozen=True)
class RunSummary:
    """What a report says of one run."""

    name: str
    calls: tuple[dict[str, tuple[int, ...]], ...]
    """For each forward call the shape of each tensor input."""
    samples: int
    tokens: int
    padding: int
    dtype: str
    device: str
    attention: str | None
    ops: int
    notes: tuple[str, ...] = ()
    rows: tuple[InputRow, ...] = ()
    """What goes in, token by token; of very many columns the first."""
    model: str = ""
    """Class of the model, and the last part of what it was loaded from: `LlamaForCausalLM (my-model)`."""
    digest: str = ""
    """The first 12 hex digits of a SHA-256 of the tensors that go in: what has no prompt is known by it."""


@dataclass(frozen=True)
class ParameterGradient:
    """The gradient of one parameter after the backward pass of both runs, compared whole."""

    name: str
    status: str
    """`equal`, `differs`, or `not compared` with a reason."""
    shape: tuple[int, ...]
    dtype_a: str | None = None
    """None where the parameter is not there, or requires no gradient."""
    dtype_b: str | None = None
    compared: int = 0
    """Elements compared."""
    differing: int = 0
    max_abs: float | None = None
    """Largest absolute gap."""
    ulps: float | None = None
    """Distance of the two elements that are farthest apart, in units in the last place of the narrower dtype."""
    relative: float | None = None
    """The Euclidean norm of the difference over that of run A's gradient; infinite where that is zero, None where one is not
    finite and they differ."""
    cosine: float | None = None
    """Cosine of the angle between both gradients; None where one of them is zero or not finite."""
    reason: str = ""
    rounding: bool | None = None
    """Whether the gap falls to noise in float64; None where that was not tried, or could not be told."""


@dataclass(frozen=True)
class Backward:
    """The backward pass of both runs, from the losses that they return.

    Of several calls the losses add up. The gradient of an op's output is compared where the output is: at shared coordinates.
    """

    loss_a: float
    """With gradients on, as all that is said here."""
    loss_b: float
    first: Divergence | None
    """The op whose output's gradient is the first to differ, in the order of the backward pass: those of all later ops, which
    are nearer the loss, are equal where they could be compared. Its `inputs` are the ops that read the output, whose
    backward made the gradient, each with how its own output's gradient compares."""
    origin: Divergence | None
    """The first such op where everything is done in float64: what differs there is no rounding. None where there is none, or
    where that was not tried; see `evidence`."""
    rounding: bool | None
    """Whether every gradient agrees up to noise in float64; None where that was not tried, or could not be told."""
    parameters: tuple[ParameterGradient, ...] = ()
    evidence: tuple[ProbeResult, ...] = ()
    ops: tuple[OpRow, ...] = ()
    """How the gradient of each op's output compares, in the order of the backward pass of run A."""
    notes: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether gradients were compared, and none of them differs."""
        statuses = {row.status for row in (*self.ops, *self.parameters)}
        return self.first is None and "equal" in statuses and "differs" not in statuses
