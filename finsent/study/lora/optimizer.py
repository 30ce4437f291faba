"""AdamW for a stack of runs: PyTorch's rule with a learning rate and step count for each."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from finsent.config import TrainConfig
from finsent.study.lora.stack import LoraStack
from finsent.study.lora.stack_runs import OptimizerSnapshot

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of AdamW, as torch has them."""


class Stack(Protocol):
    """Trainable tensors of K runs."""

    @property
    def values(self) -> Tensor:
        """(K, parameters)"""

    @property
    def runs(self) -> int:
        """K"""

    def gather(self) -> Tensor:
        """After a backward pass: the gradients of `values`."""


class StackedAdamW:
    """AdamW for every run of a stack: own learning rate, own number of steps, own clipping."""

    def __init__(self, stack: Stack, config: TrainConfig) -> None:
        self._stack, self._config = stack, config
        self.exp_avg = torch.zeros_like(stack.values)
        self.exp_avg_sq = torch.zeros_like(stack.values)
        device = stack.values.device
        self.steps = torch.zeros(stack.runs, 1, device=device)
        self.rates = torch.zeros(stack.runs, 1, device=device)
        self._step_offset = torch.zeros_like(self.steps)
        """Steps that a run took before it had a scalar: (K, 1) while it is none for all of them."""

    def reset(self, row: int) -> None:
        """A fresh optimizer for one run."""
        for state in (self.exp_avg, self.exp_avg_sq, self.steps):
            state[row] = 0

    def snapshot(self, stack: LoraStack, row: int) -> OptimizerSnapshot:
        """A run of its stack as it is now."""
        return OptimizerSnapshot(
            stack.tensors(row),
            stack.tensors(row, self.exp_avg),
            stack.tensors(row, self.exp_avg_sq),
            float(self.steps[row]),
        )

    def restore(self, stack: LoraStack, row: int, before: OptimizerSnapshot) -> None:
        """Give a run of its stack the state it had before it grew. Call before the first step."""
        stack.put(self.exp_avg, row, before.exp_avg)
        stack.put(self.exp_avg_sq, row, before.exp_avg_sq)
        self.steps[row] = before.steps
        if self._step_offset.shape != self.exp_avg.shape:
            self._step_offset = torch.zeros_like(self.exp_avg)
        self._step_offset[row] = before.steps
        known = {name: torch.zeros_like(tensor) for name, tensor in before.exp_avg.items()}
        stack.put(self._step_offset, row, known)

    @torch.no_grad()
    def step(self, active: Tensor) -> None:
        """One step for the runs that are active (K,); the gradients are those of the stack."""
        beta, gamma = BETAS
        on = active[:, None].to(self.rates.dtype)
        grads = self._stack.gather()
        norm = grads.norm(dim=1, keepdim=True)
        grads = grads * (self._config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        self.steps.add_(on)
        self.exp_avg.add_((grads - self.exp_avg) * ((1 - beta) * on))
        self.exp_avg_sq.add_((grads.square() - self.exp_avg_sq) * ((1 - gamma) * on))
        # Runs that have not begun have taken no step; whatever they divide by, nothing is added.
        taken = (self.steps - self._step_offset).clamp(min=1)
        rates = self.rates * on
        spread = (self.exp_avg_sq / (1 - gamma**taken)).sqrt_().add_(EPSILON)
        values = self._stack.values
        values.mul_(1 - rates * self._config.weight_decay)
        values.sub_(rates * (self.exp_avg / (1 - beta**taken)) / spread)
