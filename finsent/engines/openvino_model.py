"""A transformers model with adapters as inputs, converted to a graph that OpenVINO can compile.

Any model that maps token ids and an attention mask to hidden states will do, encoder or decoder:
nothing here names a layer of one. Imports torch and transformers, so
finsent.engines.openvino_engine imports this module only for a graph that its cache does not hold.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as op
from openvino.passes import ConstantFolding, Manager
from torch import Tensor, nn

from finsent.engines.openvino_inputs import (
    HEAD,
    ROUNDED_GROUP,
    Array,
    Group,
    Structure,
    input_names,
    input_shapes,
)
from finsent.models.adapter_files import AdapterError
from finsent.models.backbones import pool

GROUP = 32
"""Inputs that share a scale: as in the 4-bit file that SmolLM2's embedded weights come from."""
EXAMPLE = torch.tensor([[9, 8, 7, 6, 5, 4, 3, 2, 9], [5, 6, 7, 8, 9, 0, 0, 0, 0]])
EXAMPLE_LAST = torch.tensor([8, 4])
"""Two texts, right-padded; every vocabulary has these ids."""

Inputs = Mapping[str, Tensor]
"""An adapter's tensors by name, as `finsent.engines.openvino_inputs.adapter_inputs` has them."""


@dataclass(frozen=True)
class Converted:
    """A graph, and what it has to compute for an example."""

    model: Any
    """openvino.Model with the named inputs "input_ids" (n, L), "last" (n,) and those of
    `finsent.engines.openvino_inputs.input_names`; class scores (n, classes)."""
    groups: list[Group]
    example: dict[str, Array]
    expected: Array
    """Scores of the example in torch."""


def load(folder: Path, depth: int | None) -> Any:
    """A transformers model in fp32 on the CPU, its first `depth` blocks only if given."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    model.config.use_cache = False
    if depth is not None:
        blocks = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
        del blocks[depth:]
        model.config.num_hidden_layers = depth
    return model


def convert(model: Any, structure: Structure, pooling: str, *, eight_bits: bool) -> Converted:
    """The graph of a model (fp32, on the CPU) for adapters of one structure; its adapted layers are
    replaced in place. AdapterError when it lacks a layer of the structure."""
    siblings = _siblings(model)
    groups = _groups(model, siblings, structure.paths)
    served = _Served(model, groups, structure, pooling)
    hidden = model.config.hidden_size
    shapes = input_shapes(groups, structure.dendrites, hidden)
    draw = torch.Generator().manual_seed(0)
    tensors = {
        name: 0.1 * torch.randn(shape, generator=draw)
        for name, shape in _example_shapes(shapes).items()
    }
    with torch.no_grad(), warnings.catch_warnings():
        # Which branches depend on shapes is what tracing warns about; the engine compares what the
        # graph computes with `expected`.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", category=FutureWarning)
        expected = served(EXAMPLE, EXAMPLE_LAST, *tensors.values())
        graph = ov.convert_model(served, example_input=(EXAMPLE, EXAMPLE_LAST, *tensors.values()))
    for node, (name, shape) in zip(
        graph.inputs,
        {"input_ids": (-1, -1), "last": (-1,), **shapes}.items(),
        strict=True,
    ):
        node.get_tensor().set_names({name})
        node.get_node().set_partial_shape(ov.PartialShape(list(shape)))
    graph.validate_nodes_and_infer_types()
    _fold_constants(graph)
    if eight_bits:
        _in_eight_bits(graph, {path for group in siblings if len(group) > 2 for path in group})
    example = {name: tensor.numpy() for name, tensor in tensors.items()}
    example |= {"input_ids": EXAMPLE.numpy(), "last": EXAMPLE_LAST.numpy()}
    return Converted(graph, groups, example, expected.numpy())


def _example_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Open dimensions filled in: ranks of 4, three classes, and 1 for other outputs."""
    filled: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        path, kind = name.rsplit("/", 1)
        ranks = 4 if path != HEAD else shape[1]
        inner = ranks if kind == "up" or kind.startswith("dendrites.") else shape[1]
        width = 4 if kind == "down" else (3 if path == HEAD else 1)
        filled[name] = (1, inner, shape[2] if shape[2] != -1 else width)
    return filled


class _Delta:
    """What the adapters of a group add to its layers, computed once for the input they share."""

    def __init__(self, group: Group, structure: Structure, inputs: Inputs) -> None:
        self._group, self._structure, self._inputs = group, structure, inputs
        self._last: tuple[Tensor, dict[str, Tensor]] | None = None

    def __call__(self, x: Tensor, path: str) -> Tensor:
        if self._last is None or self._last[0] is not x:
            self._last = (x, self._of(x))
        return self._last[1][path]

    def _of(self, x: Tensor) -> dict[str, Tensor]:
        name, inputs = self._group.name, self._inputs
        z = x @ inputs[self._group.down]
        drives = [z @ inputs[f"{name}/dendrites.{i}"] for i in range(self._structure.dendrites)]
        y = _combined(z @ inputs[f"{name}/up"], drives, name, inputs, self._structure.activation)
        paths, widths = zip(*self._group.layers, strict=True)
        return dict(zip(paths, y.split(widths, -1) if len(widths) > 1 else [y], strict=True))

    def forget(self) -> None:
        self._last = None


