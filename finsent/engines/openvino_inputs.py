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
    """Adapted layers that read the same input: their adapters are joined to one."""

    layers: tuple[tuple[str, int], ...]
    """(path, output width)"""
    inner: int
    """Input width."""

    @property
    def name(self) -> str:
        """Of the group's inputs, which hold the maps of all layers."""
        return self.layers[0][0]

    @property
    def down(self) -> str:
        """Name of the input that holds the first maps."""
        return f"{self.name}/down"

    @property
    def width(self) -> int:
        """Outputs of all layers."""
        return sum(out for _, out in self.layers)


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
    inputs = {f"{HEAD}/bias": np.zeros(head.out_features) if head.bias is None else head.bias}
    inputs |= _map_inputs(HEAD, head, dendrites, 1.0)
    for i in range(dendrites):
        c = head.dendrites[i][1] if i < head.n_dendrites else None
        inputs[f"{HEAD}/dendrites_bias.{i}"] = np.zeros(1) if c is None else c
    for group in groups:
        inputs |= _group_inputs(group, adapter, dendrites)
    return {name: _three_dimensional(value) for name, value in inputs.items()}


def side_by_side(arms: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The inputs of several arms as rows of one batch, with zeros where an arm has less."""
    together = {}
    for name in arms[0] if arms else ():
        values = [arm[name] for arm in arms]
        shape = tuple(max(sizes) for sizes in zip(*(v.shape[1:] for v in values), strict=True))
        joined = np.zeros((len(arms), *shape), np.float32)
        for row, value in zip(joined, values, strict=True):
            row[: value.shape[1], : value.shape[2]] = value[0]
        together[name] = joined
    return together


def _group_inputs(group: Group, adapter: Adapter, k: int) -> dict[str, Array]:
    """First maps (in, ranks) side by side, and the second maps as one of all their ranks and
    outputs, zero but where a layer's own ranks meet its own outputs."""
    ranks = sum(adapter.layers[p][0].shape[0] for p, _ in group.layers if p in adapter.layers)
    total = max(ranks, 1)
    down, up = (
        np.zeros((group.inner, total), np.float32),
        np.zeros((group.width, total), np.float32),
    )
    members = [adapter.layers[p][1] for p, _ in group.layers if p in adapter.layers]
    grown = max((b.n_dendrites for b in members), default=0)
    dendrites = np.zeros((grown, group.width, total), np.float32)
    mixing = np.zeros((grown, group.width), np.float32)
    feeding = [np.zeros((i, group.width), np.float32) for i in range(1, grown)]
    rank = output = 0
    for path, out in group.layers:
        own = slice(output, output + out)
        output += out
        if path not in adapter.layers:
            continue
        a, b = adapter.layers[path]
        within = slice(rank, rank + a.shape[0])
        rank += a.shape[0]
        down[:, within] = np.asarray(a).T
        up[own, within] = b.weight
        for i, (v, _) in enumerate(b.dendrites):
            dendrites[i, own, within] = v
            mixing[i, own] = b.output_weights[i]
            if i:
                feeding[i - 1][:, own] = b.recurrent[i - 1]
    joined = DendriticMap(
        up, None, tuple((v, None) for v in dendrites), mixing if grown else None, tuple(feeding)
    )
    return {group.down: down, **_map_inputs(group.name, joined, k, adapter.scaling)}


def _map_inputs(name: str, trained: DendriticMap, k: int, scaling: float) -> dict[str, Array]:
    """W and V_i (inner, out), t_i and d_ij (out,) of one map; where nothing was grown, out is 1 and
    all zero: broadcasting does the rest."""
    inputs: dict[str, Array] = {f"{name}/up": scaling * np.asarray(trained.weight, np.float32).T}
    for i in range(k):
        grown = i < trained.n_dendrites
        inputs[f"{name}/dendrites.{i}"] = (
            np.asarray(trained.dendrites[i][0]).T if grown else np.zeros((trained.in_features, 1))
        )
        inputs[f"{name}/mixing.{i}"] = (
            scaling * np.asarray(trained.output_weights[i], np.float32) if grown else np.zeros(1)
        )
        for j in range(i):
            inputs[f"{name}/feeding.{i}.{j}"] = (
                trained.recurrent[i - 1][j] if grown else np.zeros(1)
            )
    return inputs


def input_names(groups: Sequence[Group], k: int) -> list[str]:
    """Names of what `adapter_inputs` returns, in an order that is always the same."""
    paths = [HEAD, *(group.name for group in groups)]
    names = [f"{HEAD}/bias", *(group.down for group in groups), *(f"{p}/up" for p in paths)]
    for i in range(k):
        names.append(f"{HEAD}/dendrites_bias.{i}")
        for path in paths:
            names += [f"{path}/dendrites.{i}", f"{path}/mixing.{i}"]
            names += [f"{path}/feeding.{i}.{j}" for j in range(i)]
    return names


def input_shapes(groups: Sequence[Group], k: int, hidden: int) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the same, -1 where arms differ: ranks, classes, and maps without dendrites."""
    inner = {HEAD: hidden} | {group.name: -1 for group in groups}
    out = {HEAD: -1} | {group.name: group.width for group in groups}
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
