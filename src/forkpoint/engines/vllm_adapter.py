"""The adapter for vLLM: a recording of what its model computes, with the tokens where the engine's own metadata says.

vLLM packs the tokens of all requests flat, computes long prompts in chunks, keeps keys and values in blocks, and calls its
model with zeros to see how much memory it takes. So positions are read from the metadata of the attention, request by
request; calls without any are warm-ups, and are left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forkpoint.capture.digest import torch_impl
from forkpoint.engines.folder import EngineFacts, Reported, Sample, Tables
from forkpoint.errors import CaptureError, InputError
from forkpoint.runs.layout import Coordinates
from forkpoint.support.arrays import tensor_of
from forkpoint.traces import record

if TYPE_CHECKING:
    from types import TracebackType

TABLES = Tables(
    fused={
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
    },
    renamed={"logits_processor": "lm_head"},
)
"""What vLLM's names stand for. Of a fused module each pair is proved by the weights before it is used."""

VALUES = ("*/input:*", "*/output")
"""What goes into modules and comes out of them; the values of the ops inside would be ten times as many."""


def record_engine(
    llm: Any, prompts: Sequence[Sequence[int]], folder: str | Path, *, max_tokens: int = 1, **sampling: Any
) -> list[Any]:
    """Let a vLLM engine answer prompts, and record what its model computes: a trace (docs/trace-format.md) with values.

        llm = vllm.LLM(model, enforce_eager=True)
        fp.record_engine(llm, [[1, 2, 3]], "recorded")
        print(fp.compare_engine(transformers_model, "recorded"))

    The engine has to live in this process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`), with `enforce_eager=True`: what a compiled
    graph computes inside is not seen.

    Args:
        llm: a `vllm.LLM`.
        prompts: token ids of each prompt.
        folder: where to write the recording; new or empty.
        max_tokens: tokens to generate after each prompt.
        sampling: further arguments of `vllm.SamplingParams`: temperature (0 by default, which is greedy), top_p, …

    Returns:
        What `llm.generate` returned.

    Raises:
        InputError: no such engine, or something is in the folder.
        CaptureError: the engine's metadata can't be read.
    """
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    runner = _runner(llm)
    params = {"temperature": 0.0, "logprobs": 0, "prompt_logprobs": 0, **sampling}
    requests = [{"prompt_token_ids": list(map(int, ids))} for ids in prompts]
    tap = _Tap(runner)
    with tap, record(folder, layout=tap.where, model=runner.model, values=VALUES):
        outputs = llm.generate(requests, SamplingParams(max_tokens=max_tokens, **params), use_tqdm=False)
    facts = EngineFacts(
        engine="vllm", version=_version(), tables=TABLES, dropped=tap.dropped,
        settings=_settings(runner, params), unseen=dict(tap.unseen),
        samples=tap.samples_of(outputs), reported=_reported(outputs),
    )  # fmt: skip
    facts.save(Path(folder), {**_weights(runner.model), **tap.cached})
    return outputs


def _runner(llm: Any) -> Any:
    """The object of vLLM that calls the model."""
    place: Any = llm
    try:
        for name in ("llm_engine", "model_executor", "driver_worker", "worker", "model_runner"):
            place = getattr(place, name)
        if isinstance(place.model, nn.Module):
            return place
    except AttributeError:
        pass
    raise InputError(
        f"a {type(llm).__name__} whose model is not in this process", "a vllm.LLM with its model here",
        "set VLLM_ENABLE_V1_MULTIPROCESSING=0 before vllm is imported; one worker, no tensor parallelism",
    )  # fmt: skip


def _version() -> str:
    import vllm  # pyright: ignore[reportMissingImports]

    return str(vllm.__version__)


