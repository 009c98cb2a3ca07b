"""The settings that change arithmetic: read where an op ran, put in force where it is repeated."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from forkpoint.scene.format.arguments import dtype_named, short
from forkpoint.support.precision import allows_tf32, float32_matmul_precision

Value = bool | int | str | None
Flags = dict[str, Value]
"""Settings by name, as plain values."""

ENVIRONMENT = (
    "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT", "DISABLE_ADDMM_CUDA_LT", "ATEN_CPU_CAPABILITY", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE",
)  # fmt: skip
"""Variables of the environment that are read when a library starts, so that they can't be put in force later."""


@dataclass(frozen=True)
class Setting:
    """One setting of torch.

    Attributes:
        name: how a scene calls it.
        code: the statement that puts a value in force, with `{}` for the value.
        usual: its value where nobody has changed it; None where there is no usual one.
    """

    name: str
    code: str
    get: Callable[[], Value]
    set: Callable[[Any], None]
    usual: Value = None


def _attribute(name: str, owner: Any, path: str, attribute: str, usual: Value) -> Setting:
    return Setting(
        name,
        f"{path}.{attribute} = {{}}",
        lambda: getattr(owner, attribute),
        lambda value: setattr(owner, attribute, value),
        usual,
    )


def _switch(
    name: str, path: str, get: Callable[[], bool], put: Callable[[bool], Any], *, usual: bool
) -> Setting:
    return Setting(name, f"{path}({{}})", get, put, usual)


def _set_deterministic(value: bool) -> None:
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(value, warn_only=warn)


def _flushes_denormals() -> bool:
    return bool((torch.full((16,), 1e-40) * 0.5 == 0).all())


_cuda, _cudnn, _mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
SETTINGS = (
    Setting("threads", "torch.set_num_threads({})", torch.get_num_threads, torch.set_num_threads),
    Setting(
        "default_dtype",
        "torch.set_default_dtype(torch.{})",
        lambda: short(torch.get_default_dtype()),
        lambda value: torch.set_default_dtype(dtype_named(value)),
        "float32",
    ),
    _switch("flush_denormals", "torch.set_flush_denormal", _flushes_denormals, torch.set_flush_denormal, usual=False),
    Setting(
        "float32_matmul_precision",
        "torch.set_float32_matmul_precision({!r})",
        float32_matmul_precision,
        torch.set_float32_matmul_precision,
        "highest",
    ),
    Setting(
        "tf32_matmul",
        "torch.backends.cuda.matmul.allow_tf32 = {}",
        allows_tf32,
        lambda value: setattr(_cuda.matmul, "allow_tf32", value),
        usual=False,
    ),
    _attribute("tf32_cudnn", _cudnn, "torch.backends.cudnn", "allow_tf32", usual=True),
    _attribute(
        "fp16_reduced_precision_reduction", _cuda.matmul, "torch.backends.cuda.matmul",
        "allow_fp16_reduced_precision_reduction", usual=True,
    ),
    _attribute(
        "bf16_reduced_precision_reduction", _cuda.matmul, "torch.backends.cuda.matmul",
        "allow_bf16_reduced_precision_reduction", usual=True,
    ),
    _attribute("fp16_accumulation", _cuda.matmul, "torch.backends.cuda.matmul", "allow_fp16_accumulation", usual=False),
    _switch(
        "deterministic", "torch.use_deterministic_algorithms", torch.are_deterministic_algorithms_enabled,
        _set_deterministic, usual=False,
    ),
    _attribute("cudnn", _cudnn, "torch.backends.cudnn", "enabled", usual=True),
    _attribute("cudnn_deterministic", _cudnn, "torch.backends.cudnn", "deterministic", usual=False),
    _attribute("cudnn_benchmark", _cudnn, "torch.backends.cudnn", "benchmark", usual=False),
    _attribute("mkldnn", _mkldnn, "torch.backends.mkldnn", "enabled", usual=True),
    _attribute("mkldnn_deterministic", _mkldnn, "torch.backends.mkldnn", "deterministic", usual=False),
    _switch(
        "sdp_flash", "torch.backends.cuda.enable_flash_sdp", _cuda.flash_sdp_enabled, _cuda.enable_flash_sdp, usual=True
    ),
    _switch(
        "sdp_mem_efficient", "torch.backends.cuda.enable_mem_efficient_sdp", _cuda.mem_efficient_sdp_enabled,
        _cuda.enable_mem_efficient_sdp, usual=True,
    ),
    _switch(
        "sdp_cudnn", "torch.backends.cuda.enable_cudnn_sdp", _cuda.cudnn_sdp_enabled, _cuda.enable_cudnn_sdp, usual=True
    ),
    _switch(
        "sdp_math", "torch.backends.cuda.enable_math_sdp", _cuda.math_sdp_enabled, _cuda.enable_math_sdp, usual=True
    ),
    _switch(
        "sdp_math_reduced", "torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp",
        _cuda.fp16_bf16_reduction_math_sdp_allowed, _cuda.allow_fp16_bf16_reduction_math_sdp, usual=False,
    ),
)  # fmt: skip
_BY_NAME = {setting.name: setting for setting in SETTINGS}
AUTOCAST = "autocast"
"""`cpu float16`: the device type and dtype of an autocast that was on; None where none was."""
DETERMINISTIC_WARNS = "deterministic_warns"
TYPES: dict[str, tuple[type, ...]] = {
    "threads": (int,),
    "default_dtype": (str,),
    "float32_matmul_precision": (str,),
    AUTOCAST: (str, type(None)),
    **dict.fromkeys(ENVIRONMENT, (str,)),
}


