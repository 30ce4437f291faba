"""LoRA adapters and score heads: attach for training (peft), save, attach for serving.

peft takes ten seconds to import, so only what needs it imports it; serving uses `AdaptedLinear`,
which computes the same sum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from finsent.config import SCALES, ConfigError, LoraConfig, MatchedCapacity
from finsent.models.adapter_files import FORMAT, Adapter, AdapterError
from finsent.models.dendritic_linear import DendriticLinear, FusedDendriticLinear
from finsent.models.encoders import blocks_path

_PEFT_NAME = "default"

STORED_DTYPE = torch.float16
"""Of adapter files; half the size of fp32. The trainer rounds to it before it evaluates, so what
is reported is what the file holds."""
_LEAST_INT8 = 4
"""Matrices with a dimension below this (heads, output weights) are stored in STORED_DTYPE also
where the others are int8: they are small, and every class hangs on them."""


@dataclass(frozen=True)
class LoraPair:
    """The two trainable maps of one adapted linear layer."""

    a: nn.Linear
    """in -> r"""
    b: nn.Linear
    """r -> out"""
    dropout: nn.Module
    """What stands before A: nn.Dropout, or nothing that changes its input."""


def linear_shapes(upper: Any, target_modules: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """(in, out) of every targeted linear layer, by its path below the decoder, in model order.

    Raises ConfigError when a target names no layer.
    """
    blocks = blocks_path(upper)
    linear = {
        name: (module.in_features, module.out_features)
        for name, module in upper.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(f"{blocks}.")
    }
    known = {name.rsplit(".", 1)[-1] for name in linear}
    unknown = set(target_modules) - known
    if unknown:
        raise ConfigError(
            f"no linear layer is called {', '.join(sorted(unknown))}; "
            f"this backbone has {', '.join(sorted(known))}"
        )
    return {n: shape for n, shape in linear.items() if n.rsplit(".", 1)[-1] in target_modules}


def lora_ranks(
    shapes: Mapping[str, tuple[int, int]],
    r: int,
    head_params: int,
    matched: MatchedCapacity | None,
) -> dict[str, int]:
    """Rank of each adapted layer: `r`, or as much more as spends the matched arm's parameters.

    One more rank on a layer costs in + out parameters. Whole rounds go to all layers, what is left
    to single layers from the top block down, so the total is within half a rank of the target.

    Args:
        shapes: (in, out) of every adapted layer, from the lowest block up.
        r: Rank of the other arms.
        head_params: Trainable parameters of the head, which count towards the target.
        matched: The target; None: every layer gets `r`.

    Raises:
        ConfigError: Rank `r` alone exceeds the target.
    """
    ranks = dict.fromkeys(shapes, r)
    if matched is None:
        return ranks
    costs = {name: i + o for name, (i, o) in shapes.items()}
    left = matched.trainable_params - head_params - sum(ranks[n] * costs[n] for n in ranks)
    if left < 0:
        raise ConfigError(
            f"cannot match {matched.trainable_params} trainable parameters: rank {r} alone has "
            f"{matched.trainable_params - left}"
        )
    rounds, left = divmod(left, sum(costs.values()))
    for name in reversed(list(ranks)):
        ranks[name] += rounds
        if left >= costs[name] / 2:
            ranks[name] += 1
            left -= costs[name]
    return ranks


def attach_lora(
    upper: Any, lora: LoraConfig, ranks: Mapping[str, int], dtype: torch.dtype = torch.float32
) -> dict[str, LoraPair]:
    """Put peft's LoRA layers into the model in place; returns the trainable pairs by layer path.

    The scaling alpha / r is the same for every layer, whatever its rank.

    Raises:
        AdapterError: peft gave a layer another rank or scaling.
    """
    if not ranks:
        return {}
    import peft

    scaling = lora.alpha / lora.r
    other = {name: rank for name, rank in ranks.items() if rank != lora.r}
    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(ranks),
            rank_pattern={f"^{name}": rank for name, rank in other.items()},
            alpha_pattern={f"^{name}": rank * scaling for name, rank in other.items()},
        ),
        upper,
        adapter_name=_PEFT_NAME,
    )
    pairs = {}
    for name, rank in ranks.items():
        layer = upper.get_submodule(name)
        dropout = layer.lora_dropout[_PEFT_NAME].eval()
        pair = LoraPair(layer.lora_A[_PEFT_NAME], layer.lora_B[_PEFT_NAME], dropout)
        pair.a.to(dtype)
        pair.b.to(dtype)
        if pair.a.out_features != rank or layer.scaling[_PEFT_NAME] != scaling:
            raise AdapterError(
                f"{name} got rank {pair.a.out_features} and scaling {layer.scaling[_PEFT_NAME]}, "
                f"expected {rank} and {scaling}"
            )
        # peft would copy every input to the adapters' precision; ours, without dendrites the plain
        # map, computes in the input's: the maps are smaller by far.
        layer.cast_input_dtype_enabled = False
        for maps, linear in ((layer.lora_A, pair.a), (layer.lora_B, pair.b)):
            maps[_PEFT_NAME] = DendriticLinear(cast(nn.Parameter, linear.weight), None, "relu")
        pairs[name] = pair
    return pairs


def with_peft_folder(model: Any, folder: Path) -> Any:
    """A transformers model with the adapter that peft saved to a folder, merged into its weights.

    Raises:
        AdapterError: The adapter does not fit the model.
    """
    import peft

    try:
        joined = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=False)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AdapterError(
            f"{folder}: the adapter does not fit its base ({reason}); name the base that it was "
            "trained on"
        ) from error
    return joined.merge_and_unload()


class FullLinear(nn.Linear):
    """A frozen linear layer whose whole weight is trained, as a difference to what it was.

    Weight decay so pulls towards the pretrained weight, and the base stays as it is for the next
    run. Dendrites stand beside the difference. Input (..., in), output (..., out).
    """

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        zeros = nn.Parameter(torch.zeros_like(base.weight, dtype=torch.float32))
        self.difference = DendriticLinear(zeros, None, "relu")

    def forward(self, x: Tensor) -> Tensor:
        """(W + difference) x + b and what dendrites add, in the input's precision."""
        if self.difference.n_dendrites:
            y: Tensor = self.difference(x)
            return y + nn.functional.linear(x, self.weight.to(y.dtype), self.bias)
        weight = self.weight + self.difference.weight
        return nn.functional.linear(x, weight.to(x.dtype), self.bias)


