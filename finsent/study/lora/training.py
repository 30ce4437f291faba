"""Fine-tuning many runs at once: one loop, read top to bottom, the same lines for every arm.

Runs that share a frozen base and a recipe go side by side (finsent.study.lora.stack): a step is one
forward and backward pass over a batch of each. What a run becomes does not depend on its
neighbours. The rules are the trainer's (finsent.training.loop): the same batches, loss, schedule,
clipping, AdamW, growth and selection; tests hold the two together, PerforatedAI's decisions
included. Up to the moment it grows, a dendritic run is the baseline: it is trained once, and the
arms go on from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from finsent.data.batches import epoch_batches
from finsent.growth.refinement import CHOOSING_BATCHES, FITTING_BATCHES
from finsent.models.adapters import STORED_DTYPE
from finsent.study.lora.optimizer import StackedAdamW
from finsent.study.lora.stack import LoraStack
from finsent.study.lora.stack_refinement import refine_stack
from finsent.study.lora.stack_runs import (
    WORST,
    ForkPoint,
    GrowthRule,
    RunResult,
    SplitLogits,
    StackContext,
    StackRun,
)
from finsent.study.rows import StudyError
from finsent.study.side_by_side import logits_side_by_side, packed, steps_of_epoch
from finsent.training.loop import validate
from finsent.training.optimization import class_weights, learning_rate_at, weighted_loss
from finsent.training.progress import Validation
from finsent.training.stepping import StepRunner


def train_stack(
    context: StackContext,
    rows: Sequence[StackRun],
    *,
    last_state: bool = False,
    step_done: Callable[[int], None] = lambda steps: None,
) -> list[RunResult]:
    """Train runs side by side to the end of the recipe's epochs; one result for each.

    `last_state` asks for RunResult.last_logits too. `step_done` is told of every step and how many
    runs took it. Raises StudyError when a loss is no longer finite.
    """
    started = time.perf_counter()
    config = context.config
    with_dendrites = any(row.candidates is not None for row in rows)
    stack = LoraStack(
        context.blocks,
        context.adapted,
        [row.ranks for row in rows],
        [row.seed for row in rows],
        hidden_size=context.hidden_size,
        n_classes=context.n_classes,
        scaling=config.lora.alpha / config.lora.r,
        dtype=context.states.values.dtype,
        device=context.device,
        placement=context.dendrites.placement,
        activation=context.dendrites.activation,
        dendrites=with_dendrites,
    )
    trainer = _Trainer(context, stack, rows)
    refined = [i for i, row in enumerate(rows) if row.candidates == "refined"]
    if refined:
        refine_stack(stack, refined, trainer.loss_of, *trainer.refining_batches())
    first = min(row.first_epoch for row in rows)
    for epoch in range(first, config.epochs):
        trainer.epoch(epoch, step_done)
    return trainer.results(started, last_state=last_state)


class _Trainer:
    """The loop's state: what is best so far, and where every run stands."""

    def __init__(self, context: StackContext, stack: LoraStack, rows: Sequence[StackRun]) -> None:
        self._context, self._stack, self._rows = context, stack, list(rows)
        config, device = context.config, context.device
        self._lengths: list[int] = context.states.lengths.tolist()
        self._labels = context.labels.cpu()
        weights = [
            class_weights(self._labels[list(row.train)].tolist(), context.n_classes)
            if config.class_weighted
            else torch.ones(context.n_classes)
            for row in rows
        ]
        self._weights = torch.stack(weights)[:, None, :].to(device)
        self._per_epoch = [math.ceil(len(row.train) / config.batch_size) for row in rows]
        self._steps = [n * row.first_epoch for n, row in zip(self._per_epoch, rows, strict=True)]
        self._factors = [1.0] * len(rows)
        self._optimizer = StackedAdamW(stack, config)
        self._loss_sums = torch.zeros(len(rows), dtype=torch.float64, device=device)
        self._run_step = StepRunner(self._step, device)
        self._rules = [GrowthRule(context.dendrites, config.epochs) for _ in rows]
        self._forks = {i: row.fork for i, row in enumerate(rows) if row.fork is not None}
        self._best_of_all, self._best = _Best(stack), _Best(stack)
        self._nlls: list[list[float]] = [[] for _ in rows]
        for index, row in enumerate(rows):
            if row.fork is not None:
                self._resume(index, row, row.fork)
            elif row.initial is not None:
                stack.load(index, row.initial)

    def _resume(self, index: int, row: StackRun, fork: ForkPoint) -> None:
        """Bring a run to its fork, grown if it is to have dendrites."""
        stack, dendrites = self._stack, self._context.dendrites

        def load(tensors: Mapping[str, Tensor]) -> None:
            stack.load(index, tensors)
            if row.candidates is not None:
                stack.grow(index, row.seed, dendrites.init_scale)

        load(fork.tensors)
        if dendrites.prune:
            self._best.observe(index, fork.validation)
        if fork.snapshot is None:
            self._factors[index] = dendrites.learning_rate_factor
        else:
            load(fork.snapshot.tensors)
            self._optimizer.restore(stack, index, fork.snapshot)

    def loss_of(self, where: Tensor, longest: int) -> Tensor:
        """Mean weighted loss of each run (K,) for texts (K, B), -1 where a run has fewer."""
        where = where.to(self._context.device)
        texts = where.clamp(min=0)
        return weighted_loss(
            self._logits(texts, longest),
            self._context.labels[texts],
            self._weights,
            self._context.config.label_smoothing,
            mask=(where >= 0).float(),
            targets=None if self._context.targets is None else self._context.targets[texts],
        )

    def _logits(self, texts: Tensor, longest: int) -> Tensor:
        """(K, B) -> (K, B, classes)."""
        self._stack.stage()
        hidden, last = self._context.states.batch(texts.flatten(), longest)
        # What stands in for a missing text may be longer than the batch.
        last = last.clamp(max=longest - 1)
        return self._stack.logits(self._stack.pooled(hidden, last, self._context.config.pooling))

    def _step(self, where: Tensor, longest: int) -> None:
        texts = where.unflatten(0, (self._stack.runs, -1))
        losses = self.loss_of(texts, longest)
        losses.sum().backward()
        self._optimizer.step((texts >= 0).any(dim=1))
        self._loss_sums.add_(losses.detach())

    def epoch(self, epoch: int, step_done: Callable[[int], None]) -> None:
        """Train and validate every run that has begun."""
        config, rows = self._context.config, self._rows
        active = [row.first_epoch <= epoch for row in rows]
        self._loss_sums.zero_()
        parts = [row.train if on else () for row, on in zip(rows, active, strict=True)]
        seeds = [row.seed for row in rows]
        steps = steps_of_epoch(parts, seeds, config.batch_size, self._lengths, epoch)
        rates: list[list[list[float]]] = []
        for batches in steps:
            rates.append([])
            for row, batch in enumerate(batches):
                total = self._per_epoch[row] * config.epochs
                scheduled = learning_rate_at(self._steps[row], total, config)
                rates[-1].append([self._factors[row] * scheduled])
                self._steps[row] += bool(batch)
        # One transfer an epoch; a transfer a step would make every step wait for the host.
        taken = [packed(batches, config.batch_size, self._lengths) for batches in steps]
        where = torch.stack([texts for texts, _ in taken]).to(self._context.device)
        on_device = torch.tensor(rates).to(self._context.device)
        for index, (batches, (_, longest)) in enumerate(zip(steps, taken, strict=True)):
            self._optimizer.rates.copy_(on_device[index])
            self._run_step(where[index].flatten(), longest)
            step_done(sum(map(bool, batches)))
        self._validated(epoch, active)

    def _batches(self, indices: Sequence[int], seed: int, epoch: int) -> list[list[int]]:
        return epoch_batches(indices, self._lengths, self._context.config.batch_size, seed, epoch)

    def refining_batches(self) -> tuple[list[tuple[Tensor, int]], list[tuple[Tensor, int]]]:
        """Batches for fitting candidates and for choosing, as the next epoch would make them."""
        found = []
        for part, count in (("train", FITTING_BATCHES), ("validation", CHOOSING_BATCHES)):
            of_rows = [
                self._batches(getattr(row, part), row.seed, row.first_epoch) for row in self._rows
            ]
            width = self._context.config.batch_size
            places = range(min(count, max(map(len, of_rows))))
            found.append(
                [
                    packed([b[p] if p < len(b) else [] for b in of_rows], width, self._lengths)
                    for p in places
                ]
            )
        return found[0], found[1]

    @torch.no_grad()
    def class_logits(self, indices: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits (n, classes) of each run for texts of its own, on the CPU, in their order."""

        def logits_of(texts: Tensor, longest: int) -> Tensor:
            return self._logits(texts.to(self._context.device), longest)

        return logits_side_by_side(indices, self._lengths, logits_of)

    def _validated(self, epoch: int, active: Sequence[bool]) -> None:
        finite = self._loss_sums.isfinite().tolist()
        found = self.class_logits([row.validation for row in self._rows])
        for index, (row, logits, on) in enumerate(zip(self._rows, found, active, strict=True)):
            if not on:
                continue
            if not (finite[index] and bool(logits.isfinite().all())):
                raise StudyError(
                    f"the loss of seed {row.seed} became NaN or infinite in epoch {epoch}; lower "
                    "the learning rate"
                )
            validation = validate(logits, self._labels[list(row.validation)], epoch)
            self._nlls[index].append(validation.nll)
            self._best_of_all.observe(index, validation)
            self._best.observe(index, validation)
            if row.fork is None and self._rules[index].observe(epoch, validation.nll):
                restarts = self._context.dendrites.restarts_run(self._nlls[index])
                self._forks[index] = ForkPoint(
                    epoch,
                    self._stack.tensors(index, self._best_of_all.values),
                    self._best_of_all.validations[index],
                    None if restarts else self._optimizer.snapshot(self._stack, index),
                )
            if row.restart_after == epoch:
                self._stack.values[index] = self._best_of_all.values[index]
                if not self._context.dendrites.prune:
                    self._best.forget(index)
                self._optimizer.reset(index)
                self._factors[index] = self._context.dendrites.learning_rate_factor

    def results(self, started: float, *, last_state: bool) -> list[RunResult]:
        """Every run's, with the stack in the selected states. started: time the training began."""
        seconds = (time.perf_counter() - started) / len(self._rows)
        last_logits: list[SplitLogits | None] = [None] * len(self._rows)
        if last_state:
            last_logits = [*self._split_logits(self._stack.values)]
        selected = self._split_logits(self._best.values)
        return [
            self._result(index, selected[index], last_logits[index], seconds)
            for index in range(len(self._rows))
        ]

    def _result(
        self, index: int, logits: SplitLogits, last_logits: SplitLogits | None, seconds: float
    ) -> RunResult:
        fork, selected = self._rows[index].fork, self._best.validations[index]
        tensors, dendrites = self._stack.tensors(index), self._stack.dendrites_of(index)
        if fork is not None and selected.epoch <= fork.epoch:
            # Dendrites that did not pay are dropped; they were silent in that state.
            tensors = {name: tensors[name] for name in fork.tensors}
            dendrites = 0
        return RunResult(
            tensors=tensors,
            logits=logits,
            last_logits=last_logits,
            selected=selected,
            validation_nlls=self._nlls[index],
            fork=self._forks[index],
            trainable_params=sum(tensor.numel() for tensor in tensors.values()),
            trained_params=self._stack.parameters_of(index),
            dendrites=dendrites,
            optimizer_steps=self._steps[index],
            seconds=seconds,
        )

    def _split_logits(self, values: Tensor) -> list[SplitLogits]:
        """Every run's logits with these values, which it has from then on."""
        self._stack.values.copy_(values.to(STORED_DTYPE))
        validation, test = (
            self.class_logits(indices)
            for indices in (
                [row.validation for row in self._rows],
                [row.test for row in self._rows],
            )
        )
        return [SplitLogits(*both) for both in zip(validation, test, strict=True)]


class _Best:
    """The best state of every run so far, by validation NLL."""

    def __init__(self, stack: LoraStack) -> None:
        self._stack = stack
        self.values = torch.zeros_like(stack.values)
        self.validations = [WORST] * stack.runs

    def observe(self, row: int, validation: Validation) -> None:
        """Take note of a state of the stack."""
        if validation.nll < self.validations[row].nll:
            self.values[row] = self._stack.values[row]
            self.validations[row] = validation

    def forget(self, row: int) -> None:
        """Later epochs compete anew."""
        self.validations[row] = WORST
