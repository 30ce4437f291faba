"""What of a block in training is no product: causal attention and the gate of the MLP.

On a GPU both are kernels of `finsent.kernels.attention_kernels` where those know the shape.
PyTorch's attention takes tiles of 128 rows whatever the length, and its gate is three kernels
forward and four back.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from finsent.kernels.triton_support import without_triton

_HALVES = (torch.bfloat16, torch.float16)


def attend(joined: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Queries, keys and values side by side (B, L, (heads + 2 kv_heads) * size), not rotated yet ->
    (B, L, heads * size). cos, sin: of the positions, as for `rotate_`.

    Overwrites `joined`: the product that made it has no use for its output.
    """
    if uses_kernels(joined) and _knows(joined, heads, kv_heads):
        return cast(Tensor, _ShortAttention.apply(joined, cos, sin, heads, kv_heads))
    q, k, v = _Heads.apply(joined, cos, sin, heads, kv_heads)
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
    return attended.transpose(1, 2).flatten(2)


def silu_gate(joined: Tensor) -> Tensor:
    """silu(a) * b for a and b side by side: (..., 2 width) -> (..., width)."""
    if uses_kernels(joined):
        return cast(Tensor, _SiluGate.apply(joined))
    a, b = joined.chunk(2, dim=-1)
    return F.silu(a) * b


def uses_kernels(x: Tensor) -> bool:
    """Whether Triton computes this tensor: half precision on a GPU that it runs on."""
    return x.dtype in _HALVES and without_triton(x.device) is None


@functools.cache
def _kernels() -> Any:
    """Imported at first use: importing Triton takes a second that only a GPU has a use for."""
    from finsent.kernels import attention_kernels

    return attention_kernels


def _knows(joined: Tensor, heads: int, kv_heads: int) -> bool:
    size = joined.shape[2] // (heads + 2 * kv_heads)
    kernels = _kernels()
    return joined.shape[1] <= kernels.MOST_TOKENS and size in kernels.HEAD_SIZES


class _ShortAttention(torch.autograd.Function):
    """Rotates in place, attends, and keeps nothing but its input."""

    @staticmethod
    def forward(
        ctx: Any, joined: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
    ) -> Tensor:
        rotated = joined.detach().contiguous()
        rotate_(_turning(rotated, heads, kv_heads), cos, sin)
        ctx.save_for_backward(rotated, cos, sin)
        ctx.heads = heads, kv_heads
        return cast(Tensor, _kernels().attend(rotated, heads, kv_heads))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        rotated, cos, sin = ctx.saved_tensors
        found = _kernels().attend_gradient(rotated, gradient.contiguous(), *ctx.heads)
        rotate_(_turning(found, *ctx.heads), cos, -sin)
        return found, None, None, None, None


def _turning(joined: Tensor, heads: int, kv_heads: int) -> Tensor:
    """(B, L, heads + kv_heads, size): the queries and keys."""
    every = joined.unflatten(2, (heads + 2 * kv_heads, -1))
    return every[:, :, : heads + kv_heads]


class _Heads(torch.autograd.Function):
    """Queries, keys and values side by side (B, L, ...) -> rotated q, k and plain v, each
    (B, heads, L, head size), views of what came in. Rotates in place."""

    @staticmethod
    def forward(
        ctx: Any, joined: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads, kv_heads
        rotate_(_turning(joined.detach(), heads, kv_heads), cos, sin)
        every = joined.detach().unflatten(2, (heads + 2 * kv_heads, -1))
        q, k, v = every.split((heads, kv_heads, kv_heads), dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        joined = torch.cat([g.transpose(1, 2) for g in gradients], dim=2).flatten(2)
        rotate_(_turning(joined, *ctx.heads), cos, -sin)
        return joined, None, None, None, None


class _SiluGate(torch.autograd.Function):
    """silu(a) * b, kept as its input alone."""

    @staticmethod
    def forward(ctx: Any, joined: Tensor) -> Tensor:
        ctx.save_for_backward(joined)
        rows = joined.flatten(0, -2).contiguous()
        return cast(Tensor, _kernels().gate(rows)).view(*joined.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (joined,) = ctx.saved_tensors
        rows = joined.flatten(0, -2).contiguous()
        found = _kernels().gate_gradient(rows, gradient.flatten(0, -2).contiguous())
        return cast(Tensor, found.view(joined.shape))


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the first `size` entries of every head by its position.

    x (B, L, heads, head size), rows of heads contiguous; cos, sin (L, size), their halves alike, as
    transformers makes them. `-sin` turns back.
    """
    if without_triton(x.device) is None:
        _kernels().rotate(x, cos, sin)
        return
    half = cos.shape[-1] // 2
    c, s = cos[:, None, :half], sin[:, None, :half]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = first * c - second * s
    second.mul_(c).add_(first * s)
    first.copy_(turned)
