"""What the second maps of adapters add to a product, and its gradients, written out by hand.

A map adds B z + sum_i t_i * o_i to its columns of a product (rows, out), where z = A x (rows, r)
and o_i are the outputs of its dendrites. Those are as wide as the product and quickly made from z:
so they are not kept for the backward pass but computed there again.

On a GPU, maps with one dendrite are computed by `finsent.kernels.adapter_map_kernels`, those of one
shape together; all others by PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finsent.kernels.triton_support import without_triton

ACTIVATE_: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
}
"""In place: the gradient of each is known from its output."""
MOST_RANKS = 64
"""Ranks of a map that the kernels hold in registers."""


@dataclass(frozen=True)
class Part:
    """One adapted layer within a product."""

    ranks: slice
    """Its columns of A x."""
    outputs: slice
    """Its columns of the product."""
    dendrites: int
    activation: str

    @property
    def tensors(self) -> int:
        """Of its map: B (out, r), and with k dendrites V (k out, r), t (k, out) and the recurrent
        weights d_i (i, out), i = 1 .. k - 1. The scaling is part of B and t."""
        return 1 + self.dendrites + (self.dendrites > 0)


def add_maps_(
    y: Tensor, z: Tensor, parts: Sequence[Part], maps: Sequence[Sequence[Tensor]]
) -> None:
    """Add to y (rows, out of all) what every map makes of its columns of z (rows, r of all)."""
    launches, others = _divided(z, parts, maps)
    for members in launches:
        _kernels().add_(
            [z[:, parts[i].ranks] for i in members],
            [y[:, parts[i].outputs] for i in members],
            [maps[i] for i in members],
            parts[members[0]].activation,
        )
    for i in others:
        _add_(y[:, parts[i].outputs], z[:, parts[i].ranks], parts[i], maps[i])


def map_gradients(
    g: Tensor, z: Tensor, parts: Sequence[Part], maps: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """For the gradient g of `add_maps_`'s y, with contiguous rows: those of z, and of all maps'
    tensors one after the other."""
    g_z = torch.empty_like(z)
    found: list[list[Tensor]] = [[] for _ in parts]
    launches, others = _divided(z, parts, maps)
    for members in launches:
        of_members = _kernels().gradients(
            [z[:, parts[i].ranks] for i in members],
            [g_z[:, parts[i].ranks] for i in members],
            [g[:, parts[i].outputs] for i in members],
            [maps[i] for i in members],
            parts[members[0]].activation,
        )
        for i, of_map in zip(members, of_members, strict=True):
            found[i] = of_map
    for i in others:
        ranks, outputs = parts[i].ranks, parts[i].outputs
        found[i] = _gradients(g[:, outputs], z[:, ranks], g_z[:, ranks], parts[i], maps[i])
    return g_z, [tensor for of_map in found for tensor in of_map]


def uses_kernels(z: Tensor) -> bool:
    """Whether maps with one dendrite are computed by Triton kernels. GPUs that are too old would
    spill what the kernels hold in registers."""
    return without_triton(z.device) is None


@functools.cache
def _kernels() -> Any:
    """Imported at first use: importing Triton takes a second that only a GPU has a use for."""
    from finsent.kernels import adapter_map_kernels

    return adapter_map_kernels


def _divided(
    z: Tensor, parts: Sequence[Part], maps: Sequence[Sequence[Tensor]]
) -> tuple[list[list[int]], list[int]]:
    """Numbers of the parts that share a launch of the kernels, for every launch; and of those that
    are left to PyTorch."""
    launches: dict[tuple[torch.Size, str], list[int]] = {}
    others = []
    kernels = uses_kernels(z)
    for i, (part, tensors) in enumerate(zip(parts, maps, strict=True)):
        shape = tensors[0].shape
        if kernels and part.dendrites == 1 and shape[1] <= MOST_RANKS:
            launches.setdefault((shape, part.activation), []).append(i)
        else:
            others.append(i)
    return list(launches.values()), others


def _add_(y: Tensor, z: Tensor, part: Part, tensors: Sequence[Tensor]) -> None:
    """One map in PyTorch."""
    b, *of_dendrites = tensors
    y.addmm_(z, b.T)
    if part.dendrites:
        v, t, *recurrent = of_dendrites
        outputs = _dendrite_outputs(z, v, recurrent, part)
        for output, factor in zip(outputs.chunk(part.dendrites, dim=1), t, strict=True):
            y.addcmul_(output, factor)


def _dendrite_outputs(z: Tensor, v: Tensor, recurrent: Sequence[Tensor], part: Part) -> Tensor:
    """o_1 .. o_k side by side, (rows, k out)."""
    outputs = z @ v.T
    each = outputs.chunk(part.dendrites, dim=1)
    for i, output in enumerate(each):
        for j in range(i):
            output.addcmul_(recurrent[i - 1][j], each[j])
        ACTIVATE_[part.activation](output)
    return outputs


def _gradients(
    g: Tensor, z: Tensor, g_z: Tensor, part: Part, tensors: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of one map's tensors for the gradient g (rows, out); that of z is written to
    g_z."""
    b, *of_dendrites = tensors
    torch.mm(g, b, out=g_z)
    found = [g.T @ z]
    if not part.dendrites:
        return found
    k = part.dendrites
    v, t, *recurrent = of_dendrites
    each = _dendrite_outputs(z, v, recurrent, part).chunk(k, dim=1)
    drives = g.new_empty(len(g), k * g.shape[1])
    g_each = drives.chunk(k, dim=1)
    g_t = torch.empty_like(t)
    g_recurrent = [torch.empty_like(d) for d in recurrent]
    for i in reversed(range(k)):
        torch.mul(g, t[i], out=g_each[i])
        torch.sum(g * each[i], dim=0, out=g_t[i])
        for j in range(i + 1, k):
            g_each[i].addcmul_(recurrent[j - 1][i], g_each[j])
            torch.sum(g_each[j] * each[i], dim=0, out=g_recurrent[j - 1][i])
        through_activation_(part.activation, g_each[i], each[i])
    g_z.addmm_(drives, v)
    return [*found, drives.T @ z, g_t, *g_recurrent]


def through_activation_(name: str, g: Tensor, output: Tensor) -> None:
    """Turn the gradient of an activation's output into that of its input, in place."""
    if name == "relu":
        torch.ops.aten.threshold_backward.grad_input(g, output, 0, grad_input=g)
    elif name == "sigmoid":
        torch.ops.aten.sigmoid_backward.grad_input(g, output, grad_input=g)
    else:
        torch.ops.aten.tanh_backward.grad_input(g, output, grad_input=g)
