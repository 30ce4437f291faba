"""A Llama-shaped decoder with adapters, written down in OpenVINO's operators.

What every arm shares is constant in the graph; adapters and heads are inputs of it. Free of torch:
weights come as plain arrays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op
from safetensors import deserialize

from finsent.models.adapter_files import Adapter, AdapterError

FAMILIES = ("llama",)
"""`model_type` in config.json of the decoders that can be written down here."""
GROUP = 32
"""Inputs that share a scale: as in the 4-bit file that the embedded weights come from."""
ROUNDED_GROUP = 64
"""The same where inputs are rounded too: larger groups are faster and coarser."""
HEAD = "score"
"""Of the names of the head's inputs."""

Array = NDArray[Any]


class OpenVinoError(RuntimeError):
    """A decoder that this engine cannot run."""


@dataclass(frozen=True)
class Geometry:
    """What config.json says about a Llama-shaped decoder."""

    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    blocks: int
    epsilon: float
    rope_theta: float

    @classmethod
    def read(cls, folder: Path, depth: int | None) -> Geometry:
        """OpenVinoError for a decoder of another shape than the one written down here."""
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        why_not = unsupported(about)
        if why_not:
            raise OpenVinoError(f"{folder}: {why_not}")
        rope = about.get("rope_parameters") or about
        heads = about["num_attention_heads"]
        return cls(
            hidden=about["hidden_size"],
            heads=heads,
            kv_heads=about.get("num_key_value_heads") or heads,
            head_size=about.get("head_dim") or about["hidden_size"] // heads,
            blocks=depth or about["num_hidden_layers"],
            epsilon=about["rms_norm_eps"],
            rope_theta=rope["rope_theta"],
        )


def unsupported(about: Mapping[str, Any]) -> str | None:
    """Why a decoder with this config.json cannot be written down here; None when it can."""
    if about.get("model_type") not in FAMILIES:
        return f"model_type {about.get('model_type')!r} is not one of {', '.join(FAMILIES)}"
    rope = about.get("rope_parameters") or about.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        return f"rotary embedding of type {kind!r}"
    if about.get("hidden_act") != "silu":
        return f"activation {about.get('hidden_act')!r}"
    if about.get("attention_bias") or about.get("mlp_bias"):
        return "biases in attention or MLP"
    width = about["hidden_size"], about["intermediate_size"]
    if any(size % GROUP for size in width):
        return f"widths {width} are no multiples of {GROUP}"
    return None


@dataclass(frozen=True)
class Stored:
    """A weight as its file holds it."""

    raw: Array
    """fp16 or fp32; of bf16, which numpy does not know, the bits as uint16."""
    is_bf16: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in), or (width,)."""
        return self.raw.shape

    def float(self) -> Array:
        """In fp32."""
        if not self.is_bf16:
            return self.raw.astype(np.float32)
        return (self.raw.astype(np.uint32) << 16).view(np.float32)


Weights = Callable[[str], Stored]
"""By name below the decoder."""
_KINDS = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


def read_weights(folder: Path) -> Weights:
    """The weights of a model folder, all in memory. OpenVinoError unless they are in one file."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise OpenVinoError(f"{folder} has {len(files)} safetensors files, expected 1")
    entries: Any = deserialize(files[0].read_bytes())  # type: ignore[no-untyped-call]
    stored = dict(entries)

    def weight(name: str) -> Stored:
        entry = stored[name if name in stored else f"model.{name}"]
        if entry["dtype"] not in _KINDS:
            raise OpenVinoError(f"{files[0]}: {name} is held in {entry['dtype']}")
        raw = np.frombuffer(entry["data"], _KINDS[entry["dtype"]]).reshape(entry["shape"])
        return Stored(raw, entry["dtype"] == "BF16")

    return weight


@dataclass(frozen=True)
class Structure:
    """Which products of the graph take adapters, and of which form."""

    paths: tuple[str, ...]
    """Layer paths of all adapters, sorted."""
    dendrites: int
    """Most dendrites of any map of any adapter."""
    activation: str

    @classmethod
    def of(cls, adapters: Sequence[Adapter]) -> Structure:
        """The smallest structure that holds all of them. AdapterError when nothing can."""
        kinds = {a.activation for a in adapters if a.n_dendrites}
        if len(kinds) > 1:
            raise AdapterError(f"dendrites of different activations together: {sorted(kinds)}")
        maps = [b for a in adapters for _, b in a.layers.values()]
        if any(b.bias is not None for b in maps):
            raise AdapterError("LoRA maps with a bias are not served by OpenVINO")
        return cls(
            tuple(sorted({path for a in adapters for path in a.layers})),
            max((a.n_dendrites for a in adapters), default=0),
            min(kinds, default="relu"),
        )

    def holds(self, other: Structure) -> bool:
        """Whether a graph of this structure can run what `other` describes."""
        same = other.dendrites == 0 or other.activation == self.activation
        return same and other.dendrites <= self.dendrites and set(other.paths) <= set(self.paths)


