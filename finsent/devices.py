"""Which GPUs there are, without importing torch where there cannot be one."""

from __future__ import annotations

import sys
from pathlib import Path

from finsent.zero_gpu import zero_gpu

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
