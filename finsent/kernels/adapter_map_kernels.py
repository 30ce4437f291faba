"""Triton kernels for maps with one dendrite inside a product. Imported where there is a GPU only.

A map adds B z + t * o to its columns of a product, o = act(V z). With z (rows, r) and a small r all
of that is a matter of moving what is (rows, out) wide: so the product is read and written once, and
its gradient read once. o exists in registers only, in both passes.

In the backward pass a program owns some columns and a piece of the rows. What it adds up over one
of them is a part of a sum over the other; the parts are stored, and added in a fixed order by a
second kernel. No atomics: the same numbers at every run.

Maps of one shape share a launch: tuples hold the tensors of each.
"""

# Kernels are traced, not run: their arguments have no types of their own.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 396
"""Into how many programs the backward pass is cut at most, unless there are more columns: as many
as an H100 holds at once, three on each of 132 multiprocessors. A constant, for sums to be cut alike
on every GPU."""
SUMMED = 256
"""Sums in a program of the second kernel of the backward pass."""


@dataclass(frozen=True)
class _Tile:
    """What of a product a program holds at a time, and its warps."""

    rows: int
    columns: int
    warps: int


# As large as registers allow (tests look at what is spilled). Compiled for an H100 at rank 8, three
# programs of the backward pass in half precision fit on a multiprocessor.
_HALF = _Tile(64, 64, 4)
_SINGLE = _Tile(32, 32, 8)
"""fp32 has no tensor cores that keep its precision: products are unrolled into registers."""


def add_(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    maps: Sequence[Sequence[Tensor]],
    activation: str,
) -> None:
    """Add to outputs, each (rows, out), what maps (B (out, r), V (out, r), t (1, out)) of one shape
    make of inputs, each (rows, r). All inputs lie in one tensor's rows, and so do all outputs."""
    rows, width, rank = _sizes(inputs, outputs, maps)
    tile = _tile(inputs[0])
    weights, dendrites, factors = zip(*maps, strict=True)
    kernel: Any = add_kernel
    kernel[(triton.cdiv(width, tile.columns), triton.cdiv(rows, tile.rows), len(maps))](
        tuple(inputs),
        tuple(outputs),
        weights,
        dendrites,
        factors,
        rows,
        STRIDE=inputs[0].stride(0),
        OUT_STRIDE=outputs[0].stride(0),
        WIDTH=width,
        RANK=rank,
        ACTIVATION=activation,
        BM=tile.rows,
        BN=tile.columns,
        BR=_padded(rank),
        num_warps=tile.warps,
    )


