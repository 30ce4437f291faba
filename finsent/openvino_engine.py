"""SmolLM2 and other Llama-shaped decoders on a CPU, through OpenVINO.

The decoder is written down once in OpenVINO's operators and compiled twice: with 8-bit weights
(groups of 32, scale and zero point; the embedded weights were 4-bit in such groups to begin with)
and 8-bit activations quantised as they come, and in fp32, which is what the app uses. Where the
quick one is asked for, it answers unless its two best classes are closer than CLOSE_CALL; then fp32
does, so that labels do not depend on the rounding. Adapters are inputs of the compiled graph, never
constants in it: every arm, seed and data set runs on the same compiled base and costs its own size.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from openvino import opset13 as op
from safetensors import safe_open
from torch import Tensor

from finsent.adapters import Adapter, AdapterError
from finsent.backbones import BATCH_TOKENS
from finsent.dendritic_linear import DendriticLinear, FusedDendriticLinear
from finsent.files import write_bytes_atomically

FAMILIES = ("llama",)
"""`model_type` in config.json of the decoders that can be written down here."""
GROUP = 32
"""Inputs that share a scale: as in the 4-bit file that the embedded weights come from."""
ROUNDED_GROUP = 64
"""The same where inputs are rounded too: larger groups are faster and coarser."""
CLOSE_CALL = 2.0
"""Nats between the two best classes below which fp32 answers. Above the largest error of a score
difference seen so far with every product in 8 bits (1.8); bench/serve_cpu.py accuracy checks it."""

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
            max((b.n_dendrites for b in maps), default=0),
            min(kinds, default="relu"),
        )

    def holds(self, other: Structure) -> bool:
        """Whether a graph of this structure can run what `other` describes."""
        same = other.dendrites == 0 or other.activation == self.activation
        return same and other.dendrites <= self.dendrites and set(other.paths) <= set(self.paths)


@dataclass(frozen=True)
class _Product:
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


class _Graph:
    """Writes the decoder down in OpenVINO's operators."""

    def __init__(
        self, geometry: Geometry, structure: Structure, pooling: str, max_length: int, quick: bool
    ) -> None:
        self.geometry, self.structure = geometry, structure
        self.pooling, self.max_length, self.quick = pooling, max_length, quick
        self.parameters: list[Any] = []
        self.products: list[_Product] = []

    def build(self, tensors: Any) -> ov.Model:
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
        return ov.Model([op.result(pooled)], self.parameters, "decoder")

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

    def _norm(self, x: Any, weight: Tensor) -> Any:
        square = op.reduce_mean(op.power(x, _floats(2.0)), _ints([-1]), keep_dims=True)
        root = op.sqrt(op.add(square, _floats(self.geometry.epsilon)))
        normal = op.multiply(x, op.divide(_floats(1.0), root))
        return op.multiply(normal, op.constant(weight.float().numpy()))

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
        product = _Product(
            f"{prefix}{'+'.join(order)}",
            tuple((f"{prefix}{name}", weights[name].shape[0]) for name in order),
            adapted,
            weights[order[0]].shape[1],
        )
        joined = torch.cat([weights[name] for name in order])
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

    def _delta(self, x: Any, product: _Product) -> Any:
        """Adapters of one product: one product down, one up for W and all V, one combination."""
        width, k = product.adapted_width, self.structure.dendrites
        down = self._parameter(f"{product.name}/down", [-1, product.inner])
        up = self._parameter(f"{product.name}/up", [-1, -1])
        joined = op.matmul(op.matmul(x, down, False, True), up, False, True)
        if k == 0:
            return joined
        # An arm without dendrites hands in one zero row for each: broadcasting does the rest.
        y, drives = _split(joined, [width, -1])
        mixing = self._parameter(f"{product.name}/mixing", [k, -1])
        feeding = self._parameter(f"{product.name}/feeding", [k, k, -1]) if k > 1 else None
        if k > 1:
            drives = op.reshape(drives, _ints([0, 0, k, -1]), True)
        activate = {"relu": op.relu, "sigmoid": op.sigmoid, "tanh": op.tanh}
        outputs: list[Any] = []
        for i in range(k):
            drive = drives if k == 1 else op.gather(drives, _ints(i), _ints(2))
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


