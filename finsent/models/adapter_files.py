"""Adapter files as plain arrays: what serving reads of them, free of torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from finsent.config import SCALES

FORMAT = "finsent-adapter-1"
INNER = "inner."
"""Begins the names of what dendrites of a whole layer read instead of A x: A_i (r, in)."""


class AdapterError(ValueError):
    """An adapter file that is not one, or does not fit the model."""


@dataclass(frozen=True)
class DendriticMap:
    """The tensors of a linear map with k dendrites, numpy's or torch's; the formula stands in
    finsent.models.dendritic_linear.

    ValueError when their shapes do not describe one map.
    """

    weight: Any
    """W (out, in)"""
    bias: Any
    """b (out,) or None"""
    dendrites: tuple[tuple[Any, Any], ...] = ()
    """V_i (out, in) and c_i, (out,) or None"""
    output_weights: Any = None
    """t (k, out); None when k = 0"""
    recurrent: tuple[Any, ...] = ()
    """d_i (i, out), i = 1 .. k - 1"""

    def __post_init__(self) -> None:
        k, out = self.n_dendrites, self.out_features
        shapes = [tuple(v.shape) for v, _ in self.dendrites]
        like = tuple(self.weight.shape)
        if any(shape != like for shape in shapes):
            raise ValueError(f"dendrite weights must be {like} like W, got {shapes}")
        expected = None if k == 0 else (k, out)
        found = None if self.output_weights is None else tuple(self.output_weights.shape)
        if found != expected:
            raise ValueError(f"output weights must have shape {expected}, got {found}")
        wanted = [(i, out) for i in range(1, k)]
        shapes = [tuple(d.shape) for d in self.recurrent]
        if shapes != wanted:
            raise ValueError(f"recurrent weights must have shapes {wanted}, got {shapes}")

    def each(self, function: Callable[[Any], Any]) -> DendriticMap:
        """The map of what `function` makes of every tensor."""

        def of(tensor: Any) -> Any:
            return None if tensor is None else function(tensor)

        return DendriticMap(
            of(self.weight),
            of(self.bias),
            tuple((of(v), of(c)) for v, c in self.dendrites),
            of(self.output_weights),
            tuple(of(d) for d in self.recurrent),
        )

    @property
    def in_features(self) -> int:
        """Size of the last input dimension."""
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        """Size of the last output dimension."""
        return int(self.weight.shape[0])

    @property
    def n_dendrites(self) -> int:
        """Dendrites per output unit."""
        return len(self.dendrites)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> DendriticMap:
        """The map whose tensors have these names, as `DendriticLinear.state_dict()` gives them.

        KeyError for a missing tensor, ValueError for one that has no place: a dendrite lost on
        loading would silently be another model.
        """
        left = dict(tensors)
        weight, bias = left.pop("weight"), left.pop("bias", None)
        output_weights = left.pop("output_weights", None)
        k = 0 if output_weights is None else output_weights.shape[0]
        dendrites = tuple(
            (left.pop(f"dendrites.{i}.weight"), left.pop(f"dendrites.{i}.bias", None))
            for i in range(k)
        )
        recurrent = tuple(left.pop(f"recurrent.{i}") for i in range(1, k))
        if left:
            raise ValueError(f"tensors without a place in a map with {k} dendrites: {sorted(left)}")
        return cls(weight, bias, dendrites, output_weights, recurrent)


@dataclass(frozen=True)
class Adapter:
    """A trained adapter as read from its file, fp32."""

    scaling: float
    activation: str
    """Of the dendrites; "none" without any."""
    layers: dict[str, tuple[Any, DendriticMap]]
    """By layer path: A (r, in) and the B map, with dendrites if any."""
    head: DendriticMap
    """hidden -> classes"""
    differences: dict[str, DendriticMap] = field(default_factory=dict)
    """By layer path: what a weight trained in full gained, with dendrites if any; no bias."""

    @property
    def n_dendrites(self) -> int:
        """Largest number of dendrites of any map."""
        maps = [self.head, *(b for _, b in self.layers.values()), *self.differences.values()]
        return max(m.n_dendrites for m in maps)


def load_adapter(path: Path) -> Adapter:
    """Read an adapter file. AdapterError names what is wrong with it."""
    if not path.is_file():
        raise AdapterError(f"there is no adapter at {path}; train one with train_models.py")
    try:
        with safe_open(path, framework="np") as archive:
            about = json.loads((archive.metadata() or {}).get("finsent", "{}"))
            names = archive.keys()
            held = {name: archive.get_tensor(name).astype(np.float32) for name in names}
    except SafetensorError as error:
        raise AdapterError(f"{path} is not a readable safetensors file: {error}") from error
    if about.get("format") != FORMAT:
        raise AdapterError(f"{path} has format {about.get('format')!r}, expected {FORMAT!r}")
    tensors = {
        name: tensor * held[name + SCALES] if name + SCALES in held else tensor
        for name, tensor in held.items()
        if not name.endswith(SCALES)
    }
    groups: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        try:
            key, rest = split_tensor_name(name)
        except ValueError as error:
            raise AdapterError(f"{path}: {error}") from error
        groups.setdefault(key, {})[rest] = tensor
    if "score" not in groups:
        raise AdapterError(f"{path} has no score head")
    head = _map_of(path, "score", groups.pop("score"))
    differences = {
        name.removesuffix(".difference"): _map_of(path, name, groups.pop(name))
        for name in [key for key in groups if key.endswith(".difference")]
    }
    layers = {}
    for name in [key.removesuffix(".lora_A") for key in groups if key.endswith(".lora_A")]:
        a = groups.pop(f"{name}.lora_A")
        b = groups.pop(f"{name}.lora_B", None)
        if b is None or set(a) != {"weight"}:
            raise AdapterError(f"{path}: {name} needs lora_A.weight and lora_B.weight")
        layers[name] = _stacked(path, name, a["weight"], b)
    if groups:
        raise AdapterError(f"{path}: lora_B without lora_A for {sorted(groups)}")
    return Adapter(float(about["scaling"]), about["activation"], layers, head, differences)


def _stacked(path: Path, name: str, a: Any, b: Mapping[str, Any]) -> tuple[Any, DendriticMap]:
    """A and the B map. Dendrites that read the layer's input through maps of their own become such
    as read A x, by putting every A_i below A and zeros where a map does not read: one forward pass
    serves both kinds."""
    inner = [b[key] for key in sorted(b) if key.startswith(INNER)]
    made = _map_of(path, f"{name}.lora_B", {k: v for k, v in b.items() if not k.startswith(INNER)})
    if not inner:
        return a, made
    if len(inner) != made.n_dendrites:
        raise AdapterError(
            f"{path}: {name} has {made.n_dendrites} dendrites and {len(inner)} inner maps"
        )
    blocks = [a, *inner]
    ends = np.cumsum([0, *(len(block) for block in blocks)])

    def widened(matrix: Any, place: int) -> Any:
        wide = np.zeros((matrix.shape[0], ends[-1]), matrix.dtype)
        wide[:, ends[place] : ends[place + 1]] = matrix
        return wide

    dendrites = tuple((widened(v, i), c) for i, (v, c) in enumerate(made.dendrites, start=1))
    weight = widened(made.weight, 0)
    whole = DendriticMap(weight, made.bias, dendrites, made.output_weights, made.recurrent)
    return np.concatenate(blocks), whole


def _map_of(path: Path, name: str, tensors: Mapping[str, Any]) -> DendriticMap:
    try:
        return DendriticMap.from_tensors(tensors)
    except KeyError as error:
        raise AdapterError(f"{path}: {name} has no {error.args[0]}") from error
    except ValueError as error:
        raise AdapterError(f"{path}: {name}: {error}") from error


def split_tensor_name(name: str) -> tuple[str, str]:
    """`layers.3.….lora_B.dendrites.0.weight` -> (`layers.3.….lora_B`, `dendrites.0.weight`).

    ValueError for a name that no adapter file has.
    """
    for part in (".lora_A.", ".lora_B.", ".difference."):
        if part in name:
            path, rest = name.split(part, 1)
            return path + part.rstrip("."), rest
    path, dot, rest = name.partition(".")
    if path != "score" or not dot:
        raise ValueError(f"no module takes a tensor called {name}")
    return path, rest
