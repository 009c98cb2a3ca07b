"""The help of the commands in Chinese: each paragraph as it stands in English, and its translation."""

from __future__ import annotations

HELP: dict[str, str] = {
    # 命令
    "Find the first operation where two runs of a model part ways.": "找出一个模型的两次运行从哪个算子开始分道扬镳。",
    "Compare a prompt as it is with the same prompt padded.": "比较一条提示词原样与填充之后的运行。",
    "Compare a prompt by itself with the same prompt in a batch with others.": "比较一条提示词单独运行与放进批次运行。",
    "Compare one forward pass with the same tokens step by step, from a cache.": "比较一次前向计算与用缓存逐步计算同样的词元。",
    "Compare the model's attention implementation with another one.": "比较模型的注意力实现与另一种实现。",
    "Compare a model with itself in another dtype.": "比较一个模型与换了数据类型的它自己。",
    "Compare a model with itself under torch.autocast.": "比较一个模型与 torch.autocast 下的它自己。",
    "Compare a model on one device with itself on another.": "比较一个模型在一种设备与另一种设备上的运行。",
    "Compare a model with itself, its linear layers quantised.": "比较一个模型与线性层量化之后的它自己。",
    "Compare a model with itself, its layers compiled.": "比较一个模型与各层编译之后的它自己。",
    "Compare a prompt by itself with the same prompt packed into one row with others.": "比较一条提示词单独运行与同其他提示词打包成一行"
    "运行。",
    "Compare a run with itself, made again.": "比较一次运行与它的重复。",
    "Compare two checkpoints: another revision, a fine-tuned child, a merge.": "比较两个检查点：另一个版本、微调后的模型、合并后的"
    "模型。",
    "Look for layouts in which the same tokens get other bits: padding, batches, caches, at sizes where kernels change.": "寻找使同样的"
    "词元得到不同数值的布局：填充、批次、缓存，大小取核函数会更换之处。",
    "Compare a prompt with itself padded, under one setting after the other: int8, attention, dtype, device.": "在一项又一项设置下比较"
    "一条提示词与填充之后的它：int8、注意力、数据类型、设备。",
    "Ask many questions of many models and prompts, and put the answers into one table.": "向许多模型、用许多提示词提出许多问题，并把答案"
    "放进一张表。",
    "What was answered is kept in a folder as it comes, so that the same command goes on where it was interrupted.": "答案一得出就存入"
    "文件夹，因此中断之后用同一条命令即可接着进行。",
    "Exit status: that of the worst answer; a question without an answer counts as 3.": "退出状态：取最差的答案；没有答案的问题算作 3。",
    "The questions, as TOML.": "TOML 格式的问题。",
    "Keep the answers there; by default in FILE without its suffix.": "把答案存在那里；默认为去掉后缀的 FILE。",
    "Questions that are asked at a time, each in a process with one model.": "同时提出的问题数，每个在只装有一个模型的进程中。",
    "The time after which a question is given up; by default there is none.": "超过此时间便放弃一个问题；默认没有时限。",
    "Ask in actors of Ray, not in processes of this machine.": "在 Ray 的 actor 中提问，而不是在本机的进程中。",
    "Generate greedily in two ways: the first token that differs, and the op behind it.": "用两种方式贪心生成：首个不同的词元，以及背后"
    "的算子。",
    "Compare the vectors of texts in batches of one size and of another.": "比较文本在两种批次大小下的向量。",
    "Repeat the op of a scene on the inputs of both runs, on every device present, and compare.": "在现有的每种设备上，用两次运行的"
    "输入重放现场中的算子，并作比较。",
    "Write a scene as a script that needs only torch and safetensors, and run it before handing it over.": "把现场写成只需要 torch 和 "
    "safetensors 的脚本，并在交出之前先运行它。",
    "Show the report of what --json wrote, without its models; `--html` writes it as a page, too.": "不用模型，显示 --json 所写结果的"
    "报告；`--html` 还会把它写成网页。",
    "Run a script, and write a trace of the models that it calls; `compare` then compares it with another.": "运行一个脚本，把它所调用的"
    "模型的记录写下来；之后用 `compare` 与另一份比较。",
    "Compare two traces, on any machine and without the models.": "比较两份记录：在任何机器上，不需要模型。",
    "Tell from recorded log-probabilities alone how two engines differ: temperature, top-p, shifted positions, other weights.": "仅凭记录"
    "下来的对数概率，说明两个引擎有何不同：温度、top-p、位置错开、权重不同。",
    "Ask a question as it is, and again layout-invariantly: is the difference gone?": "先照原样提问，再以布局不变的方式提问：差异"
    "消失了吗？",
    "Hold an engine against transformers, op by op on the same inputs: were both asked the same, where do they part, what does it cost?": "把"
    "推理引擎与 transformers 在同样的输入上逐个算子比较：两者被问的是否相同，从哪里分开，代价多大？",
    "vllm, or what an engine recorded.": "vllm，或引擎所记录的内容。",
    "The Python of an environment that has vLLM; by default this one.": "装有 vLLM 的环境的 Python；默认为当前环境。",
    "An argument of vllm.LLM; may be given again.": "vllm.LLM 的一个参数；可以多次给出。",
    "Keep what the engine recorded there.": "把引擎的记录保存在那里。",
    "The engine's; by default it is greedy.": "引擎的设置；默认为贪心。",
    "The engine's.": "引擎的设置。",
    "Tokens that the engine generates.": "引擎生成的词元数。",
    "THEIRS=OURS: modules of the engine whose paths begin or end so are the reference's; may be given again.": "THEIRS=OURS：引擎中路径"
    "如此开头或结尾的模块对应参照的模块；可以多次给出。",
    "Exit status: 0 if nothing but rounding is seen, 1 if there is more, 3 if it can't be told.": "退出状态：除舍入外没有发现别的为 0，还有"
    "别的为 1，无法判断为 3。",
    # 退出状态
    "Exit status: 0 identical or rounding; 1 semantic, nondeterminism or inputs; 2 unusable arguments; 3 undetermined.": "退出状态：0 "
    "完全一致或舍入误差；1 语义差异、不确定性或输入不同；2 参数无法使用；3 无法判定。",
    "Exit status: 0 if no layout that was tried changes a bit, else 1.": "退出状态：试过的布局都不改变任何一位时为 0，否则为 1。",
    "Several prompts are one batch. Exit status: that of the worst row that could be made.": "多条提示词组成一个批次。退出状态：所能得到的"
    "各行中最严重的一行的状态。",
    "Exit status: that of the verdict on both ways up to that token; 0 where no token differs.": "退出状态：两种方式直到该词元为止的"
    "结论的状态；没有词元不同时为 0。",
    "Exit status: 0 if both outputs are the recorded ones, bit for bit, on the device that they were recorded on; 1 if they aren't; 2 if the "
    "scene can't be used.": "退出状态：在记录时所用的设备上，两个输出都与记录逐位相同为 0，不同为 1，现场无法使用为 2。",
    "The script takes the scene's folder as its one argument. Exit status: 0 if it reproduced here, 1 if it did not (it is written all the "
    "same), 2 if there is no script to write.": "脚本以现场的文件夹为唯一的参数。退出状态：在这里重现了为 0，没有重现为 1（脚本照样写出），"
    "没有脚本可写为 2。",
    "Exit status: that of the command that wrote it, 2 if the file holds nothing of the kind.": "退出状态：与写出该文件的命令相同；文件里"
    "没有这样的内容时为 2。",
    "Exit status: the script's own.": "退出状态：脚本自己的退出状态。",
    "Exit status: 0 if all that the models returned is the same; 1 if what went in differs; 3 if the runs differ, and only running them again "
    "can tell why.": "退出状态：模型返回的一切都相同为 0；输入不同为 1；两次运行不同、只有重新运行才能知道原因为 3。",
    "Exit status: 0 if nothing but rounding is seen, 1 if there is another cause, 3 if it can't be told.": "退出状态：除舍入外没有发现别的"
    "为 0，有别的原因为 1，无法判断为 3。",
    "Exit status: 0 identical the second time; 1 not; 2 unusable arguments, or no invariant form; 3 undetermined.": "退出状态：第二次完全"
    "一致为 0；否则为 1；参数无法使用或没有布局不变的形式为 2；无法判定为 3。",
    # 选项：模型
    "A local folder, a GGUF file, a hub id, or demo.": "本地文件夹、GGUF 文件、hub 上的名称，或 demo。",
    "A local folder or a hub id.": "本地文件夹或 hub 上的名称。",
    "The second model, named like MODEL.": "第二个模型，写法与 MODEL 相同。",
    "Branch, tag or commit on the hub.": "hub 上的分支、标签或提交。",
    "float32, bfloat16, float16 or float64; by default the checkpoint's.": "float32、bfloat16、float16 或 float64；默认为检查点的类型。",
    "cpu, cuda, cuda:1, mps; by default cpu.": "cpu、cuda、cuda:1、mps；默认为 cpu。",
    "cpu or cuda; by default every one that is here.": "cpu 或 cuda；默认为这里所有的设备。",
    "Attention implementation: eager, sdpa, …; by default the model's choice.": "注意力实现：eager、sdpa 等；默认由模型选择。",
    "Quantise the linear layers with bitsandbytes.": "用 bitsandbytes 量化线性层。",
    "Run the Python code that a model brings along: only if you trust whoever wrote it.": "运行模型自带的 Python 代码：仅当您信任其"
    "作者时使用。",
    # 选项：提示词
    "A prompt; may be given again.": "一条提示词；可以多次给出。",
    "A file with one prompt a line.": "每行一条提示词的文件。",
    "A file with one text a line; a line with a tab is a pair, for a cross-encoder.": "每行一条文本的文件；含制表符的一行是一对，供"
    "交叉编码器使用。",
    "Length in tokens to pad to; by default 50 or more.": "填充到多少个词元；默认 50 或更多。",
    "Where the padding goes.": "填充放在哪一侧。",
    "mask: made from the mask as the architecture does in generate; none: left to the model.": "mask：像该架构在 generate 中那样由 "
    "mask 得出；none：交给模型。",
    "Put each prompt through the chat template.": "让每条提示词经过对话模板。",
    "Rows of the batch, the prompt's among them.": "批次的行数，含提示词自己的一行。",
    "Make the others as long as the prompt.": "让其余各行与提示词一样长。",
    # 选项：运行
    "Host memory for what is recorded, as 500MB or 2GiB; the rest goes to a temporary file. By default there is no limit.": "记录可用的"
    "主机内存，如 500MB 或 2GiB；超出的部分写入临时文件。默认没有限制。",
    "Make both runs layout-invariantly, or say what stands in the way.": "以布局不变的方式进行两次运行，或指出是什么妨碍了它。",
    "Tokens of the first call; by default three quarters of them.": "第一次调用的词元数；默认为四分之三。",
    "Tokens of each call after it; 1 decodes.": "此后每次调用的词元数；1 即逐词解码。",
    "How the cache is kept.": "缓存的形式。",
    "Another implementation: eager, sdpa, sdpa:math, sdpa:efficient, sdpa:flash, flex_attention, …; by default eager, or sdpa where the model "
    "is eager.": "另一种实现：eager、sdpa、sdpa:math、sdpa:efficient、sdpa:flash、flex_attention 等；默认为 eager，模型用 eager 时为 sdpa。",
    "Another dtype: float32, bfloat16, float16, float64; by default bfloat16, or float32 where the model is narrower.": "另一种数据类型："
    "float32、bfloat16、float16、float64；默认为 bfloat16，模型更窄时为 float32。",
    "bfloat16 or float16.": "bfloat16 或 float16。",
    "Another device: cpu, cuda, cuda:1, mps; by default cuda, or cpu where the model is not on it.": "另一种设备：cpu、cuda、cuda:1、mps；"
    "默认为 cuda，模型不在 CPU 上时为 cpu。",
    "int8 and nf4 of bitsandbytes, int8-dynamic of PyTorch, torchao-int8.": "bitsandbytes 的 int8 和 nf4、PyTorch 的 int8-dynamic、"
    "torchao-int8。",
    "What the captured graph is handed to.": "捕获的计算图交给哪个后端。",
    "Most tokens of a row.": "一行最多多少个词元。",
    "The time after which nothing more is tried.": "超过这一时间（秒）就不再尝试。",
    "The settings that are wanted, as int8,float16,eager; by default all.": "需要哪些设置，如 int8,float16,eager；默认为全部。",
    "batch: in a batch with others; no-cache: without a cache; static, sliding, offloaded, quantized: with a cache "
    "of that kind; assisted: several candidates in one call.": "batch：放进批次；no-cache：不用缓存；static、sliding、offloaded、"
    "quantized：用该种缓存；assisted：一次调用看多个候选词元。",
    "For assisted, a model that guesses the candidates; without one they are looked up in the text so far.": "用于 assisted："
    "猜测候选词元的模型；不给时从已有的文本中查找。",
    "Most tokens to generate.": "最多生成多少个词元。",
    "The batch sizes of both runs.": "两次运行的批次大小。",
    "Pool the encoder's last hidden state; by default what sentence-transformers does, else mean.": "对编码器的最后一层隐藏状态作池化；"
    "默认与 sentence-transformers 相同，否则取平均。",
    "The folder of a scene.": "现场所在的文件夹。",
    "A script of Python, and its arguments.": "一个 Python 脚本及其参数。",
    "The folder to write the trace to; new or empty.": "记录写入的文件夹；须是新的或空的。",
    "Keep the values of ops of this name (patterns: 'model.layers.0.*'); may be given again.": "保留名称如此的算子的数值（可用模式："
    "'model.layers.0.*'）；可以多次给出。",
    "A folder that record wrote.": "record 写出的文件夹。",
    "Another one.": "另一个这样的文件夹。",
    "THEIRS=OURS: modules of B whose paths begin so are A's; may be given again.": "THEIRS=OURS：B 中路径如此开头的模块对应 A 的模块；"
    "可以多次给出。",
    "Each file has one JSON object a line, with token_ids and logprobs of one sequence.": "每个文件每行一个 JSON 对象，含一个序列的 "
    "token_ids 和 logprobs。",
    "What one engine recorded.": "一个引擎的记录。",
    "What the other did.": "另一个引擎的记录。",
    "The narrowest that either engine computes in: float32, float16 or bfloat16.": "两个引擎所用的最窄的类型：float32、float16 或 "
    "bfloat16。",
    # 选项：输出
    "The whole report: evidence, inputs, drift, counts.": "完整的报告：证据、输入、差距变化、计数。",
    "List the captured values by name.": "逐一列出记录到的数值。",
    "List the captured values whose name, variable or place in the source is like this: q_proj, '*/softmax'.": "列出名称、变量或源码"
    "位置与此相符的数值：q_proj、'*/softmax'。",
    "Write the whole result; - prints it, and nothing else.": "写出完整的结果；- 表示打印它，且不打印别的。",
    "Write the report as a page of HTML.": "把报告写成 HTML 网页。",
    "Print no report; the exit status tells.": "不打印报告；看退出状态即可。",
    "Language of the report, English or Chinese; by default the locale's.": "报告的语言，英文或中文；默认由区域设置决定。",
    "Save the op at which the runs part ways, to replay it alone.": "保存两次运行分道扬镳的算子，以便单独重放。",
    "Compare gradients, too: of every op's output and of every parameter, with the prompt as labels.": "也比较梯度："
    "每个操作的输出和每个参数的，以提示词作为 labels。",
    "List every op that parts ways on equal inputs, not the first alone.": "列出输入相同而结果不同的所有算子，而不只是首个。",
    "Only compare; don't look for the cause. Exit status 0.": "只作比较，不查找原因。退出状态为 0。",
    "Read options from a TOML file; what is given here comes first.": "从 TOML 文件读取选项；命令行上给出的优先。",
    "Where to; by default it is printed.": "写到哪里；默认打印出来。",
    "Random data in place of the scene's own; the script then needs no scene.": "用随机数据代替现场的数据；这样脚本不需要现场。",
    "A file that --json wrote.": "--json 写出的文件。",
    "Write the table of ops as FILE.csv or FILE.parquet (with pyarrow).": "把算子表写成 FILE.csv 或 FILE.parquet（需要 pyarrow）。",
    "Write a graph for Model Explorer, and its node data beside it.": "写出供 Model Explorer 使用的图，旁边附节点数据。",
    "Print the report in Markdown.": "以 Markdown 打印报告。",
    "Print an issue in Markdown, without texts of prompts, names of samples, paths and notes.": "以 Markdown 打印一份问题报告，不含提示词"
    "文本、样本名称、路径和附注。",
    "Leave those in the issue.": "在问题报告中保留这些内容。",
    # typer 自己的选项
    "Print the version.": "打印版本。",
    "Install completion for the current shell.": "为当前 shell 安装自动补全。",
    "Show completion for the current shell, to copy it or customize the installation.": "显示当前 shell 的自动补全脚本，以便复制或自行"
    "安装。",
    "Show this message and exit.": "显示本帮助并退出。",
}
EXAMPLE = "例："
"""Before the example of a command."""
