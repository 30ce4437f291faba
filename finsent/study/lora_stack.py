"""Adapters and heads of many runs side by side over one frozen decoder.

Run k owns row k of every trainable tensor. The base computes the batches of all runs as one large
batch; only the small maps are per run, as batched products. Runs never mix: a row's gradient is
that of its own loss. A run that has no use for a tensor (a smaller rank, no dendrites) has zeros
there, which stay zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finsent.config import PLACEMENTS
from finsent.dendritic_linear import activation_function
from finsent.fused import FusedDecoder

HEAD = "score"


@dataclass(frozen=True)
class Site:
    """An adapted layer: its block, and where it lies in one of the block's fused products."""

    name: str
    """`layers.<block>.<path>`, blocks counted in the whole decoder."""
    block: int
    product: str
    inputs: slice
    outputs: slice

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out) of the layer."""
        return self.inputs.stop - self.inputs.start, self.outputs.stop - self.outputs.start


def sites(decoder: FusedDecoder, target_modules: Sequence[str], first_block: int) -> list[Site]:
    """Every targeted layer from `first_block` on, in the decoder's order."""
    found = []
    for index in range(first_block, len(decoder.blocks)):
        block: Any = decoder.blocks[index]
        for product, parts in block.parts.items():
            found += [
                Site(f"layers.{index}.{path}", index, product, part.inputs, part.outputs)
                for path, part in parts.items()
                if path.rsplit(".", 1)[-1] in target_modules
            ]
    return found


@dataclass
class Map:
    """A trainable map of K runs: W (K, out, in), and with dendrites V (K, out, in), t (K, out)."""

    weight: Tensor
    dendrite: Tensor | None
    output_weights: Tensor | None
    seen: list[tuple[Tensor, Tensor]] | None = None
    """Where it is a list, every call leaves its (x, W x + ...) there, with the output's gradient
    kept."""


