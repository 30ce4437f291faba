"""The blocks of a known decoder with trainable adapters, in few kernels and little kept memory.

The generic path runs transformers' blocks with an adapter module around every layer: separate
products for q, k and v, a copy of every activation for every small step, and casts of each small
map. Here a block is a handful of autograd functions written out by hand. What they compute is the
same (tests hold gradients of the two together); what they save for the backward pass is only what
it needs, and weights held in 4 bits are unpacked again there, never kept.

Nothing is copied: layers that read the same input share one weight, of which their own become
views (`products.side_by_side`), so the transformers decoder goes on working. Trainable tensors are
read where they live at every call, so growth, restored states and silenced dendrites are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finsent.config import TrainConfig
from finsent.kernels.adapter_maps import Part, add_maps_, map_gradients
from finsent.kernels.attention import attend, silu_gate
from finsent.models.adapters import LoraPair
from finsent.models.backbones import pool
from finsent.models.dendritic_linear import DendriticLinear
from finsent.models.fused_decoder import FUSED_FAMILIES
from finsent.models.products import FusionError, Weight, has_whole_blocks, side_by_side


def can_fuse(config: TrainConfig, decoder: Any, device: torch.device) -> bool:
    """The rule: on a GPU, a family whose blocks are known, computing in the precision it is held
    in (autocast would have to be repeated by hand), with 4-bit blocks that end with their rows."""
    model = decoder.config
    return (
        device.type == "cuda"
        and config.adapt == "lora"
        and config.lora.dropout == 0
        and "layer" not in getattr(config.treatment, "placement", ())
        and model.model_type in FUSED_FAMILIES
        and not getattr(model, "qk_layernorm", False)
        and not (config.precision == "fp32" and config.autocast)
        and (config.precision != "nf4" or has_whole_blocks(model.to_dict()))
    )


@dataclass(frozen=True)
class _Term:
    """One frozen weight and the adapted layers in it."""

    weight: Weight
    parts: tuple[Part, ...]


class _Stage(torch.autograd.Function):
    """Every trainable tensor in the precision of the products, in a few kernels for all of them;
    tensors that enter one product together as one."""

    @staticmethod
    def forward(
        ctx: Any, groups: Sequence[tuple[int, float]], dtype: torch.dtype, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        """groups: how many of the parameters form each output, row under row, and its factor."""
        ctx.set_materialize_grads(False)
        ctx.groups, ctx.like = groups, [(p.shape, p.dtype) for p in parameters]
        given = iter(parameters)
        outputs, places = [], []
        for count, _ in groups:
            members = [next(given) for _ in range(count)]
            rows = [len(m) for m in members]
            outputs.append(members[0].new_empty(sum(rows), members[0].shape[1], dtype=dtype))
            places += outputs[-1].split(rows)
        torch._foreach_copy_(places, list(parameters))
        _multiply(outputs, [factor for _, factor in groups])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        found: list[Tensor | None] = []
        sources, places, factors = [], [], []
        for (count, factor), gradient in zip(ctx.groups, gradients, strict=True):
            like = ctx.like[len(found) : len(found) + count]
            if gradient is None:
                found += [None] * count
                continue
            new = [gradient.new_empty(shape, dtype=dtype) for shape, dtype in like]
            sources += gradient.split([shape[0] for shape, _ in like])
            places += new
            factors += [factor] * count
            found += new
        torch._foreach_copy_(places, sources)
        _multiply(places, factors)
        return (None, None, *found)


def _multiply(tensors: Sequence[Tensor], factors: Sequence[float]) -> None:
    chosen = [(t, f) for t, f in zip(tensors, factors, strict=True) if f != 1.0]
    if chosen:
        torch._foreach_mul_([t for t, _ in chosen], [f for _, f in chosen])


class _AdaptedSum(torch.autograd.Function):
    """sum over terms of x W^T + the adapters in it, plus one bias. Only the adapters get gradients.

    A term takes x (..., in) and, where it has adapted layers, their A maps row under row and the
    tensors of each part. What dendrites put out is not kept (`finsent.kernels.adapter_maps`).
    """

    @staticmethod
    def forward(ctx: Any, terms: Sequence[_Term], bias: Tensor | None, *tensors: Tensor) -> Tensor:
        given = iter(tensors)
        saved: list[Tensor] = []
        y: Tensor | None = None
        shape: list[int] = []
        for term in terms:
            x = next(given)
            shape = list(x.shape[:-1])
            rows = x.flatten(0, -2)
            weight = term.weight().to(rows.dtype)
            y = F.linear(rows, weight, bias) if y is None else y.addmm_(rows, weight.T)
            del weight  # if it was unpacked, its memory is wanted again
            if term.parts:
                a = next(given)
                maps = _of_parts(term.parts, given)
                z = rows @ a.T
                add_maps_(y, z, term.parts, maps)
                saved += [rows, a, z, *(tensor for of_map in maps for tensor in of_map)]
        if y is None:
            raise ValueError("a sum of products needs at least one term")
        ctx.terms = terms
        ctx.save_for_backward(*saved)
        return y.view(*shape, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        g = gradient.contiguous().flatten(0, -2)
        saved = iter(ctx.saved_tensors)
        found: list[Tensor | None] = [None, None]
        for term in ctx.terms:
            gx = None
            if ctx.needs_input_grad[len(found)]:
                gx = g @ term.weight().to(g.dtype)
            place = len(found)
            found.append(None)
            if term.parts:
                rows, a, z = next(saved), next(saved), next(saved)
                maps = _of_parts(term.parts, saved)
                gz, of_maps = map_gradients(g, z, term.parts, maps)
                found += [gz.T @ rows, *of_maps]
                if gx is not None:
                    gx.addmm_(gz, a)
            if gx is not None:
                found[place] = gx.view(*gradient.shape[:-1], -1)
        return tuple(found)


def _of_parts(parts: Sequence[Part], given: Iterator[Tensor]) -> list[list[Tensor]]:
    """The next tensors, by the part they belong to."""
    return [list(islice(given, part.tensors)) for part in parts]


class _LastRows(torch.autograd.Function):
    """(B, L, H) -> row `last` (B,) of each: (B, H). Indexing has a slow gradient where kernels have
    to be deterministic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, last: Tensor) -> Tensor:
        ctx.save_for_backward(last)
        ctx.length = x.shape[1]
        return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (last,) = ctx.saved_tensors
        read = torch.arange(ctx.length, device=last.device)[None, :] == last[:, None]
        return torch.where(read[:, :, None], gradient[:, None, :], 0.0), None


