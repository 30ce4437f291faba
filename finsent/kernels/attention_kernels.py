"""Triton kernels of a block in training, forward and backward: causal attention over short texts,
and a gated SiLU. Imported where there is a GPU only.

Attention reads queries, keys and values where the product before left them. A program has one text
and one head of keys; its scores never leave the registers, so nothing is kept for the backward
pass, which makes them again, and no two programs write to the same place.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_TOKENS = 128
"""Of a text: a square of its scores has to fit in the registers of a program."""
HEAD_SIZES = (16, 32, 64)
"""What the kernels know."""
GATED = 1024
"""Entries of a program of the gated SiLU."""


def attend(joined: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Queries, keys and values side by side (B, L, (heads + 2 kv_heads) * size), contiguous ->
    (B, L, heads * size)."""
    batch, length, width = joined.shape
    size = width // (heads + 2 * kv_heads)
    outputs = joined.new_empty(batch, length, heads * size)
    kernel: Any = attend_kernel
    kernel[(batch, kv_heads)](
        joined,
        outputs,
        length,
        KV_HEADS=kv_heads,
        GROUP=heads // kv_heads,
        SIZE=size,
        **_tile(length),
    )
    return outputs


def attend_gradient(joined: Tensor, gradient: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Gradient of `joined` for one of the outputs (B, L, heads * size), both contiguous."""
    batch, length, width = joined.shape
    found = torch.empty_like(joined)
    kernel: Any = attend_gradient_kernel
    kernel[(batch, kv_heads)](
        joined,
        gradient,
        found,
        length,
        KV_HEADS=kv_heads,
        GROUP=heads // kv_heads,
        SIZE=width // (heads + 2 * kv_heads),
        **_tile(length),
    )
    return found


def _tile(length: int) -> dict[str, int]:
    block = max(16, triton.next_power_of_2(length))
    return {"BLOCK": block, "num_warps": 8 if block > 64 else 4}


def gate(joined: Tensor) -> Tensor:
    """silu(a) * b for a and b side by side, (n, 2 width), contiguous -> (n, width)."""
    rows, width = joined.shape[0], joined.shape[1] // 2
    outputs = joined.new_empty(rows, width)
    kernel: Any = gate_kernel
    kernel[(rows, triton.cdiv(width, GATED))](joined, outputs, WIDTH=width, BLOCK=GATED)
    return outputs


def gate_gradient(joined: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of `joined` for one of the outputs (n, width), both contiguous."""
    rows, width = gradient.shape
    found = torch.empty_like(joined)
    kernel: Any = gate_gradient_kernel
    kernel[(rows, triton.cdiv(width, GATED))](joined, gradient, found, WIDTH=width, BLOCK=GATED)
    return found


@triton.jit  # type: ignore[untyped-decorator]
def attend_kernel(  # type: ignore[no-untyped-def]
    joined,
    outputs,
    length,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    HEADS: tl.constexpr = KV_HEADS * GROUP
    text = tl.program_id(0).to(tl.int64)
    of_keys = tl.program_id(1)
    position = tl.arange(0, BLOCK)
    entry = tl.arange(0, SIZE)
    real = position[:, None] < length
    row = (text * length + position[:, None]) * ((HEADS + 2 * KV_HEADS) * SIZE) + entry[None, :]
    out_row = (text * length + position[:, None]) * (HEADS * SIZE) + entry[None, :]
    k = tl.load(joined + row + (HEADS + of_keys) * SIZE, mask=real, other=0.0)
    v = tl.load(joined + row + (HEADS + KV_HEADS + of_keys) * SIZE, mask=real, other=0.0)
    seen = position[None, :] <= position[:, None]
    for member in range(GROUP):
        head = of_keys * GROUP + member
        q = tl.load(joined + row + head * SIZE, mask=real, other=0.0)
        weights = _weights(q, k, seen, SIZE)
        y = tl.dot(weights.to(v.dtype), v)
        tl.store(outputs + out_row + head * SIZE, y, mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def attend_gradient_kernel(  # type: ignore[no-untyped-def]
    joined,
    gradient,
    found,
    length,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    HEADS: tl.constexpr = KV_HEADS * GROUP
    SCALE: tl.constexpr = 1.0 / SIZE**0.5
    text = tl.program_id(0).to(tl.int64)
    of_keys = tl.program_id(1)
    position = tl.arange(0, BLOCK)
    entry = tl.arange(0, SIZE)
    real = position[:, None] < length
    row = (text * length + position[:, None]) * ((HEADS + 2 * KV_HEADS) * SIZE) + entry[None, :]
    out_row = (text * length + position[:, None]) * (HEADS * SIZE) + entry[None, :]
    k_row = row + (HEADS + of_keys) * SIZE
    v_row = row + (HEADS + KV_HEADS + of_keys) * SIZE
    k = tl.load(joined + k_row, mask=real, other=0.0)
    v = tl.load(joined + v_row, mask=real, other=0.0)
    seen = position[None, :] <= position[:, None]
    gk = tl.zeros((BLOCK, SIZE), dtype=tl.float32)
    gv = tl.zeros((BLOCK, SIZE), dtype=tl.float32)
    for member in range(GROUP):
        head = of_keys * GROUP + member
        q = tl.load(joined + row + head * SIZE, mask=real, other=0.0)
        g = tl.load(gradient + out_row + head * SIZE, mask=real, other=0.0)
        weights = _weights(q, k, seen, SIZE)
        gv += tl.dot(tl.trans(weights.to(g.dtype)), g)
        of_weights = tl.dot(g, tl.trans(v))
        mean = tl.sum(weights * of_weights, axis=1)
        of_scores = (weights * (of_weights - mean[:, None]) * SCALE).to(k.dtype)
        tl.store(found + row + head * SIZE, tl.dot(of_scores, k), mask=real)
        gk += tl.dot(tl.trans(of_scores), q)
    tl.store(found + k_row, gk, mask=real)
    tl.store(found + v_row, gv, mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def _weights(q, k, seen, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    # Base 2: the hardware's own exponential.
    TO_BASE_2: tl.constexpr = 1.4426950408889634
    SCALE: tl.constexpr = TO_BASE_2 / SIZE**0.5
    scores = tl.where(seen, tl.dot(q, tl.trans(k)) * SCALE, -float("inf"))
    powers = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    return powers / tl.sum(powers, axis=1)[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def gate_kernel(  # type: ignore[no-untyped-def]
    joined, outputs, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = column < WIDTH
    place = joined + row * 2 * WIDTH + column
    a = tl.load(place, mask=real).to(tl.float32)
    b = tl.load(place + WIDTH, mask=real).to(tl.float32)
    tl.store(outputs + row * WIDTH + column, a * tl.sigmoid(a) * b, mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def gate_gradient_kernel(  # type: ignore[no-untyped-def]
    joined, gradient, found, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = column < WIDTH
    place = row * 2 * WIDTH + column
    a = tl.load(joined + place, mask=real).to(tl.float32)
    b = tl.load(joined + place + WIDTH, mask=real).to(tl.float32)
    g = tl.load(gradient + row * WIDTH + column, mask=real).to(tl.float32)
    share = tl.sigmoid(a)
    tl.store(found + place, g * b * share * (1 + a * (1 - share)), mask=real)
    tl.store(found + place + WIDTH, g * a * share, mask=real)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Arguments as `finsent.kernels.attention.rotate_`; raises ValueError for another layout of
    x."""
    batch, length, heads, size = x.shape
    if x.stride(3) != 1 or x.stride(2) != size or x.stride(0) != length * x.stride(1):
        raise ValueError(f"heads must lie one after the other in rows, got strides {x.stride()}")
    half = cos.shape[1] // 2
    kernel: Any = rotate_kernel
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
def rotate_kernel(  # type: ignore[no-untyped-def]
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
