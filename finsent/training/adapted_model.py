"""The trainable model: upper blocks with LoRA maps and dendrites, and a score head."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from finsent.config import DendriteConfig, MatchedCapacity, TrainConfig
from finsent.growth.grower import DendriteGrower
from finsent.models.adapter_files import split_tensor_name
from finsent.models.adapters import (
    FullLinear,
    LoraPair,
    attach_full,
    attach_lora,
    detach_full,
    detach_lora,
    linear_shapes,
    lora_ranks,
    replace_a,
    replace_b,
    replace_pair,
    rounded_as_stored,
    save_adapter,
    trainable_tensors,
    whole_model_name,
)
from finsent.models.backbones import Backbone, pool, states_leaving, upper_blocks
from finsent.models.dendritic_linear import DendriticLinear, DendriticLowRank, LowRankMap
from finsent.models.encoders import blocks_of, blocks_path
from finsent.training.fused_blocks import FusedBlocks, can_fuse

_DIFFERENCE = ".difference"
"""Ends the grower's name for a layer that is trained in full."""
_LAYER = ".lora"
"""Ends the grower's name for a layer whose dendrites reach from its input to its output."""


@dataclass
class AdaptedModel:
    """The adapted blocks and the head, mapping hidden states (or token ids) to class logits."""

    upper: Any
    head: Any
    """nn.Linear or DendriticLinear: hidden -> classes."""
    pairs: dict[str, LoraPair]
    b_maps: dict[str, nn.Module]
    first_block: int
    scaling: float
    pooling: str
    activation: str = "none"
    full: dict[str, FullLinear] = field(default_factory=dict)
    """Layers that train their whole weights (TrainConfig.adapt)."""
    stored: str = "fp16"
    """As TrainConfig.stored."""
    dropouts: list[nn.Module] = field(default_factory=list)
    """What stands before the maps; switched on in training steps only."""
    fused: FusedBlocks | None = None
    """The same blocks and adapters in fewer kernels, where they can be had."""

    def pooled(self, hidden: Tensor, last: Tensor) -> Tensor:
        """States (B, L, H) or an encoder's ids (B, L), and last positions (B,) -> what the head
        reads: (B, H), fp32."""
        if self.fused is not None:
            return self.fused.pooled(hidden, last, self.pooling)
        return pool(states_leaving(self.upper, hidden, last), last, self.pooling)

    @contextlib.contextmanager
    def module_by_module(self) -> Iterator[None]:
        """Inside, every adapter map is called as a module, so that hooks on it are."""
        fused, self.fused = self.fused, None
        try:
            yield
        finally:
            self.fused = fused

    @contextlib.contextmanager
    def dropping(self) -> Iterator[None]:
        """Inside, what enters the maps is dropped out as in training (LoraConfig.dropout)."""
        dropouts = [d for d in self.dropouts if isinstance(d, nn.Dropout)]
        for dropout in dropouts:
            dropout.train()
        try:
            yield
        finally:
            for dropout in dropouts:
                dropout.eval()

    def tensors(self) -> dict[str, Tensor]:
        """Every trainable tensor by its name in an adapter file."""
        return trainable_tensors(self.pairs, self.b_maps, self.head, self.first_block, self.full)

    def parameters(self) -> list[nn.Parameter]:
        """The same tensors as an optimizer wants them."""
        return [t for t in self.tensors().values() if isinstance(t, nn.Parameter)]

    def by_rate(self, config: TrainConfig) -> dict[float, list[nn.Parameter]]:
        """The same, by the factor of their learning rate (TrainConfig.layer_decay)."""
        if config.layer_decay == 1:
            return {1.0: self.parameters()}
        path, top = f"{blocks_path(self.upper)}.", len(blocks_of(self.upper)) - 1
        groups: dict[float, list[nn.Parameter]] = {}
        for name, tensor in self.tensors().items():
            above = 0
            if name.startswith(path):
                number = int(name.removeprefix(path).split(".", 1)[0]) - self.first_block
                above = top - number
            if isinstance(tensor, nn.Parameter):
                groups.setdefault(config.layer_decay**above, []).append(tensor)
        return groups

    def each_map(self, stand_in: Callable[[nn.Module, nn.Module | None], nn.Module]) -> None:
        """Let what `stand_in` makes of every map be called in its place, until the model is
        detached. It is given the map, and A where the map reads a layer's input itself. Names of
        tensors stay."""
        self.fused = None
        for name, pair in self.pairs.items():
            b = self.b_maps[name]
            whole = isinstance(b, DendriticLowRank)
            if not whole:
                a = DendriticLinear(cast(nn.Parameter, pair.a.weight), None, "relu")
                replace_a(self.upper, name, stand_in(a, None))
            replace_b(self.upper, name, stand_in(b, pair.a if whole else None))
        for name, layer in self.full.items():
            # Low-rank maps beside a whole weight stand around its layer.
            place = f"{name}.base_layer" if name in self.pairs else name
            self.upper.set_submodule(place, stand_in(layer, None))
        self.head = stand_in(self.head, None)

    def dendritic_maps(self) -> list[DendriticLinear]:
        """Maps that have at least one dendrite."""
        maps = [self.head, *self.b_maps.values(), *(f.difference for f in self.full.values())]
        return [m for m in maps if isinstance(m, DendriticLinear) and m.n_dendrites > 0]

    @contextlib.contextmanager
    def dendrites_silenced(self) -> Iterator[None]:
        """Inside, every dendrite contributes nothing."""
        weights = [m.output_weights for m in self.dendritic_maps() if m.output_weights is not None]
        saved = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for w in weights:
                w.zero_()
            try:
                yield
            finally:
                for w, value in zip(weights, saved, strict=True):
                    w.copy_(value)

    def round_to_stored(self) -> None:
        """Give every trainable tensor the value its file will have."""
        with torch.no_grad():
            for tensor in self.tensors().values():
                tensor.copy_(rounded_as_stored(tensor, self.stored))

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of every trainable tensor."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors().items()}

    def go_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values of a snapshot of before a growth, in place; new dendrites stay as they
        are. Whoever shares the parameters sees it too."""
        own = self.tensors()
        with torch.no_grad():
            for name, value in tensors.items():
                # Output weights have a row more than before.
                own[name][: len(value)].copy_(value)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values of a snapshot, which may have fewer dendrites than there are now."""
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            path, rest = split_tensor_name(name)
            groups.setdefault(path, {})[rest] = tensor
        modules: dict[str, nn.Module] = {"score": self.head}
        for name, layer in self.full.items():
            whole = whole_model_name(name, self.first_block)
            modules[f"{whole}.difference"] = layer.difference
        for name, pair in self.pairs.items():
            whole = whole_model_name(name, self.first_block)
            modules[f"{whole}.lora_A"] = pair.a
            modules[f"{whole}.lora_B"] = self.b_maps[name]
        for path, module in modules.items():
            if isinstance(module, DendriticLinear):
                module.load(groups[path], trainable=True)
            else:
                module.load_state_dict(groups[path])

    def copy_in(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values of a snapshot with as many dendrites, in place: whoever shares the
        parameters sees them too. ValueError when the names differ."""
        own = self.tensors()
        if set(own) != set(tensors):
            raise ValueError(f"tensors differ: {sorted(set(own) ^ set(tensors))[:4]}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def detach(self) -> None:
        """Leave the base as it was before `build_model`."""
        detach_lora(self.upper, self.pairs)
        detach_full(self.upper, self.full)

    def save(self, path: Path) -> None:
        """Write the adapter file."""
        save_adapter(path, self.tensors(), self.scaling, self.activation, self.stored)


def build_model(config: TrainConfig, backbone: Backbone, n_classes: int) -> AdaptedModel:
    """Attach fresh adapters and a head, seeded by the configuration alone.

    Initial weights are drawn on the CPU, so every device starts from the same numbers.
    """
    torch.manual_seed(config.seed)
    first = backbone.first_adapted_block(config.lora.last_layers)
    head = nn.Linear(backbone.hidden_size, n_classes, bias=False)
    head.to(backbone.device)
    upper = upper_blocks(backbone.decoder, first)
    shapes = linear_shapes(upper, config.lora.target_modules)
    matched = config.treatment if isinstance(config.treatment, MatchedCapacity) else None
    full: dict[str, FullLinear] = {}
    least_rank, others = config.lora.r, head.weight.numel()
    if config.adapt == "full":
        full = attach_full(upper, shapes)
        # Low-rank maps beside the whole weights are only for the parameters that are to be matched.
        least_rank, others = 0, others + sum(i * o for i, o in shapes.values())
    ranks = lora_ranks(shapes, least_rank, others, matched)
    dtype = torch.bfloat16 if config.adapter_precision == "bf16" else torch.float32
    pairs = attach_lora(upper, config.lora, {n: r for n, r in ranks.items() if r > 0}, dtype)
    for layer in full.values():
        layer.difference.requires_grad_(True)  # peft has frozen everything but its own
    model = AdaptedModel(
        upper=upper,
        head=head,
        pairs=pairs,
        b_maps={name: pair.b for name, pair in pairs.items()},
        first_block=first,
        scaling=config.lora.alpha / config.lora.r,
        pooling=config.pooling,
        full=full,
        stored=config.stored,
        dropouts=[pair.dropout for pair in pairs.values()],
    )
    if can_fuse(config, upper, backbone.device):
        model.fused = FusedBlocks(upper, pairs, model.b_maps, model.scaling)
    return model


def growable_maps(
    model: AdaptedModel, placement: Sequence[str], among: str = "all"
) -> dict[str, nn.Linear | LowRankMap]:
    """The maps that dendrites may grow on, by name; placement and among as in DendriteConfig.

    Raises:
        TypeError: The placement has "score", but the head has dendrites already.
    """
    maps: dict[str, nn.Linear | LowRankMap] = {}
    pairs = {name: pair for name, pair in model.pairs.items() if _is_among(name, among)}
    if "layer" in placement:
        maps.update({f"{name}{_LAYER}": LowRankMap(p.a, p.b) for name, p in pairs.items()})
    if "lora_B" in placement:
        maps.update({f"{name}.lora_B": pair.b for name, pair in pairs.items()})
    if "linear" in placement:
        maps.update(
            {
                f"{name}{_DIFFERENCE}": layer.difference.as_plain()
                for name, layer in model.full.items()
                if _is_among(name, among)
            }
        )
    if "score" in placement:
        if not isinstance(model.head, nn.Linear):
            raise TypeError(f"the head is a {type(model.head).__name__}, not a linear map")
        maps["score"] = model.head
    return maps


def _is_among(layer: str, among: str) -> bool:
    """Whether a layer of that path is one of DendriteConfig.among."""
    attends = "attn" in layer or "attention" in layer
    return among == "all" or attends == (among == "attention")


def adopt_grown_modules(model: AdaptedModel, modules: dict[str, DendriticLinear]) -> None:
    """Put the grower's modules where the plain linear maps were."""
    for name, module in modules.items():
        if name == "score":
            model.head = module
            continue
        if name.endswith(_DIFFERENCE):
            model.full[name.removesuffix(_DIFFERENCE)].difference = module
            continue
        if name.endswith(_LAYER):
            layer = name.removesuffix(_LAYER)
            replace_pair(model.upper, layer, model.pairs[layer].a, module)
        else:
            layer = name.removesuffix(".lora_B")
            replace_b(model.upper, layer, module)
        model.b_maps[layer] = module


@contextlib.contextmanager
def growing(
    model: AdaptedModel, treatment: DendriteConfig, device: torch.device, folder: Path
) -> Iterator[DendriteGrower]:
    """Inside, PerforatedAI may grow dendrites on the model's maps; what has grown stays."""
    maps = growable_maps(model, treatment.placement, treatment.among)
    with DendriteGrower(maps, treatment, device, folder) as grower:
        adopt_grown_modules(model, grower.modules)
        model.activation = treatment.activation
        yield grower
