"""A linear map with dendrites, in plain PyTorch.

    y = W x + b + sum_i t_i * o_i,    o_i = act(V_i x + c_i + sum_{j<i} d_ij * o_j)

This is the forward pass that PerforatedAI's open-source dendrites define (`*` is element-wise over
the output dimension). The formula is the library's; the module is ours, so that serving needs
neither the library nor its global settings, and so that one matrix product serves W and every V_i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finsent.config import ACTIVATIONS
from finsent.models.adapter_files import INNER, DendriticMap

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "tanh": torch.tanh,
}


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The torch function of one of `finsent.config.ACTIVATIONS`; ValueError otherwise."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {name!r}")
    return _ACTIVATIONS[name]


class _Affine(nn.Module):
    """Holds V_i and c_i under the names a saved file uses; never called."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", bias)


class DendriticLinear(nn.Module):
    """`nn.Linear` plus k dendrites per output unit; k = 0 is exactly `F.linear`.

    Shapes: weight W (out, in); bias b (out,) or None; each dendrite weight V_i (out, in) and bias
    c_i (out,); output_weights t (k, out); recurrent[i] = d_i (i, out) for i >= 1.
    Input (..., in), output (..., out), computed in the input's precision.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    output_weights: nn.Parameter | None

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self._activate = activation_function(activation)
        self.adopt(DendriticMap(weight, bias))

    def adopt(self, made: DendriticMap) -> None:
        """Take over parameters, sharing them with whoever made them (see
        `finsent.growth.grower`)."""
        self.weight = made.weight
        self.register_parameter("bias", made.bias)
        self.dendrites = nn.ModuleList(_Affine(v, c) for v, c in made.dendrites)
        self.register_parameter("output_weights", made.output_weights)
        # Keyed by the receiving dendrite, so that names in a saved file read like the formula.
        self.recurrent = nn.ParameterDict({str(i + 1): d for i, d in enumerate(made.recurrent)})

    @property
    def in_features(self) -> int:
        """Size of the last input dimension."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Size of the last output dimension."""
        return self.weight.shape[0]

    @property
    def n_dendrites(self) -> int:
        """Dendrites per output unit."""
        return len(self.dendrites)

    def forward(self, x: Tensor) -> Tensor:
        """Input (..., in) to output (..., out)."""
        output_weights = self.output_weights
        if output_weights is None:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.linear(x, self.weight.to(x.dtype), bias)
        # One product for W and all V_i: the maps are small and the launches are what costs.
        maps: list[Any] = [self, *self.dendrites]
        weights = torch.cat([m.weight for m in maps])
        biases = None if self.bias is None else torch.cat([m.bias for m in maps]).to(x.dtype)
        y, *drives = F.linear(x, weights.to(x.dtype), biases).chunk(len(maps), dim=-1)
        outputs: list[Tensor] = []
        for i, drive in enumerate(drives):
            for j in range(i):
                recurrent = self.recurrent[str(i)][j].to(drive.dtype)
                drive = torch.addcmul(drive, recurrent, outputs[j])
            outputs.append(self._activate(drive))
            # In the product's precision: under autocast, fp32 weights would make everything fp32.
            y = torch.addcmul(y, output_weights[i].to(y.dtype), outputs[i])
        return y

    def as_plain(self) -> nn.Linear:
        """A plain linear layer with the same parameters, of a map without dendrites."""
        plain = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta"
        )
        plain.weight = self.weight
        if self.bias is not None:
            plain.bias = self.bias
        return plain

    def load(self, tensors: Mapping[str, Tensor], *, trainable: bool = False) -> None:
        """Become the map whose `state_dict()` these tensors are, whatever k was before.

        KeyError for a missing tensor, ValueError for one that has no place: a dendrite lost on
        loading would silently be another model.
        """
        parameters = {
            name: nn.Parameter(tensor.detach().clone(), requires_grad=trainable)
            for name, tensor in tensors.items()
        }
        self.adopt(DendriticMap.from_tensors(parameters))

    def fused(self, scale: float = 1.0) -> FusedDendriticLinear:
        """The same map times `scale`, frozen and laid out for inference."""
        return FusedDendriticLinear(self, scale)

    @classmethod
    def of(cls, trained: DendriticMap, activation: str) -> DendriticLinear:
        """A frozen map of trained tensors; "none" is the activation of maps without dendrites."""

        def frozen(tensor: Any) -> nn.Parameter:
            return nn.Parameter(torch.as_tensor(tensor).detach(), requires_grad=False)

        made = trained.each(frozen)
        module = cls(made.weight, made.bias, _usable(activation, trained))
        module.adopt(made)
        return module


class LowRankMap(nn.Module):
    """B A x: what a LoRA adapter adds to a layer, as one module from the layer's input to its
    output. Input (..., in), output (..., out)."""

    def __init__(self, a: nn.Linear, b: nn.Linear) -> None:
        super().__init__()
        self.a = a
        self.b = b
        self.in_features = a.in_features

    @property
    def weight(self) -> Tensor:
        """A (r, in), by which a linear map's precision and device are known too."""
        return self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        """Input (..., in) to output (..., out)."""
        y: Tensor = self.b(self.a(x))
        return y


