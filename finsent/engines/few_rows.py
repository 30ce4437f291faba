"""One sentence through a fused Phi decoder in four kernels a block, for as few rows as it has.

`finsent.models.fused_decoder` is the same forward for any number of rows, and what the tests hold
this one to. Needs triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from finsent.kernels import few_rows_kernels
from finsent.models.fused_decoder import FusedArm, FusedDecoder
from finsent.models.products import BLOCK, DenseProduct, FusionError, Product4Bit

ROWS = 64
"""Tokens, with padding, up to which these kernels are used. At 64 they are faster than the compiled
products of `finsent.models.fused_decoder`, at 128 for some shapes only (device_us_by_rows, see
below)."""
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")
"""Names of one function: Phi's own, and that of the faster form `load_backbone` puts there."""
MOST_RANKS = 64
"""Rows of an arm's first maps on one product that one program takes."""


@dataclass(frozen=True)
class Tiles:
    """How a product is cut. rows: of weights in one program; step: columns at a time; pieces: of
    the second product along its columns, at most."""

    rows: int
    step: int
    warps: int
    stages: int
    pieces: int = 1


@dataclass(frozen=True)
class Launch:
    """How both products of a block are cut."""

    into: Tiles
    out: Tiles
    ptx: bool = False
    """4-bit codes by byte permutation; else by a table, which the interpreter can do as well."""
    attend_warps: int = 4
    norm_warps: int = 8


# The fastest of those in bench/results/serve_gpu.json (cuts_us), on one H200. Every program must be
# on the device at once: what waits for a second turn doubles the time.
DENSE = Launch(Tiles(64, 128, 4, 3), Tiles(64, 64, 4, 6, pieces=5))
PACKED = Launch(Tiles(64, 64, 4, 4), Tiles(64, 64, 4, 4, pieces=8), ptx=True)


@dataclass(frozen=True)
class _Weights:
    """One product as the kernels read it."""

    weight: Tensor
    scales: Tensor
    code: Tensor
    bias: Tensor
    packed: bool


@dataclass(frozen=True)
class _Up:
    """An adapter's second map on queries, keys or values; rank 0 when there is none.

    weights (1 + dendrites, ranks of all maps as a power of two, outputs): zeros but in its own
    ranks' rows, so that one reading of the first maps' results serves all.
    """

    weights: Tensor
    mix: Tensor
    rank: int = 0


@dataclass(frozen=True)
class _Lora:
    """An arm's adapters on the first product of one block."""

    down: Tensor
    ups: tuple[_Up, _Up, _Up]
    dendrites: int = 0
    activation: str = "relu"

    @property
    def ranks(self) -> int:
        """Rows of `down` that count."""
        return sum(up.rank for up in self.ups)