class _AdaptedLayer(nn.Module):
    """A frozen layer plus an adapter whose tensors are handed to the whole model."""

    def __init__(self, base: nn.Module, path: str, delta: _Delta) -> None:
        super().__init__()
        self.base, self._path, self._delta = base, path, delta

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self._delta(x, self._path)


def _combined(
    y: Tensor, drives: Sequence[Tensor], path: str, inputs: Inputs, activation: str
) -> Tensor:
    """y plus what the dendrites make of their drives."""
    activate = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}[activation]
    outputs: list[Tensor] = []
    for i, drive in enumerate(drives):
        for j in range(i):
            drive = drive + inputs[f"{path}/feeding.{i}.{j}"] * outputs[j]
        outputs.append(activate(drive))
        y = y + inputs[f"{path}/mixing.{i}"] * outputs[i]
    return y


class _Served(nn.Module):
    """Token ids (n, L), last positions (n,) and an adapter's tensors -> class scores (n, C)."""

    def __init__(
        self, model: Any, groups: Sequence[Group], structure: Structure, pooling: str
    ) -> None:
        super().__init__()
        self._names = input_names(groups, structure.dendrites)
        self._inputs: dict[str, Tensor] = {}
        self._deltas = []
        self._structure, self._pooling = structure, pooling
        for group in groups:
            delta = _Delta(group, structure, self._inputs)
            self._deltas.append(delta)
            for path, _ in group.layers:
                model.set_submodule(path, _AdaptedLayer(model.get_submodule(path), path, delta))
        self.model = model

    def forward(self, input_ids: Tensor, last: Tensor, *tensors: Tensor) -> Tensor:
        inputs = self._inputs
        inputs.update(zip(self._names, tensors, strict=True))
        real = torch.arange(input_ids.shape[1], device=last.device)[None, :] <= last[:, None]
        states = self.model(input_ids=input_ids, attention_mask=real.long()).last_hidden_state
        pooled = pool(states, last, self._pooling)[:, None, :]
        scores = pooled @ inputs[f"{HEAD}/up"] + inputs[f"{HEAD}/bias"]
        drives = [
            pooled @ inputs[f"{HEAD}/dendrites.{i}"] + inputs[f"{HEAD}/dendrites_bias.{i}"]
            for i in range(self._structure.dendrites)
        ]
        scores = _combined(scores, drives, HEAD, inputs, self._structure.activation)
        inputs.clear()
        for delta in self._deltas:
            delta.forget()
        return scores[:, 0]


@torch.no_grad()
def _siblings(model: Any) -> list[list[str]]:
    """Paths of linear layers, those that read the same tensor together, in the order of use."""
    found: dict[int, list[str]] = {}
    kept = []

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            kept.append(args[0])  # as long as it is there no other tensor gets its id
            found.setdefault(id(args[0]), []).append(path)

        return hook

    handles = [
        layer.register_forward_pre_hook(note(path))
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        model(input_ids=EXAMPLE, attention_mask=torch.ones_like(EXAMPLE))
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def _groups(model: Any, siblings: Sequence[Sequence[str]], paths: Sequence[str]) -> list[Group]:
    missing = set(paths) - {path for group in siblings for path in group}
    if missing:
        raise AdapterError(
            f"the backbone has no layer {min(missing)}: the adapter was trained on another one"
        )
    groups = []
    for members in siblings:
        layers: list[Any] = [model.get_submodule(path) for path in members if path in paths]
        if layers:
            widths = tuple(layer.out_features for layer in layers)
            names = tuple(path for path in members if path in paths)
            groups.append(Group(tuple(zip(names, widths, strict=True)), layers[0].in_features))
    return groups


def _fold_constants(graph: Any) -> None:
    """Converted constants become constants: OpenVINO knows a rotary embedding by its factor -1,
    which the converter leaves as an integer with a conversion that may not be folded."""
    for node in graph.get_ops():
        if node.get_type_name() == "Convert":
            source = node.input_value(0).get_node()
            if source.get_type_name() == "Constant":
                about = node.get_rt_info()
                for key in list(about):
                    del about[key]
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(graph)


def _in_eight_bits(graph: Any, exact: set[str]) -> None:
    """Hold the weights of all products in 8 bits.

    exact: paths of layers whose inputs are never rounded to 8 bits. Rounding what decides where
    attention looks costs most of the accuracy there is to lose, for a sixth of the arithmetic.
    """
    for node in graph.get_ops():
        if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
            continue
        weight = node.input_value(1).get_node()
        if weight.get_type_name() != "Constant" or weight.get_output_shape(0)[-1] % GROUP:
            continue
        name = weight.get_friendly_name()
        rounded = not any(f".{path}." in name for path in exact)
        stored = _grouped_u8(weight.get_data(), rounded)
        node.input(1).replace_source_output(stored.output(0))


def _grouped_u8(values: Array, round_inputs: bool) -> Any:
    """scale * (code - zero), code in 0..255, for every 32 inputs of every output.

    With an integer zero OpenVINO rounds the inputs to 8 bits as well and multiplies integers. With
    a fractional one it multiplies in fp32, and the weights are as exact as bf16.
    """
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
    return op.reshape(whole, op.constant(np.array([out, inner], np.int64)), False)