class DendriticLowRank(DendriticLinear):
    """A low-rank map whose dendrites reach from the layer's input to its output.

        y = B A x + sum_i t_i * o_i,    o_i = act(B_i A_i x + sum_{j<i} d_ij * o_j)

    It is a `DendriticLinear` in B and the B_i, each of which reads its own A x. A stands in `a`, a
    linear map that is shared with others; `inner.<i>` is A_i (r, in). Input (..., in).
    """

    def __init__(self, a: nn.Linear, weight: nn.Parameter, activation: str) -> None:
        super().__init__(weight, None, activation)
        # In a list: A is named with the adapter, not here.
        self._shared_a = [a]
        self.inner = nn.ParameterDict()

    def adopt_inner(self, a: nn.Parameter, inner: tuple[nn.Parameter, ...]) -> None:
        """Take over A and every A_i."""
        self._shared_a[0].weight = a
        self.inner = nn.ParameterDict({str(i): made for i, made in enumerate(inner)})

    def forward(self, x: Tensor) -> Tensor:
        """Layer input (..., in) to output (..., out)."""
        downs = [self._shared_a[0].weight, *self.inner.values()]
        z, *inner = F.linear(x, torch.cat(downs).to(x.dtype)).chunk(len(downs), dim=-1)
        y = F.linear(z, self.weight.to(x.dtype))
        output_weights = self.output_weights
        if output_weights is None:
            return y
        dendrites: list[Any] = list(self.dendrites)
        outputs: list[Tensor] = []
        for i, (dendrite, read) in enumerate(zip(dendrites, inner, strict=True)):
            drive = F.linear(read, dendrite.weight.to(x.dtype))
            for j in range(i):
                recurrent = self.recurrent[str(i)][j].to(drive.dtype)
                drive = torch.addcmul(drive, recurrent, outputs[j])
            outputs.append(self._activate(drive))
            y = torch.addcmul(y, output_weights[i].to(y.dtype), outputs[i])
        return y

    def load(self, tensors: Mapping[str, Tensor], *, trainable: bool = False) -> None:
        """As `DendriticLinear.load`; A is not among the tensors and stays."""
        outer = {name: t for name, t in tensors.items() if not name.startswith(INNER)}
        inner = [tensors[name] for name in sorted(set(tensors) - set(outer))]
        super().load(outer, trainable=trainable)
        if len(inner) != self.n_dendrites:
            raise ValueError(f"{len(inner)} inner maps for {self.n_dendrites} dendrites")
        made = (nn.Parameter(t.detach().clone(), requires_grad=trainable) for t in inner)
        self.inner = nn.ParameterDict({str(i): t for i, t in enumerate(made)})


def _usable(activation: str, trained: DendriticMap) -> str:
    if activation != "none":
        return activation
    # Without dendrites it is never applied; any valid name will do.
    if trained.n_dendrites:
        raise ValueError("dendrites without an activation")
    return "relu"


class FusedDendriticLinear(nn.Module):
    """`scale` times a trained `DendriticLinear`, in as few kernels as its formula allows.

    W and every V_i are one matrix, joined once; a call is one product, one activation and one
    combination (dendrites that feed each other take a turn each). Buffers, not parameters: nothing
    here is trained. Input (..., in), output (..., out).
    """

    weights: Tensor
    biases: Tensor | None
    output_weights: Tensor | None

    def __init__(self, source: DendriticLinear, scale: float = 1.0) -> None:
        super().__init__()
        self.activation = source.activation
        self._activate = activation_function(source.activation)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.n_dendrites = source.n_dendrites
        maps: list[Any] = [source, *source.dendrites]
        # Only what is linear carries the scale: W, b and t, never what enters the activation.
        factors = [scale, *([1.0] * self.n_dendrites)]
        with torch.no_grad():
            weights = torch.cat([m.weight * f for m, f in zip(maps, factors, strict=True)])
            biases = None
            if source.bias is not None:
                biases = torch.cat([m.bias * f for m, f in zip(maps, factors, strict=True)])
            output_weights = source.output_weights
            scaled = None if output_weights is None else output_weights * scale
        self.register_buffer("weights", weights)
        self.register_buffer("biases", biases)
        self.register_buffer("output_weights", scaled)
        for i in range(1, self.n_dendrites):
            self.register_buffer(f"recurrent_{i}", source.recurrent[str(i)].detach())

    def forward(self, x: Tensor) -> Tensor:
        """Input (..., in) to output (..., out)."""
        joined = F.linear(x, self.weights, self.biases)
        output_weights = self.output_weights
        if output_weights is None:
            return joined
        y, *drives = joined.chunk(1 + self.n_dendrites, dim=-1)
        outputs: list[Tensor] = []
        for i, drive in enumerate(drives):
            for j in range(i):
                drive = torch.addcmul(drive, self.get_buffer(f"recurrent_{i}")[j], outputs[j])
            outputs.append(self._activate(drive))
            y = torch.addcmul(y, output_weights[i], outputs[i])
        return y
