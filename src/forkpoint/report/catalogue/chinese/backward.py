"""Chinese phrases of what the report says of gradients, and sentences of what was tried."""

from __future__ import annotations

PHRASES: dict[str, str] = {
    "backward": "反向传播",
    "backward.label": "梯度",
    "backward.identical": "比较过的梯度全都逐位相同。",
    "backward.nothing": "没有梯度可以比较。",
    "backward.rounding": "梯度只因舍入而不同：用 float64 计算时，差异降到噪声以内。",
    "backward.unsteady": "梯度不同，而且不能重现：从同样的随机状态再运行一次，得到的梯度又不同，例如核函数以不固定的次序累加。用 float64 "
    "计算时，差异降到噪声以内。",
    "backward.differs": "梯度的差异不只是舍入。",
    "backward.untried": "梯度不同。是否只是舍入，没有试过。",
    "backward.unknown": "梯度不同。是否只是舍入，无法判断。",
    "advice.backward": "前向传播无需修复。梯度从哪里开始不同，见下面的“反向传播”。",
    "backward.first": "从损失往回，第一个不同的梯度：",
    "backward.origin": "舍入之外的差异从这里开始：",
    "backward.same": "这不只是舍入，而且从这里开始。",
    "backward.weights": "没有操作的输出梯度不同，不同的是参数的梯度。",
    "backward.weights.origin": "舍入之外，没有操作的输出梯度不同，不同的是参数的梯度。",
    "backward.op": "梯度属于",
    "backward.made": "由其算出",
    "backward.made.none": "看不到的操作",
    "backward.made.equal": "传回给它的相同，它传出的不同：两次运行在这个操作的反向计算中分道。",
    "backward.made.among": "传回给它们的相同，它们传出的不同：两次运行在其中一个操作的反向计算中分道。",
    "backward.made.forward": "传回的相同，传出的不同；参与计算的前向数值可能不同。",
    "backward.parameters": "参数",
    "backward.parameters.equal": "比较过的 {n} 个参数的梯度全都相同",
    "backward.parameters.some": "{whole} 个中有 {part} 个的梯度不同",
    "backward.parameters.beyond": "其中 {n} 个不只是舍入",
    "backward.parameters.missing": "{n} 个无法比较",
    "backward.relative": "差异为其范数的 {relative}",
    "backward.nonfinite": "有 NaN 或无穷大",
    "backward.cosine": "余弦 {cosine}",
    "backward.beyond": "不只是舍入",
    "backward.ops": "操作的输出",
    "backward.ops.counts": "{equal} 个相同，{differs} 个不同，{missing} 个无法比较",
    "outcome.precision.failed": "反向传播无法用 float64 进行",
}

SENTENCES: dict[str, str] = {
    "in float64 {n} of {m} gradients of ops' outputs and {parameters} of parameters still differ, beyond float64's own rounding": "用 float64 "
    "计算时，操作输出的 {m} 个梯度中仍有 {n} 个、参数的仍有 {parameters} 个不同，超出了 float64 自身的舍入",
    "in float64 no gradient differs beyond float64's own rounding: of {n} of ops' outputs, the farthest are {relative} of their "
    "largest element apart": "用 float64 计算时，没有梯度的差异超出 float64 自身的舍入：操作输出的 {n} 个梯度中，最远的相差其最大元素的 {relative}",
    "there were more than could be kept, and those of the first layers were not looked at": "梯度太多，未能全部保留，没有查看最前几层的",
    "of {n} parameters it could not be told": "有 {n} 个参数无法判断",
    "in the native dtype gradients are NaN or infinite in one run alone, which is no rounding": "用原来的 dtype 时，只有一次运行的梯度中有 "
    "NaN 或无穷大，这不是舍入",
    "it is no nearer than the native dtype": "并不比原来的 dtype 更接近",
    "the backward pass could not be made in float64: {error}": "反向传播无法用 float64 进行：{error}",
    "the gradients of run {run} do not repeat themselves bit for bit, from the same random state": "从同样的随机状态开始，运行 {run} 的梯度"
    "不能逐位重复",
    "with gradients on, run {run} returns other bits than without": "打开梯度时，运行 {run} 返回的与不打开时并非逐位相同",
    "the gradients of ops' outputs could not be watched: {error}": "无法观察操作输出的梯度：{error}",
    "watching the backward pass of run {run} changes its gradients": "观察运行 {run} 的反向传播会改变它的梯度",
    "its gradient adds up over a call's tokens, and the runs' calls hold others": "其梯度是一次调用中各词元之和，而两次运行的调用含有不同的词元",
    "the gradient of its output could not be seen": "看不到其输出的梯度",
    "in run {run} alone it reads this value": "只有在运行 {run} 中它读取这个值",
    "no gradient arrives in run {run}": "运行 {run} 中没有梯度到达",
    "no gradient arrives in either run": "两次运行中都没有梯度到达",
    "it requires no gradient in run {run}": "它在运行 {run} 中不需要梯度",
    "run {run} has no such parameter": "运行 {run} 没有这个参数",
}
