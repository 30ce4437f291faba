"""A frozen decoder in as few products as its blocks allow, for serving on a GPU.

Layers that read the same input become one product with their outputs side by side (q, k, v, and
Phi's first MLP layer); layers whose results are added become one with their inputs side by side
(Phi's attention output and second MLP layer). The arithmetic is that of the transformers model;
tests hold the two together. Pure tensor code without branches on values, so that the same forward
is recorded as a CUDA graph or compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finsent.models.adapter_files import Adapter, AdapterError
from finsent.models.dendritic_linear import DendriticLinear, FusedDendriticLinear
from finsent.models.products import FusionError, join

FUSED_FAMILIES = ("phi", "llama")
"""`config.model_type` of the decoders that `FusedDecoder` knows."""


@dataclass(frozen=True)
class _Part:
    """Where one layer of the original model lies in a fused product."""

    inputs: slice
    outputs: slice


@dataclass(frozen=True)
class Heads:
    """Of attention: for queries, for keys and values, and the width of one."""

    queries: int
    keys: int
    size: int


class _Delta(nn.Module):
    """The adapters of one arm on one fused product."""

    def __init__(
        self, parts: Sequence[tuple[_Part, Tensor, FusedDendriticLinear]], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.groups: list[tuple[slice, list[int], list[slice]]] = []
        """Layers with the same input: its columns, the layers' ranks, and their outputs."""
        self.ups = nn.ModuleList()
        by_input: dict[tuple[int, int], list[tuple[_Part, Tensor, FusedDendriticLinear]]] = {}
        for entry in parts:
            key = (entry[0].inputs.start, entry[0].inputs.stop)
            by_input.setdefault(key, []).append(entry)
        for number, members in enumerate(by_input.values()):
            joined = torch.cat([a for _, a, _ in members]).to(dtype)
            self.register_buffer(f"down_{number}", joined)
            self.groups.append(
                (
                    members[0][0].inputs,
                    [a.shape[0] for _, a, _ in members],
                    [part.outputs for part, _, _ in members],
                )
            )
            self.ups.extend(up.to(dtype) for _, _, up in members)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """y + scaling * B(A x) for the outputs of every adapted layer, in place."""
        ups = iter(self.ups)
        for number, (inputs, ranks, outputs) in enumerate(self.groups):
            z = F.linear(x[..., inputs], self.get_buffer(f"down_{number}"))
            for part, target in zip(z.split(ranks, dim=-1), outputs, strict=True):
                y[..., target] += next(ups)(part)
        return y


class FusedArm(nn.Module):
    """One trained arm on a fused decoder: deltas by block and product, and the head in fp32."""

    def __init__(self, deltas: Sequence[Mapping[str, _Delta]], head: FusedDendriticLinear) -> None:
        super().__init__()
        self.deltas = nn.ModuleList(nn.ModuleDict(dict(of_block)) for of_block in deltas)
        self.head = head


class _Block(nn.Module):
    """One transformer block of either family."""

    def __init__(self, block: Any, family: str) -> None:
        super().__init__()
        attention, mlp = block.self_attn, block.mlp
        self.norm = block.input_layernorm
        self.parts: dict[str, dict[str, _Part]] = {}
        qkv = {f"self_attn.{n}": getattr(attention, n) for n in ("q_proj", "k_proj", "v_proj")}
        if family == "phi":
            self.act = mlp.activation_fn
            self.into = self._beside("into", {**qkv, "mlp.fc1": mlp.fc1})
            out = {"self_attn.dense": attention.dense, "mlp.fc2": mlp.fc2}
            self.out = self._summed("out", out)
        else:
            self.act = mlp.act_fn
            self.middle_norm = block.post_attention_layernorm
            gate_up = {"mlp.gate_proj": mlp.gate_proj, "mlp.up_proj": mlp.up_proj}
            self.into = self._beside("into", qkv)
            self.out = self._summed("out", {"self_attn.o_proj": attention.o_proj})
            self.gate_up = self._beside("gate_up", gate_up)
            self.down = self._summed("down", {"mlp.down_proj": mlp.down_proj})

    def _beside(self, name: str, layers: Mapping[str, Any]) -> nn.Module:
        parts, at = {}, 0
        for path, layer in layers.items():
            rows, inner = layer.out_features, layer.in_features
            parts[path] = _Part(slice(0, inner), slice(at, at + rows))
            at += rows
        self.parts[name] = parts
        members = list(layers.values())
        biases = [m.bias for m in members if m.bias is not None]
        bias = torch.cat(biases) if biases else None
        return join(members, 0, bias)

    def _summed(self, name: str, layers: Mapping[str, Any]) -> nn.Module:
        parts, at = {}, 0
        for path, layer in layers.items():
            rows, inner = layer.out_features, layer.in_features
            parts[path] = _Part(slice(at, at + inner), slice(0, rows))
            at += inner
        self.parts[name] = parts
        members = list(layers.values())
        biases = [m.bias for m in members if m.bias is not None]
        bias = torch.stack(biases).sum(dim=0) if biases else None
        return join(members, 1, bias)


