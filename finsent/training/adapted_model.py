"""The trainable model: upper blocks with LoRA maps and dendrites, and a score head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finsent.config import MatchedCapacity, TrainConfig
from finsent.models.adapter_files import split_tensor_name
from finsent.models.adapters import (
    STORED_DTYPE,
    LoraPair,
    attach_lora,
    detach_lora,
    linear_shapes,
    lora_ranks,
    replace_b,
    save_adapter,
    trainable_tensors,
    whole_model_name,
)
from finsent.models.backbones import Backbone, pool, upper_blocks
from finsent.models.dendritic_linear import DendriticLinear
from finsent.training.fused_blocks import FusedBlocks, can_fuse


@dataclass
class AdaptedModel:
    """The upper blocks with adapters, and the head, mapping hidden states to class logits."""

    upper: Any
    head: Any
    """nn.Linear or DendriticLinear: hidden -> classes."""
    pairs: dict[str, LoraPair]
    b_maps: dict[str, nn.Module]
    first_block: int
    scaling: float
    pooling: str
    activation: str = "none"
    fused: FusedBlocks | None = None
    """The same blocks and adapters in fewer kernels, where they can be had."""

    def pooled(self, hidden: Tensor, last: Tensor) -> Tensor:
        """(B, L, H) states and last positions (B,) -> what the head reads: (B, H), fp32."""
        if self.fused is not None:
            return self.fused.pooled(hidden, last, self.pooling)
        return pool(self.upper(inputs_embeds=hidden).last_hidden_state, last, self.pooling)

    @contextlib.contextmanager
    def module_by_module(self) -> Iterator[None]:
        """Inside, every adapter map is called as a module, so that hooks on it are."""
        fused, self.fused = self.fused, None
        try:
            yield
        finally:
            self.fused = fused

    def tensors(self) -> dict[str, Tensor]:
        """Every trainable tensor by its name in an adapter file."""
        return trainable_tensors(self.pairs, self.b_maps, self.head, self.first_block)

    def parameters(self) -> list[nn.Parameter]:
        """The same tensors as an optimizer wants them."""
        return [t for t in self.tensors().values() if isinstance(t, nn.Parameter)]

    def dendritic_maps(self) -> list[DendriticLinear]:
        """Maps that have at least one dendrite."""
        maps = [self.head, *self.b_maps.values()]
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
                tensor.copy_(tensor.to(STORED_DTYPE))

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

    def save(self, path: Path) -> None:
        """Write the adapter file."""
        save_adapter(path, self.tensors(), self.scaling, self.activation)


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
    ranks = lora_ranks(shapes, config.lora.r, head.weight.numel(), matched)
    dtype = torch.bfloat16 if config.adapter_precision == "bf16" else torch.float32
    pairs = attach_lora(upper, config.lora, ranks, dtype)
    model = AdaptedModel(
        upper=upper,
        head=head,
        pairs=pairs,
        b_maps={name: pair.b for name, pair in pairs.items()},
        first_block=first,
        scaling=config.lora.alpha / config.lora.r,
        pooling=config.pooling,
    )
    if can_fuse(config, upper, backbone.device):
        model.fused = FusedBlocks(upper, pairs, model.b_maps, model.scaling)
    return model


def growable_maps(model: AdaptedModel, placement: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear maps that dendrites may grow on."""
    maps: dict[str, nn.Linear] = {}
    if "lora_B" in placement:
        maps.update({f"{name}.lora_B": pair.b for name, pair in model.pairs.items()})
    if "score" in placement:
        if not isinstance(model.head, nn.Linear):
            raise TypeError(f"the head is a {type(model.head).__name__}, not a linear map")
        maps["score"] = model.head
    return maps


def adopt_grown_modules(model: AdaptedModel, modules: dict[str, DendriticLinear]) -> None:
    """Put the grower's modules where the plain linear maps were."""
    for name, module in modules.items():
        if name == "score":
            model.head = module
            continue
        layer = name.removesuffix(".lora_B")
        model.b_maps[layer] = module
        replace_b(model.upper, layer, module)
