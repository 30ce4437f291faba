"""Adapters and heads of many runs side by side over one frozen decoder.

Run k owns row k of every trainable tensor. The base computes the batches of all runs as one large
batch; only the small maps are per run, as batched products. Runs never mix: a row's gradient is
that of its own loss. A run that has no use for a tensor (a smaller rank, no dendrites) has zeros
there, which stay zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from finsent.config import PLACEMENTS
from finsent.kernels.adapter_maps import ACTIVATE_, through_activation_
from finsent.models.dendritic_linear import activation_function
from finsent.models.products import Weight
from finsent.training.fused_blocks import FusedBlocks, Product

HEAD = "score"


@dataclass
class StackedMap:
    """A trainable map of K runs: W (K, out, in), and with dendrites V (K, out, in), t (K, out)."""

    weight: Tensor
    dendrite: Tensor | None
    output_weights: Tensor | None
    recorded: list[tuple[Tensor, Tensor]] | None = None
    """Where it is a list, every backward pass appends the map's inputs (K, n, in) and the gradient
    of its outputs (K, n, out)."""


class LoraStack:
    """Trainable tensors of K runs as one matrix (K, parameters), with views for every map.

    Initial values have the distribution of the trainer's (peft's for A and B, torch's for the
    head), drawn for each run from its own seed. `dendrites` makes room for one dendrite on every
    map of the placement; which runs have them, `grow` says.

    Maps inside the blocks compute in the precision of the base, from a copy that `stage` renews;
    the head computes in fp32.
    """

    def __init__(
        self,
        blocks: FusedBlocks,
        adapted: Mapping[str, tuple[int, int]],
        ranks: Sequence[Mapping[str, int]],
        seeds: Sequence[int],
        *,
        hidden_size: int,
        n_classes: int,
        scaling: float,
        dtype: torch.dtype,
        device: torch.device,
        placement: Sequence[str] = PLACEMENTS,
        activation: str = "relu",
        dendrites: bool = False,
    ) -> None:
        """adapted: (in, out) of every adapted layer by its path below the blocks; ranks: of every
        adapted layer, for each run; dtype: of the base's products."""
        self.runs = len(seeds)
        self.activation = activation
        self._blocks, self._placement = blocks, tuple(placement)
        self._adapted, self._ranks = dict(adapted), [dict(of_run) for of_run in ranks]
        self._hidden, self._n_classes = hidden_size, n_classes
        self._grown = [False] * self.runs
        self._offsets, self._head_size = self._lay_out(dendrites)
        size = sum(math.prod(shape) for _, shape in self._offsets.values())
        self.values = torch.zeros(self.runs, size, device=device)
        self.grads = torch.zeros_like(self.values)
        self.owned = torch.zeros_like(self.values, dtype=torch.bool)
        """Which scalars a run has; the others are zero and stay so."""
        self._staged = torch.zeros(self.runs, size - self._head_size, device=device, dtype=dtype)
        self._staged_grads = torch.zeros_like(self._staged)
        self._factor = torch.ones(size - self._head_size, device=device)
        for name, (at, shape) in self._offsets.items():
            if name.endswith((".lora_B.weight", ".lora_B.output_weights")):
                # The scaling is part of what is linear, never of what enters the activation.
                start = at - self._head_size
                self._factor[start : start + math.prod(shape)] = scaling
        self._leaves = {name: self._leaf(name) for name in self._offsets}
        names = (HEAD, *(f"{path}.lora_B" for path in self._adapted))
        self._maps = {name: self._map(name) for name in names}
        self._plans = [
            {name: self._plan(product) for name, product in products.items()}
            for products in blocks.products
        ]
        for row, seed in enumerate(seeds):
            self._draw(row, seed)

    def _lay_out(self, dendrites: bool) -> tuple[dict[str, tuple[int, tuple[int, ...]]], int]:
        """Name -> (offset within a row, shape), the head's first; and the size of the head's."""
        shapes: dict[str, tuple[int, ...]] = {}

        def add(name: str, kind: str, outputs: int, inputs: int) -> None:
            shapes[f"{name}.weight"] = (outputs, inputs)
            if dendrites and kind in self._placement:
                shapes[f"{name}.dendrite"] = (outputs, inputs)
                shapes[f"{name}.output_weights"] = (outputs,)

        add(HEAD, HEAD, self._n_classes, self._hidden)
        head_size = sum(math.prod(shape) for shape in shapes.values())
        for path, (inputs, outputs) in self._adapted.items():
            rank = max(of_run[path] for of_run in self._ranks)
            add(f"{path}.lora_A", "lora_A", rank, inputs)
            add(f"{path}.lora_B", "lora_B", outputs, rank)
        offsets, at = {}, 0
        for name, shape in shapes.items():
            offsets[name] = (at, shape)
            at += math.prod(shape)
        return offsets, head_size

    def _view(self, flat: Tensor, name: str) -> Tensor:
        """(K, *shape) of one tensor inside (K, parameters)."""
        at, shape = self._offsets[name]
        return flat[:, at : at + math.prod(shape)].unflatten(1, shape)

    def _leaf(self, name: str) -> Tensor:
        """What the forward pass reads. Gradients add up where the optimizer finds them."""
        at, shape = self._offsets[name]
        values, grads = self.values, self.grads
        if at >= self._head_size:
            at, values, grads = at - self._head_size, self._staged, self._staged_grads
        leaf, grad = (
            flat[:, at : at + math.prod(shape)].unflatten(1, shape) for flat in (values, grads)
        )
        leaf = leaf.detach().requires_grad_()
        leaf.grad = grad
        return leaf

    @torch.no_grad()
    def stage(self) -> None:
        """Before a forward pass: take over the values, and clear all gradients."""
        self._staged.copy_(self.values[:, self._head_size :] * self._factor)
        self.grads.zero_()
        self._staged_grads.zero_()

    @torch.no_grad()
    def gather(self) -> Tensor:
        """After a backward pass: the gradients of `values` (K, parameters)."""
        torch.mul(self._staged_grads, self._factor, out=self.grads[:, self._head_size :])
        return self.grads.mul_(self.owned)

    @torch.no_grad()
    def _draw(self, row: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def uniform(rows: int, inputs: int) -> Tensor:
            drawn = torch.rand(rows, inputs, generator=generator)
            return (drawn * 2 - 1) / math.sqrt(inputs)

        self._set(row, f"{HEAD}.weight", uniform(self._n_classes, self._hidden))
        for path, (inputs, outputs) in self._adapted.items():
            rank = self._ranks[row][path]
            self._set(row, f"{path}.lora_A.weight", uniform(rank, inputs))
            self._set(row, f"{path}.lora_B.weight", torch.zeros(outputs, rank))

    def _set(self, row: int, name: str, tensor: Tensor) -> None:
        """Give a run's tensor its values."""
        self.put(self.values, row, {name: tensor})
        self.put(self.owned, row, {name: torch.ones_like(tensor)})

    @torch.no_grad()
    def put(self, flat: Tensor, row: int, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors(row, flat)`: what is smaller than its place is padded with zeros.

        KeyError for a tensor that has no place.
        """
        for name, tensor in tensors.items():
            view = self._view(flat, name)
            view[row] = 0
            where: Any = (row, *(slice(0, n) for n in tensor.shape))
            view[where] = tensor.to(view)

    def tensors(self, row: int, values: Tensor | None = None) -> dict[str, Tensor]:
        """Copies of one run's tensors, without padding; of those in `values` (K, parameters) where
        it is given."""
        values = self.values if values is None else values
        found = {}
        for name in self._offsets:
            extent = self._extent(row, name)
            if extent is not None:
                found[name] = self._view(values, name)[row][extent].clone()
        return found

    def _extent(self, row: int, name: str) -> tuple[slice, ...] | None:
        """What of a tensor's place a run uses; None where it has no such tensor."""
        base, kind = name.rsplit(".", 1)
        if kind != "weight" and not self._grown[row]:
            return None
        _, shape = self._offsets[name]
        path, _, part = base.rpartition(".")
        if part == "lora_A":
            return slice(0, self._ranks[row][path]), slice(0, shape[1])
        if part == "lora_B" and kind != "output_weights":
            return slice(0, shape[0]), slice(0, self._ranks[row][path])
        return tuple(slice(0, n) for n in shape)

    @torch.no_grad()
    def load(self, row: int, tensors: Mapping[str, Tensor]) -> None:
        """Make `tensors`, as `tensors()` gives them, those of a run of the same ranks.

        KeyError for a tensor that has no place.
        """
        self.owned[row] = False
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
        names = [name for name in self._offsets if name.endswith(".dendrite")]
        if not names:
            raise ValueError("a stack without room for dendrites cannot grow them")
        self._grown[row] = True
        for name in names:
            outputs, inputs = (part.stop for part in self._extent(row, name) or ())
            drawn = torch.randn(outputs, inputs, generator=generator) * init_scale
            self._set(row, name, drawn)
            self._set(row, name.replace(".dendrite", ".output_weights"), torch.zeros(outputs))

    def parameters_of(self, row: int) -> int:
        """Trainable scalars of a run."""
        return int(self.owned[row].sum())

    def dendrites_of(self, row: int) -> int:
        """Dendrites per map."""
        return int(self._grown[row])

    def growing(self) -> Iterator[tuple[str, StackedMap]]:
        """Every map with room for a dendrite, by name."""
        for name, found in self._maps.items():
            if found.dendrite is not None:
                yield name, found

    def raw(self, name: str) -> Tensor:
        """(K, *shape) of a tensor's values in fp32, as they are trained."""
        return self._view(self.values, name)

    def _map(self, name: str) -> StackedMap:
        return StackedMap(
            self._leaves[f"{name}.weight"],
            self._leaves.get(f"{name}.dendrite"),
            self._leaves.get(f"{name}.output_weights"),
        )

    def _plan(self, product: Product) -> _StackedProduct:
        terms = []
        for weight, places in zip(product.weights, product.outputs, strict=True):
            parts = [
                _Part(outputs, self._leaves[f"{path}.lora_A.weight"], self._maps[f"{path}.lora_B"])
                for path, outputs in places
                if path in self._adapted
            ]
            terms.append(_Term(weight, tuple(parts)))
        return _StackedProduct(terms, product.bias, self.runs, self.activation)

    def pooled(self, hidden: Tensor, last: Tensor, pooling: str) -> Tensor:
        """States (K * B, L, H) that enter the blocks, runs one after another, and their last
        positions (K * B,) -> what the heads read: (K, B, H), fp32."""
        return self._blocks.through(self._plans, hidden, last, pooling).unflatten(
            0, (self.runs, -1)
        )

    def logits(self, pooled: Tensor) -> Tensor:
        """(K, B, H) -> (K, B, classes), fp32."""
        head = self._maps[HEAD]
        y = pooled @ head.weight.transpose(1, 2)
        if head.dendrite is not None and head.output_weights is not None:
            outputs = activation_function(self.activation)(pooled @ head.dendrite.transpose(1, 2))
            y = torch.addcmul(y, head.output_weights[:, None, :], outputs)
        if head.recorded is not None:
            recorded, x = head.recorded, pooled.detach()
            y.register_hook(lambda gradient: recorded.append((x, gradient)))
        return y


@dataclass(frozen=True)
class _Part:
    """An adapted layer: its columns of the product, A (K, r, in) and B."""

    outputs: slice
    a: Tensor
    b: StackedMap


@dataclass(frozen=True)
class _Term:
    """One frozen weight and the adapted layers in it."""

    weight: Weight
    parts: tuple[_Part, ...]


class _StackedProduct:
    """A product of a block with the adapters of every run."""

    def __init__(
        self, terms: Sequence[_Term], bias: Tensor | None, runs: int, activation: str
    ) -> None:
        self.terms, self.bias, self.runs, self.activation = terms, bias, runs, activation

    def __call__(self, *inputs: Tensor) -> Tensor:
        """One input (K * B, ..., in) a term -> (K * B, ..., out)."""
        tensors: list[Tensor] = []
        for x, term in zip(inputs, self.terms, strict=True):
            tensors.append(x)
            for part in term.parts:
                tensors += [part.a, part.b.weight]
                if part.b.dendrite is not None and part.b.output_weights is not None:
                    tensors += [part.b.dendrite, part.b.output_weights]
        return cast(Tensor, _StackedSum.apply(self, *tensors))


class _StackedSum(torch.autograd.Function):
    """As finsent.training.fused_blocks's sum of products, with maps of K runs: x W^T + B A x +
    t * act(V A x) for each. The scaling is part of B and t; dendrites' outputs are computed again
    in the backward pass."""

    @staticmethod
    def forward(ctx: Any, product: _StackedProduct, *tensors: Tensor) -> Tensor:
        given = iter(tensors)
        saved: list[Tensor] = []
        y: Tensor | None = None
        shape: list[int] = []
        for term in product.terms:
            x = next(given)
            shape = list(x.shape[:-1])
            rows = x.flatten(0, -2)
            weight = term.weight().to(rows.dtype)
            y = F.linear(rows, weight, product.bias) if y is None else y.addmm_(rows, weight.T)
            del weight
            if term.parts:
                saved.append(rows)
            for part in term.parts:
                a, b = next(given), next(given)
                of_runs = rows.view(product.runs, -1, rows.shape[1])
                target = y.view(product.runs, -1, y.shape[1])[:, :, part.outputs]
                z = of_runs @ a.transpose(1, 2)
                saved += [a, b, z]
                target.baddbmm_(z, b.transpose(1, 2))
                if part.b.dendrite is not None:
                    v, t = next(given), next(given)
                    outputs = ACTIVATE_[product.activation](z @ v.transpose(1, 2))
                    target.addcmul_(outputs, t[:, None, :])
                    saved += [v, t]
        if y is None:
            raise ValueError("a sum of products needs at least one term")
        ctx.product = product
        ctx.save_for_backward(*saved)
        return y.view(*shape, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        product: _StackedProduct = ctx.product
        g = gradient.flatten(0, -2)
        of_runs = g.view(product.runs, -1, g.shape[1])
        saved = iter(ctx.saved_tensors)
        found: list[Tensor | None] = [None]
        for term in product.terms:
            gx = None
            if ctx.needs_input_grad[len(found)]:
                gx = g @ term.weight().to(g.dtype)
            place = len(found)
            found.append(None)
            rows = g  # stands in where nothing is adapted
            if term.parts:
                rows = next(saved).view(product.runs, len(g) // product.runs, -1)
            for part in term.parts:
                a, b, z = next(saved), next(saved), next(saved)
                g_part = of_runs[:, :, part.outputs]
                gz = g_part @ b
                gb = g_part.transpose(1, 2) @ z
                of_dendrite: list[Tensor] = []
                if part.b.dendrite is not None:
                    v, t = next(saved), next(saved)
                    outputs = ACTIVATE_[product.activation](z @ v.transpose(1, 2))
                    drive = g_part * t[:, None, :]
                    gt = (g_part * outputs).sum(dim=1)
                    through_activation_(product.activation, drive, outputs)
                    gz.baddbmm_(drive, v)
                    of_dendrite = [drive.transpose(1, 2) @ z, gt]
                if part.b.recorded is not None:
                    part.b.recorded.append((z.detach(), g_part.detach().clone()))
                found += [gz.transpose(1, 2) @ rows, gb, *of_dendrite]
                if gx is not None:
                    gx.view(*rows.shape).baddbmm_(gz, a)
            if gx is not None:
                found[place] = gx.view(*gradient.shape[:-1], -1)
        return tuple(found)
