"""The Triton kernel behind `finsent.rotation`. Imported where there is a GPU only."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor


def launch(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Arguments as `finsent.rotation.rotate_`; raises ValueError for another layout of x."""
    batch, length, heads, size = x.shape
    if x.stride(3) != 1 or x.stride(2) != size or x.stride(0) != length * x.stride(1):
        raise ValueError(f"heads must lie one after the other in rows, got strides {x.stride()}")
    half = cos.shape[1] // 2
    kernel: Any = _rotate
    kernel[(batch * length,)](
        x,
        cos,
        sin,
        length,
        x.stride(1),
        cos.stride(0),
        sin.stride(0),
        HEADS=heads,
        SIZE=size,
        HALF=half,
        BLOCK_HEADS=triton.next_power_of_2(heads),
        BLOCK_HALF=triton.next_power_of_2(half),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    x,
    cos,
    sin,
    length,
    row_stride,
    cos_stride,
    sin_stride,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    position = row % length
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    entry = tl.arange(0, BLOCK_HALF)[None, :]
    real = (head < HEADS) & (entry < HALF)
    c = tl.load(cos + position * cos_stride + entry, mask=entry < HALF).to(tl.float32)
    s = tl.load(sin + position * sin_stride + entry, mask=entry < HALF).to(tl.float32)
    place = x + row * row_stride + head * SIZE + entry
    first = tl.load(place, mask=real).to(tl.float32)
    second = tl.load(place + HALF, mask=real).to(tl.float32)
    tl.store(place, first * c - second * s, mask=real)
    tl.store(place + HALF, second * c + first * s, mask=real)