class _Tap(TorchFunctionMode):
    """Says of each call which tokens it computes, and counts what leaves no value of its own in the trace.

    Attributes:
        requests: the number of each request, in the order in which they came.
        dropped: calls that computed no request's tokens.
        unseen: by module and function, calls of kernels that return nothing and write into an argument.
        cached: keys and values that were read from the cache without having been computed here, by name.
    """

    def __init__(self, runner: Any) -> None:
        super().__init__()
        self.runner, self.model = runner, runner.model
        self.requests: dict[str, int] = {}
        self.dropped = 0
        self.unseen: Counter[str] = Counter()
        self.cached: dict[str, Tensor] = {}
        self.ids: dict[int, list[int]] = {}
        self._begun: set[int] = set()
        self._hidden: Tensor | None = None
        self._latest: Coordinates | None = None
        self._paths = {id(module): path for path, module in runner.model.named_modules()}
        self._within: list[str] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for module in self.model.modules():
            self._hooks.append(module.register_forward_pre_hook(self._enters))
            self._hooks.append(module.register_forward_hook(self._leaves, always_call=True))
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _enters(self, module: nn.Module, _: Any) -> None:
        self._within.append(self._paths[id(module)])

    def _leaves(self, module: nn.Module, _: Any, output: Any) -> None:
        self._within.pop()
        if module is self.model and isinstance(output, Tensor):
            with torch._C.DisableTorchFunction():  # no op of the engine's
                self._hidden = output.detach().clone()

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if result is None and self._within and isinstance(func, torch._ops.OpOverloadPacket):
            self.unseen[f"{self._within[-1]}/{func._qualified_op_name.replace('::', '.')}"] += 1
        return result

    # ------------------------------------------------------------------ where the tokens are

    def where(self, module: nn.Module, inputs: Mapping[str, Any]) -> Mapping[str, Coordinates] | None:
        """The coordinates of a call of the model or of its logits; None for all others."""
        if module is self.model:
            return self._of_model(inputs)
        if module is getattr(self.model, "logits_processor", None):
            return self._of_logits(inputs)
        return None

    def _of_model(self, inputs: Mapping[str, Any]) -> Mapping[str, Coordinates] | None:
        from vllm.forward_context import get_forward_context  # pyright: ignore[reportMissingImports]

        self._hidden = self._latest = None
        metadata = get_forward_context().attn_metadata
        if not metadata:
            self.dropped += 1
            return None
        one = next(iter(metadata.values())) if isinstance(metadata, dict) else None
        starts, lengths = getattr(one, "query_start_loc", None), getattr(one, "seq_lens", None)
        ids = inputs.get("input_ids")
        if starts is None or lengths is None or not isinstance(ids, Tensor):
            raise CaptureError(
                "a call of vLLM's model without query_start_loc, seq_lens or input_ids",
                "a decoder of text, without micro-batches",
            )
        sample, position = torch.full((len(ids),), -1), torch.full((len(ids),), -1)
        names = self.runner.input_batch.req_ids
        bounds = starts.tolist()
        for request, start, end, length in zip(names, bounds, bounds[1:], lengths.tolist(), strict=False):
            number = self.requests.setdefault(request, len(self.requests))
            sample[start:end] = number
            # counted, and not read from `positions`, which go into the model and may be wrong
            position[start:end] = torch.arange(length - (end - start), length)
            state = self.runner.requests[request]
            self.ids[number] = [*(state.prompt_token_ids or ()), *state.output_token_ids]
            self._keep_cached(number, length - (end - start), request, metadata)
        self._latest = Coordinates(sample, position)
        return {"input_ids": self._latest}

    def _of_logits(self, inputs: Mapping[str, Any]) -> Mapping[str, Coordinates] | None:
        """Whose the rows are that logits are computed of: they are rows of what the model returned."""
        rows = inputs.get("hidden_states")
        if self._hidden is None or self._latest is None or not isinstance(rows, Tensor) or rows.dim() != 2:
            return None
        at: dict[bytes, list[int]] = {}
        for index, row in enumerate(_bytes(self._hidden)):
            at.setdefault(row, []).append(index)
        uses: Counter[bytes] = Counter()
        indices: list[int] = []
        for row in _bytes(rows):
            places = at.get(row, [])
            indices.append(places[min(uses[row], len(places) - 1)] if places else -1)
            uses[row] += 1
        index = torch.tensor(indices)
        none = index < 0
        sample, position = self._latest.sample[index], self._latest.position[index]
        return {"input_ids": Coordinates(sample.masked_fill(none, -1), position.masked_fill(none, -1))}

    def _keep_cached(self, sample: int, position: int, request: str, metadata: Any) -> None:
        """Keys and values of a request whose first tokens were found in the prefix cache, of each layer."""
        if position == 0 or sample in self._begun:
            self._begun.add(sample)
            return
        self._begun.add(sample)
        row = self.runner.input_batch.req_id_to_index[request]
        context = self.runner.compilation_config.static_forward_context
        for layer, one in metadata.items():
            places = self._places_in(context.get(layer))
            if places is None:
                continue  # it was not recorded: the report says so
            cache, block_table = context[layer].kv_cache, one.block_table[row]
            size = len(places["key"])
            for name, place in places.items():
                values = [
                    cache[int(block_table[p // size])].reshape(-1)[place[p % size]] for p in range(position)
                ]
                self.cached[f"cache.{sample}.{layer}.{name}"] = torch.stack(values)

    def _places_in(self, layer: Any) -> dict[str, Tensor] | None:
        """Where in a block the kernel of a layer puts keys and values: `key` and `value`, [tokens of a block, size].

        It is asked of the kernel itself, which writes the digits of each element's number to a block of ours: kernels lay
        keys out in ways of their own. None where it can't be asked.
        """
        cache: Any = getattr(layer, "kv_cache", None)
        impl: Any = getattr(layer, "impl", None)
        if not isinstance(cache, Tensor) or not hasattr(impl, "do_kv_cache_update"):
            return None
        size, heads, width = self.runner.cache_config.block_size, impl.num_kv_heads, impl.head_size
        elements = size * heads * width
        if cache[0].numel() != 2 * elements:
            return None
        block = torch.zeros_like(cache[:1])
        slots = torch.arange(size, device=cache.device)
        number = torch.zeros(2 * elements, dtype=torch.long)
        is_key = torch.zeros(2 * elements, dtype=torch.bool)
        for digit in range(3):  # in base 128, which every dtype holds
            digits = (torch.arange(elements) // 128**digit % 128 + 1).reshape(size, heads, width)
            key, value = (d.to(cache.device, cache.dtype) for d in (digits, digits + 128))
            with torch._C.DisableTorchFunction():
                impl.do_kv_cache_update(layer, key, value, block, slots)
            seen = block.reshape(-1).cpu().long()
            is_key = seen <= 128
            number += torch.where(is_key, seen - 1, seen - 129) * 128**digit
        places: dict[str, Tensor] = {}
        for name, mine in (("key", is_key), ("value", ~is_key)):
            at = mine.nonzero().flatten()
            if len(at) != elements or not torch.equal(number[at].sort().values, torch.arange(elements)):
                return None
            places[name] = at[number[at].argsort()].reshape(size, heads * width).to(cache.device)
        return places

    # ------------------------------------------------------------------ afterwards

    def samples_of(self, outputs: Sequence[Any]) -> tuple[Sample, ...]:
        """Of each sample of the recording which prompt it is, and its token ids as the engine has them."""
        prompts = {str(output.request_id): index for index, output in enumerate(outputs)}
        samples: list[Sample] = []
        for request, number in self.requests.items():
            index = prompts.get(request, prompts.get(request.rpartition("-")[0]))
            if index is not None:
                output = outputs[index]
                self.ids[number] = [*output.prompt_token_ids, *output.outputs[0].token_ids]
            samples.append(Sample(number, index, tuple(self.ids[number])))
        return tuple(samples)


def _bytes(rows: Tensor) -> list[bytes]:
    plain = rows.detach().cpu().contiguous()
    return [row.tobytes() for row in plain.view(torch.uint8).reshape(len(plain), -1).numpy()]


def _settings(runner: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the engine was told, of which its answers depend."""
    config = runner.vllm_config
    cache, scheduler = config.cache_config, config.scheduler_config
    settings: dict[str, Any] = {
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "quantization": config.model_config.quantization,
        "logprobs_mode": str(config.model_config.logprobs_mode),
        "prefix_caching": bool(cache.enable_prefix_caching),
        "kv_cache_dtype": str(cache.cache_dtype),
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "device": str(runner.device),
    }
    for name in (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    ):
        settings[name] = params.get(name)
    return settings


def _reported(outputs: Sequence[Any]) -> tuple[Reported, ...]:
    """The log-probabilities that the engine returned, as `fp.logprobs` takes them; the index of the prompt is the id."""
    reported: list[Reported] = []
    for index, output in enumerate(outputs):
        ids = [*output.prompt_token_ids, *output.outputs[0].token_ids]
        entries = [
            *(output.prompt_logprobs or [None] * len(output.prompt_token_ids)),
            *(output.outputs[0].logprobs or ()),
        ]
        entries += [None] * (len(ids) - len(entries))
        values = [
            None if e is None or i not in e else float(e[i].logprob)
            for i, e in zip(ids, entries, strict=True)
        ]
        reported.append(Reported(tuple(ids), tuple(values), index))
    return tuple(reported)


# ---------------------------------------------------------------------- weights

_BLOCK = 1024


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Digests of the weights that the engine has put away in a form of its own, a number for each output: `weight.NAME`.

    What such a layer multiplies by is asked of the layer itself: the product with the identity matrix is the weight, bit for
    bit, since all that is added to a weight is zeros.
    """
    digests: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        weight, method = getattr(module, "weight", None), getattr(module, "quant_method", None)
        width = getattr(module, "input_size_per_partition", None)
        apply = getattr(method, "apply", None)
        if not (isinstance(weight, Tensor) and weight.numel() == 0 and apply is not None and width):
            continue
        columns: list[Tensor] = []
        try:
            with torch.inference_mode():
                for start in range(0, width, _BLOCK):
                    size = min(_BLOCK, width - start)
                    part = torch.zeros(size, width, dtype=weight.dtype, device=weight.device)
                    part[torch.arange(size), torch.arange(start, start + size)] = 1
                    columns.append(apply(module, part, None))  # [inputs, outputs]
        except (RuntimeError, TypeError, AttributeError):
            continue  # of weights that are not known it is said so
        whole = torch.cat(columns).T.contiguous()
        digests[f"weight.{path}.weight"] = tensor_of(np.asarray(torch_impl.rows(whole, (0,)).cpu().numpy()))
    return digests