class LoraStack:
    """Trainable tensors of K runs as one matrix (K, parameters), with views for every map.

    Initial values are what the trainer's have the distribution of (peft's for A and B, torch's for
    the head), drawn for each run from its own seed. `dendrites` makes room for one dendrite on
    every map of the placement; which runs have them, `grow` says.
    """

    def __init__(
        self,
        decoder: FusedDecoder,
        adapted: Sequence[Site],
        ranks: Sequence[Mapping[str, int]],
        seeds: Sequence[int],
        *,
        n_classes: int,
        scaling: float,
        placement: Sequence[str] = PLACEMENTS,
        activation: str = "relu",
        dendrites: bool = False,
    ) -> None:
        self.runs = len(seeds)
        self.scaling, self.activation = scaling, activation
        self.placement = tuple(placement)
        self._decoder = decoder
        self._activate = activation_function(activation)
        self._adapted = list(adapted)
        self._ranks = [dict(of_run) for of_run in ranks]
        self._n_classes = n_classes
        self._grown = [False] * self.runs
        device = decoder.get_buffer("cos").device
        self._offsets = self._lay_out(dendrites)
        size = sum(math.prod(shape) for _, shape in self._offsets.values())
        self.values = torch.zeros(self.runs, size, device=device)
        self.grads = torch.zeros_like(self.values)
        self.live = torch.zeros_like(self.values, dtype=torch.bool)
        """Which scalars a run has; the others are zero and stay so."""
        self._views = {name: self._trained_view(name) for name in self._offsets}
        for row, seed in enumerate(seeds):
            self._draw(row, seed)
        names = (HEAD, *(f"{site.name}.lora_B" for site in self._adapted))
        self._maps = {name: self._map(name) for name in names}
        self._parts = [self._parts_of(index) for index in range(len(decoder.blocks))]

    def _lay_out(self, dendrites: bool) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Name -> (offset within a row, shape)."""
        shapes: dict[str, tuple[int, ...]] = {}
        hidden = self._decoder.hidden_size
        grown = {
            HEAD: dendrites and HEAD in self.placement,
            "lora_B": dendrites and "lora_B" in self.placement,
        }

        def add(name: str, outputs: int, inputs: int, with_dendrite: bool) -> None:
            shapes[f"{name}.weight"] = (outputs, inputs)
            if with_dendrite:
                shapes[f"{name}.dendrite"] = (outputs, inputs)
                shapes[f"{name}.output_weights"] = (outputs,)

        add(HEAD, self._n_classes, hidden, grown[HEAD])
        for site in self._adapted:
            rank = max(of_run[site.name] for of_run in self._ranks)
            inputs, outputs = site.shape
            add(f"{site.name}.lora_A", rank, inputs, False)
            add(f"{site.name}.lora_B", outputs, rank, grown["lora_B"])
        offsets, at = {}, 0
        for name, shape in shapes.items():
            offsets[name] = (at, shape)
            at += math.prod(shape)
        return offsets

    def _view(self, flat: Tensor, name: str) -> Tensor:
        """(K, *shape) of one tensor inside (K, parameters)."""
        at, shape = self._offsets[name]
        return flat[:, at : at + math.prod(shape)].unflatten(1, shape)

    def _trained_view(self, name: str) -> Tensor:
        view = self._view(self.values, name).detach().requires_grad_()
        # Gradients add up where the optimizer reads them; no copy, and one fill to clear all.
        view.grad = self._view(self.grads, name)
        return view

    @torch.no_grad()
    def _draw(self, row: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def uniform(rows: int, inputs: int) -> Tensor:
            drawn = torch.rand(rows, inputs, generator=generator)
            return (drawn * 2 - 1) / math.sqrt(inputs)

        self._set(row, f"{HEAD}.weight", uniform(self._n_classes, self._decoder.hidden_size))
        for site in self._adapted:
            rank = self._ranks[row][site.name]
            inputs, outputs = site.shape
            self._set(row, f"{site.name}.lora_A.weight", uniform(rank, inputs))
            self._set(row, f"{site.name}.lora_B.weight", torch.zeros(outputs, rank))

    def _set(self, row: int, name: str, tensor: Tensor) -> None:
        """Give a run's tensor its values; what is smaller than its place is padded with zeros."""
        where: Any = (row, *(slice(0, n) for n in tensor.shape))
        for flat, value in ((self.values, tensor), (self.live, torch.ones_like(tensor))):
            view = self._view(flat, name)
            view[row] = 0
            view[where] = value.to(view)

    def tensors(self, row: int) -> dict[str, Tensor]:
        """Copies of one run's tensors, without padding."""
        found = {}
        for name in self._offsets:
            live = self._view(self.live, name)[row]
            if not bool(live.any()):
                continue
            extent = tuple(slice(0, int(n) + 1) for n in live.nonzero().amax(dim=0).tolist())
            found[name] = self._view(self.values, name)[row][extent].clone()
        return found

    @torch.no_grad()
    def load(self, row: int, tensors: Mapping[str, Tensor]) -> None:
        """Make `tensors`, as `tensors()` gives them, those of a run. KeyError for a stranger."""
        self.live[row] = False
        self.values[row] = 0
        for name, tensor in tensors.items():
            self._set(row, name, tensor)
        self._grown[row] = any(name.endswith(".dendrite") for name in tensors)

    @torch.no_grad()
    def grow(self, row: int, seed: int, init_scale: float) -> None:
        """Give a run its dendrites: V ~ N(0, init_scale^2) and t = 0, so its function stays.

        ValueError when there is no room for them.
        """
        generator = torch.Generator().manual_seed(seed)
        names = [name.removesuffix(".dendrite") for name in self._offsets if "dendrite" in name]
        if not names:
            raise ValueError("a stack without room for dendrites cannot grow them")
        for name in names:
            live = self._view(self.live, f"{name}.weight")[row]
            outputs, inputs = (int(n) + 1 for n in live.nonzero().amax(dim=0).tolist())
            drawn = torch.randn(outputs, inputs, generator=generator) * init_scale
            self._set(row, f"{name}.dendrite", drawn)
            self._set(row, f"{name}.output_weights", torch.zeros(outputs))
        self._grown[row] = True

    def parameters_of(self, row: int) -> int:
        """Trainable scalars of a run."""
        return int(self.live[row].sum())

    def dendrites_of(self, row: int) -> int:
        """Dendrites per map."""
        return int(self._grown[row])

    def growing(self) -> list[Map]:
        """Every map with room for a dendrite."""
        return [found for found in self._maps.values() if found.dendrite is not None]

    def _map(self, name: str) -> Map:
        return Map(
            self._views[f"{name}.weight"],
            self._views.get(f"{name}.dendrite"),
            self._views.get(f"{name}.output_weights"),
        )

    def _parts_of(self, index: int) -> dict[str, list[tuple[slice, slice, Tensor, Map]]]:
        parts: dict[str, list[tuple[slice, slice, Tensor, Map]]] = {}
        for site in self._adapted:
            if site.block == index:
                a = self._views[f"{site.name}.lora_A.weight"]
                b = self._maps[f"{site.name}.lora_B"]
                parts.setdefault(site.product, []).append((site.inputs, site.outputs, a, b))
        return parts

    def pooled(
        self, hidden: Tensor, last: Tensor, first_block: int, step: Callable[..., Tensor]
    ) -> Tensor:
        """States (K * B, L, H) that enter `first_block`, runs one after another, and their last
        positions (K * B,) -> what the heads read: (K, B, H), fp32. step: see `block_step`."""
        x = hidden
        for index in range(first_block, len(self._decoder.blocks)):
            x = step(x, self._decoder.blocks[index], self._parts[index])
        if self._decoder.pooling == "last":
            # A sum, not an index: the gradient of indexing is slow where kernels are deterministic.
            steps = torch.arange(x.shape[1], device=x.device)
            read = (steps == last[:, None])[:, :, None]
            x, last = torch.where(read, x, 0.0).sum(dim=1, keepdim=True), torch.zeros_like(last)
        return self._decoder.pool(x, last).unflatten(0, (self.runs, -1))

    def block_step(self) -> Callable[..., Tensor]:
        """(x, block, parts) -> x: a block of the decoder with these runs' adapters."""
        scaling, activate, decoder = self.scaling, self._activate, self._decoder

        def step(x: Tensor, block: Any, parts: Mapping[str, list[Any]]) -> Tensor:
            deltas = {
                product: _Added(of_product, scaling, activate)
                for product, of_product in parts.items()
            }
            return decoder.step(x, block, deltas)

        return step

    def logits(self, pooled: Tensor) -> Tensor:
        """(K, B, H) -> (K, B, classes)."""
        return apply_map(pooled, self._maps[HEAD], self._activate)


