"""Which GPUs there are, without importing torch where there cannot be one, and how they compute."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

DRIVERS = ("nvidia*", "nvhost*", "nvgpu*", "nvmap", "kfd", "dxg")
"""What a driver that torch can use leaves in /dev: NVIDIA's, Tegra's, AMD's, Windows' to Linux."""


def cuda_available(devices: Path = Path("/dev")) -> bool:
    """Asks torch, which takes seconds to import, unless no driver is there that it could use."""
    possible = sys.platform != "linux" or any(any(devices.glob(name)) for name in DRIVERS)
    if not possible and not zero_gpu():
        return False
    import torch

    return bool(torch.cuda.is_available())


def gpu_count() -> int:
    """CUDA devices of this machine."""
    if not cuda_available():
        return 0
    import torch

    return int(torch.cuda.device_count())


F = TypeVar("F", bound=Callable[..., object])


def zero_gpu() -> bool:
    """Whether this is a ZeroGPU Space."""
    asked = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
    return asked and importlib.util.find_spec("spaces") is not None


def prepare() -> None:
    """Call before torch is imported: `spaces` stands between torch and CUDA there."""
    if zero_gpu():
        importlib.import_module("spaces")


def on_gpu(function: F, *, seconds: Callable[..., int]) -> F:
    """The function, run with a GPU that is lent for at most `seconds(*its arguments)`.

    Where no GPUs are lent it is the function itself.
    It runs in a forked process: arguments and result must pickle. That process may be used again
    for a later call or not, so what the function keeps may be lost, and may also be found again.
    """
    if not zero_gpu():
        return function
    decorated: F = importlib.import_module("spaces").GPU(duration=seconds)(function)
    return decorated


def use_deterministic_kernels(device: torch.device) -> None:
    """Same seed, same device, same numbers.

    Call before anything runs on the device: cuBLAS reads the variable once.
    """
    if device.type == "cuda":
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Filling new tensors with NaN finds bugs in kernels, at a launch for every tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def reset_peak_memory(device: torch.device) -> None:
    """Peak memory counts from now on, where the device counts it."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Peak of the CUDA allocator, or of the process's resident memory on a CPU, in MB (1e6 B)."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1.0 if sys.platform == "darwin" else 1024.0) / 1e6
