"""Where a scene was saved, or is replayed: what its bits may depend on besides the settings."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from forkpoint.errors import SceneError


@dataclass(frozen=True)
class Machine:
    """A device and the libraries that drive it."""

    device: str
    """Its type: `cpu`, `cuda`."""
    name: str
    """`NVIDIA H100`, or the processor's model."""
    capability: str
    """Instruction set that torch uses (`AVX512`), or compute capability (`9.0`)."""
    system: str
    """`Linux x86_64`."""
    libraries: dict[str, str]
    """Versions of torch, cuda, cudnn, mkl and so on."""

    @property
    def text(self) -> str:
        return f"{self.name} ({self.capability})" if self.capability else self.name


def device_of(kind: str | None) -> torch.device:
    """A device of this machine by its type.

    Raises:
        SceneError: there is none.
    """
    device = torch.device(kind or "cpu")
    if device.type not in devices():
        raise SceneError(
            f"no {device.type} device here", f"one of: {', '.join(devices())}", "leave out --device"
        )
    return device


def devices() -> tuple[str, ...]:
    """Types of the devices present."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def machine(device: torch.device) -> Machine:
    """This machine, as far as bits on a device may depend on it."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name, capability = torch.cuda.get_device_name(device), f"{major}.{minor}"
    else:
        name, capability = _processor(), torch.backends.cpu.get_cpu_capability()
    return Machine(
        device.type, name, capability, f"{platform.system()} {platform.machine()}", _libraries(device)
    )


@lru_cache(maxsize=1)
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _libraries(device: torch.device) -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda or torch.version.hip)
        versions["cudnn"] = str(torch.backends.cudnn.version())
    versions["blas"] = "mkl" if torch.backends.mkl.is_available() else "other"
    return versions
