"""Many score heads at once: independent runs stacked along the first dimension.

A head on frozen features is so small that starting its kernels costs more than computing them, so
R runs share every product. They share nothing else: each has its own data, weights, order of
examples and selected epoch, and a run's result is that of the same run alone (a test holds it to
that).

    y = W x + b  [+ O act(H x + h)]  [+ sum_i t_i * act(V_i x + c_i + sum_{j<i} d_ij * o_j)]

The first bracket is the control of equal size, one hidden layer beside the linear path; the second
is what `finsent.models.dendritic_linear` defines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from finsent.models.dendritic_linear import activation_function


class HeadStack:
    """R heads from d features to C classes. Parameters are leaf tensors named as in the formula.

    weight (R, C, d), bias (R, C); `hidden` units: hidden.weight (R, h, d), hidden.bias (R, h),
    out.weight (R, C, h); dendrite i: dendrites.i.weight (R, C, d), dendrites.i.bias (R, C),
    dendrites.i.output (R, C), dendrites.i.recurrent (R, i, C) for i > 0.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        generators: Sequence[torch.Generator],
        *,
        hidden: int = 0,
        activation: str = "relu",
    ) -> None:
        """generators: one for each run, from which everything random about that run is drawn."""
        self.features, self.classes, self.hidden = features, classes, hidden
        self.activation = activation
        self._activate = activation_function(activation)
        self.generators = list(generators)
        self.n_dendrites = 0
        bound = features**-0.5
        self.tensors: dict[str, Tensor] = {
            "weight": self.uniform((classes, features), bound),
            "bias": torch.zeros(self.runs, classes),
        }
        if hidden:
            self.tensors["hidden.weight"] = self.uniform((hidden, features), bound)
            self.tensors["hidden.bias"] = torch.zeros(self.runs, hidden)
            self.tensors["out.weight"] = self.uniform((classes, hidden), hidden**-0.5)
        self._require_gradients()

    @property
    def runs(self) -> int:
        """Number of stacked runs R."""
        return len(self.generators)

    @property
    def trainable_params(self) -> int:
        """Parameters of one run."""
        return sum(tensor[0].numel() for tensor in self.tensors.values())

    def parameters(self) -> list[Tensor]:
        """All leaf tensors, for an optimizer."""
        return list(self.tensors.values())

    def uniform(self, shape: tuple[int, ...], bound: float) -> Tensor:
        """(R, *shape) uniform in [-bound, bound], each run from its own generator."""
        return torch.stack(
            [(2 * torch.rand(shape, generator=g) - 1) * bound for g in self.generators]
        )

    def normal(self, shape: tuple[int, ...], scale: float) -> Tensor:
        """(R, *shape) normal with standard deviation `scale`, each run from its own generator."""
        return torch.stack([torch.randn(shape, generator=g) * scale for g in self.generators])

    def add_dendrite(self, weight: Tensor, bias: Tensor, output: Tensor) -> None:
        """One more dendrite for every class: V (R, C, d), c (R, C), t (R, C)."""
        i = self.n_dendrites
        self.tensors[f"dendrites.{i}.weight"] = weight
        self.tensors[f"dendrites.{i}.bias"] = bias
        self.tensors[f"dendrites.{i}.output"] = output
        if i:
            self.tensors[f"dendrites.{i}.recurrent"] = torch.zeros(self.runs, i, self.classes)
        self.n_dendrites += 1
        self._require_gradients()

    def logits(self, x: Tensor) -> Tensor:
        """Features (R, n, d) to class scores (R, n, C)."""
        t = self.tensors
        maps = [("weight", "bias")]
        if self.hidden:
            maps.append(("hidden.weight", "hidden.bias"))
        dendrites = range(self.n_dendrites)
        maps += [(f"dendrites.{i}.weight", f"dendrites.{i}.bias") for i in dendrites]
        weights = torch.cat([t[name] for name, _ in maps], dim=1)
        biases = torch.cat([t[name] for _, name in maps], dim=1)
        joined = torch.baddbmm(biases[:, None, :], x, weights.transpose(1, 2))
        y, *rest = joined.split([t[name].shape[1] for name, _ in maps], dim=2)
        if self.hidden:
            y = y + self._activate(rest.pop(0)) @ t["out.weight"].transpose(1, 2)
        outputs: list[Tensor] = []
        for i, drive in enumerate(rest):
            for j in range(i):
                drive = drive + t[f"dendrites.{i}.recurrent"][:, j, None, :] * outputs[j]
            outputs.append(self._activate(drive))
            y = y + t[f"dendrites.{i}.output"][:, None, :] * outputs[i]
        return y

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of every tensor."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over a snapshot of the same structure. ValueError for another one."""
        if state.keys() != self.tensors.keys():
            raise ValueError(f"the state holds {sorted(state)}, these heads {sorted(self.tensors)}")
        self.tensors = {name: tensor.detach().clone() for name, tensor in state.items()}
        self._require_gradients()

    def _require_gradients(self) -> None:
        for name, tensor in self.tensors.items():
            self.tensors[name] = tensor.detach().requires_grad_()


def matching_hidden_units(features: int, classes: int, dendrites: int) -> int:
    """Hidden units whose parameters are as near as possible to those of k dendrites per class."""
    added = dendrites * classes * (features + 2) + classes * dendrites * (dendrites - 1) // 2
    return max(1, round(added / (features + 1 + classes)))


def where_better(
    better: Tensor, new: Mapping[str, Tensor], old: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Run by run: the new state where `better` (R,) is true, else the old one."""
    return {
        name: torch.where(better.view(-1, *([1] * (tensor.dim() - 1))), tensor, old[name])
        for name, tensor in new.items()
    }
