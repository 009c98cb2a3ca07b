"""English phrases of what the report says of gradients."""

from __future__ import annotations

PHRASES: dict[str, str] = {
    "backward": "Backward",
    "backward.identical": "Every gradient that was compared is equal, bit for bit.",
    "backward.rounding": "The gradients differ only by rounding: done in float64, they agree up to noise.",
    "backward.differs": "The gradients differ by more than rounding.",
    "backward.untried": "Gradients differ. Whether that is rounding was not tried.",
    "backward.unknown": "Gradients differ. Whether that is rounding could not be told.",
    "backward.first": "The first gradient that differs, from the loss on:",
    "backward.origin": "Beyond rounding it begins here:",
    "backward.same": "This is more than rounding, and it begins here.",
    "backward.weights": "The gradient of no op's output differs, that of parameters does.",
    "backward.weights.origin": "Beyond rounding, the gradient of no op's output differs, that of parameters does.",
    "backward.op": "gradient of",
    "backward.made": "made by",
    "backward.made.none": "no op that could be seen",
    "backward.made.equal": "What comes back to it is equal, what it hands on is not: the runs part in the backward of this op.",
    "backward.made.among": "What comes back to them is equal, what they hand on is not: the runs part in the backward of one of these.",
    "backward.made.forward": "What comes back is equal, what is handed on is not; values of the forward pass that go into it may differ.",
    "backward.parameters": "parameters",
    "backward.parameters.equal": "the gradients of all {n} that were compared are equal",
    "backward.parameters.some": "the gradients of {part} of {whole} differ",
    "backward.parameters.beyond": "of {n} by more than rounding",
    "backward.parameters.missing": "{n} could not be compared",
    "backward.relative": "{relative} of its norm",
    "backward.cosine": "cosine {cosine}",
    "backward.beyond": "more than rounding",
    "backward.ops": "ops' outputs",
    "backward.ops.counts": "{equal} equal, {differs} differ, {missing} could not be compared",
    "outcome.precision.failed": "the backward pass could not be made in float64",
}
