"""Chinese for what mechanisms and probes write of causes, and for the names of runs."""

from __future__ import annotations

SENTENCES: dict[str, str] = {
    "the models keep other tables, rounded when they were made; each moved by one unit in its last place changes the result by "
    "{effect} in float64, and the gap there is {gap}": "两个模型保存的表不同，都在生成时舍入过；把每个表移动末位一个单位，float64 中的结果改变 "
    "{effect}，而那里的差距为 {gap}",
    "{n} parameters of one model are what the other computes, rounded to within {ulps} units in the last place, {name} first; "
    "with what it computes in both, the gap in float64 falls from {before} to {after}": "一个模型的 {n} 个参数就是另一个模型算出的值，"
    "舍入误差不超过末位 {ulps} 个单位，首先是 {name}；两边都用算出的值时，float64 中的差距从 {before} 降到 {after}",
    "other content where the other run has none moves no shared value at the origin": "在另一次运行没有内容之处换成别的内容，"
    "根源处没有任何共有的数值改变",
    "what comes right before the origin is the same in both runs: nothing to replace": "根源之前的数值在两次运行中相同：没有可替换的内容",
    "the origin reads the cache that run {run} was given, which is not the other run's: other values in it move the origin by "
    "{by}": "根源读取了给运行 {run} 的缓存，它与另一次运行的缓存不同：其中换成别的数值会使根源改变 {by}",
    "token ids and labels are the same in both runs; whether parameters and buffers are is not known: {why}": "两次运行的词元编号"
    "和标签相同；参数和缓冲区是否相同未知：{why}",
    "no module was found behind run {run}": "在运行 {run} 背后没有找到模块",
    "the runs use different numbers of models": "两次运行使用的模型数量不同",
    "Have the model do the same in every dtype there, and compare again.": "请让模型在那里对每种 dtype 都做同样的运算，然后重新比较。",
    "Look at where the model asks for a dtype: what it does there is more than another form of one function.": "请查看模型在何处"
    "判断 dtype：它在那里所做的不只是同一函数的另一种写法。",
    "a scale that should belong to one token is reduced over {what}": "应属于单个词元的缩放系数却在{what}上归约",
    "other tokens": "其他词元",
    "Reduce the scale over the feature dimension only (dim=-1), so that every token has its own.": "请只在特征维度（dim=-1）上归约缩放系数，"
    "使每个词元都有自己的。",
    "a scale is taken from several tokens, {what} among them": "缩放系数取自多个词元，其中有{what}",
    "whether it is one for the whole tensor or one for each row can't be told from runs of one row": "只有一行的运行无法分辨它是整个张量"
    "一个还是每行一个",
    "Let the run fill its cache itself: fp.Run takes a list of calls, and hands the cache of one to the next.": "请让该运行自己填充"
    "缓存：fp.Run 接受调用的列表，并把一次调用的缓存交给下一次。",
    "Compare fewer layers, or a part of the model: what small changes grow to hides the cause.": "请比较更少的层或模型的一部分：微小变化的"
    "放大掩盖了原因。",
    "Give both runs the same {names}.": "请给两次运行同样的 {names}。",
    "taken on the same values in both runs, none still does, and with all of them held the float64 gap is {gap}, where rounding makes "
    "{noise}": "两次运行用同样的数值来决定时全部相同；全部保持一致时 float64 中的差距为 {gap}，而舍入造成 {noise}",
    "with run A's value put in place right behind {op}, {share} % of the gap of {gap} closes": "在紧接 {op} 之后换上运行 A 的数值，"
    "{gap} 的差距消失了 {share} %",
    "the query of {a} has a weight on the key of {b} in run {run} alone": "只有在运行 {run} 中，{a} 的查询才给 {b} 的键以权重",
    "the same terms enter the loss at every token that both have, but they are divided by other counts": "在两次运行都有的每个词元上，进入损失的各项相同，但除以的个数不同",
    "Divide the sum over all labels that count by their number, once for the whole batch: neither for each micro-batch nor over padding.": "请把所有计入的标签之和除以它们的个数，对整个批次只除一次：不要按微批次，也不要计入填充。",
    "the terms that enter {name} are the same at all {n} places that both runs have, but it is {a} in run A and {b} in run B: they are divided by other counts": "在两次运行都有的全部 {n} 处，进入 {name} 的各项相同，但它在运行 A 中是 {a}，在运行 B 中是 {b}：除以的个数不同",
    "the same token is given another position in the two runs ({what})": "同一个词元在两次运行中的位置不同（{what}）",
    "a token stands at {n} in run A, {m} in run B": "一个词元在运行 A 中位于 {n}，在运行 B 中位于 {m}",
    "a token looks up row {n} in run A, {m} in run B": "一个词元在运行 A 中查第 {n} 行，在运行 B 中查第 {m} 行",
    "Pass position_ids made from the mask: (mask.cumsum(-1) - 1).clamp(min=0).": "请传入由 mask 得到的 position_ids：(mask.cumsum(-1) - 1).clamp(min=0)。",
    "a token attends to keys that it should not see, or misses keys that it should": "一个词元看到了不该看的键，或漏掉了该看的键",
    "Pass the attention mask that the tokenizer returned, and check its window and offset.": "请传入分词器返回的 attention mask，并检查其窗口和偏移。",
    "the query of {a} has a weight on {n} keys of no token that both runs have in run A, and on {m} in run B": "{a} 的查询在运行 A 中给 {n} 个"
    "不属于共有词元的键以权重，在运行 B 中给 {m} 个",
    "the query of {a} has a weight on a key that the other run lacks in run {run} alone, one of {n} such pairs": "只有在运行 {run} 中，{a} 的查询才给另一次运行没有的键以权重；这样的对共有 {n} 个",
    "with run A's value put in place right behind {op}, the NaN and infinities are the same in both runs": "在紧接 {op} 之后换上运行 A 的数值，两次运行的 NaN 和无穷就一样了",
    "tokens of one packed sample reach another sample of the same row": "打包在同一行的一个样本的词元影响到了另一个样本",
    "Give the attention a block-diagonal mask (or cu_seqlens), and reset convolutions and states at each sample.": "请给注意力分块对角的 mask（或 cu_seqlens），并在每个样本处重置卷积和状态。",
    "in run {run} other content in the samples packed beside sample {sample} moves its value at the origin by {by}": "在运行 {run} 中，更换与样本 {sample} 打包在一起的内容，其根源处的数值变化 {by}",
    "statistics are taken over the columns of a row, {what} among them, though {module} is given a mask": "统计量取自一行的各列，其中有{what}，尽管 {module} 得到了 mask",
    "statistics are taken over the columns of a row, {what} among them": "统计量取自一行的各列，其中有{what}",
    "whether that explains {op}, where a difference enters as well, is not known": "差异也从 {op} 进入，是否由此引起尚不可知",
    "That is one cause, and maybe not all: look at {op} first.": "这是一个原因，可能并非全部：请先看 {op}。",
    "in float64 run {run} calls {op} {n} times and not {m} times as natively": "在 float64 中运行 {run} 调用 {op} {n} 次，而原精度下为 {m} 次",
    "with each run on the path of its own dtype a gap of {gap} is left there": "让两次运行各走自己类型的路径，那里仍有 {gap} 的差距",
    "given run A's inputs in run A's layout, run B's model has another value in the results": "在运行 A 的布局中给它运行 A 的输入，运行 B 的模型结果不同",
    "given run A's inputs in run A's layout, run B's model has run A's value at the origin": "在运行 A 的布局中给它运行 A 的输入，运行 B 的模型在根源处得到运行 A 的数值",
    "given run A's inputs in run A's layout, run B's model has run A's value in the results": "在运行 A 的布局中给它运行 A 的输入，运行 B 的模型得到运行 A 的结果",
    "whether both runs compute the same at the origin could not be told": "无法判断两次运行在根源处计算的是否相同",
    "rows of {n} and {m} columns share one table": "行宽 {n} 列与 {m} 列共用一张表",
    "an op that reads what was cached gives something else than in the other run": "读取缓存的算子得到的与另一次运行不同",
    "Check that the cache is fresh for each sequence, that positions go on from its length, and that its mask covers the cached tokens.": "请检查每个序列是否用新的缓存，位置是否从其长度接续，mask 是否覆盖已缓存的词元。",
    "the origin of run {run}, in call {n}, reads what an earlier call left: other values there move it by {by}, and where both runs have them they were equal when they were made": "运行 {run} 的根源（第 {n} 次调用）读取先前调用留下的内容：换成别的值，它变化 {by}；而两次运行都有的那些内容在产生时相同",
    "padding": "填充",
    "unpadded": "不填充",
    "padded to the longest on the {side}": "在{side}填充到最长一行",
    "padded on the {side}": "在{side}填充",
    "right": "右侧",
    "left": "左侧",
    "as it is": "原样",
    "alone": "单独",
    "in a batch of {n}": "在 {n} 行的批次中",
    "packed": "打包",
    "one forward pass": "一次前向计算",
    "{n} tokens, then {m} at a time": "先 {n} 个词元，然后每次 {m} 个",
    "{n} tokens, then one at a time": "先 {n} 个词元，然后每次一个",
    "autocast to {dtype}": "autocast 到 {dtype}",
    "compiled by {name}": "由 {name} 编译",
    "padding of its own row": "自己那一行的填充",
    "other rows": "其他行",
    "other rows and padding of its own row": "其他行和自己那一行的填充",
    "what sits in the padding of its own row": "自己那一行的填充中的内容",
    "what sits in the padding of its own row and in other rows": "自己那一行的填充和其他行中的内容",
    "what sits in the padding (or in another row)": "填充（或另一行）中的内容",
    "what sits in later tokens of its own row": "自己那一行里后面的词元的内容",
    "what sits in the padding of its own row and in later tokens": "自己那一行的填充和后面的词元的内容",
    "what sits in later tokens of its own row and in other rows": "自己那一行里后面的词元和其他行的内容",
    "what sits in the padding of its own row, in later tokens and in other rows": "自己那一行的填充、后面的词元和其他行的内容",
    "Find what other rows can change: a value of the whole batch, or something that the model keeps and writes.": "请查找其他行能改变"
    "什么：整个批次的数值，或模型保存并写入的东西。",
    "Leave padding's ids out where the op at the origin reads ids.": "请在根源处的算子读取编号之处排除填充的编号。",
    "Mask later tokens where positions are mixed, or compare rows of one length.": "请在混合各位置之处遮住后面的词元，或比较长度相同的行。",
    "run {run} computes with another tensor in place of the parameter {name}": "运行 {run} 用另一个张量代替参数 {name} 来计算",
    "before this op {op} is passed another number of times: {n} in run A, {m} in run B": "在这个算子之前，{op} 经过的次数不同：运行 A 中 {n} 次，"
    "运行 B 中 {m} 次",
    "run {run} alone writes in place into what this op reads: {ops}": "只有运行 {run} 就地写入这个算子所读的内容：{ops}",
    "an outlier in another row makes the int8 matrix product treat a whole column in higher precision for every token": "另一行中的离群值使 int8 矩阵乘法对每个词元都用更高的精度处理整列",
    "an outlier in another row makes code that rounds to int8 keep a whole column in higher precision for every token": "另一行中的离群值使舍入到 int8 的代码对每个词元都以更高的精度保留整列",
    "This is how mixed int8 decomposition works. Use another quantisation (per-token scales, int8_threshold=0, nf4), or compare with the quantisation off.": "混合 int8 分解就是这样。请换一种量化（每词元的缩放、int8_threshold=0、nf4），或关掉量化再比较。",
    "one scale for a whole tensor is taken from all tokens, {what} among them, so that each token's rounding depends on the others": "整个张量的一个缩放系数取自所有词元，其中有{what}，因此每个词元的舍入都取决于其他词元",
    "Use a scale per token (or a static one) where rows must not depend on each other.": "若各行不应互相影响，请用每词元的（或静态的）缩放。",
    "an expert takes a limited number of tokens of the batch, so which tokens it takes depends on the other rows": "一个专家只接收批次中有限个词元，因此接收哪些取决于其他行",
    "This is how capacity-limited experts work. Raise the capacity factor, or evaluate without dropping tokens.": "有容量限制的专家就是这样。请提高容量系数，或在评测时不丢弃词元。",
    "statistics are taken over the rows of the batch, so a row's values depend on its batch mates": "统计量取自批次的各行，因此一行的数值取决于同批的其他行",
    "Run one row at a time where rows must not depend on each other, or use a normalisation that sees one row (put the module in eval mode, if it is a batch norm).": "若各行不应互相影响，请一次只运行一行，或用只看一行的归一化（若是批归一化，请切换到 eval 模式）。",
    "what is made from positions or sizes alone changes with the number of columns of a row": "仅由位置或尺寸得到的数值随一行的列数而变",
    "Look at the origin: a length that enters there has to be that of the token's own row without padding, or one number for all rows.": "请查看根源处：进入那里的长度应是词元自己那一行不含填充的长度，或对所有行都是同一个数。",
    "with rows of {n} columns in place of {m}, the value at the origin of run {run} changes by {by}": "把行宽从 {m} 列换成 {n} 列，运行 {run} 根源处的数值变化 {by}",
    "with rows of {n} columns it is another one": "行宽 {n} 列时则是另一张表",
    "it makes a table of angles by position, which turns content without making it longer before queries meet keys, and which changes at the same positions by {by}": "它按位置生成角度表，在查询与键相遇之前旋转内容而不改变其长度，而同样的位置上该表变化 {by}",
    "the rotary table is chosen by the longest row (dynamic NTK, LongRoPE), so a token's rotation depends on the others' length": "旋转表由最长的一行决定（dynamic NTK、LongRoPE），因此一个词元的旋转取决于其他行的长度",
    "Compare runs whose longest row is on the same side of the original context length, or fix the table (rope_scaling of type linear or yarn).": "请比较最长行都在原上下文长度同一侧的运行，或固定旋转表（rope_scaling 的类型用 linear 或 yarn）。",
    "Run rows of one length, one at a time, or use a normalisation that sees one token (put the module in eval mode, if it is a "
    "batch norm).": "请让各行长度相同、逐行单独运行，或改用只看一个词元的归一化（若是 batch norm，请把模块设为 eval 模式）。",
    "an earlier call, on other rows, has left something in the model that changes a later one": "此前对其他行的调用在模型里留下了"
    "某些东西，改变了之后的调用",
    "Look for what the model's modules keep from call to call (buffers, running statistics, attributes), and have it set back, or "
    "load the model anew.": "请查找模型的模块在各次调用之间保留了什么（缓冲区、滑动统计量、属性），把它复位，或重新加载模型。",
    "each query sees the same keys in both runs": "每个查询在两次运行中看到的键相同",
    "calls hold other samples each: the last call of both runs holds the same": "各次调用的样本不同：两次运行的最后一次调用样本相同",
    "a token's values depend on {what}, which no known cause explains": "一个词元的数值取决于{what}，没有已知的原因可以解释",
    "a row's values depend on other rows of the batch, which no known cause explains": "一行的数值取决于批次中的其他行，没有已知的原因可以解释",
    "Look at the dimension that the op at the origin works over: it takes others together with each.": "请查看根源处算子所作用的维度：它把别的行或词元也一并算入。",
    "Set padded positions to zero before the layer that mixes positions, or run rows without padding.": "请在混合各位置的层之前把填充位置置零，或运行不带填充的行。",
    "the two runs were given the places of other tokens": "两次运行所给的是不同词元的位置",
    "Give each run the columns of the same tokens, which padding on the left moves.": "请给两次运行同样词元所在的列号；左侧填充会使列号改变。",
    "the tokens of a sample are pooled together with its padding, or the wrong token is taken": "样本的词元与其填充一起被池化，或取错了词元",
    "Pool with the attention mask: sum(x * mask) / sum(mask), or take the last real token of each row.": "请按 attention mask 池化：sum(x * mask) / sum(mask)，或取每行最后一个真实词元。",
    "what both runs have is not returned in the same place: {what}": "两次运行都有的内容没有返回在同一位置：{what}",
    "Put rows and tokens back where they went in before they are returned: a result is read by its place.": "返回之前请把行和词元放回原来的位置：结果是按位置读取的。",
    "the runs differ beyond rounding: {what}": "两次运行的差别超出舍入：{what}",
    "{n} whole numbers become {m} in {dtype} at {op} in run {run}": "在运行 {run} 中，{n} 个整数在 {op} 处变为 {dtype} 后只剩 {m} 个",
    "with that alone, in float64, the gap is {gap}": "仅此一项，在 float64 中差距就是 {gap}",
    "other content in {what}, put in place right before the origin, moves a value there that both runs have by {by}": "在根源之前换上{what}的别的内容，根源处两次运行共有的一个数值变化 {by}",
    "with no value rounded to steps the runs agree": "不把数值舍入到量化级时，两次运行一致",
    "a constant added to all values there changes nothing, doubled values no more than the scale, and each of the others counts: a mean, or a mean and a variance, is taken away": "给那里的所有数值加一个常数没有影响，数值加倍只改变尺度，而且其余每个都起作用：减去了均值，或均值与方差",
    "with run A's values put in place at {ops}, {share} % of the gap of {gap} closes, and each of them is needed": "在 {ops} 处换上运行 A 的数值，{gap} 的差距消失了 {share} %，而且每一处都不可少",
    "with run A's values put in place at {ops}, {share} % of the gap of {gap} closes": "在 {ops} 处换上运行 A 的数值，{gap} 的差距消失了 {share} %",
    "{n} of {m} decisions on tokens that both runs have differ": "共有词元上的 {m} 个决策中有 {n} 个不同",
    "taken on the same values in both runs, {n} still do, and with all of them held the float64 gap is {gap}, where rounding makes {noise}": "两次运行用同样的数值来决定，仍有 {n} 个不同；全部保持一致时 float64 中的差距为 {gap}，而舍入造成 {noise}",
    "{n} of {m} decisions on tokens that both runs have differ, each by the rounding of what it was taken on": "共有词元上的 {m} 个决策中有 {n} 个不同，都只因决策依据的舍入",
    "with the same decisions in both runs the float64 gap is {gap}": "两次运行的决策相同时，float64 中的差距为 {gap}",
    "at {op} {n} of {m} lie within rounding of their threshold, by at most {by}": "在 {op} 处 {m} 个中有 {n} 个离阈值不超出舍入，至多 {by}",
    "other content where the other run has none changes the result of run {run} by {gap}, decisions held in float64 but for those that it moves": "更换另一次运行没有的内容，运行 {run} 的结果变化了 {gap}（除它改变的决策外，其余决策都按 float64 保持）",
    "other content where the other run has none moves {op} by {by} at tokens that both runs have, in run {run}'s own layout and with decisions taken in its own precision": "更换另一次运行没有的内容，在运行 {run} 自己的布局中、按它自己的精度决策，共有词元上的 {op} 变化 {by}",
    "other content where the other run has none first moves a value that both runs have at {op}, by {by}": "更换另一次运行没有的内容，最先改变的共有数值在 {op}，变化 {by}",
    "positions are {n} higher in run {run}, where the runs first part": "从两次运行分开之处起，运行 {run} 的位置高 {n}",
    "in float64 the results agree to {gap} all the same, so that only distances between positions matter to this model": "float64 中结果仍然一致到 {gap}，所以这个模型只看位置之间的距离",
    "given run A's inputs in run A's layout, run B's model has another value at the origin": "在运行 A 的布局中给它运行 A 的输入，运行 B 的模型在根源处的数值不同",
    "the query of {a} has a weight on the key of {b} in run {run} alone, one of {n} such pairs": "只有在运行 {run} 中，{a} 的查询才给 {b} 的键以权重；这样的对共有 {n} 个",
    "Nothing is wrong. To get the same bits, run rows in the same shapes, or with kernels whose sums do not depend on the shape.": "没有错。若必须逐位相同，请让各行用同样的形状，或用求和次序与形状无关的核函数。",
    "Nothing is wrong. To get the same bits, make both runs take the same kernel (the same attention implementation, a mask in both or in neither).": "没有错。若必须逐位相同，请让两次运行用同一个核函数（同样的注意力实现，两次都传或都不传 mask）。",
    "Nothing is wrong; the gap is what the narrower dtype costs. Use the wider one where it matters.": "没有错；差距是较窄类型的代价。在要紧的地方请用较宽的类型。",
    "Set the seed before each run, or put the model in eval mode.": "请在每次运行前设置种子，或把模型切换到 eval 模式。",
    "Use torch.use_deterministic_algorithms(True) to find the op, and replace it.": "请用 torch.use_deterministic_algorithms(True) 找出该算子并替换它。",
    "Mask labels by the attention mask, not by the pad token's id, and mask the first real token after left padding.": "请按 attention mask 遮住标签，而不是按填充词元的编号；左填充之后的第一个真实词元也要遮住。",
    "Compare the same tokens: check special tokens, truncation and the chat template.": "请比较同样的词元：检查特殊词元、截断和对话模板。",
    "Load both models from one checkpoint, or find what changed the weights.": "请从同一个检查点加载两个模型，或查明是什么改变了权重。",
    "Two architectures have weights of their own: what they return is compared here, and no more can be. To compare how "
    "they compute, give one the other's weights first.": "两种架构各有自己的权重：这里比较的是它们返回的结果，别的无从比较。"
    "要比较它们的计算过程，请先让一个模型用上另一个的权重。",
    "Load both models from one checkpoint, or find what changed the buffers.": "请从同一个检查点加载两个模型，或查明是什么改变了缓冲区。",
    "Quantised weights are other weights: compare with the quantisation off to find other causes.": "量化后的权重是另一套权重：请关掉量化再比较，以查找别的原因。",
    "Compute positions as integers or in float32, and round what is made of them last.": "请用整数或 float32 计算位置，最后再舍入由它得到的值。",
    "no rule says how {function} moves tokens": "没有规则说明 {function} 如何移动词元",
    "a lookup by tokens behind other dimensions": "按词元查表，而词元排在其他维度之后",
}

