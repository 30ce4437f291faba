"""On which GPUs the Triton kernels here run: one rule for all of them."""

from __future__ import annotations

import functools
import importlib.util

import torch

NEEDED = (8, 0)
"""Compute capability that Triton itself asks for, and from which GPUs multiply bf16 matrices. A T4
has 7.5: PyTorch's own products, recorded where that pays, answer and train there."""


@functools.cache
def without_triton(device: torch.device) -> str | None:
    """Why the kernels do not run on this device, in words for people; None where they do."""
    if device.type != "cuda":
        return "no GPU"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    found = torch.cuda.get_device_capability(device)
    if found < NEEDED:
        has, needs = (".".join(map(str, c)) for c in (found, NEEDED))
        return f"compute capability {has}, the kernels need {needs}"
    return None