def gradients(
    inputs: Sequence[Tensor],
    g_inputs: Sequence[Tensor],
    g_outputs: Sequence[Tensor],
    maps: Sequence[Sequence[Tensor]],
    activation: str,
) -> list[list[Tensor]]:
    """For the gradients of `add_`'s outputs: those of B, V and t of every map. Those of inputs are
    written to g_inputs, each (rows, r) and in the rows of one tensor."""
    rows, width, rank = _sizes(inputs, g_outputs, maps)
    tile = _tile(inputs[0])
    count, across = len(maps), triton.cdiv(width, tile.columns)
    tiles = triton.cdiv(rows, tile.rows)
    each = triton.cdiv(tiles, max(1, PROGRAMS // (across * count)))
    pieces = triton.cdiv(tiles, each)
    weights, dendrites, factors = zip(*maps, strict=True)
    size = width * (2 * rank + 1)
    like = inputs[0]
    of_inputs = like.new_empty(count, across, rows, rank, dtype=torch.float32)
    of_maps = like.new_empty(count, pieces, size, dtype=torch.float32)
    kernel: Any = gradient_kernel
    kernel[(across, pieces, count)](
        tuple(inputs),
        tuple(g_outputs),
        weights,
        dendrites,
        factors,
        of_inputs,
        of_maps,
        rows,
        each,
        STRIDE=like.stride(0),
        OUT_STRIDE=g_outputs[0].stride(0),
        WIDTH=width,
        RANK=rank,
        ACTIVATION=activation,
        BM=tile.rows,
        BN=tile.columns,
        BR=_padded(rank),
        num_warps=tile.warps,
    )
    found = like.new_empty(count, size)
    kernel = sum_kernel
    kernel[(triton.cdiv(rows * rank, SUMMED) + triton.cdiv(size, SUMMED), count)](
        of_inputs,
        of_maps,
        tuple(g_inputs),
        found,
        rows,
        pieces,
        ACROSS=across,
        STRIDE=g_inputs[0].stride(0),
        SIZE=size,
        RANK=rank,
        BLOCK=SUMMED,
    )
    of_weight = width * rank
    return [
        [
            of_map[:of_weight].view(width, rank),
            of_map[of_weight : 2 * of_weight].view(width, rank),
            of_map[2 * of_weight :].view(1, width),
        ]
        for of_map in found
    ]


def _sizes(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], maps: Sequence[Sequence[Tensor]]
) -> tuple[int, int, int]:
    """(rows, out, r); ValueError for a layout that the kernels would misread."""
    for of_maps in (inputs, outputs):
        strides = {tensor.stride() for tensor in of_maps}
        if len(strides) > 1 or strides.pop()[1] != 1:
            raise ValueError(
                "rows must be contiguous and equally far apart for every map, got strides "
                f"{[tensor.stride() for tensor in of_maps]}"
            )
    shapes = {tuple(tensor.shape for tensor in of_map) for of_map in maps}
    if len(shapes) > 1 or not all(tensor.is_contiguous() for m in maps for tensor in m):
        raise ValueError(f"maps must be contiguous and of one shape, got {sorted(shapes)}")
    width, rank = maps[0][0].shape
    return len(inputs[0]), width, rank


def _tile(like: Tensor) -> _Tile:
    return _SINGLE if like.dtype == torch.float32 else _HALF


def _padded(rank: int) -> int:
    """Ranks as the kernels hold them: products of tiles take 16 at least."""
    return max(16, triton.next_power_of_2(rank))


@triton.jit
def _of(part, tensors):
    """The pointer of one map."""
    chosen = tensors[0]
    for i in tl.static_range(1, len(tensors)):
        chosen = tl.where(part == i, tensors[i], chosen)
    return chosen


@triton.jit
def activated(drive, ACTIVATION: tl.constexpr):
    """What a dendrite makes of V z; nothing overflows for any drive."""
    if ACTIVATION == "relu":
        drive = tl.maximum(drive, 0.0)
    elif ACTIVATION == "sigmoid":
        drive = tl.sigmoid(drive)
    else:
        drive = 2 * tl.sigmoid(2 * drive) - 1
    return drive


@triton.jit
def _through(g, output, ACTIVATION: tl.constexpr):
    """The gradient of an activation's input for that of its output."""
    if ACTIVATION == "relu":
        g = tl.where(output > 0, g, 0.0)
    elif ACTIVATION == "sigmoid":
        g = g * output * (1 - output)
    else:
        g = g * (1 - output * output)
    return g


@triton.jit
def _columns(
    part, tile, weights, dendrites, factors,
    WIDTH: tl.constexpr, RANK: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """A tile's columns (BN,), and B (BN, BR), V (BN, BR) and t (BN,) there."""
    n, r = tile * BN + tl.arange(0, BN), tl.arange(0, BR)
    place = n[:, None] * RANK + r[None, :]
    real = (n < WIDTH)[:, None] & (r < RANK)[None, :]
    b = tl.load(_of(part, weights) + place, mask=real, other=0.0)
    v = tl.load(_of(part, dendrites) + place, mask=real, other=0.0)
    t = tl.load(_of(part, factors) + n, mask=n < WIDTH, other=0.0).to(tl.float32)
    return n, b, v, t


@triton.jit(do_not_specialize=["rows"])
def add_kernel(
    inputs, outputs, weights, dendrites, factors, rows,
    STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr,
    ACTIVATION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """One program for every tile of every output."""
    part = tl.program_id(2)
    n, b, v, t = _columns(part, tl.program_id(0), weights, dendrites, factors, WIDTH, RANK, BN, BR)
    m = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    r = tl.arange(0, BR)
    real = m < rows
    z = _of(part, inputs) + m[:, None] * STRIDE + r[None, :]
    z = tl.load(z, mask=real[:, None] & (r < RANK)[None, :], other=0.0)
    place = _of(part, outputs) + m[:, None] * OUT_STRIDE + n[None, :]
    real = real[:, None] & (n < WIDTH)[None, :]
    y = tl.load(place, mask=real, other=0.0).to(tl.float32)
    y = tl.dot(z, tl.trans(b), y, input_precision="ieee")
    drive = tl.dot(z, tl.trans(v), input_precision="ieee")
    y += t[None, :] * activated(drive, ACTIVATION)
    tl.store(place, y.to(z.dtype), mask=real)


@triton.jit(do_not_specialize=["rows", "each"])
def gradient_kernel(
    inputs, g_outputs, weights, dendrites, factors, of_inputs, of_maps, rows, each,
    STRIDE: tl.constexpr, OUT_STRIDE: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr,
    ACTIVATION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """One program for BN columns and `each` tiles of rows of every map.

    of_inputs (maps, programs across, rows, RANK): what a program's columns add to the gradient of
    z. of_maps (maps, pieces of rows, ...): what its rows add to the gradients of B (WIDTH, RANK), V
    (WIDTH, RANK) and t (WIDTH,), one after the other. Both fp32."""
    across, piece, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n, b, v, t = _columns(part, across, weights, dendrites, factors, WIDTH, RANK, BN, BR)
    r = tl.arange(0, BR)
    inputs, g_outputs = _of(part, inputs), _of(part, g_outputs)
    of_inputs += (part * tl.num_programs(0) + across).to(tl.int64) * rows * RANK
    g_b = tl.zeros((BN, BR), tl.float32)
    g_v = tl.zeros((BN, BR), tl.float32)
    g_t = tl.zeros((BN,), tl.float32)
    for tile in range(piece * each, tl.minimum((piece + 1) * each, tl.cdiv(rows, BM))):
        m = tile * BM + tl.arange(0, BM).to(tl.int64)
        real_z = (m < rows)[:, None] & (r < RANK)[None, :]
        z = tl.load(inputs + m[:, None] * STRIDE + r[None, :], mask=real_z, other=0.0)
        # A row here is a column there: what belongs to it is few registers, and its sums few steps.
        place = g_outputs + n[:, None] + m[None, :] * OUT_STRIDE
        g = tl.load(place, mask=(n < WIDTH)[:, None] & (m < rows)[None, :], other=0.0)
        output = activated(tl.dot(v, tl.trans(z), input_precision="ieee"), ACTIVATION)
        wide = g.to(tl.float32)
        g_t += tl.sum(wide * output, 1)
        g_drive = _through(wide * t[:, None], output, ACTIVATION).to(g.dtype)
        g_b = tl.dot(g, z, g_b, input_precision="ieee")
        g_v = tl.dot(g_drive, z, g_v, input_precision="ieee")
        g_z = tl.dot(tl.trans(g), b, input_precision="ieee")
        g_z = tl.dot(tl.trans(g_drive), v, g_z, input_precision="ieee")
        tl.store(of_inputs + m[:, None] * RANK + r[None, :], g_z, mask=real_z)
    of_weight: tl.constexpr = WIDTH * RANK
    of_maps += (part * tl.num_programs(1) + piece) * (2 * of_weight + WIDTH)
    place = of_maps + n[:, None] * RANK + r[None, :]
    real = (n < WIDTH)[:, None] & (r < RANK)[None, :]
    tl.store(place, g_b, mask=real)
    tl.store(place + of_weight, g_v, mask=real)
    tl.store(of_maps + 2 * of_weight + n, g_t, mask=n < WIDTH)


@triton.jit
def _sum(partial, at, count, SIZE, BLOCK: tl.constexpr):
    """Entries `at` (BLOCK,) of the sum of `count` vectors of SIZE entries, in a fixed order."""
    AT_ONCE: tl.constexpr = 8
    total = tl.zeros((AT_ONCE, BLOCK), tl.float32)
    for first in range(0, count, AT_ONCE):
        number = (first + tl.arange(0, AT_ONCE))[:, None]
        real = (number < count) & (at < SIZE)[None, :]
        total += tl.load(partial + number * SIZE + at[None, :], mask=real, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["rows", "pieces"])
def sum_kernel(
    of_inputs, of_maps, g_inputs, g_maps, rows, pieces,
    ACROSS: tl.constexpr, STRIDE: tl.constexpr, SIZE: tl.constexpr, RANK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up what `gradient_kernel` left, for every map: the gradient of z to g_inputs, those of B,
    V and t to g_maps (maps, SIZE)."""
    block, part = tl.program_id(0), tl.program_id(1)
    entries = rows * RANK
    blocks = tl.cdiv(entries, BLOCK)
    if block < blocks:
        at = block * BLOCK + tl.arange(0, BLOCK)
        total = _sum(of_inputs + part.to(tl.int64) * ACROSS * entries, at, ACROSS, entries, BLOCK)
        place = _of(part, g_inputs) + (at // RANK).to(tl.int64) * STRIDE + at % RANK
        tl.store(place, total.to(g_maps.dtype.element_ty), mask=at < entries)
    else:
        at = (block - blocks) * BLOCK + tl.arange(0, BLOCK)
        total = _sum(of_maps + part * pieces * SIZE, at, pieces, SIZE, BLOCK)
        place = g_maps + part * SIZE + at
        tl.store(place, total.to(g_maps.dtype.element_ty), mask=at < SIZE)