def attach_full(upper: Any, names: Iterable[str]) -> dict[str, FullLinear]:
    """Let the layers of these paths train their whole weights; returns what stands there now."""
    made = {}
    for name in names:
        base = upper.get_submodule(name)
        if type(base) is not nn.Linear:
            raise ConfigError(
                f"{name} is a {type(base).__name__}: only plain linear layers can be trained in "
                "full; use --adapt lora"
            )
        made[name] = FullLinear(base)
        upper.set_submodule(name, made[name])
    return made


def detach_full(upper: Any, full: Mapping[str, FullLinear]) -> None:
    """Undo `attach_full`: plain layers with the frozen weights again."""
    for name, layer in full.items():
        plain = nn.Linear(
            layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta"
        )
        plain.weight, plain.bias = layer.weight, layer.bias
        upper.set_submodule(name, plain)


def detach_lora(upper: Any, names: Iterable[str]) -> None:
    """Undo `attach_lora`: the layers of these paths are the frozen ones again."""
    for name in names:
        upper.set_submodule(name, upper.get_submodule(name).base_layer)


def replace_a(upper: Any, name: str, module: nn.Module) -> None:
    """Let `module` stand in for the A map of the adapted layer `name`."""
    upper.get_submodule(name).lora_A[_PEFT_NAME] = module


def replace_b(upper: Any, name: str, module: nn.Module) -> None:
    """Let `module` stand in for the B map of the adapted layer `name`."""
    upper.get_submodule(name).lora_B[_PEFT_NAME] = module


