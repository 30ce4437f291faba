"""AdamW for a stack of runs: PyTorch's rule with a learning rate and step count for each."""

from __future__ import annotations

import torch
from torch import Tensor

from finsent.config import TrainConfig
from finsent.study.lora.rows import Ongoing
from finsent.study.lora.stack import LoraStack

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of AdamW, as torch has them."""


class StackedAdamW:
    """AdamW for every run of a stack: own learning rate, own number of steps, own clipping."""

    def __init__(self, stack: LoraStack, config: TrainConfig) -> None:
        self._stack, self._config = stack, config
        self.mean = torch.zeros_like(stack.values)
        self.square = torch.zeros_like(stack.values)
        device = stack.values.device
        self.steps = torch.zeros(stack.runs, 1, device=device)
        self.rates = torch.zeros(stack.runs, 1, device=device)
        self._missed = torch.zeros_like(self.steps)
        """Steps that a run took before it had a scalar: (K, 1) while it is none for all of them."""

    def reset(self, row: int) -> None:
        """A fresh optimizer for one run."""
        for state in (self.mean, self.square, self.steps):
            state[row] = 0

    def ongoing(self, row: int) -> Ongoing:
        """A run as it stands."""
        return Ongoing(
            self._stack.tensors(row),
            self._stack.tensors(row, self.mean),
            self._stack.tensors(row, self.square),
            float(self.steps[row]),
        )

    def go_on(self, row: int, before: Ongoing) -> None:
        """Know of a run what was known before it grew. Before the first step."""
        self._stack.put(self.mean, row, before.mean)
        self._stack.put(self.square, row, before.square)
        self.steps[row] = before.steps
        if self._missed.shape != self.mean.shape:
            self._missed = torch.zeros_like(self.mean)
        self._missed[row] = before.steps
        known = {name: torch.zeros_like(tensor) for name, tensor in before.mean.items()}
        self._stack.put(self._missed, row, known)

    @torch.no_grad()
    def step(self, active: Tensor) -> None:
        """One step for the runs that are active (K,); the gradients are those of the stack."""
        beta, gamma = BETAS
        on = active[:, None].to(self.rates.dtype)
        grads = self._stack.gather()
        norm = grads.norm(dim=1, keepdim=True)
        grads = grads * (self._config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        self.steps.add_(on)
        self.mean.add_((grads - self.mean) * ((1 - beta) * on))
        self.square.add_((grads.square() - self.square) * ((1 - gamma) * on))
        # Runs that have not begun have taken no step; whatever they divide by, nothing is added.
        taken = (self.steps - self._missed).clamp(min=1)
        rates = self.rates * on
        spread = (self.square / (1 - gamma**taken)).sqrt_().add_(EPSILON)
        values = self._stack.values
        values.mul_(1 - rates * self._config.weight_decay)
        values.sub_(rates * (self.mean / (1 - beta**taken)) / spread)
