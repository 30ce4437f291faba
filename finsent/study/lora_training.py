"""Fine-tuning many runs at once: one loop, read top to bottom, the same lines for every arm.

Runs that share a frozen base and a recipe go side by side (finsent.study.lora_stack): a step is one
forward and backward pass over a batch of each. What a run becomes does not depend on its
neighbours. The rules are the trainer's (finsent.training): the same batches, loss, schedule,
clipping, AdamW, growth and selection; tests hold the two together, PerforatedAI's decisions
included. Up to the moment it grows, a dendritic run is the baseline: it is trained once, and the
arms go on from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finsent.adapters import STORED_DTYPE
from finsent.backbones import HiddenStates
from finsent.config import DendriteConfig, TrainConfig
from finsent.fused_training import FusedBlocks
from finsent.lora_refinement import BATCHES, CHOOSING_BATCHES
from finsent.progress import Validation
from finsent.stepping import StepRunner
from finsent.study.lora_stack import LoraStack
from finsent.study.results import StudyError
from finsent.study.stack_refinement import refine_stack
from finsent.tokenization import token_batches
from finsent.training import (
    batch_order,
    class_weights,
    epoch_batches,
    learning_rate_at,
    validate,
    weighted_loss,
)

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of AdamW, as torch has them."""
EVALUATION_TOKENS = 65536
"""Padded tokens of an evaluation batch, all runs together."""
NEVER = Validation(epoch=-1, accuracy=0.0, macro_f1=0.0, nll=math.inf)
"""Worse than any state."""


@dataclass(frozen=True)
class Ground:
    """What all runs of a stack stand on."""

    blocks: FusedBlocks
    """The upper blocks of the decoder, frozen."""
    hidden_size: int
    states: HiddenStates
    """Entering the blocks, for every text of the data set, in the precision of the base."""
    labels: Tensor
    """(texts,) on the states' device."""
    n_classes: int
    adapted: Mapping[str, tuple[int, int]]
    """(in, out) of every adapted layer by its path below the blocks."""
    config: TrainConfig
    """The recipe; seed and treatment are the runs' own."""
    dendrites: DendriteConfig
    targets: Tensor | None = None
    """(texts, classes) distributions to aim for; None: the labels. Scores are by labels always."""

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.states.values.device


@dataclass(frozen=True)
class Ongoing:
    """A run as it stands, with what AdamW knows of it."""

    tensors: dict[str, Tensor] = field(repr=False)
    """See LoraStack.tensors."""
    mean: dict[str, Tensor] = field(repr=False)
    """Of the gradients."""
    square: dict[str, Tensor] = field(repr=False)
    """Of the squared gradients."""
    steps: float


@dataclass(frozen=True)
class Start:
    """A state to go on from, after an epoch at whose end a run grows or restarts."""

    epoch: int
    """The epoch that is over."""
    tensors: dict[str, Tensor] = field(repr=False)
    """Of the best state so far (see LoraStack.tensors)."""
    validation: Validation
    """How that state validates."""
    ongoing: Ongoing | None = field(repr=False)
    """The run as it stands at the end of the epoch; None where growth restarts it."""


@dataclass(frozen=True)
class Row:
    """One run of a stack."""

    seed: int
    train: Sequence[int]
    validation: Sequence[int]
    test: Sequence[int]
    ranks: Mapping[str, int]
    """Of every adapted layer."""
    start: Start | None = None
    """None: from scratch."""
    candidates: str | None = None
    """How dendrites start (DendriteConfig.candidates) when the run goes on; None: it has none."""
    restart_after: int | None = None
    """Epoch at whose end a run from scratch goes back to its best state."""
    initial: Mapping[str, Tensor] | None = field(default=None, repr=False)
    """What a run from scratch begins with (see LoraStack.tensors); None: drawn from its seed."""

    @property
    def first_epoch(self) -> int:
        """The first that is trained here."""
        return 0 if self.start is None else self.start.epoch + 1


@dataclass(frozen=True)
class Said:
    """Logits (n, classes) of a state, rounded as it would be stored, on the CPU."""

    validation: Tensor
    test: Tensor
    """Read once, after the selection."""