_PLACES = {
    "what sits in the padding of its own row": "自己那一行的填充",
    "what sits in the padding of its own row and in other rows": "自己那一行的填充和其他行",
    "what sits in the padding (or in another row)": "填充（或另一行）",
    "what sits in another row of the batch": "批次中的另一行",
    "what sits in later tokens of its own row": "自己那一行里后面的词元",
    "what sits in the padding of its own row and in later tokens": "自己那一行的填充和后面的词元",
    "what sits in later tokens of its own row and in other rows": "自己那一行里后面的词元和其他行",
    "what sits in the padding of its own row, in later tokens and in other rows": "自己那一行的填充、后面的词元和其他行",
}
_REACHED = {
    "reaches a real token, though {module}, around it, is given a mask": "影响到真实的词元，尽管外层的 {module} 得到了 mask",
    "reaches a real token, though {module} is given a mask": "影响到真实的词元，尽管 {module} 得到了 mask",
    "reaches a number of the whole call, though the model is given a mask": "影响到整次调用的一个数，尽管模型得到了 mask",
    "reaches a number of the whole call": "影响到整次调用的一个数",
    "reaches a real token": "影响到真实的词元",
}
# A template that began with a placeholder would fit whatever ends like it.
SENTENCES.update(
    {
        f"{what} {reaches}": f"{place}中的内容{reached}"
        for what, place in _PLACES.items()
        for reaches, reached in _REACHED.items()
    }
)