def _constant(weight: Tensor) -> Any:
    """A weight held as it was stored (bf16 stays bf16 on disk) and computed with in fp32."""
    if weight.dtype != torch.bfloat16:
        return op.constant(weight.float().numpy())
    raw = weight.contiguous().view(torch.int16).numpy()
    # A copy: the archive behind the tensor is closed before the graph is compiled.
    stored = ov.op.Constant(ov.Tensor(raw, list(raw.shape), ov.Type.bf16), shared_memory=False)
    return op.convert(stored, "f32")


def _grouped_u8(weight: Tensor, round_inputs: bool) -> Any:
    """scale * (code - zero), code in 0..255, for every 32 inputs of every output.

    With an integer zero OpenVINO rounds the inputs to 8 bits as well and multiplies integers. With
    a fractional one it multiplies in fp32, and the weights are as exact as bf16.
    """
    values = weight.float().numpy()
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


@dataclass(frozen=True)
class _Arm:
    """One adapter as inputs of the graphs."""

    adapter: Adapter
    inputs: dict[str, Array]
    head: FusedDendriticLinear


@dataclass
class _Compiled:
    model: Any
    stored_bytes: int
    requests: dict[str, Any] = field(default_factory=dict)


class OpenVinoEngine:
    """The base compiled, adapters as its inputs; see `finsent.engines.Engine`."""

    def __init__(
        self,
        folder: Path,
        weights_sha256: str,
        *,
        pooling: str,
        max_length: int,
        depth: int | None = None,
        cache: Path | None = None,
        threads: int | None = None,
        quick: bool = True,
    ) -> None:
        """folder: config.json and one safetensors file, whose checksum is given.

        cache: folder where compiled graphs are kept (None: nowhere). quick: 8-bit first, fp32 for
        close calls; else everything in fp32. Raises OpenVinoError for a decoder of another shape.
        """
        self.geometry = Geometry.read(folder, depth)
        self._folder, self._weights_sha256, self._cache = folder, weights_sha256, cache
        self._pooling, self._max_length, self._quick = pooling, max_length, quick
        self.threads = threads or len(os.sched_getaffinity(0))
        self._core = ov.Core()
        self._arms: dict[str, _Arm] = {}
        self._structure: Structure | None = None
        self._products: list[_Product] = []
        self._compiled: dict[bool, _Compiled] = {}
        self._lock = threading.Lock()
        self._compiling = threading.RLock()
        self.close_call = CLOSE_CALL
        self.close_calls = 0
        """Texts that fp32 answered because the quick answer was close."""

    @property
    def description(self) -> str:
        """Library and precision."""
        return "OpenVINO int8, close calls fp32" if self._quick else "OpenVINO fp32"

    @property
    def names(self) -> tuple[str, ...]:
        """Arms that are loaded."""
        return tuple(self._arms)

    def set_arms(self, adapters: Mapping[str, Adapter]) -> None:
        """Exchange all arms. The compiled base stays unless it cannot take their form."""
        wanted = Structure.of(list(adapters.values()))
        # Always in this order: a close call compiles while it holds the first.
        with self._lock, self._compiling:
            if self._structure is None or not self._structure.holds(wanted):
                self._structure = wanted
                self._compiled = {}
            self._ready(self._quick)
            arms = {name: self._lay_out(adapter) for name, adapter in adapters.items()}
            for compiled in self._compiled.values():
                compiled.requests = {}
            self._arms = arms

    @property
    def warm(self) -> bool:
        """Whether the fp32 graph is ready."""
        return False in self._compiled

    def warm_up(self) -> None:
        """Make the fp32 graph ready for close calls; the first one waits for it otherwise."""
        self._ready(False)

    @property
    def batch_tokens(self) -> int:
        """What two cores are fastest with."""
        return BATCH_TOKENS["cpu"]

    def scores(self, name: str, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Class scores (n, classes) of one arm. KeyError when no such arm is loaded."""
        with self._lock:
            arm = self._arms[name]
            ids, last = pad(token_ids)
            found = self._run(name, arm, ids, last, self._quick)
            if not self._quick:
                return found
            top = np.sort(found, axis=1)
            close = np.flatnonzero(top[:, -1] - top[:, -2] < self.close_call)
            if len(close):
                self.close_calls += len(close)
                longest = int(last[close].max()) + 1
                found[close] = self._run(name, arm, ids[close, :longest], last[close], False)
            return found

    def scores_in(
        self, name: str, token_ids: Sequence[Sequence[int]], *, quick: bool
    ) -> NDArray[np.float32]:
        """Class scores of one of the two graphs, whatever the rule says: to measure their error."""
        with self._lock:
            return self._run(name, self._arms[name], *pad(token_ids), quick)

    def parameter_bytes(self) -> tuple[int, dict[str, int]]:
        """Bytes of the compiled bases, as they are stored, and of each arm."""
        base = sum(compiled.stored_bytes for compiled in self._compiled.values())
        heads = {
            name: sum(t.numel() * t.element_size() for t in arm.head.buffers())
            for name, arm in self._arms.items()
        }
        arms = {
            name: sum(value.nbytes for value in arm.inputs.values()) + heads[name]
            for name, arm in self._arms.items()
        }
        return base, arms

    def _run(self, name: str, arm: _Arm, ids: Array, last: Array, quick: bool) -> Array:
        compiled = self._ready(quick)
        request = compiled.requests.get(name)
        if request is None:
            request = compiled.model.create_infer_request()
            for key, value in arm.inputs.items():
                request.set_tensor(key, ov.Tensor(value, shared_memory=True))
            compiled.requests[name] = request
        request.set_tensor("input_ids", ov.Tensor(ids, shared_memory=True))
        request.set_tensor("last", ov.Tensor(last, shared_memory=True))
        request.infer()
        pooled = torch.from_numpy(request.get_output_tensor(0).data)
        with torch.inference_mode():
            return arm.head(pooled).numpy()

    def _ready(self, quick: bool) -> _Compiled:
        """The compiled graph, from memory, the cache folder, or the weights."""
        found = self._compiled.get(quick)
        if found is not None:
            return found  # without waiting for the other one, which may be under way
        with self._compiling:
            if quick not in self._compiled:
                self._compiled[quick] = self._load(quick)
            return self._compiled[quick]

    def _options(self, quick: bool) -> dict[str, Any]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self.threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(ROUNDED_GROUP if quick else 0),
        }

    def _load(self, quick: bool) -> _Compiled:
        options = self._options(quick)
        store = None
        if self._cache is not None:
            store = _Stored(self._cache, self._key(quick, options))
            found = store.read()
            if found is not None:
                self._products, blob = found
                model = self._core.import_model(io.BytesIO(blob), "CPU", options)
                return _Compiled(model, len(blob))
        model = self._core.compile_model(self._write_down(quick), "CPU", options)
        stream = io.BytesIO()
        model.export_model(stream)
        blob = stream.getvalue()
        if store is not None:
            store.write(self._products, blob)
        return _Compiled(model, len(blob))

    def _key(self, quick: bool, options: Mapping[str, Any]) -> str:
        """Digest over everything that the compiled graph depends on."""
        assert self._structure is not None
        about = {
            "weights": self._weights_sha256,
            "code": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
            "openvino": ov.get_version(),
            "cpu": [
                self._core.get_property("CPU", "FULL_DEVICE_NAME"),
                self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
            ],
            "geometry": asdict(self.geometry),
            "structure": asdict(self._structure),
            "graph": [self._pooling, self._max_length, quick],
            "options": dict(options),
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def _write_down(self, quick: bool) -> ov.Model:
        assert self._structure is not None
        files = sorted(self._folder.glob("*.safetensors"))
        if len(files) != 1:
            raise OpenVinoError(f"{self._folder} has {len(files)} safetensors files, expected 1")
        graph = _Graph(self.geometry, self._structure, self._pooling, self._max_length, quick)
        with safe_open(files[0], framework="pt") as archive:
            names = set(archive.keys())

            def tensor(name: str) -> Tensor:
                return archive.get_tensor(name if name in names else f"model.{name}")

            model = graph.build(tensor)
        self._products = graph.products
        return model

    def _lay_out(self, adapter: Adapter) -> _Arm:
        """An adapter's tensors joined by product, in the order the graph expects."""
        assert self._structure is not None
        known = {path: width for p in self._products for path, width in p.layers[: p.adapted]}
        for path, (_, b) in adapter.layers.items():
            if path not in known or b.out_features != known[path]:
                raise AdapterError(
                    f"the adapter has {b.out_features} outputs at {path}, the backbone "
                    f"{known.get(path, 'no such layer')}: it was trained on another one"
                )
        inputs: dict[str, Array] = {}
        for product in self._products:
            inputs.update(_joined_inputs(product, adapter, self._structure.dendrites))
        return _Arm(adapter, inputs, adapter.head.fused())


class _Stored:
    """A compiled graph in a folder: its bytes, their checksum, and the products of the graph."""

    def __init__(self, folder: Path, key: str) -> None:
        self._blob, self._about = folder / f"{key}.blob", folder / f"{key}.json"

    def read(self) -> tuple[list[_Product], bytes] | None:
        """None when it is not there or its bytes are not those that were written."""
        if not (self._blob.is_file() and self._about.is_file()):
            return None
        about = json.loads(self._about.read_text(encoding="utf-8"))
        blob = self._blob.read_bytes()
        if hashlib.sha256(blob).hexdigest() != about["sha256"]:
            return None
        products = [
            _Product(
                p["name"], tuple((path, n) for path, n in p["layers"]), p["adapted"], p["inner"]
            )
            for p in about["products"]
        ]
        return products, blob

    def write(self, products: Sequence[_Product], blob: bytes) -> None:
        """Both files whole or not at all; the one that is looked for last comes last."""
        about = {
            "sha256": hashlib.sha256(blob).hexdigest(),
            "products": [asdict(product) for product in products],
        }
        write_bytes_atomically(self._blob, blob)
        write_bytes_atomically(self._about, json.dumps(about).encode())


def _joined_inputs(product: _Product, adapter: Adapter, k: int) -> dict[str, Array]:
    """down (r, in), up (W + dendrites, r), mixing t (k, W) and feeding d (k, k, W), scaled.

    Layers of the product have their own rows of `down` and their own blocks of `up`. Without
    dendrites, W in the last two places is 1 and everything there is zero.
    """
    adapted = product.layers[: product.adapted]
    members = [adapter.layers.get(path) for path, _ in adapted]
    ranks = [0 if m is None else m[0].shape[0] for m in members]
    total, width = max(sum(ranks), 1), product.adapted_width
    grown = max((0 if m is None else m[1].n_dendrites for m in members), default=0)
    span = width if grown else 1
    down = np.zeros((total, product.inner), np.float32)
    up = np.zeros((width, total), np.float32)
    dendrites = np.zeros((k, span, total), np.float32)
    mixing = np.zeros((k, span), np.float32)
    feeding = np.zeros((k, k, span), np.float32)
    row = rank_at = 0
    for (_, out), member, rank in zip(adapted, members, ranks, strict=True):
        if member is not None:
            a, b = member
            rows, columns = slice(row, row + out), slice(rank_at, rank_at + rank)
            down[columns] = a.float().numpy()
            up[rows, columns] = adapter.scaling * _numpy(b.weight)
            _join_dendrites(b, adapter.scaling, rows, columns, dendrites, mixing, feeding)
        row, rank_at = row + out, rank_at + rank
    inputs: dict[str, Array] = {f"{product.name}/down": down, f"{product.name}/up": up}
    if k:
        joined = np.concatenate([up, dendrites.reshape(k * span, total)])
        inputs[f"{product.name}/up"] = joined
        inputs[f"{product.name}/mixing"] = mixing
    if k > 1:
        inputs[f"{product.name}/feeding"] = feeding
    return inputs


def _join_dendrites(
    b: DendriticLinear,
    scaling: float,
    rows: slice,
    columns: slice,
    dendrites: Array,
    mixing: Array,
    feeding: Array,
) -> None:
    if b.output_weights is None:
        return
    for i, dendrite in enumerate(b.dendrites):
        dendrites[i, rows, columns] = _numpy(dendrite.weight)
        mixing[i, rows] = scaling * _numpy(b.output_weights[i])
        for j in range(i):
            feeding[i, j, rows] = _numpy(b.recurrent[str(i)][j])


def _numpy(tensor: Any) -> Array:
    return tensor.detach().float().numpy()


def pad(token_ids: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """Right-padded ids (n, longest) and the positions of the last tokens (n,), int64."""
    longest = max(len(ids) for ids in token_ids)
    rows = np.zeros((len(token_ids), longest), np.int64)
    for row, ids in zip(rows, token_ids, strict=True):
        row[: len(ids)] = ids
    return rows, np.array([len(ids) - 1 for ids in token_ids], np.int64)