@dataclass
class RowResult:
    """What one run became."""

    tensors: dict[str, Tensor] = field(repr=False)
    """The selected state, rounded as it would be stored."""
    said: Said = field(repr=False)
    """In the selected state."""
    said_last: Said | None = field(repr=False)
    """After the last epoch, whichever was selected; None unless asked for."""
    selected: Validation
    """Of a run with dendrites that may be dropped, this may be the state it started from."""
    validation_nlls: list[float]
    """Of every epoch trained here."""
    fork: Start
    """Where a dendrite is grown: for a run from scratch, decided as PerforatedAI would; otherwise
    where it started."""
    trainable_params: int
    """Of the selected state."""
    trained_params: int
    """Of the state after the last epoch."""
    dendrites: int
    """Of the selected state."""
    optimizer_steps: int
    """Those before its start included."""
    seconds: float
    """Its share of the stack's time."""


def interrupts(dendrites: DendriteConfig, start: Start | None) -> bool:
    """Whether a run that goes on from there has a fresh optimizer and a lower learning rate."""
    return start is not None and (dendrites.restart_age == 0 or start.ongoing is None)


class GrowthRule:
    """When a dendrite is added, as PerforatedAI decides it for one dendrite a map: after `patience`
    epochs without a better score, at the latest after epoch `grow_by`, never after the last.

    To the library the second epoch is better than the first, whatever they score.
    """

    def __init__(self, config: DendriteConfig, epochs: int) -> None:
        self._config, self._epochs = config, epochs
        self._best, self._best_epoch = math.inf, 0
        self.grown = False

    def observe(self, epoch: int, nll: float) -> bool:
        """Whether it is added at the end of this epoch."""
        if self.grown:
            return False
        if epoch > 0 and nll < self._best:
            self._best, self._best_epoch = nll, epoch
        patient = epoch - self._best_epoch < self._config.patience
        if epoch >= self._epochs - 1 or (patient and epoch != self._config.grow_by):
            return False
        self.grown = True
        return True


class _Optimizer:
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


def train_rows(
    ground: Ground,
    rows: Sequence[Row],
    *,
    last_state: bool = False,
    step_done: Callable[[int], None] = lambda steps: None,
) -> list[RowResult]:
    """Train runs side by side to the end of the recipe's epochs; one result for each.

    `last_state` asks for RowResult.said_last too. `step_done` is told of every step and how many
    runs took it. Raises StudyError when a loss is no longer finite.
    """
    started = time.perf_counter()
    config = ground.config
    with_dendrites = any(row.candidates is not None for row in rows)
    stack = LoraStack(
        ground.blocks,
        ground.adapted,
        [row.ranks for row in rows],
        [row.seed for row in rows],
        hidden_size=ground.hidden_size,
        n_classes=ground.n_classes,
        scaling=config.lora.alpha / config.lora.r,
        dtype=ground.states.values.dtype,
        device=ground.device,
        placement=ground.dendrites.placement,
        activation=ground.dendrites.activation,
        dendrites=with_dendrites,
    )
    trainer = _Trainer(ground, stack, rows)
    refined = [i for i, row in enumerate(rows) if row.candidates == "refined"]
    if refined:
        refine_stack(stack, refined, trainer.loss_of, *trainer.refining_batches())
    first = min(row.first_epoch for row in rows)
    for epoch in range(first, config.epochs):
        trainer.epoch(epoch, step_done)
    return trainer.results(started, last_state=last_state)


