"""An adapter as inputs of the graphs of finsent.engines.openvino_graph: joined by product, padded
with zeros to the graph's number of dendrites, the scaling in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finsent.engines.openvino_graph import HEAD, Array, Product
from finsent.models.adapter_files import Adapter, AdapterError, DendriticMap


def adapter_inputs(
    adapter: Adapter, products: Sequence[Product], dendrites: int, hidden: int
) -> dict[str, Array]:
    """Every input of a graph but the texts, by name.

    products: those of the graph with adapters; dendrites: of its structure; hidden: what its head
    reads. AdapterError when the adapter was trained on another backbone.
    """
    known = {path: width for p in products for path, width in p.layers[: p.adapted]}
    for path, (_, b) in adapter.layers.items():
        if path not in known or b.out_features != known[path]:
            raise AdapterError(
                f"the adapter has {b.out_features} outputs at {path}, the backbone "
                f"{known.get(path, 'no such layer')}: it was trained on another one"
            )
    if adapter.head.in_features != hidden:
        raise AdapterError(
            f"the adapter's head reads {adapter.head.in_features} features, the backbone has "
            f"{hidden}: it was trained on another one"
        )
    inputs = _head_inputs(adapter.head, dendrites)
    for product in products:
        inputs.update(_product_inputs(product, adapter, dendrites))
    return inputs


class _Dendrites:
    """Dendrites of some outputs side by side: V (k, span, in), c and t (k, span), d (k, k, span).

    Where nothing was grown, span is 1 and everything zero: broadcasting does the rest.
    """

    def __init__(self, k: int, span: int, inner: int) -> None:
        self.weights = np.zeros((k, span, inner), np.float32)
        self.biases = np.zeros((k, span), np.float32)
        self.mixing = np.zeros((k, span), np.float32)
        self.feeding = np.zeros((k, k, span), np.float32)

    def put(self, trained: DendriticMap, scaling: float, rows: slice, columns: slice) -> None:
        """Those of one map at its outputs and inputs."""
        for i, (v, c) in enumerate(trained.dendrites):
            self.weights[i, rows, columns] = v
            if c is not None:
                self.biases[i, rows] = c
            self.mixing[i, rows] = scaling * np.asarray(trained.output_weights[i])
            for j in range(i):
                self.feeding[i, j, rows] = trained.recurrent[i - 1][j]

    def inputs(self, name: str) -> dict[str, Array]:
        """t and d by name; d where dendrites can feed each other."""
        found: dict[str, Array] = {f"{name}/mixing": self.mixing}
        if len(self.mixing) > 1:
            found[f"{name}/feeding"] = self.feeding
        return found


def _head_inputs(head: DendriticMap, k: int) -> dict[str, Array]:
    """weight (C, H), weight_bias (C,); dendrites (k C, H) and dendrites_bias (k C,)."""
    classes, hidden = head.out_features, head.in_features
    inputs = {
        f"{HEAD}/weight": _fp32(head.weight),
        f"{HEAD}/weight_bias": np.zeros(classes, np.float32)
        if head.bias is None
        else _fp32(head.bias),
    }
    if k:
        grown = _Dendrites(k, classes if head.n_dendrites else 1, hidden)
        grown.put(head, 1.0, slice(None), slice(None))
        inputs[f"{HEAD}/dendrites"] = grown.weights.reshape(-1, hidden)
        inputs[f"{HEAD}/dendrites_bias"] = grown.biases.reshape(-1)
        inputs |= grown.inputs(HEAD)
    return inputs


def _product_inputs(product: Product, adapter: Adapter, k: int) -> dict[str, Array]:
    """down (r, in), up (W + dendrites, r), mixing t (k, W) and feeding d (k, k, W), scaled.

    Layers of the product have their own rows of `down` and their own blocks of `up`.
    """
    adapted = product.layers[: product.adapted]
    members = [adapter.layers.get(path) for path, _ in adapted]
    ranks = [0 if m is None else m[0].shape[0] for m in members]
    total, width = max(sum(ranks), 1), product.adapted_width
    any_grown = any(m is not None and m[1].n_dendrites for m in members)
    down = np.zeros((total, product.inner), np.float32)
    up = np.zeros((width, total), np.float32)
    grown = _Dendrites(k, width if any_grown else 1, total)
    row = rank_at = 0
    for (_, out), member, rank in zip(adapted, members, ranks, strict=True):
        if member is not None:
            a, b = member
            rows, columns = slice(row, row + out), slice(rank_at, rank_at + rank)
            down[columns] = a
            up[rows, columns] = adapter.scaling * _fp32(b.weight)
            grown.put(b, adapter.scaling, rows, columns)
        row, rank_at = row + out, rank_at + rank
    inputs: dict[str, Array] = {f"{product.name}/down": down, f"{product.name}/up": up}
    if k:
        inputs[f"{product.name}/up"] = np.concatenate([up, grown.weights.reshape(-1, total)])
        inputs |= grown.inputs(product.name)
    return inputs


def _fp32(values: Any) -> Array:
    return np.ascontiguousarray(values, np.float32)
