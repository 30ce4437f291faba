"""An adapter as inputs of the graphs of finsent.engines.openvino_model, padded with zeros to the
graph's structure, the scaling in it. Free of torch and of OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finsent.models.adapter_files import Adapter, AdapterError, DendriticMap

HEAD = "score"
"""Of the names of the head's inputs."""
ROUNDED_GROUP = 64
"""Inputs that share a scale where they are rounded to 8 bits; larger groups are faster, coarser."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Group:
    """Adapted layers that read the same input: their adapters share one first product."""

    layers: tuple[tuple[str, int], ...]
    """(path, output width)"""
    inner: int
    """Input width."""

    @property
    def down(self) -> str:
        """Name of the input that holds the first maps of all layers side by side."""
        return f"{self.layers[0][0]}/down"


@dataclass(frozen=True)
class Structure:
    """Which layers of a graph take adapters, and of which form."""

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
        if any(a.differences for a in adapters):
            raise AdapterError(
                "weights trained in full differ from arm to arm, and OpenVINO's base serves all "
                "arms; choose --engine torch"
            )
        maps = [b for a in adapters for _, b in a.layers.values()]
        if any(v is not None for b in maps for v in (b.bias, *(c for _, c in b.dendrites))):
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


def adapter_inputs(
    adapter: Adapter, groups: Sequence[Group], dendrites: int, hidden: int
) -> dict[str, Array]:
    """Every input of a graph but the texts, by name, each with a leading dimension of one.

    groups: those of the graph; dendrites: of its structure; hidden: what its head reads.
    AdapterError when the adapter was trained on another backbone.
    """
    known = {path: (group.inner, out) for group in groups for path, out in group.layers}
    for path, (a, b) in adapter.layers.items():
        found = (a.shape[1], b.out_features)
        if known.get(path) != found:
            raise AdapterError(
                f"the adapter maps {found[0]} -> {found[1]} at {path}, the backbone "
                f"{known.get(path, 'has no such layer')}: it was trained on another one"
            )
    head = adapter.head
    if head.in_features != hidden:
        raise AdapterError(
            f"the adapter's head reads {head.in_features} features, the backbone has {hidden}: it "
            "was trained on another one"
        )
    inputs = {
        f"{HEAD}/up": head.weight.T,
        f"{HEAD}/bias": np.zeros(head.out_features) if head.bias is None else head.bias,
    }
    inputs |= _dendrite_inputs(HEAD, head, dendrites, 1.0, hidden, slice(None))
    for i in range(dendrites):
        c = head.dendrites[i][1] if i < head.n_dendrites else None
        inputs[f"{HEAD}/dendrites_bias.{i}"] = np.zeros(1) if c is None else c
    for group in groups:
        inputs |= _group_inputs(group, adapter, dendrites)
    return {name: _three_dimensional(value) for name, value in inputs.items()}


def _group_inputs(group: Group, adapter: Adapter, dendrites: int) -> dict[str, Array]:
    """First maps (in, ranks) side by side; for every layer a second map (ranks, out) that is zero
    but in its own ranks' rows."""
    members = [adapter.layers.get(path) for path, _ in group.layers]
    ranks = [0 if m is None else m[0].shape[0] for m in members]
    total = max(sum(ranks), 1)
    down = np.zeros((group.inner, total), np.float32)
    inputs = {group.down: down}
    start = 0
    for (path, out), member, rank in zip(group.layers, members, ranks, strict=True):
        rows = slice(start, start + rank)
        up = np.zeros((total, out), np.float32)
        b = None
        if member is not None:
            a, b = member
            down[:, rows] = np.asarray(a).T
            up[rows] = adapter.scaling * np.asarray(b.weight, np.float32).T
        inputs[f"{path}/up"] = up
        inputs |= _dendrite_inputs(path, b, dendrites, adapter.scaling, total, rows)
        start += rank
    return inputs


def _dendrite_inputs(
    name: str, trained: DendriticMap | None, k: int, scaling: float, inner: int, rows: slice
) -> dict[str, Array]:
    """V_i (inner, out), t_i and d_ij (out,) of one map; where nothing was grown, out is 1 and all
    zero: broadcasting does the rest."""
    grown = 0 if trained is None else trained.n_dendrites
    inputs: dict[str, Array] = {}
    for i in range(k):
        weights, mixing = np.zeros((inner, 1), np.float32), np.zeros(1, np.float32)
        if trained is not None and i < grown:
            weights = np.zeros((inner, trained.out_features), np.float32)
            weights[rows] = np.asarray(trained.dendrites[i][0]).T
            mixing = scaling * np.asarray(trained.output_weights[i], np.float32)
        inputs[f"{name}/dendrites.{i}"], inputs[f"{name}/mixing.{i}"] = weights, mixing
        for j in range(i):
            fed = trained is not None and i < grown
            inputs[f"{name}/feeding.{i}.{j}"] = (
                trained.recurrent[i - 1][j] if trained is not None and fed else np.zeros(1)
            )
    return inputs


def input_names(groups: Sequence[Group], k: int) -> list[str]:
    """Names of what `adapter_inputs` returns, in an order that is always the same."""
    paths = [HEAD, *(path for group in groups for path, _ in group.layers)]
    names = [f"{HEAD}/bias", *(group.down for group in groups), *(f"{p}/up" for p in paths)]
    for i in range(k):
        names.append(f"{HEAD}/dendrites_bias.{i}")
        for path in paths:
            names += [f"{path}/dendrites.{i}", f"{path}/mixing.{i}"]
            names += [f"{path}/feeding.{i}.{j}" for j in range(i)]
    return names


def input_shapes(groups: Sequence[Group], k: int, hidden: int) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the same, -1 where arms differ: ranks, classes, and maps without dendrites."""
    inner = {HEAD: hidden} | {path: -1 for group in groups for path, _ in group.layers}
    out = {HEAD: -1} | {path: width for group in groups for path, width in group.layers}
    down = {group.down: group.inner for group in groups}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in input_names(groups, k):
        path, kind = name.rsplit("/", 1)
        if kind == "down":
            shapes[name] = (-1, down[name], -1)
        elif kind == "up":
            shapes[name] = (-1, inner[path], out[path])
        elif kind.startswith("dendrites."):
            shapes[name] = (-1, inner[path], -1)
        else:
            shapes[name] = (-1, 1, -1)
    return shapes


def _three_dimensional(values: Any) -> Array:
    array = np.ascontiguousarray(values, np.float32)
    return array.reshape(1, *((1,) * (2 - array.ndim)), *array.shape)