class FusedDecoder(nn.Module):
    """Token ids to class scores, for any number of arms on one set of fused weights.

    Takes the weights out of the transformers decoder it is made from, which is useless afterwards.
    Raises FusionError for a family that is not in FUSED_FAMILIES, or norms of queries and keys.
    """

    def __init__(self, decoder: Any, pooling: str, max_length: int) -> None:
        super().__init__()
        config = decoder.config
        if config.model_type not in FUSED_FAMILIES:
            raise FusionError(
                f"fused serving knows {', '.join(FUSED_FAMILIES)}, not {config.model_type}; "
                "the plain engine serves any decoder"
            )
        if getattr(config, "qk_layernorm", False):
            raise FusionError(
                "fused serving knows no norms of queries and keys, which this decoder has "
                "(qk_layernorm); the plain engine serves any decoder"
            )
        self.pooling = pooling
        self.family: str = config.model_type
        self.activation: str = config.hidden_act
        queries = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // queries
        self.heads = Heads(queries, config.num_key_value_heads or queries, size)
        self._hidden = config.hidden_size
        self.embedding = decoder.embed_tokens
        self.dtype = decoder.embed_tokens.weight.dtype
        device = decoder.embed_tokens.weight.device
        positions = torch.arange(max_length, device=device)[None]
        cos, sin = decoder.rotary_emb(torch.zeros(1, dtype=self.dtype, device=device), positions)
        self.register_buffer("cos", cos[0, :, None, :])
        self.register_buffer("sin", sin[0, :, None, :])
        self.blocks = nn.ModuleList(_Block(b, self.family) for b in decoder.layers)
        self.step = self._phi if self.family == "phi" else self._llama
        """(x, block, deltas) -> x: one block; may be exchanged for a compiled one."""
        self.final_norm = decoder.final_layernorm if self.family == "phi" else decoder.norm
        self.requires_grad_(False)

    def arm(self, adapter: Adapter) -> FusedArm:
        """An adapter laid out for these weights. AdapterError when it does not fit them."""
        left = dict(adapter.layers)
        device = self.embedding.weight.device
        deltas: list[dict[str, _Delta]] = []
        for index, block in enumerate(self.blocks):
            deltas.append({})
            for product, parts in cast(_Block, block).parts.items():
                found = []
                for path, part in parts.items():
                    trained = left.pop(f"layers.{index}.{path}", None)
                    if trained is None:
                        continue
                    a, b = trained
                    shape = (
                        part.inputs.stop - part.inputs.start,
                        part.outputs.stop - part.outputs.start,
                    )
                    if (a.shape[1], b.out_features) != shape:
                        raise AdapterError(
                            f"the adapter maps {a.shape[1]} -> {b.out_features} at layers.{index}."
                            f"{path}, the backbone {shape[0]} -> {shape[1]}: it was trained on "
                            "another one"
                        )
                    up = DendriticLinear.of(b, adapter.activation).fused(adapter.scaling)
                    found.append((part, torch.as_tensor(a), up))
                if found:
                    deltas[-1][product] = _Delta(found, self.dtype)
        if left:
            raise AdapterError(
                f"the backbone has no layer {min(left)}: the adapter was trained on another one"
            )
        head = DendriticLinear.of(adapter.head, adapter.activation)
        return FusedArm(deltas, head.fused()).to(device)

    def forward(self, input_ids: Tensor, last: Tensor, arm: FusedArm) -> Tensor:
        """Ids (B, L), right-padded, and the last tokens' positions (B,) -> scores (B, classes).

        Padding is harmless: attention is causal, so no real token sees what stands behind it.
        """
        x = self.embedding(input_ids)
        for block, deltas in zip(self.blocks, arm.deltas, strict=True):
            x = self.step(x, block, deltas)
        return arm.head(self._pool(x, last))

    def _pool(self, x: Tensor, last: Tensor) -> Tensor:
        if self.pooling == "last":
            rows = x[torch.arange(x.shape[0], device=x.device), last]
            return self._normed(self.final_norm, rows).float()
        return self.pooled_normed(self._normed(self.final_norm, x), last)

    def pooled_normed(self, x: Tensor, last: Tensor) -> Tensor:
        """States (B, L, H) that have passed the final norm -> what a head reads (B, H), fp32."""
        if self.pooling == "last":
            return x[torch.arange(x.shape[0], device=x.device), last].float()
        states = x.float()
        real = torch.arange(x.shape[1], device=x.device)[None, :] <= last[:, None]
        kept = torch.where(real[:, :, None], states, 0.0)
        return kept.sum(dim=1) / (last + 1)[:, None]

    def _normed(self, norm: Any, x: Tensor) -> Tensor:
        if self.family == "phi":
            return norm(x)
        return F.rms_norm(x, (self._hidden,), norm.weight, norm.variance_epsilon)

    def _product(self, name: str, block: Any, x: Tensor, deltas: Any) -> Tensor:
        y = getattr(block, name)(x)
        return deltas[name](x, y) if name in deltas else y

    def _attend(self, joined: Tensor) -> Tensor:
        """Queries, keys and values side by side (B, L, ...) -> attended values (B, L, H)."""
        batch, length, _ = joined.shape
        heads = joined.view(batch, length, -1, self.heads.size)
        rotated = self.heads.queries + self.heads.keys
        qk, v = heads[:, :, :rotated], heads[:, :, rotated:]
        cos, sin = self.get_buffer("cos")[:length], self.get_buffer("sin")[:length]
        size = cos.shape[-1]
        turning, still = qk[..., :size], qk[..., size:]
        half = torch.cat((-turning[..., size // 2 :], turning[..., : size // 2]), dim=-1)
        turned = turning * cos + half * sin
        qk = torch.cat((turned, still), dim=-1) if size < self.heads.size else turned
        attended = F.scaled_dot_product_attention(
            qk[:, :, : self.heads.queries].transpose(1, 2),
            qk[:, :, self.heads.queries :].transpose(1, 2),
            v.transpose(1, 2),
            is_causal=True,
            enable_gqa=self.heads.queries != self.heads.keys,
        )
        return attended.transpose(1, 2).reshape(batch, length, -1)

    def _phi(self, x: Tensor, block: Any, deltas: Any) -> Tensor:
        joined = self._product("into", block, block.norm(x), deltas)
        split = (self.heads.queries + 2 * self.heads.keys) * self.heads.size
        attended = self._attend(joined[..., :split])
        inner = torch.cat((attended, block.act(joined[..., split:])), dim=-1)
        return x + self._product("out", block, inner, deltas)

    def _llama(self, x: Tensor, block: Any, deltas: Any) -> Tensor:
        h = self._normed(block.norm, x)
        attended = self._attend(self._product("into", block, h, deltas))
        x = x + self._product("out", block, attended, deltas)
        h = self._normed(block.middle_norm, x)
        gate, up = self._product("gate_up", block, h, deltas).chunk(2, dim=-1)
        return x + self._product("down", block, block.act(gate) * up, deltas)
