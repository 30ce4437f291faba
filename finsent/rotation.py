"""Rotary position embedding in place: one Triton kernel on a GPU, plain PyTorch elsewhere."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

from torch import Tensor

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the first `size` entries of every head by its position.

    x (B, L, heads, head size), rows of heads contiguous; cos, sin (L, size), their halves alike, as
    transformers makes them. `-sin` turns back.
    """
    if x.is_cuda and _HAS_TRITON:
        _launcher()(x, cos, sin)
        return
    half = cos.shape[-1] // 2
    c, s = cos[:, None, :half], sin[:, None, :half]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = first * c - second * s
    second.mul_(c).add_(first * s)
    first.copy_(turned)


@functools.cache
def _launcher() -> Callable[[Tensor, Tensor, Tensor], None]:
    """Made at first use: importing Triton takes a second that only a GPU has a use for."""
    from finsent.rotation_kernel import launch

    return launch