def as_stored(tensor: Tensor, stored: str) -> tuple[Tensor, Tensor | None]:
    """What a file holds of a tensor under TrainConfig.stored, and its scales if it is int8.

    There is a scale for each index of the shorter dimension: of a low-rank map one for each rank.
    """
    if stored == "fp16" or tensor.dim() != 2 or min(tensor.shape) < _LEAST_INT8:
        return tensor.to(STORED_DTYPE), None
    longer = 1 if tensor.shape[0] <= tensor.shape[1] else 0
    values = tensor.float()
    scales = values.abs().amax(dim=longer, keepdim=True) / 127
    # A row of zeros has scale 0; it is divided by something else.
    rounded = (values / torch.where(scales > 0, scales, 1.0)).round().clamp(-127, 127)
    return rounded.to(torch.int8), scales


def rounded_as_stored(tensor: Tensor, stored: str) -> Tensor:
    """The value a tensor has when it is read from its file."""
    held, scales = as_stored(tensor, stored)
    return (held if scales is None else held * scales).to(tensor.dtype)


class _Through(nn.Module):
    """Stands for A where another map reads the layer's input itself. peft asks for its weight."""

    def __init__(self, a: nn.Linear) -> None:
        super().__init__()
        self._shared_a = [a]

    @property
    def weight(self) -> Tensor:
        """A, for its precision."""
        return self._shared_a[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """x, unchanged."""
        return x


def replace_pair(upper: Any, name: str, a: nn.Linear, module: nn.Module) -> None:
    """Let `module` stand in for both maps of the adapted layer `name`, of which A is `a`."""
    replace_a(upper, name, _Through(a))
    replace_b(upper, name, module)


def save_adapter(
    path: Path,
    tensors: Mapping[str, Tensor],
    scaling: float,
    activation: str,
    stored: str = "fp16",
) -> None:
    """Write every trainable tensor to a safetensors file, as `stored` says (TrainConfig.stored).

    `activation` is the dendrites' ("none" without dendrites): it is part of the function, and a
    file that leaves it out would be served under whatever the reader happens to use.

    Raises:
        AdapterError: A value is not finite in STORED_DTYPE.
    """
    # One entry, because safetensors writes several in an order that differs from run to run.
    about = {"activation": activation, "format": FORMAT, "scaling": scaling}
    metadata = {"finsent": json.dumps(about, sort_keys=True)}
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        held, scales = as_stored(tensor.detach().cpu(), stored)
        checked = held if scales is None else scales
        if not bool(checked.isfinite().all()):
            raise AdapterError(f"{path}: {name} holds values that {stored} cannot")
        plain[name] = held.contiguous()
        if scales is not None:
            plain[name + SCALES] = scales
    save_file(plain, path, metadata=metadata)
    path.chmod(0o644)  # safetensors makes files private; results are meant to be read


class AdaptedLinear(nn.Module):
    """A frozen linear layer with any number of adapters, one of them (or none) switched on.

    Input (..., in), output (..., out): base(x) + scaling * B(A x); the scaling is part of `up`.
    """

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.whole = nn.ParameterDict()
        self.beside = nn.ModuleDict()
        self.down = nn.ParameterDict()
        self.up = nn.ModuleDict()
        self.active: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Base plus the active adapter; adapters compute in their own dtype, as in training."""
        if self.active is not None and self.active in self.whole:
            y = nn.functional.linear(x, self.whole[self.active].to(x.dtype), self.base.bias)
        elif self.active is not None and self.active in self.beside:
            y = self.base(x)
            y = y + self.beside[self.active](x).to(y.dtype)
        else:
            y = self.base(x)
        if self.active is None or self.active not in self.up:
            return y
        a = self.down[self.active]
        z = nn.functional.linear(x.to(a.dtype), a)
        return (y + self.up[self.active](z)).to(y.dtype)


class AdapterBank:
    """Adapters of one decoder, by name: load, switch, drop, without touching the frozen base."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._layers: dict[str, AdaptedLinear] = {}
        self._heads: dict[str, FusedDendriticLinear] = {}

    def add(self, name: str, adapter: Adapter) -> None:
        """Attach an adapter. AdapterError when its layers or shapes do not fit the decoder."""
        device = next(self._decoder.parameters()).device
        for path, difference in adapter.differences.items():
            layer = self._layer(path, difference.in_features, difference.out_features)
            if difference.n_dendrites:
                grown = DendriticLinear.of(difference, adapter.activation)
                layer.beside[name] = grown.fused().to(device)
                continue
            base: Any = layer.base
            whole = base.weight + torch.as_tensor(difference.weight).to(device)
            layer.whole[name] = nn.Parameter(whole, requires_grad=False)
        for path, (a, b) in adapter.layers.items():
            layer = self._layer(path, a.shape[1], b.out_features)
            layer.down[name] = nn.Parameter(torch.as_tensor(a).to(device), requires_grad=False)
            trained = DendriticLinear.of(b, adapter.activation)
            layer.up[name] = trained.fused(adapter.scaling).to(device)
        head = DendriticLinear.of(adapter.head, adapter.activation)
        self._heads[name] = head.fused().to(device)

    def remove(self, name: str) -> None:
        """Drop an adapter's tensors. KeyError when there is none of that name."""
        del self._heads[name]
        for layer in self._layers.values():
            if name in layer.up:
                del layer.down[name], layer.up[name]
            for held in (layer.whole, layer.beside):
                if name in held:
                    del held[name]

    def activate(self, name: str) -> FusedDendriticLinear:
        """Switch every adapted layer to one adapter and return its score head."""
        for layer in self._layers.values():
            layer.active = name
        return self._heads[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Adapters that are loaded."""
        return tuple(self._heads)

    def _layer(self, path: str, inner: int, outer: int) -> AdaptedLinear:
        """The layer of that path, which has to map `inner` to `outer` features."""
        layer = self._layers.get(path) or self._wrap(path)
        base: Any = layer.base
        if (inner, outer) != (base.in_features, base.out_features):
            raise AdapterError(
                f"the adapter maps {inner} -> {outer} at {path}, the backbone "
                f"{base.in_features} -> {base.out_features}: it was trained on another one"
            )
        return layer

    def _wrap(self, path: str) -> AdaptedLinear:
        try:
            base = self._decoder.get_submodule(path)
        except AttributeError as error:
            raise AdapterError(
                f"the backbone has no layer {path}: the adapter was trained on another one"
            ) from error
        wrapped = AdaptedLinear(base)
        self._decoder.set_submodule(path, wrapped)
        self._layers[path] = wrapped
        return wrapped


def trainable_count(tensors: Mapping[str, Tensor]) -> int:
    """Number of scalars in what `save_adapter` would write."""
    return sum(t.numel() for t in tensors.values())


def trainable_tensors(
    pairs: Mapping[str, LoraPair],
    b_maps: Mapping[str, nn.Module],
    head: nn.Module,
    first_block: int,
    full: Mapping[str, FullLinear],
) -> dict[str, Tensor]:
    """Every trainable tensor by the name it has in an adapter file (block numbers of the whole
    model, not of the adapted part)."""
    tensors: dict[str, Tensor] = {}
    for name, layer in full.items():
        whole = whole_model_name(name, first_block)
        for rest, tensor in layer.difference.named_parameters():
            tensors[f"{whole}.difference.{rest}"] = tensor
    for name, pair in pairs.items():
        whole = whole_model_name(name, first_block)
        tensors[f"{whole}.lora_A.weight"] = pair.a.weight
        for rest, tensor in b_maps[name].named_parameters():
            tensors[f"{whole}.lora_B.{rest}"] = tensor
    for rest, tensor in head.named_parameters():
        tensors[f"score.{rest}"] = tensor
    return tensors


def whole_model_name(name: str, first_block: int) -> str:
    """`layers.0.…` of the upper blocks -> `layers.<first_block>.…`."""
    if first_block == 0:
        return name
    _, number, rest = name.split(".", 2)
    return f"layers.{int(number) + first_block}.{rest}"