class _Added:
    """Adds every adapter of a product to its output."""

    def __init__(
        self,
        parts: Sequence[tuple[slice, slice, Tensor, Map]],
        scaling: float,
        activate: Callable[[Tensor], Tensor],
    ) -> None:
        self._parts, self._scaling, self._activate = parts, scaling, activate

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """x (K * B, L, in) and the base's y (K * B, L, out) -> y with what the adapters add."""
        for inputs, outputs, a, b in self._parts:
            runs = a.shape[0]
            rows = x[..., inputs].reshape(runs, -1, a.shape[2])
            added = apply_map(rows @ a.transpose(1, 2), b, self._activate) * self._scaling
            y[..., outputs] += added.view(*y.shape[:2], -1)
        return y


def apply_map(x: Tensor, of: Map, activate: Callable[[Tensor], Tensor]) -> Tensor:
    """W x + t * act(V x) for each run: (K, n, in) to (K, n, out)."""
    y = x @ of.weight.transpose(1, 2)
    if of.dendrite is not None and of.output_weights is not None:
        outputs = activate(x @ of.dendrite.transpose(1, 2))
        y = torch.addcmul(y, of.output_weights[:, None, :].to(y.dtype), outputs)
    if of.seen is not None:
        y.retain_grad()
        of.seen.append((x.detach(), y))
    return y