class Product:
    """Frozen layers as one product: inputs side by side in `terms`, outputs within a term.

    weights: one for every input; outputs: the layers in it and their columns, for every input;
    bias: one for all, or None.
    """

    def __init__(self, terms: Sequence[Sequence[tuple[str, Any]]]) -> None:
        """terms: (layer path, frozen layer) of those that read one input, for every input."""
        self.weights = [side_by_side([layer for _, layer in term]) for term in terms]
        self.outputs: list[list[tuple[str, slice]]] = []
        biases = []
        for term in terms:
            at, places = 0, []
            for path, layer in term:
                places.append((path, slice(at, at + layer.out_features)))
                at += layer.out_features
            self.outputs.append(places)
            biases.append(_joined_bias([layer for _, layer in term]))
        given = [b for b in biases if b is not None]
        self.bias = torch.stack(given).sum(dim=0) if given else None

    def plan(self, maps: Mapping[str, tuple[Tensor, nn.Module]], scaling: float) -> _Plan:
        """How it is computed with the adapters as they are now, (A, B map) by layer path."""
        terms, sizes = [], []
        groups: list[tuple[int, float]] = []
        parameters: list[Tensor] = []
        for weight, places in zip(self.weights, self.outputs, strict=True):
            found = [(outputs, *maps[path]) for path, outputs in places if path in maps]
            parts, at, before = [], 0, len(groups)
            if found:
                groups.append((len(found), 1.0))
                parameters += [a for _, a, _ in found]
            for outputs, a, b in found:
                part = Part(slice(at, at + len(a)), outputs, *_dendrites_of(b))
                at += len(a)
                parts.append(part)
                groups.append((1, scaling))
                parameters.append(cast(Tensor, b.weight))
                if part.dendrites:
                    grown: Any = b
                    groups += [(part.dendrites, 1.0), (1, scaling)]
                    groups += [(1, 1.0)] * (part.dendrites - 1)
                    parameters += [d.weight for d in grown.dendrites]
                    parameters.append(grown.output_weights)
                    parameters += [grown.recurrent[str(i)] for i in range(1, part.dendrites)]
            terms.append(_Term(weight, tuple(parts)))
            sizes.append(len(groups) - before)
        return _Plan(terms, self.bias, groups, parameters, sizes)