class _Trainer:
    """The loop's state: what is best so far, and where every run stands."""

    def __init__(self, ground: Ground, stack: LoraStack, rows: Sequence[Row]) -> None:
        self._ground, self._stack, self._rows = ground, stack, list(rows)
        config, device = ground.config, ground.device
        self._lengths: list[int] = ground.states.lengths.tolist()
        self._labels = ground.labels.cpu()
        weights = [
            class_weights(self._labels[list(row.train)].tolist(), ground.n_classes)
            if config.class_weighted
            else torch.ones(ground.n_classes)
            for row in rows
        ]
        self._weights = torch.stack(weights)[:, None, :].to(device)
        self._per_epoch = [math.ceil(len(row.train) / config.batch_size) for row in rows]
        self._steps = [n * row.first_epoch for n, row in zip(self._per_epoch, rows, strict=True)]
        self._factors = [1.0] * len(rows)
        self._optimizer = _Optimizer(stack, config)
        self._loss_sums = torch.zeros(len(rows), dtype=torch.float64, device=device)
        self._run_step = StepRunner(self._step, device)
        self._rules = [GrowthRule(ground.dendrites, config.epochs) for _ in rows]
        self._forks = {i: row.start for i, row in enumerate(rows) if row.start is not None}
        self._best_of_all, self._best = _Best(stack), _Best(stack)
        self._nlls: list[list[float]] = [[] for _ in rows]
        for index, row in enumerate(rows):
            if row.start is not None:
                self._go_on(index, row, row.start)
            elif row.initial is not None:
                stack.load(index, row.initial)

    def _go_on(self, index: int, row: Row, start: Start) -> None:
        """Bring a run to where it starts, grown if it is to have dendrites."""
        stack, dendrites = self._stack, self._ground.dendrites

        def load(tensors: Mapping[str, Tensor]) -> None:
            stack.load(index, tensors)
            if row.candidates is not None:
                stack.grow(index, row.seed, dendrites.init_scale)

        load(start.tensors)
        if dendrites.prune:
            self._best.observe(index, start.validation)
        if interrupts(dendrites, start) or start.ongoing is None:
            self._factors[index] = dendrites.learning_rate_factor
        else:
            load(start.ongoing.tensors)
            self._optimizer.go_on(index, start.ongoing)

    def loss_of(self, where: Tensor, longest: int) -> Tensor:
        """Mean weighted loss of each run (K,) for texts (K, B), -1 where a run has fewer."""
        where = where.to(self._ground.device)
        texts = where.clamp(min=0)
        return weighted_loss(
            self._logits(texts, longest),
            self._ground.labels[texts],
            self._weights,
            self._ground.config.label_smoothing,
            real=(where >= 0).float(),
            targets=None if self._ground.targets is None else self._ground.targets[texts],
        )

    def _logits(self, texts: Tensor, longest: int) -> Tensor:
        """(K, B) -> (K, B, classes)."""
        self._stack.stage()
        hidden, last = self._ground.states.batch(texts.flatten(), longest)
        # What stands in for a missing text may be longer than the batch.
        last = last.clamp(max=longest - 1)
        return self._stack.logits(self._stack.pooled(hidden, last, self._ground.config.pooling))

    def _step(self, where: Tensor, longest: int) -> None:
        texts = where.unflatten(0, (self._stack.runs, -1))
        losses = self.loss_of(texts, longest)
        losses.sum().backward()
        self._optimizer.step((texts >= 0).any(dim=1))
        self._loss_sums.add_(losses.detach())

    def epoch(self, epoch: int, step_done: Callable[[int], None]) -> None:
        """Train and validate every run that has begun."""
        config, rows = self._ground.config, self._rows
        active = [row.first_epoch <= epoch for row in rows]
        self._loss_sums.zero_()
        plans = [
            dict(zip(batch_order(n, epoch), self._batches(row.train, row.seed, epoch), strict=True))
            if on
            else {}
            for row, n, on in zip(rows, self._per_epoch, active, strict=True)
        ]
        steps: list[list[list[int]]] = []
        rates: list[list[list[float]]] = []
        for place in batch_order(max(self._per_epoch), epoch):
            batches = [plan.get(place, []) for plan in plans]
            if not any(batches):
                continue
            steps.append(batches)
            rates.append([])
            for row, batch in enumerate(batches):
                total = self._per_epoch[row] * config.epochs
                scheduled = learning_rate_at(self._steps[row], total, config)
                rates[-1].append([self._factors[row] * scheduled])
                self._steps[row] += bool(batch)
        # One transfer an epoch; a transfer a step would make every step wait for the host.
        packed = [self._packed(batches, config.batch_size) for batches in steps]
        where = torch.stack([texts for texts, _ in packed]).to(self._ground.device)
        on_device = torch.tensor(rates).to(self._ground.device)
        for index, (batches, (_, longest)) in enumerate(zip(steps, packed, strict=True)):
            self._optimizer.rates.copy_(on_device[index])
            self._run_step(where[index].flatten(), longest)
            step_done(sum(map(bool, batches)))
        self._validated(epoch, active)

    def _batches(self, indices: Sequence[int], seed: int, epoch: int) -> list[list[int]]:
        return epoch_batches(indices, self._lengths, self._ground.config.batch_size, seed, epoch)

    def _packed(self, batches: Sequence[Sequence[int]], width: int) -> tuple[Tensor, int]:
        """(K, width) texts, -1 where there are fewer, and the tokens of the longest."""
        texts = torch.tensor([[*batch, *[-1] * (width - len(batch))] for batch in batches])
        longest = max(self._lengths[i] for batch in batches for i in batch)
        return texts, longest

    def refining_batches(self) -> tuple[list[tuple[Tensor, int]], list[tuple[Tensor, int]]]:
        """Batches for fitting candidates and for choosing, as the next epoch would make them."""
        found = []
        for part, count in (("train", BATCHES), ("validation", CHOOSING_BATCHES)):
            of_rows = [
                self._batches(getattr(row, part), row.seed, row.first_epoch) for row in self._rows
            ]
            width = self._ground.config.batch_size
            places = range(min(count, max(map(len, of_rows))))
            found.append(
                [self._packed([b[p] if p < len(b) else [] for b in of_rows], width) for p in places]
            )
        return found[0], found[1]

    @torch.no_grad()
    def class_logits(self, indices: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits (n, classes) of each run for texts of its own, on the CPU, in their order."""
        longest_list = max(map(len, indices))
        # By length within each run; shorter lists are padded at the front, with the short texts.
        order = [sorted(range(len(own)), key=lambda i: self._lengths[own[i]]) for own in indices]
        padded = [
            [*[-1] * (longest_list - len(own)), *(own[i] for i in by_length)]
            for own, by_length in zip(indices, order, strict=True)
        ]
        widths = [
            max(1, *(self._lengths[row[column]] for row in padded if row[column] >= 0))
            for column in range(longest_list)
        ]
        parts = []
        for columns in token_batches(widths, max(1, EVALUATION_TOKENS // len(indices))):
            texts, longest = self._packed([[row[c] for c in columns] for row in padded], 0)
            logits = self._logits(texts.clamp(min=0).to(self._ground.device), longest)
            parts.append(logits.float().cpu())
        joined = torch.cat(parts, dim=1)
        found = []
        for row, by_length in enumerate(order):
            own = joined[row, longest_list - len(by_length) :]
            found.append(own[torch.tensor(by_length).argsort()])
        return found

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
            if row.start is None and self._rules[index].observe(epoch, validation.nll):
                best = self._best_of_all.validations[index]
                goes_on = epoch - best.epoch < self._ground.dendrites.restart_age
                self._forks[index] = Start(
                    epoch,
                    self._stack.tensors(index, self._best_of_all.values),
                    best,
                    self._optimizer.ongoing(index) if goes_on else None,
                )
            if row.restart_after == epoch:
                self._stack.values[index] = self._best_of_all.values[index]
                if not self._ground.dendrites.prune:
                    self._best.forget(index)
                self._optimizer.reset(index)
                self._factors[index] = self._ground.dendrites.learning_rate_factor

    def results(self, started: float, *, last_state: bool) -> list[RowResult]:
        """Every run's, with the stack in the selected states. started: time the training began."""
        seconds = (time.perf_counter() - started) / len(self._rows)
        said_last: list[Said | None] = [None] * len(self._rows)
        if last_state:
            said_last = [*self._said(self._stack.values)]
        said = self._said(self._best.values)
        return [
            self._result(index, said[index], said_last[index], seconds)
            for index in range(len(self._rows))
        ]

    def _result(self, index: int, said: Said, said_last: Said | None, seconds: float) -> RowResult:
        start, selected = self._rows[index].start, self._best.validations[index]
        tensors, dendrites = self._stack.tensors(index), self._stack.dendrites_of(index)
        if start is not None and selected.epoch <= start.epoch:
            # Dendrites that did not pay are dropped; they were silent in that state.
            tensors = {name: tensors[name] for name in start.tensors}
            dendrites = 0
        return RowResult(
            tensors=tensors,
            said=said,
            said_last=said_last,
            selected=selected,
            validation_nlls=self._nlls[index],
            fork=self._forks[index],
            trainable_params=sum(tensor.numel() for tensor in tensors.values()),
            trained_params=self._stack.parameters_of(index),
            dendrites=dendrites,
            optimizer_steps=self._steps[index],
            seconds=seconds,
        )

    def _said(self, values: Tensor) -> list[Said]:
        """What every run says with these values, which it has from then on."""
        self._stack.values.copy_(values.to(STORED_DTYPE))
        validation, test = (
            self.class_logits(indices)
            for indices in (
                [row.validation for row in self._rows],
                [row.test for row in self._rows],
            )
        )
        return [Said(*both) for both in zip(validation, test, strict=True)]


class _Best:
    """The best state of every run so far, by validation NLL."""

    def __init__(self, stack: LoraStack) -> None:
        self._stack = stack
        self.values = torch.zeros_like(stack.values)
        self.validations = [NEVER] * stack.runs

    def observe(self, row: int, validation: Validation) -> None:
        """Take note of a state of the stack."""
        if validation.nll < self.validations[row].nll:
            self.values[row] = self._stack.values[row]
            self.validations[row] = validation

    def forget(self, row: int) -> None:
        """Later epochs compete anew."""
        self.validations[row] = NEVER