class FewRows:
    """Token ids to class scores of one arm, for B * L <= ROWS.

    Shares the weights of `decoder`. Raises FusionError, with the reason, for a decoder or an arm
    that these kernels do not know: they know Phi with GELU, and adapters with at most one dendrite
    on queries, keys and values.
    """

    most = ROWS

    def __init__(self, decoder: FusedDecoder, arm: FusedArm, launch: Launch | None = None) -> None:
        require_phi(decoder)
        self._decoder, self._arm = decoder, arm
        self._blocks: list[Any] = list(decoder.blocks)
        self._into = [_weights(block.into) for block in self._blocks]
        self._out = [_weights(block.out) for block in self._blocks]
        kinds = {w.packed for w in (*self._into, *self._out)}
        if len(kinds) > 1:
            raise FusionError("4-bit products and others in one decoder")
        self._packed = kinds.pop()
        self.launch = launch or (PACKED if self._packed else DENSE)
        heads = decoder.heads
        self._split = (heads.queries + 2 * heads.keys) * heads.size
        self._attended = heads.queries * heads.size
        self._wide, self._hidden = self._into[0].bias.numel(), self._out[0].bias.numel()
        self._inner = self._attended + self._wide - self._split
        steps = (self._hidden, self.launch.into.step), (self._inner, self.launch.out.step)
        if self._attended % BLOCK or any(width % BLOCK or width % step for width, step in steps):
            raise FusionError(f"widths that are not multiples of {BLOCK} or of a step")
        self._loras = [
            self._lora(block, d) for block, d in zip(self._blocks, arm.deltas, strict=True)
        ]

    def _lora(self, block: Any, deltas: Any) -> _Lora:
        weight = block.norm.weight
        none = _Up(weight, weight)
        if not deltas:
            return _Lora(weight, (none, none, none))
        if set(deltas) != {"into"} or len(deltas["into"].groups) != 1:
            raise FusionError("adapters elsewhere than on queries, keys and values")
        delta = deltas["into"]
        ((_, ranks, outputs),) = delta.groups
        starts = [part.outputs.start for part in block.parts["into"].values()][:3]
        ups = [none, none, none]
        kinds, start, most = set(), 0, _power(sum(ranks))
        for rank, output, up in zip(ranks, outputs, delta.ups, strict=True):
            if output.start not in starts or up.n_dendrites > 1 or up.biases is not None:
                raise FusionError("adapters with many dendrites or biases, or on the MLP")
            maps = up.weights.reshape(1 + up.n_dendrites, -1, rank).transpose(1, 2)
            weights = maps.new_zeros(maps.shape[0], most, maps.shape[2])
            weights[:, start : start + rank] = maps
            mix = up.weights if up.output_weights is None else up.output_weights.contiguous()
            ups[starts.index(output.start)] = _Up(weights, mix, rank)
            kinds.add((up.n_dendrites, up.activation))
            start += rank
        if len(kinds) > 1 or start > MOST_RANKS:
            raise FusionError("adapters of several kinds, or of a high rank")
        ((dendrites, activation),) = kinds
        down = delta.get_buffer("down_0")
        return _Lora(
            self._placed(down), cast("tuple[_Up, _Up, _Up]", tuple(ups)), dendrites, activation
        )

    def _placed(self, rows: Tensor) -> Tensor:
        """Columns in the order of the activations that they meet."""
        if not self._packed:
            return rows.contiguous()
        pairs = rows.reshape(rows.shape[0], -1, BLOCK // 2, 2)
        return pairs.transpose(2, 3).reshape(rows.shape).contiguous()

    def __call__(self, input_ids: Tensor, last: Tensor) -> Tensor:
        """Ids (B, L), right-padded, and the last tokens' positions (B,) -> scores (B, classes)."""
        texts, length = input_ids.shape
        rows = texts * length
        decoder = self._decoder
        x = decoder.embedding(input_ids).reshape(rows, self._hidden)
        normed = torch.empty_like(x)
        joined = x.new_empty(rows, self._split)
        inner = x.new_empty(rows, self._inner)
        z = x.new_empty(rows, MOST_RANKS)
        steps, pieces = _pieces(self._inner, self.launch.out)
        partial = x.new_empty(pieces, rows, self._hidden, dtype=torch.float32)
        added = 0
        bias = self._out[0].bias
        for index, block in enumerate(self._blocks):
            self._norm(x, partial, bias, block.norm, normed, added, self._packed)
            lora = self._loras[index]
            self._first(normed, self._into[index], lora, joined, inner, z)
            self._attend(joined, z, lora, inner, texts, length)
            self._second(inner, self._out[index], partial, steps)
            added, bias = pieces, self._out[index].bias
        self._norm(x, partial, bias, decoder.final_norm, normed, added, False)
        states = normed.view(texts, length, self._hidden)
        return cast(Tensor, self._arm.head(decoder.pooled_normed(states, last)))

    def _norm(
        self, x: Tensor, partial: Tensor, bias: Tensor, norm: Any, to: Tensor, n: int, packed: bool
    ) -> None:
        width = self._hidden
        few_rows_kernels.norm_kernel[(x.shape[0],)](
            x, partial, bias, norm.weight, norm.bias, to, x.shape[0], norm.eps,
            N=width, PIECES=n, PACKED=packed, BN=_power(width),
            num_warps=self.launch.norm_warps,
        )  # fmt: skip

    def _first(
        self, x: Tensor, w: _Weights, lora: _Lora, joined: Tensor, inner: Tensor, z: Tensor
    ) -> None:
        tiles = self.launch.into
        grid = (-(-self._wide // tiles.rows) + (lora.ranks > 0),)
        few_rows_kernels.into_kernel[grid](
            x, w.weight, w.scales, w.code, w.bias, lora.down, joined, inner, z, x.shape[0],
            N=self._wide, K=self._hidden, SPLIT=self._split, ATTENDED=self._attended,
            INNER=self._inner, RANKS=lora.ranks, PACKED=w.packed, PTX=self.launch.ptx,
            BM=_power(x.shape[0]), BN=tiles.rows, BK=tiles.step,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip

    def _attend(
        self, joined: Tensor, z: Tensor, lora: _Lora, inner: Tensor, texts: int, length: int
    ) -> None:
        q, k, v = lora.ups
        heads = self._decoder.heads
        cos, sin = self._decoder.get_buffer("cos"), self._decoder.get_buffer("sin")
        few_rows_kernels.attend_kernel[(texts, heads.queries)](
            joined, z, q.weights, k.weights, v.weights, q.mix, k.mix, v.mix, cos, sin, inner,
            length, heads.size**-0.5,
            HEADS=heads.queries, KV_HEADS=heads.keys, SIZE=heads.size, TURNING=cos.shape[-1],
            SPLIT=self._split, INNER=self._inner, RANKS=lora.ranks,
            RANK_Q=q.rank, RANK_K=k.rank, RANK_V=v.rank, BR=_power(lora.ranks),
            DENDRITES=lora.dendrites, ACTIVATION=lora.activation, PACKED=self._packed,
            BL=_power(length), BD=_power(heads.size), BT=_power(cos.shape[-1] // 2),
            BS=_power(heads.size - cos.shape[-1]),
            num_warps=self.launch.attend_warps,
        )  # fmt: skip

    def _second(self, x: Tensor, w: _Weights, partial: Tensor, steps: int) -> None:
        tiles = self.launch.out
        grid = (-(-self._hidden // tiles.rows), partial.shape[0])
        few_rows_kernels.out_kernel[grid](
            x, w.weight, w.scales, w.code, partial, x.shape[0],
            N=self._hidden, K=self._inner, STEPS=steps, PACKED=w.packed, PTX=self.launch.ptx,
            BM=_power(x.shape[0]), BN=tiles.rows, BK=tiles.step,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip


def require_phi(decoder: FusedDecoder) -> None:
    """FusionError unless the kernels compute what this decoder's blocks compute."""
    if decoder.family != "phi" or decoder.activation not in TANH_GELU:
        raise FusionError(f"kernels for phi with gelu_new, not {decoder.family}")


def _weights(product: Any) -> _Weights:
    if isinstance(product, DenseProduct):
        weight, bias = product.get_buffer("weight"), product.bias
        if bias is None or not weight.is_contiguous():
            raise FusionError("a product without a bias")
        return _Weights(weight, weight, weight, cast(Tensor, bias), False)
    if not isinstance(product, Product4Bit) or product.bias is None:
        raise FusionError("a product without a bias")
    scales, code, bias = product.get_buffer("scales"), product.code, cast(Tensor, product.bias)
    bits = (
        torch.tensor(few_rows_kernels.NF4_BF16, dtype=torch.int32)
        .to(torch.int16)
        .view(torch.bfloat16)
    )
    # -0 and 0 are one value here.
    if product.block != BLOCK or not torch.equal(code.to("cpu", torch.bfloat16), bits):
        raise FusionError("4-bit weights other than NF4 in blocks of 64")
    return _Weights(product.get_buffer("packed"), scales, code.to(bias.dtype), bias, True)


def _pieces(columns: int, tiles: Tiles) -> tuple[int, int]:
    """Steps in a piece, and pieces: as many as wanted, or the next number that divides."""
    steps = columns // tiles.step
    pieces = next(n for n in range(min(tiles.pieces, steps), 0, -1) if steps % n == 0)
    return steps // pieces, pieces


def _power(n: int) -> int:
    """The next power of two, at least what a product in the kernels needs."""
    return max(16, 1 << (n - 1).bit_length())
