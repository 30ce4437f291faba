"""Several linear layers as one product, their weights held as they are: dense or 4-bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 64
"""Weights that share a scale in bitsandbytes' NF4, unless told otherwise."""


Weight = Callable[[], Tensor]
"""A frozen weight (out, in). One in 4 bits is unpacked at every call, so hold it no longer than a
product takes."""


class FusionError(ValueError):
    """Layers or a decoder that cannot be fused."""


def join(layers: Sequence[Any], dim: int, bias: Tensor | None) -> nn.Module:
    """One product for layers side by side: their outputs (dim 0) or their inputs (dim 1).

    The layers' own weights are let go, so that two copies of a large model never stand side by
    side. Raises FusionError when some are 4-bit and others are not, or rows share 4-bit blocks.
    """
    kinds = {type(layer).__name__ == "Linear4bit" for layer in layers}
    if len(kinds) > 1:
        raise FusionError("4-bit layers and others cannot be joined into one product")
    product = _join_4bit(layers, dim, bias) if kinds.pop() else _join_dense(layers, dim, bias)
    for layer in layers:
        layer.weight = None
    return product


def has_whole_blocks(model: Mapping[str, Any]) -> bool:
    """Whether no 4-bit block of a decoder lies across two rows, as `join` needs it. model: its
    config.json."""
    return not any(model.get(width, 1) % BLOCK for width in ("hidden_size", "intermediate_size"))


def side_by_side(layers: Sequence[Any]) -> Weight:
    """One weight for layers that read the same input, their outputs one after the other.

    The layers' own weights become views of it: they go on working, and nothing is held twice. Done
    once; layers that already lie one after the other are left as they are. Raises FusionError when
    some are 4-bit and others are not, or their numbers do not fill whole 4-bit blocks.
    """
    kinds = {type(layer).__name__ == "Linear4bit" for layer in layers}
    if len(kinds) > 1:
        raise FusionError("4-bit layers and others cannot share one weight")
    if kinds.pop():
        return _share_4bit(layers)
    shared = _shared([layer.weight.detach() for layer in layers])
    rows = [layer.out_features for layer in layers]
    for layer, own in zip(layers, shared.split(rows), strict=True):
        if layer.weight.data_ptr() != own.data_ptr():
            layer.weight = nn.Parameter(own, requires_grad=False)
    return lambda: shared


def _share_4bit(layers: Sequence[Any]) -> Weight:
    import bitsandbytes.functional as bnb

    states = [layer.weight.quant_state for layer in layers]
    first = states[0]
    if len(layers) == 1:
        packed = layers[0].weight.data
        return lambda: bnb.dequantize_4bit(packed, first)
    for layer, state in zip(layers, states, strict=True):
        if layer.out_features * layer.in_features % state.blocksize:
            raise FusionError("a 4-bit layer ends within a block of weights that share a scale")
    codes = _shared([layer.weight.data for layer in layers])
    scales = _shared([_scales(state) for state in states])
    sizes = [layer.out_features * layer.in_features for layer in layers]
    own_codes = codes.split([size // 2 for size in sizes])
    own_scales = scales.split([size // first.blocksize for size in sizes])
    for layer, state, code, scale in zip(layers, states, own_codes, own_scales, strict=True):
        layer.weight.data = code
        # Unpacked once, like the scales of `Product4Bit`: views of what is quantised again would
        # have to end with its blocks too.
        state.absmax, state.offset, state.state2, state.nested = scale, None, None, False
    whole = bnb.QuantState(
        absmax=scales,
        shape=torch.Size((sum(layer.out_features for layer in layers), layers[0].in_features)),
        code=first.code,
        blocksize=first.blocksize,
        quant_type=first.quant_type,
        dtype=first.dtype,
    )
    return lambda: bnb.dequantize_4bit(codes, whole)


def _shared(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors along their first dimension, without a copy if they lie like that already."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    place = first.data_ptr()
    for tensor in tensors:
        # Tensors that lie in a row by chance are of different storages.
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or tensor.data_ptr() != place or not tensor.is_contiguous():
            return torch.cat(list(tensors))
        place += tensor.numel() * tensor.element_size()
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())


class DenseProduct(nn.Module):
    """x W^T + b with the weight as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(x, self.get_buffer("weight"), self.bias)  # type: ignore[arg-type]


class Product4Bit(nn.Module):
    """x W^T + b with W (out, in) packed by bitsandbytes: two codes a byte, a scale a block.

    The scales stay in fp32: unpacking doubly quantised ones would be a kernel more for every
    layer, to save 0.4 bits of 4.5.
    """

    def __init__(
        self,
        packed: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        *,
        shape: tuple[int, int],
        like: Any,
    ) -> None:
        """packed (out * in / 2, 1) uint8, scales (out * in / block) fp32. like: the QuantState of
        a layer with the same block size, code and compute type."""
        super().__init__()
        import bitsandbytes.functional as bnb

        self._unpack = bnb.dequantize_4bit
        self.code: Tensor = like.code
        """The 16 values that codes stand for, fp32."""
        self.block: int = like.blocksize
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)
        self._state = bnb.QuantState(
            absmax=scales,
            shape=torch.Size(shape),
            code=like.code,
            blocksize=like.blocksize,
            quant_type=like.quant_type,
            dtype=like.dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        weight = self._unpack(self.get_buffer("packed"), self._state)
        return F.linear(x, weight.to(x.dtype), self.bias)  # type: ignore[arg-type]


def _join_dense(layers: Sequence[Any], dim: int, bias: Tensor | None) -> DenseProduct:
    return DenseProduct(torch.cat([layer.weight.detach() for layer in layers], dim=dim), bias)


def _join_4bit(layers: Sequence[Any], dim: int, bias: Tensor | None) -> Product4Bit:
    """Codes and scales moved, never rounded again: whole blocks lie within one row of a layer."""
    codes, scales = [], []
    for layer in layers:
        state = layer.weight.quant_state
        if layer.in_features % state.blocksize:
            raise FusionError(
                f"a 4-bit layer with {layer.in_features} inputs has blocks of {state.blocksize} "
                "that lie across its rows; the plain engine serves it"
            )
        codes.append(layer.weight.data.reshape(layer.out_features, layer.in_features // 2))
        scales.append(_scales(state).reshape(layer.out_features, -1))
    joined = torch.cat(codes, dim=dim)
    shape = (joined.shape[0], joined.shape[1] * 2)
    return Product4Bit(
        joined.reshape(-1, 1),
        torch.cat(scales, dim=dim).reshape(-1),
        bias,
        shape=shape,
        like=layers[0].weight.quant_state,
    )


def _scales(state: Any) -> Tensor:
    """The largest value of each block, fp32; doubly quantised ones unpacked."""
    if not state.nested:
        return state.absmax.float()
    import bitsandbytes.functional as bnb

    return (bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset).float()