_ANY = re.compile(r"[^\0\ud800-\udfff]{0,200}")
_VALUES = {
    "default_dtype": re.compile(r"float16|bfloat16|float32|float64"),
    "float32_matmul_precision": re.compile(r"highest|high|medium"),
    AUTOCAST: re.compile(r"None|(cpu|cuda) (float16|bfloat16|float32)"),
}
"""What a setting that is text may be: it is written into scripts, and the environment of a process."""


def read() -> Flags:
    """The settings in force now; one that this version of torch doesn't tell is left out."""
    flags: Flags = {}
    for setting in SETTINGS:
        try:
            value = setting.get()
        except (RuntimeError, AttributeError, TypeError):
            continue
        flags[setting.name] = bool(value) if isinstance(value, bool) else value
    flags[AUTOCAST] = _autocast()
    flags.update({name: value for name in ENVIRONMENT if (value := os.environ.get(name)) is not None})
    return flags


def _autocast() -> str | None:
    for device in ("cuda", "cpu"):
        if torch.is_autocast_enabled(device):
            return f"{device} {short(torch.get_autocast_dtype(device))}"
    return None


@contextmanager
def in_force(flags: Mapping[str, Value], device: torch.device) -> Generator[list[str]]:
    """Put settings in force for a block; yields a list of remarks on those that could not be.

    An autocast of another device becomes one of `device`.
    """
    remarks = [
        f"{name} was {flags.get(name, 'not set')} when the scene was saved, and is "
        f"{os.environ.get(name, 'not set')} here; it has to be set before Python starts"
        for name in ENVIRONMENT
        if flags.get(name) != os.environ.get(name)
    ]
    before: list[tuple[Setting, Value]] = []
    try:
        for setting in SETTINGS:
            if setting.name in flags:
                try:
                    now = setting.get()
                    if now != flags[setting.name]:
                        setting.set(flags[setting.name])
                        before.append((setting, now))
                except (RuntimeError, AttributeError, TypeError, ValueError) as error:
                    remarks.append(f"{setting.name} can't be set to {flags[setting.name]} here: {error}")
        with _autocast_in_force(flags.get(AUTOCAST), device):
            yield remarks
    finally:
        for setting, value in reversed(before):
            setting.set(value)


@contextmanager
def _autocast_in_force(wanted: Value, device: torch.device) -> Generator[None]:
    if not isinstance(wanted, str):
        with torch.autocast(device.type, enabled=False):
            yield
        return
    _, _, dtype = wanted.partition(" ")
    with torch.autocast(device.type, dtype=dtype_named(dtype), cache_enabled=False):
        yield


def statements(flags: Mapping[str, Value]) -> list[str]:
    """Python statements that put in force whatever isn't usual; the number of threads always."""
    return [
        setting.code.format(flags[setting.name])
        for setting in SETTINGS
        if setting.name in flags and (setting.usual is None or flags[setting.name] != setting.usual)
    ]


def check(flags: Any) -> Flags:
    """Settings from a manifest, checked; those that this version doesn't know are left out.

    Raises:
        ValueError: a value of another kind than the setting has.
    """
    if not isinstance(flags, dict):
        raise ValueError("flags that are no object")  # noqa: TRY004 - one kind of error for the caller
    settings: Flags = {}
    for name, value in flags.items():
        kinds = TYPES.get(name, (bool,))
        if name in _BY_NAME or name in TYPES:
            if type(value) not in kinds or not _VALUES.get(name, _ANY).fullmatch(str(value)):
                raise ValueError(f"the setting {name} is {str(value)[:40]!r}")
            settings[name] = value
    threads = settings.get("threads", 1)
    if not isinstance(threads, int) or not 1 <= threads <= 4096:
        raise ValueError(f"{threads} threads")
    return settings