@dataclass
class _Plan:
    """One product as it is computed in one call."""

    terms: list[_Term]
    bias: Tensor | None
    groups: list[tuple[int, float]]
    """Of `_Stage`."""
    parameters: list[Tensor]
    sizes: list[int]
    """Staged tensors of each term."""
    staged: Sequence[Tensor] = ()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """One input (..., in) a term -> (..., out)."""
        tensors: list[Tensor] = []
        at = 0
        for x, size in zip(inputs, self.sizes, strict=True):
            tensors += [x, *self.staged[at : at + size]]
            at += size
        return cast(Tensor, _AdaptedSum.apply(self.terms, self.bias, *tensors))


def _dendrites_of(b: nn.Module) -> tuple[int, str]:
    """Number and activation of a B map's dendrites."""
    bias = b.bias
    if isinstance(b, DendriticLinear):
        if bias is not None or any(cast(Any, d).bias is not None for d in b.dendrites):
            raise FusionError("adapter maps with a bias cannot be fused")
        return b.n_dendrites, b.activation
    if not isinstance(b, nn.Linear) or bias is not None:
        raise FusionError(f"an adapter map is a {type(b).__name__}, not linear without bias")
    return 0, "none"


def _joined_bias(layers: Sequence[Any]) -> Tensor | None:
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if biases and len(biases) < len(layers):
        raise FusionError("of layers that become one product some have a bias and others have not")
    return torch.cat([b.detach() for b in biases]) if biases else None