@dataclass(frozen=True)
class Product:
    """One matrix product of a block: layers with the same input, adapted ones first."""

    name: str
    layers: tuple[tuple[str, int], ...]
    """(path, output width)"""
    adapted: int
    """How many of them take an adapter."""
    inner: int
    """Input width."""

    @property
    def adapted_width(self) -> int:
        return sum(width for _, width in self.layers[: self.adapted])


class Graph:
    """Writes the decoder down in OpenVINO's operators."""

    def __init__(
        self, geometry: Geometry, structure: Structure, pooling: str, max_length: int, quick: bool
    ) -> None:
        self.geometry, self.structure = geometry, structure
        self.pooling, self.max_length, self.quick = pooling, max_length, quick
        self.parameters: list[Any] = []
        self.products: list[Product] = []

    def build(self, tensors: Weights) -> ov.Model:
        """Token ids "input_ids" (n, L) and "last" (n,), and every adapter input -> class scores
        (n, classes)."""
        g = self.geometry
        ids = self._parameter("input_ids", [-1, -1], np.int64)
        last = self._parameter("last", [-1], np.int64)
        table = _constant(tensors("embed_tokens.weight"))
        x = op.gather(table, ids, _ints(0))
        length = op.gather(op.shape_of(ids), _ints([1]), _ints(0))
        self._angles(length)
        only = op.unsqueeze(last, _ints(1)) if self.pooling == "last" else None
        for index in range(g.blocks):
            x = self._block(x, index, tensors, only if index == g.blocks - 1 else None)
        if only is not None:
            pooled = op.squeeze(self._norm(x, tensors("norm.weight")), _ints(1))
        else:
            states = self._norm(x, tensors("norm.weight"))
            steps = op.range(_ints(0), op.squeeze(length, _ints([0])), _ints(1), output_type="i64")
            real = op.less_equal(op.unsqueeze(steps, _ints(0)), op.unsqueeze(last, _ints(1)))
            kept = op.select(op.unsqueeze(real, _ints(2)), states, _floats(0.0))
            count = op.convert(op.add(last, _ints(1)), "f32")
            pooled = op.divide(
                op.reduce_sum(kept, _ints([1]), keep_dims=False), op.unsqueeze(count, _ints(1))
            )
        return ov.Model([op.result(self._head(pooled))], self.parameters, "decoder")

    def _head(self, pooled: Any) -> Any:
        """The score head: two products, since the number of classes is an input's."""
        hidden, k = self.geometry.hidden, self.structure.dendrites

        def product(name: str) -> Any:
            weight = self._parameter(f"{HEAD}/{name}", [-1, hidden])
            bias = self._parameter(f"{HEAD}/{name}_bias", [-1])
            return op.add(op.matmul(pooled, weight, False, True), bias)

        y = product("weight")
        return self._combined(y, product("dendrites"), HEAD, 1) if k else y

    def _parameter(self, name: str, shape: Sequence[int], kind: Any = np.float32) -> Any:
        node = op.parameter(list(shape), kind, name=name)
        node.output(0).get_tensor().set_names({name})
        self.parameters.append(node)
        return node

    def _angles(self, length: Any) -> None:
        g = self.geometry
        inverse = 1.0 / g.rope_theta ** (
            np.arange(0, g.head_size, 2, dtype=np.float32) / g.head_size
        )
        angles = np.outer(np.arange(self.max_length, dtype=np.float32), inverse)
        angles = np.concatenate([angles, angles], axis=1)[None, None].astype(np.float32)
        start, step, axis = _ints([0]), _ints([1]), _ints([2])

        def turning(scale: float) -> tuple[Any, Any]:
            tables = (np.cos(angles) * np.float32(scale), np.sin(angles) * np.float32(scale))
            cos, sin = (op.slice(op.constant(t), start, length, step, axis) for t in tables)
            return cos, sin

        # Attention divides by sqrt(head size); the queries' angles carry it.
        self._query_turn, self._key_turn = turning(g.head_size**-0.5), turning(1.0)
        # Heads that share keys are stacked along the length, so the mask repeats for each.
        mask = np.triu(np.full((self.max_length, self.max_length), -1e9, np.float32), 1)
        both = op.concat([length, length], 0)
        square = op.slice(op.constant(mask), _ints([0, 0]), both, _ints([1, 1]), _ints([0, 1]))
        self._mask = op.tile(square, _ints([g.heads // g.kv_heads, 1]))
        self._length = length

    def _block(self, x: Any, index: int, tensors: Any, only: Any) -> Any:
        prefix = f"layers.{index}."
        names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        h = self._norm(x, tensors(f"{prefix}input_layernorm.weight"))
        q, k, v = self._project(h, prefix, names, tensors)
        attended = self._attend(q, k, v)
        if only is not None:
            # Nothing reads the other tokens after the last block's attention.
            x, attended = (op.gather(t, only, _ints(1), 1) for t in (x, attended))
        x = op.add(x, self._project(attended, prefix, ("self_attn.o_proj",), tensors)[0])
        h = self._norm(x, tensors(f"{prefix}post_attention_layernorm.weight"))
        # One product each: taking a joined one apart costs more than it saves.
        gate, up = (
            self._project(h, prefix, (name,), tensors)[0]
            for name in ("mlp.gate_proj", "mlp.up_proj")
        )
        inner = op.multiply(op.swish(gate), up)
        return op.add(x, self._project(inner, prefix, ("mlp.down_proj",), tensors)[0])

    def _norm(self, x: Any, weight: Stored) -> Any:
        square = op.reduce_mean(op.power(x, _floats(2.0)), _ints([-1]), keep_dims=True)
        root = op.sqrt(op.add(square, _floats(self.geometry.epsilon)))
        normal = op.multiply(x, op.divide(_floats(1.0), root))
        return op.multiply(normal, op.constant(weight.float()))

    def _attend(self, q: Any, k: Any, v: Any) -> Any:
        g = self.geometry

        def heads(t: Any, n: int) -> Any:
            split = op.reshape(t, _ints([0, 0, n, g.head_size]), True)
            return op.transpose(split, _ints([0, 2, 1, 3]))

        def turn(t: Any, cos: Any, sin: Any) -> Any:
            # OpenVINO makes one node of this form and of the transposition before it.
            halves = op.variadic_split(t, _ints(3), _ints([g.head_size // 2] * 2))
            swapped = op.concat(
                [op.multiply(halves.output(1), _floats(-1.0)), halves.output(0)], -1
            )
            return op.add(op.multiply(t, cos), op.multiply(swapped, sin))

        q = turn(heads(q, g.heads), *self._query_turn)
        q = op.reshape(q, _ints([0, g.kv_heads, -1, g.head_size]), True)
        k, v = turn(heads(k, g.kv_heads), *self._key_turn), heads(v, g.kv_heads)
        scores = op.softmax(op.add(op.matmul(q, k, False, True), self._mask), -1)
        found = op.matmul(scores, v, False, False)
        shape = op.concat([_ints([0, g.heads]), self._length, _ints([g.head_size])], 0)
        found = op.transpose(op.reshape(found, shape, True), _ints([0, 2, 1, 3]))
        return op.reshape(found, _ints([0, 0, g.heads * g.head_size]), True)

    def _project(self, x: Any, prefix: str, names: Sequence[str], tensors: Any) -> list[Any]:
        """x through several layers as one product, plus their adapters; results in order."""
        weights = {name: tensors(f"{prefix}{name}.weight") for name in names}
        order = sorted(names, key=lambda name: f"{prefix}{name}" not in self.structure.paths)
        adapted = sum(f"{prefix}{name}" in self.structure.paths for name in names)
        product = Product(
            f"{prefix}{'+'.join(order)}",
            tuple((f"{prefix}{name}", weights[name].shape[0]) for name in order),
            adapted,
            weights[order[0]].shape[1],
        )
        joined = _joined([weights[name] for name in order])
        constant = _constant(joined)
        if self.quick:
            # Rounding what decides where attention looks costs most of the accuracy there is to
            # lose, for a sixth of the arithmetic: those products take their inputs in fp32.
            constant = _grouped_u8(joined, round_inputs="self_attn.q_proj" not in names)
        y = op.matmul(x, constant, False, True)
        pieces: list[Any] = []
        if adapted:
            self.products.append(product)
            rest = joined.shape[0] - product.adapted_width
            parts = _split(y, [product.adapted_width, rest] if rest else [product.adapted_width])
            touched = op.add(parts[0], self._delta(x, product))
            pieces += _split(touched, [width for _, width in product.layers[:adapted]])
            if rest:
                pieces += _split(parts[1], [width for _, width in product.layers[adapted:]])
        else:
            pieces += _split(y, [width for _, width in product.layers])
        by_name = dict(zip(order, pieces, strict=True))
        return [by_name[name] for name in names]

    def _delta(self, x: Any, product: Product) -> Any:
        """Adapters of one product: one product down, one up for W and all V, one combination."""
        width, k = product.adapted_width, self.structure.dendrites
        down = self._parameter(f"{product.name}/down", [-1, product.inner])
        up = self._parameter(f"{product.name}/up", [-1, -1])
        joined = op.matmul(op.matmul(x, down, False, True), up, False, True)
        if k == 0:
            return joined
        # An arm without dendrites hands in one zero row for each: broadcasting does the rest.
        y, drives = _split(joined, [width, -1])
        return self._combined(y, drives, product.name, 2)

    def _combined(self, y: Any, drives: Any, name: str, axis: int) -> Any:
        """y plus what the dendrites make of their drives, whose last axis, after `axis` others, has
        the first of them, the second, and so on."""
        k = self.structure.dendrites
        mixing = self._parameter(f"{name}/mixing", [k, -1])
        feeding = self._parameter(f"{name}/feeding", [k, k, -1]) if k > 1 else None
        if k > 1:
            drives = op.reshape(drives, _ints([*[0] * axis, k, -1]), True)
        activate = {"relu": op.relu, "sigmoid": op.sigmoid, "tanh": op.tanh}
        outputs: list[Any] = []
        for i in range(k):
            drive = drives if k == 1 else op.gather(drives, _ints(i), _ints(axis))
            for j in range(i):
                weight = op.gather(op.gather(feeding, _ints(i), _ints(0)), _ints(j), _ints(0))
                drive = op.add(drive, op.multiply(weight, outputs[j]))
            outputs.append(activate[self.structure.activation](drive))
            top = mixing if k == 1 else op.gather(mixing, _ints([i]), _ints(0))
            y = op.add(y, op.multiply(outputs[i], top))
        return y


def _ints(value: Any) -> Any:
    return op.constant(np.array(value, np.int64))


def _floats(value: float) -> Any:
    return op.constant(np.array(value, np.float32))


def _split(x: Any, widths: Sequence[int]) -> list[Any]:
    if len(widths) == 1:
        return [x]
    parts = op.variadic_split(x, _ints(-1), _ints(list(widths)))
    return [parts.output(i) for i in range(len(widths))]


def _joined(weights: Sequence[Stored]) -> Stored:
    """Row under row."""
    if len({(w.is_bf16, w.raw.dtype) for w in weights}) == 1:
        return Stored(np.concatenate([w.raw for w in weights]), weights[0].is_bf16)
    return Stored(np.concatenate([w.float() for w in weights]), is_bf16=False)


def _constant(weight: Stored) -> Any:
    """A weight held as it was stored (bf16 stays bf16 on disk) and computed with in fp32."""
    if not weight.is_bf16:
        return op.constant(weight.float())
    raw = np.ascontiguousarray(weight.raw)
    stored = ov.op.Constant(ov.Tensor(raw, list(raw.shape), ov.Type.bf16), shared_memory=False)
    return op.convert(stored, "f32")


def _grouped_u8(weight: Stored, round_inputs: bool) -> Any:
    """scale * (code - zero), code in 0..255, for every 32 inputs of every output.

    With an integer zero OpenVINO rounds the inputs to 8 bits as well and multiplies integers. With
    a fractional one it multiplies in fp32, and the weights are as exact as bf16.
    """
    values = weight.float()
    out, inner = values.shape
    size = ROUNDED_GROUP if round_inputs and inner % ROUNDED_GROUP == 0 else GROUP
    groups = values.reshape(out, inner // size, size)
    low, high = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    if round_inputs:
        # Zero has to lie within the range, or its place in 0..255 would be cut off.
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    scale = (high - low) / 255
    scale[scale == 0] = 1.0
    zero = -low / scale
    codes = np.rint((groups - low) / scale)
    if round_inputs:
        codes, zero = np.rint(groups / scale) + np.rint(zero), np.rint(zero)
        place = op.convert(op.constant(zero.astype(np.uint8)), "f32")
    else:
        place = op.constant(zero.astype(np.float32))
    stored = op.convert(op.constant(codes.clip(0, 255).astype(np.uint8)), "f32")
    whole = op.multiply(op.subtract(stored, place), op.constant(scale.astype(np.float32)))
    return op.reshape(whole, _ints([out, inner]), False)
