"""Results as `compare` makes them, one for each kind of report; sizes and gaps as measured on SmolLM2."""

from __future__ import annotations

from dataclasses import replace

from forkpoint.result import (
    Backward,
    Divergence,
    Impact,
    InputComparison,
    LayerDrift,
    NearTie,
    NotCompared,
    OpRow,
    ParameterGradient,
    ProbeResult,
    ReplacedModule,
    Result,
    RunSummary,
    Verdict,
    VerdictKind,
)

LAYERS = 30
ATTENTION = "model.layers.{}.self_attn"
SDPA = "torch.nn.functional.scaled_dot_product_attention("
VERSIONS = {"forkpoint": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"}
NO_PAD = "The tokenizer's pad token is its eos token <|im_end|>."


def run(name: str, columns: int, padding: int = 0, **changes: object) -> RunSummary:
    call = {"input_ids": (1, columns), "attention_mask": (1, columns), "position_ids": (1, columns)}
    summary = RunSummary(
        name=name,
        calls=(call,),
        samples=1,
        tokens=columns - padding,
        padding=padding,
        dtype="bfloat16",
        device="cpu",
        attention="sdpa",
        ops=1671,
        model="LlamaForCausalLM (smollm2)",
        digest="6f1b0c2d9a3e",
    )
    return replace(summary, **changes)


def op(module: str, function: str, variable: str | None, source: str, code: str, **changes: object) -> OpRow:
    row = OpRow(
        op=f"{module}/{function}",
        module=module,
        function=function,
        variable=variable,
        source=source,
        code=code,
        output=0,
        shape_a=(1, 15, 576),
        shape_b=(1, 50, 576),
        dtype_a="bfloat16",
        dtype_b="bfloat16",
        status="equal",
        floating=True,
        compared=15,
    )
    return replace(row, **changes)


def layer_ops(layer: int, status: str) -> list[OpRow]:
    """Some of the ops of a decoder layer of a padded run; `status` from the attention kernel on."""
    attention, llama, sdpa = ATTENTION.format(layer), "modeling_llama.py", "sdpa_attention.py"
    before = "differs" if status == "differs" and layer else "equal"
    late = {"status": status, "differing": 7 if status == "differs" else 0}
    early = {"status": before, "differing": 7 if before == "differs" else 0}
    heads = {"shape_a": (1, 9, 15, 64), "shape_b": (1, 9, 50, 64)}
    repeated = {
        "shape_a": None,
        "shape_b": (1, 9, 50, 64),
        "dtype_a": None,
        "status": "only in b",
        "compared": 0,
    }
    query = "query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)"
    expand = "hidden_states = hidden_states[:, :, None, :, :].expand(batch, num_key_value_heads, n_rep, slen, head_dim)"
    reshape = "return hidden_states.reshape(batch, num_key_value_heads * n_rep, slen, head_dim)"
    scale = "hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)"
    return [
        op(f"model.layers.{layer}.input_layernorm", "mul", "hidden_states", f"{llama}:65", scale, **early),
        op(attention + ".q_proj", "linear", "query_states", f"{llama}:243", query, **early),
        op(attention, "transpose", "query_states", f"{llama}:243", query, **heads, **early),
        op(attention, "expand", "hidden_states", f"{sdpa}:26", expand, **repeated),
        op(attention, "reshape", None, f"{sdpa}:27", reshape, **repeated),
        op(
            attention,
            "scaled_dot_product_attention",
            "attn_output",
            f"{sdpa}:168",
            f"attn_output = {SDPA}",
            **heads,
        )
        if status == "equal"
        else op(
            attention,
            "scaled_dot_product_attention",
            "attn_output",
            f"{sdpa}:168",
            f"attn_output = {SDPA}",
            **heads,
            **late,
        ),
        op(
            f"model.layers.{layer}",
            "add",
            "hidden_states",
            f"{llama}:306",
            "hidden_states = residual + hidden_states",
            **late,
        ),
    ]


def ops(status: str) -> tuple[OpRow, ...]:
    embedding = op(
        "model.embed_tokens", "embedding", "inputs_embeds", "modeling_llama.py:370", "inputs_embeds = embed"
    )
    head = op(
        "lm_head",
        "linear",
        "logits",
        "modeling_llama.py:468",
        "logits = self.lm_head(hidden_states)",
        shape_a=(1, 15, 49152),
        shape_b=(1, 50, 49152),
        status=status,
        differing=7 if status == "differs" else 0,
    )
    return (embedding, *(row for layer in range(LAYERS) for row in layer_ops(layer, status)), head)


GAPS = (
    *(0.03125, 0.125, 0.25, 0.25, 0.5, 0.25, 0.5, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.5, 1.5),
    *(1.0, 1.5, 1.5, 1.5, 1.5, 1.25, 1.5, 1.75, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 12.0),
)


def drift(scale: float = 1.0) -> tuple[LayerDrift, ...]:
    def layer(module: str, gap: float, relative: float, position: int) -> LayerDrift:
        gaps = tuple((0, token, gap * scale if token == position else 0.0) for token in range(15))
        return LayerDrift(module, gap * scale, relative * scale, gaps)

    layers = (layer(f"model.layers.{n}", gap, gap / 4000, 8 + n % 5) for n, gap in enumerate(GAPS))
    norm, head = layer("model.norm", 0.625, 0.02016, 11), layer("lm_head", 0.6875, 0.022, 11)
    return (layer("model.embed_tokens", 0.0, 0.0, 0), *layers, norm, head)


SDPA_DIVERGENCE = Divergence(
    op="model.layers.0.self_attn/scaled_dot_product_attention",
    module="model.layers.0.self_attn",
    function="scaled_dot_product_attention",
    source="sdpa_attention.py:168",
    code=f"    attn_output = {SDPA}\n",
    variable="attn_output",
    sample=0,
    position=8,
    token="on",
    index_a=(0, 0, 8, 25),
    index_b=(0, 0, 8, 25),
    value_a=-0.01397705078125,
    value_b=-0.0140380859375,
    ulps=1.0,
    max_abs=0.00048828125,
    max_rel=0.00781,
    differing=38,
    compared=8640,
    inputs=(
        InputComparison("query", "equal", (1, 9, 15, 64), (1, 9, 50, 64), "bfloat16", "bfloat16"),
        InputComparison("key", "equal", (1, 3, 15, 64), (1, 9, 50, 64), "bfloat16", "bfloat16"),
        InputComparison("value", "equal", (1, 3, 15, 64), (1, 9, 50, 64), "bfloat16", "bfloat16"),
        InputComparison("attn_mask", "only in b", None, (1, 1, 50, 50), None, "bool"),
    ),
    dtype_a="bfloat16",
    dtype_b="bfloat16",
    shape_a=(1, 9, 15, 64),
    shape_b=(1, 9, 50, 64),
)

MASK = op(
    "model",
    "le",
    None,
    "masking_utils.py:93",
    "    return kv_idx <= q_idx\n",
    shape_a=None,
    shape_b=(1, 1, 50, 50),
    dtype_a="bool",
    dtype_b="bool",
    status="differs",
    floating=False,
    differing=3,
    compared=15,
)


def rounding() -> Result:
    """SmolLM2 in bfloat16 with sdpa, unpadded against padded to 50 on the right."""
    return Result(
        a=run("unpadded", 15),
        b=run("padded to 50 on the right", 50, 35, ops=1851),
        first=SDPA_DIVERGENCE,
        verdict=Verdict(
            VerdictKind.ROUNDING,
            "kernel_choice",
            None,
            "only rounding: done in float64, the gap falls to 1.6e-13",
            (
                ProbeResult("repeat", "same", 0.0, "each run, made again, gives the same bits"),
                ProbeResult(
                    "inputs",
                    "same",
                    0.0,
                    "token ids, labels, parameters and buffers are the same in both runs",
                ),
                ProbeResult(
                    "content",
                    "untouched",
                    0.0,
                    "other content in the padding or the batch changes not one bit of a shared token",
                ),
                ProbeResult(
                    "precision",
                    "vanishes",
                    1.6e-13,
                    "in float64 the gap is 1.6e-13, 23 units in the last place of the largest value",
                ),
                ProbeResult(
                    "replay",
                    "rounding",
                    0.5,
                    "alone, on its own inputs, it is off the exact result by 0.5 and 0.5 ULP in runs A and B",
                ),
            ),
        ),
        impact=Impact(
            6.162494659423828,
            6.169227600097656,
            0.006732940673828125,
            0.6875,
            0.022,
            0.00384283,
            0,
            15,
            result="logits",
            loss_source="recomputed from input_ids",
        ),
        ops=ops("differs"),
        not_compared=(
            NotCompared("model/arange", "masking_utils.py:720", "no token dimension known", False),
            NotCompared("model/arange", "masking_utils.py:721", "no token dimension known", False),
            NotCompared(
                "model.rotary_emb/unsqueeze", "modeling_llama.py:111", "other sizes a coordinate", True
            ),
        ),
        drift=drift(),
        replaced_modules=(),
        first_integer=MASK,
        notes=(NO_PAD,),
        versions=VERSIONS,
        call="fp.padding(model, tokenizer, prompts, pad_to=50)",
    )


def backward() -> Result:
    """Rounding, from the loss on, and behind it a backward that is wrong."""
    where = {"sample": 0, "position": 0, "token": "I"}
    first = replace(
        SDPA_DIVERGENCE, op="lm_head/linear", module="lm_head", function="linear", source="modeling_llama.py:468",
        code="logits = self.lm_head(hidden_states[:, slice_indices, :])", variable="logits", **where,
        value_a=0.00124, value_b=0.001241, inputs=(InputComparison("(model)/float (loss_utils.py:60)", "equal", None, None),),
        largest=None, arguments=(), note="",
    )  # fmt: skip
    origin = replace(
        first, op="model.layers.1.post_attention_layernorm/mul", module="model.layers.1.post_attention_layernorm",
        function="mul", source="modeling_llama.py:66", code="return self.weight * hidden_states", variable=None,
        value_a=-0.0024200901, value_b=-0.0024442910, dtype_a="float64", dtype_b="float64", ulps=5.58e13, max_abs=0.014, max_rel=0.01,
        inputs=(InputComparison("model.layers.1.mlp/mul (kernels.py:12)", "only in b", None, None),),
    )  # fmt: skip
    weights = (
        ParameterGradient(
            "model.embed_tokens.weight", "differs", (99, 32), "float32", "float32", 3168, 3168, 0.0143, 119623.0,
            0.00487, 0.999993, rounding=False,
        ),
        ParameterGradient(
            "lm_head.weight", "differs", (99, 32), "float32", "float32", 3168, 900, 3e-7, 4.0, 2e-7, 1.0, rounding=True
        ),
        ParameterGradient("model.norm.bias", "not compared", (32,), reason="it requires no gradient in run B"),
    )  # fmt: skip
    text = "in float64 91 of 109 gradients of ops' outputs and 1 of parameters still differ, beyond float64's own rounding"
    rows = tuple(replace(row, floating=True) for row in ops("differs")[:6])
    return replace(
        rounding(),
        backward=Backward(
            6.162494659423828, 6.162494421005249, first, origin, False, weights,
            (ProbeResult("precision", "remains", 91.0, text),), rows,
            ("with gradients on, run B returns other bits than without",),
        ),
    )  # fmt: skip


def nondeterminism() -> Result:
    """Dropout that was left on."""
    again = "run A, made again, gives other bits; from the same random state it repeats itself"
    return replace(
        rounding(),
        verdict=Verdict(
            VerdictKind.NONDETERMINISM,
            "random_state",
            None,
            again,
            (ProbeResult("repeat", "differs", 0.25, again),),
        ),
        a=run("first time", 15),
        b=run("second time", 15),
        call="fp.repeat(model, tokenizer, prompts)",
    )


def undetermined() -> Result:
    """A custom operator without a float64 form."""
    return replace(
        rounding(),
        verdict=Verdict(
            VerdictKind.UNDETERMINED,
            None,
            None,
            "float64 could not be used for mylib.attention, and its gap could not be explained otherwise",
            (
                ProbeResult("repeat", "same", 0.0, "each run, made again, gives the same bits"),
                ProbeResult("replay", "nothing", None, "the op has no float64 form to be measured against"),
            ),
            "Put plain torch functions in the place of custom operations, and compare again.",
        ),
        a=run("A", 15),
        b=run("B", 50, 35),
        call="fp.compare(a, b)",
    )


def identical() -> Result:
    """The same with eager attention."""
    return replace(
        rounding(),
        a=run("unpadded", 15, attention="eager", dtype="float32"),
        b=run("padded to 50 on the right", 50, 35, attention="eager", dtype="float32"),
        first=None,
        verdict=Verdict(VerdictKind.IDENTICAL, None, None, "", ()),
        impact=Impact(
            6.162494659423828,
            6.162494659423828,
            0.0,
            0.0,
            0.0,
            0.0,
            0,
            15,
            result="logits",
            loss_source="returned",
        ),
        ops=tuple(row for row in ops("equal") if row.status == "equal"),
        not_compared=(),
        drift=drift(0.0),
        first_integer=None,
    )


def semantic() -> Result:
    """Mamba with left padding that is not masked: a convolution carries it into the first tokens."""
    first = Divergence(
        op="backbone.layers.0.mixer.in_proj/linear",
        module="backbone.layers.0.mixer.in_proj",
        function="linear",
        source="modeling_mamba.py:262",
        code="        projected_states = self.in_proj(hidden_states).transpose(1, 2)\n",
        variable="projected_states",
        sample="en",
        position=3,
        token=" a",
        index_a=(0, 3, 0),
        index_b=(0, 38, 0),
        value_a=-0.30000001192092896,
        value_b=-0.2999999523162842,
        ulps=2.0,
        max_abs=1.1920928955078125e-07,
        max_rel=4.1e-07,
        differing=211,
        compared=11520,
        inputs=(
            InputComparison("input", "equal", (1, 15, 768), (1, 50, 768), "float32", "float32"),
            InputComparison(
                "weight",
                "equal",
                (3072, 768),
                (3072, 768),
                "float32",
                "float32",
                parameter="backbone.layers.0.mixer.in_proj.weight",
            ),
        ),
        dtype_a="float32",
        dtype_b="float32",
    )
    origin = replace(
        first,
        op="backbone.layers.0.mixer.conv1d/conv1d",
        module="backbone.layers.0.mixer.conv1d",
        function="conv1d",
        source="modeling_mamba.py:296",
        code="        hidden_states = self.act(self.conv1d(hidden_states)[..., :seq_len])\n",
        variable="hidden_states",
        position=0,
        token="I",
        index_a=(0, 0, 0),
        index_b=(0, 0, 35),
        value_a=0.07182041555643082,
        value_b=1.25,
        ulps=3.4e7,
        max_abs=3.75,
        max_rel=0.65,
        differing=4608,
        inputs=(
            InputComparison(
                "input", "differs", (1, 1536, 15), (1, 1536, 50), "float32", "float32", max_abs=1.2e-07
            ),
            replace(
                first.inputs[1],
                shape_a=(1536, 1, 4),
                shape_b=(1536, 1, 4),
                parameter="backbone.layers.0.mixer.conv1d.weight",
            ),
        ),
    )
    evidence = (
        ProbeResult("repeat", "same", 0.0, "each run, made again, gives the same bits"),
        ProbeResult(
            "content",
            "changes",
            14.2,
            "other content where the other run has none changes the result of run B by 14, in float64 too",
        ),
        ProbeResult(
            "precision", "remains", 14.2, "in float64 the gap is 14; float64's own rounding makes 2.2e-15"
        ),
        ProbeResult(
            "patch",
            "closes",
            1.0,
            "with run A's value put in place at backbone.layers.0.mixer.conv1d/conv1d (modeling_mamba.py:296), "
            "100 % of the gap of 14 closes",
        ),
    )
    ties = (
        NearTie("en", 8, 441, 440, 0.0625, 1.5),
        NearTie("en", 3, 262, 257, 2.25, 0.75),
        NearTie("en", 9, 1, 2, 4.0, 5.0),
    )
    return replace(
        rounding(),
        a=run("unpadded", 15, dtype="float32", attention=None),
        b=run(
            "padded to 50 on the left",
            50,
            35,
            dtype="float32",
            attention=None,
            notes=("compiled functions were traced as the Python that they were made from",),
        ),
        first=first,
        origin=origin,
        verdict=Verdict(
            VerdictKind.SEMANTIC,
            "padding_leak",
            False,
            "The result depends on the content of the padding, though the attention mask leaves it out.",
            evidence,
        ),
        impact=Impact(
            4.1234,
            9.8765,
            5.7531,
            14.2,
            0.65,
            6.4,
            13,
            15,
            ties,
            "logits",
            loss_source="returned",
            discrete_compared=15,
        ),
        drift=drift(8.0),
        not_compared=(),
    )


def inputs() -> Result:
    """One weight differs by one ULP."""
    first = Divergence(
        op="model.layers.3.mlp.down_proj/linear",
        module="model.layers.3.mlp.down_proj",
        function="linear",
        source="modeling_llama.py:164",
        code="        down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))\n",
        variable="down_proj",
        sample=0,
        position=0,
        token="\n",
        index_a=(0, 0, 17),
        index_b=(0, 0, 17),
        value_a=0.11561134457588196,
        value_b=0.11561146378517151,
        ulps=16.0,
        max_abs=1.1920928955078125e-07,
        max_rel=1.03e-06,
        differing=15,
        compared=8640,
        inputs=(
            InputComparison("input", "equal", (1, 15, 1536), (1, 15, 1536), "float32", "float32"),
            InputComparison(
                "weight",
                "differs",
                (576, 1536),
                (576, 1536),
                "float32",
                "float32",
                "model.layers.3.mlp.down_proj.weight",
                7.450580596923828e-09,
            ),
        ),
        dtype_a="float32",
        dtype_b="float32",
    )
    evidence = (
        ProbeResult("repeat", "same", 0.0, "each run, made again, gives the same bits"),
        ProbeResult(
            "inputs",
            "differs",
            1.0,
            "1 parameter differs, model.layers.3.mlp.down_proj.weight",
        ),
    )
    return replace(
        rounding(),
        a=run("checkpoint one", 15, dtype="float32", attention="eager"),
        b=run("checkpoint two", 15, dtype="float32", attention="eager"),
        first=first,
        verdict=Verdict(
            VerdictKind.INPUTS,
            "parameters",
            False,
            "One parameter differs: model.layers.3.mlp.down_proj.weight.",
            evidence,
        ),
        impact=Impact(
            6.1624946,
            6.1624951,
            5e-07,
            2.1e-05,
            6.6e-07,
            1.2e-12,
            1,
            15,
            (NearTie(0, 4, 9, 8, 1e-6, 2e-6),),
            "logits",
        ),
        drift=drift(1e-5),
        not_compared=(),
        first_integer=None,
        notes=(),
    )


def unprobed() -> Result:
    """The rounding case with `--no-probes`."""
    return replace(
        rounding(), verdict=Verdict(VerdictKind.UNDETERMINED, None, None, "the results differ", probed=False)
    )


def int8() -> Result:
    """bitsandbytes int8: padding changes which columns count as outliers."""
    projections = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    projections += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    modules = (f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in projections)
    first = Divergence(
        op="model.layers.1.mlp.down_proj/bitsandbytes.int8_mixed_scaled_mm",
        module="model.layers.1.mlp.down_proj",
        function="bitsandbytes.int8_mixed_scaled_mm",
        source="_functions.py:199",
        code="            output, subA = torch.ops.bitsandbytes.int8_mixed_scaled_mm(",
        variable="output",
        sample=0,
        position=0,
        token="I",
        index_a=(0, 965),
        index_b=(0, 965),
        value_a=-0.0036373138427734375,
        value_b=-0.003635406494140625,
        ulps=1.0,
        max_abs=0.01171875,
        max_rel=0.004,
        differing=612,
        compared=8640,
        inputs=(
            InputComparison("A", "equal", (15, 1536), (50, 1536), "float16", "float16"),
            InputComparison("CA", "equal", (15, 1536), (50, 1536), "int8", "int8"),
            InputComparison(
                "CB", "equal", (576, 1536), (576, 1536), "int8", "int8", "model.layers.1.mlp.down_proj.weight"
            ),
            InputComparison(
                "outlier_cols",
                "not compared",
                (3,),
                (7,),
                "int64",
                "int64",
                reason="shape [3] in A, [7] in B, and no token dimension known",
            ),
        ),
        dtype_a="float16",
        dtype_b="float16",
    )
    evidence = (
        ProbeResult("repeat", "same", 0.0, "each run, made again, gives the same bits"),
        ProbeResult(
            "precision",
            "remains",
            0.265,
            "in float64 the gap is 0.27; float64's own rounding makes 2.2e-15; 210 operations were not done in float64",
        ),
        ProbeResult(
            "content",
            "changes",
            0.265,
            "other content where the other run has none changes the result of run B by 0.27, in float64 too",
        ),
    )
    return replace(
        rounding(),
        a=run("unpadded", 15, dtype="float16"),
        b=run("padded to 50 on the right", 50, 35, dtype="float16", ops=1851),
        first=first,
        verdict=Verdict(
            VerdictKind.SEMANTIC,
            "int8_outliers",
            True,
            "The padding has outliers in 4 columns that the prompt alone has not.",
            evidence,
        ),
        impact=Impact(
            2.271912097930908,
            2.2886083126068115,
            0.0166962146759,
            0.265,
            0.014,
            0.0021,
            0,
            15,
            result="logits",
            loss_source="recomputed from input_ids",
        ),
        replaced_modules=tuple(ReplacedModule(module, "nn.Linear", "Linear8bitLt") for module in modules),
    )


def decode() -> Result:
    """Prefill and seven cached steps against one full forward pass."""
    steps = [{"input_ids": (1, 8), "attention_mask": (1, 8)}]
    steps += [{"input_ids": (1, 1), "attention_mask": (1, 9 + step)} for step in range(7)]
    source = rounding()
    first = replace(
        SDPA_DIVERGENCE,
        index_a=(0, 0, 9, 25),
        index_b=(0, 0, 0, 25),
        position=9,
        token="uts",
        function=None,
        op="model.layers.0.self_attn",
        between=tuple(
            f"model.layers.0.self_attn/{name}" for name in ("expand", "reshape", "cat", "unsqueeze", "view")
        )
        * 2,
        inputs=(),
    )
    evidence = (
        *source.verdict.evidence[:2],
        ProbeResult(
            "precision",
            "vanishes",
            2e-13,
            "in float64 the gap is 2e-13, 28 units in the last place of the largest value",
        ),
    )
    return replace(
        source,
        a=run("one full forward pass", 15),
        b=replace(run("prefill of 8, then 7 steps", 15), calls=tuple(steps), ops=13368),
        first=first,
        verdict=replace(source.verdict, mechanism="reduction_order", evidence=evidence),
        first_integer=None,
        notes=(),
    )