class FusedBlocks:
    """Hidden states entering the upper blocks -> what a head reads, with gradients for the adapters
    and nothing else.

    Right padding is harmless: attention is causal. Raises FusionError for blocks that do not fit.
    """

    def __init__(
        self,
        upper: Any,
        pairs: Mapping[str, LoraPair],
        b_maps: Mapping[str, nn.Module],
        scaling: float,
    ) -> None:
        """pairs, b_maps: the adapters by layer path, read anew at every call; upper: the blocks,
        adapted or not. Their products are in `products`, by name for every block."""
        config = upper.config
        self._upper = upper
        self._pairs, self._b_maps, self._scaling = pairs, b_maps, scaling
        self._heads = config.num_attention_heads
        self._kv_heads = config.num_key_value_heads or self._heads
        self._phi = config.model_type == "phi"
        self._silu = config.hidden_act == "silu"
        names = _PHI if self._phi else _LLAMA
        self.products: list[dict[str, Product]] = []
        for index, block in enumerate(upper.layers):

            def layer(path: str, index: int = index, block: Any = block) -> tuple[str, Any]:
                found = block.get_submodule(path)
                return f"layers.{index}.{path}", getattr(found, "base_layer", found)

            self.products.append(
                {
                    name: Product([[layer(path) for path in term] for term in terms])
                    for name, terms in names.items()
                }
            )

    def pooled(self, hidden: Tensor, last: Tensor, pooling: str) -> Tensor:
        """(B, L, H) states and last positions (B,) -> (B, H), fp32; see `backbones.pool`."""
        maps = {n: (pair.a.weight, self._b_maps[n]) for n, pair in self._pairs.items()}
        plans = [
            {name: product.plan(maps, self._scaling) for name, product in products.items()}
            for products in self.products
        ]
        self._stage([plan for of_block in plans for plan in of_block.values()], hidden.dtype)
        return self.through(plans, hidden, last, pooling)

    def through(
        self,
        plans: Sequence[Mapping[str, Callable[..., Tensor]]],
        hidden: Tensor,
        last: Tensor,
        pooling: str,
    ) -> Tensor:
        """The same with given products: for every block, by name, one input a term -> output."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        cos, sin = self._upper.rotary_emb(hidden, positions)
        step = self._phi_block if self._phi else self._llama_block
        *lower, top = zip(self._upper.layers, plans, strict=True)
        for block, of_block in lower:
            hidden = step(block, of_block, hidden, cos[0], sin[0], _every_row)
        norm = self._upper.final_layernorm if self._phi else self._upper.norm
        if pooling == "last":
            # Nobody reads the other rows once the last attention has.
            rows = step(*top, hidden, cos[0], sin[0], lambda x: _LastRows.apply(x, last))
            return cast(Tensor, norm(rows)).float()
        return pool(norm(step(*top, hidden, cos[0], sin[0], _every_row)), last, pooling)

    @staticmethod
    def _stage(plans: Sequence[_Plan], dtype: torch.dtype) -> None:
        groups = [group for plan in plans for group in plan.groups]
        parameters = [p for plan in plans for p in plan.parameters]
        staged: Any = _Stage.apply(groups, dtype, *parameters)
        at = 0
        for plan in plans:
            plan.staged = staged[at : at + len(plan.groups)]
            at += len(plan.groups)

    def _attend(self, joined: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return attend(joined, cos, sin, self._heads, self._kv_heads)

    def _phi_block(
        self,
        block: Any,
        plans: Mapping[str, Callable[..., Tensor]],
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        kept: Callable[[Tensor], Tensor],
    ) -> Tensor:
        h = block.input_layernorm(x)
        attended = self._attend(plans["qkv"](h), cos, sin)
        inner = block.mlp.activation_fn(plans["fc1"](kept(h)))
        return kept(x) + plans["out"](kept(attended), inner)

    def _llama_block(
        self,
        block: Any,
        plans: Mapping[str, Callable[..., Tensor]],
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        kept: Callable[[Tensor], Tensor],
    ) -> Tensor:
        h = _rms_normed(block.input_layernorm, x)
        x = kept(x) + plans["out"](kept(self._attend(plans["qkv"](h), cos, sin)))
        h = _rms_normed(block.post_attention_layernorm, x)
        return x + plans["down"](self._gated(block, plans["gate_up"](h)))

    def _gated(self, block: Any, joined: Tensor) -> Tensor:
        if self._silu:
            return silu_gate(joined)
        gate, up = joined.chunk(2, dim=-1)
        return cast(Tensor, block.mlp.act_fn(gate) * up)


def _every_row(x: Tensor) -> Tensor:
    return x


def _rms_normed(norm: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
# Not joined: Phi's first MLP layer with q, k and v (cutting their sum apart again would cost more
# than one larger product gains), nor layers whose results are added (their weights would have to
# be copied, and accumulating products is as fast).
_PHI: dict[str, list[tuple[str, ...]]] = {
    "qkv": [_QKV],
    "fc1": [("mlp.fc1",)],
    "out": [("self_attn.dense",), ("mlp.fc2",)],
}
_LLAMA: dict[str, list[tuple[str, ...]]] = {
    "qkv": [_QKV],
    "out": [("self_attn.o_proj",)],
    "gate_up": [("mlp.gate_proj", "mlp.up_proj")],
    "down": [("mlp.down_proj",)],
}
