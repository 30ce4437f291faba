"""One training run: the loop, read top to bottom.

The base is frozen and its lower blocks are already applied (`HiddenStates`); what is trained are
LoRA maps in the upper blocks, a score head on the last token, and, in the dendritic arm, dendrites
on either. Every arm goes through the same lines. Arms differ at the end of an epoch only, in two
branches: the dendritic arm may grow dendrites, and its controls may restart where it did.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor, nn

from finsent.config import DendriteConfig, Restarts, TrainConfig
from finsent.data.batches import epoch_batches
from finsent.growth.grower import DendriteGrower, GrowthError, GrowthEvent
from finsent.growth.refinement import CHOOSING_BATCHES, FITTING_BATCHES, refine_new_dendrites
from finsent.machine.devices import peak_memory_mb, reset_peak_memory
from finsent.models.adapters import save_adapter, trainable_count
from finsent.models.backbones import Backbone, HiddenStates
from finsent.models.dendritic_linear import DendriticLinear
from finsent.models.encoders import captures
from finsent.models.tokenization import token_batches
from finsent.training.adapted_model import AdaptedModel, build_model, growing
from finsent.training.checkpoints import (
    CHECKPOINT,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from finsent.training.optimization import (
    carry_over,
    class_weights,
    learning_rate_at,
    new_optimizer,
    set_learning_rate,
    weighted_loss,
)
from finsent.training.progress import (
    RESTARTED,
    UNINTERRUPTED,
    EpochRecord,
    Progress,
    Start,
    State,
    Validation,
    growth_score,
)
from finsent.training.stepping import PAD_MULTIPLE, StepRunner

EVALUATION_TOKENS = 8192
"""Padded tokens per evaluation batch."""


@dataclass(frozen=True)
class TrainingData:
    """The examples of one run: what enters the trainable blocks, their classes, and two parts.

    `states` and `labels` cover the whole data set, indexed alike; `train` and `validation` are the
    indices of the examples that are fitted and of those that select the state. The test part is
    not here: training never sees it. With `views`, `states` and `labels` go on with as many further
    readings of the whole data set (TrainConfig.views).
    """

    states: HiddenStates
    """What enters the first adapted block, on the backbone's device."""
    labels: Sequence[int]
    """Class of every example, from 0 to `n_classes` - 1."""
    n_classes: int
    train: Sequence[int]
    validation: Sequence[int]
    views: int = 0
    targets: Tensor | None = None
    """(examples, classes) that are learned in place of the labels, on the device."""

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of every example."""
        lengths: list[int] = self.states.lengths.tolist()
        return lengths

    def batches(self, part: Sequence[int], config: TrainConfig, epoch: int) -> list[list[int]]:
        """An epoch's batches of one part; see `epoch_batches`."""
        return epoch_batches(part, self.lengths, config.batch_size, config.seed, epoch)

    def seen_in(self, config: TrainConfig, epoch: int) -> Sequence[int]:
        """The training part as an epoch reads it: each example in one of its views."""
        if self.views == 0:
            return self.train
        size = len(self.labels) // (self.views + 1)
        drawn = np.random.default_rng([config.seed, epoch, self.views])
        views = drawn.integers(self.views + 1, size=len(self.train))
        return [i + size * int(view) for i, view in zip(self.train, views, strict=True)]

    def training_batches(self, config: TrainConfig, epoch: int) -> Iterator[tuple[Tensor, int]]:
        """Indices (B,) on the device and the longest example's tokens, batch by batch."""
        batches = self.batches(self.seen_in(config, epoch), config, epoch)
        # One transfer an epoch; a transfer a step would make every step wait for the host.
        indices = torch.tensor([i for batch in batches for i in batch])
        chunks = indices.to(self.states.values.device).split([len(batch) for batch in batches])
        for batch, where in zip(batches, chunks, strict=True):
            yield where, max(self.lengths[i] for i in batch)


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite. The last good state is kept on disk."""


@dataclass
class TrainResult:
    """What a run found. The model holds the selected state."""

    model: AdaptedModel
    history: list[EpochRecord]
    selected: Validation
    best_before_growth: Validation | None
    dendrites: int
    dendrite_logit_share: float | None
    trainable_params: int
    optimizer_steps: int
    train_seconds: float
    peak_memory_mb: float


@torch.no_grad()
def class_logits(
    model: AdaptedModel, states: HiddenStates, indices: Sequence[int], lengths: Sequence[int]
) -> Tensor:
    """Logits (n, classes) in fp32 on the CPU, in the order of `indices`, never autocast.

    Args:
        lengths: Tokens of every example of `states`, on the host.
    """
    parts: list[Tensor] = []
    order: list[int] = []
    for batch in token_batches([lengths[i] for i in indices], EVALUATION_TOKENS):
        chosen = [indices[i] for i in batch]
        where = torch.tensor(chosen, device=states.values.device)
        hidden, last = states.batch(where, max(lengths[i] for i in chosen))
        parts.append(model.head(model.pooled(hidden, last)))
        order += batch
    return torch.cat(parts).cpu()[torch.tensor(order).argsort()]


def validate(logits: Tensor, labels: Tensor, epoch: int) -> Validation:
    """Scores of logits (n, classes) against labels (n,)."""
    predicted = logits.argmax(dim=1)
    return Validation(
        epoch=epoch,
        accuracy=float((predicted == labels).double().mean()),
        macro_f1=float(f1_score(labels, predicted, average="macro", zero_division=0)),
        nll=float(F.cross_entropy(logits.double(), labels)),
    )


def _logit_share(model: AdaptedModel, data: TrainingData) -> float | None:
    """How much the dendrites contribute: mean |logits - logits without them| / mean |logits|."""
    if not model.dendritic_maps():
        return None
    logits = class_logits(model, data.states, data.validation, data.lengths)
    with model.dendrites_silenced():
        silenced = class_logits(model, data.states, data.validation, data.lengths)
    return float((logits - silenced).abs().mean() / logits.abs().mean())


def _keep_last_good(
    model: AdaptedModel, last_good: State | None, folder: Path, epoch: int, rate: float
) -> str:
    """Save the state of the last epoch that was finite; returns what to tell the user."""
    where = "there was no good state yet"
    if last_good is not None:
        path = folder / "last_good.safetensors"
        save_adapter(path, last_good.tensors, model.scaling, model.activation, model.stored)
        where = f"the state after epoch {last_good.validation.epoch} is kept in {path}"
    return (
        f"the loss became NaN or infinite in epoch {epoch} (learning rate {rate:.3g}); {where}. "
        "Lower --learning-rate or raise the precision."
    )


def autocast(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    # A base held in bf16 or NF4 computes in bf16 by itself; autocast would only add copies.
    enabled = config.autocast and config.precision == "fp32"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def train(
    config: TrainConfig,
    backbone: Backbone,
    data: TrainingData,
    folder: Path,
    *,
    identity: str | None = None,
    start: Start | None = None,
    pad_multiple: int = PAD_MULTIPLE,
    step_done: Callable[[int], None] = lambda steps: None,
    epoch_done: Callable[[EpochRecord], None] = lambda record: None,
) -> TrainResult:
    """Train one arm of one seed and return its best-validation state.

    Args:
        config: Seed, hyperparameters and treatment.
        backbone: Frozen base. The adapters stay attached to it until `TrainResult.model.detach()`.
        data: What enters the first adapted block, and the examples of the parts.
        folder: Receives the last good state if the loss diverges, and the library's chart of a
            dendritic run.
        identity: With one, `folder` also receives a checkpoint after every epoch, and a run that
            finds a checkpoint of the same identity resumes from it, to the same result.
        start: The run begins at that state, where a dendritic one grows its only new dendrite.
        pad_multiple: On CUDA, batches are padded to a multiple of this length.
        step_done: Told how many optimizer steps were made since it was last called.
        epoch_done: Told the record of every epoch.

    Raises:
        TrainingDiverged: The loss became NaN or infinite.
        GrowthError: PerforatedAI failed, or no epoch trained the dendrites it grew.
        CheckpointError: A checkpoint cannot be written or read, or is another run's.
        ValueError: Both `start` and `identity`.
    """
    if start is not None and identity is not None:
        raise ValueError("a cycle that begins at another run's state is not resumed")
    device = backbone.device
    reset_peak_memory(device)
    model = build_model(config, backbone, data.n_classes)
    validation_labels = torch.tensor([data.labels[i] for i in data.validation])
    with contextlib.ExitStack() as stack:
        grower = None
        if isinstance(config.treatment, DendriteConfig):
            grower = stack.enter_context(growing(model, config.treatment, device, folder))
        run = _Run(config, data, model, device)
        if start is not None:
            run.begin(start, grower)
            grower = None  # what it had to do is done
        if identity is not None:
            run.resume(folder / CHECKPOINT, identity, grower)
        progress = run.progress
        graphs = captures(backbone.decoder)
        run_step = StepRunner(run.step, device, captures=graphs, pad_multiple=pad_multiple)
        last_good: State | None = None
        step_done(progress.step)
        for epoch in range(len(progress.history), config.epochs):
            if progress.stalled(config.stop_patience):
                break
            started = time.perf_counter()
            rate, train_loss = run.fit(run_step, epoch, step_done)
            logits = class_logits(model, data.states, data.validation, data.lengths)
            if not math.isfinite(train_loss) or not bool(logits.isfinite().all()):
                raise TrainingDiverged(_keep_last_good(model, last_good, folder, epoch, rate))
            validation = validate(logits, validation_labels, epoch)
            last_good = State(validation, model.snapshot())
            best = progress.observe(last_good)
            # What the epoch was trained with: growth may change both.
            dendrites, trainable = progress.dendrites, trainable_count(model.tensors())

            event = None
            if grower is not None:
                event = run.grow(grower, last_good, best)
            elif config.restarts is not None and epoch in config.restarts.epochs:
                event = run.restart(config.restarts, best)
            if event is not None:
                run_step.reset()
            record = EpochRecord(
                epoch=epoch,
                train_loss=train_loss,
                val_loss=validation.nll,
                val_accuracy=validation.accuracy,
                val_macro_f1=validation.macro_f1,
                learning_rate=rate,
                dendrites=dendrites,
                trainable_params=trainable,
                seconds=time.perf_counter() - started,
                event=event,
            )
            progress.history.append(record)
            progress.seconds += record.seconds
            if identity is not None:
                run.save(folder / CHECKPOINT, identity)
            epoch_done(record)

        result = run.finish()
        if grower is not None:
            grower.draw(folder / "PAI.png")
    return result


class _Run:
    """What the epochs of a run share, and what growing or restarting replaces."""

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        model: AdaptedModel,
        device: torch.device,
    ) -> None:
        self._config, self._data, self._model = config, data, model
        self._device = device
        self._labels = torch.tensor(data.labels).to(device)
        weights = torch.ones(data.n_classes)
        if config.class_weighted:
            seen = [data.labels[i] for i in data.train]
            weights = class_weights(seen, data.n_classes, config.class_weight_power)
        self._weights = weights.to(device)
        self.progress = Progress(config.scored_by)
        self.loss_sum = torch.zeros((), device=device, dtype=torch.float64)
        """Of the steps since it was last zeroed."""
        self._new_optimizer()

    def _new_optimizer(self) -> None:
        self._parameters = self._model.parameters()
        groups = self._model.by_rate(self._config)
        self.optimizer = new_optimizer(groups, self._config, self._device)

    def _loss(self, where: Tensor, longest: int) -> Tensor:
        """Mean loss of the examples `where` (B,), padded to `longest` tokens: scalar."""
        hidden, last = self._data.states.batch(where, longest)
        with autocast(self._config, self._device), self._model.dropping():
            pooled = self._model.pooled(hidden, last)
        # Head and loss in fp32, outside autocast.
        logits = self._model.head(pooled)
        labels, smoothing = self._labels[where], self._config.label_smoothing
        soft = None if self._data.targets is None else self._data.targets[where]
        return weighted_loss(logits, labels, self._weights, smoothing, targets=soft)

    def step(self, where: Tensor, longest: int) -> None:
        """One optimizer step on the examples `where` (B,), padded to `longest` tokens."""
        loss = self._loss(where, longest)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm)
        self.optimizer.step()
        # Summed on the device: asking for each value would stall the GPU at every step. A single
        # NaN or infinity survives the sum.
        self.loss_sum.add_(loss.detach())

    def fit(
        self, run_step: StepRunner, epoch: int, step_done: Callable[[int], None]
    ) -> tuple[float, float]:
        """All steps of an epoch; returns the last learning rate and the mean loss."""
        config, progress = self._config, self.progress
        steps = math.ceil(len(self._data.train) / config.batch_size)
        self.loss_sum.zero_()
        rate = 0.0
        for where, longest in self._data.training_batches(config, epoch):
            scheduled = learning_rate_at(progress.step, steps * config.epochs, config)
            rate = progress.learning_rate_factor * scheduled
            set_learning_rate(self.optimizer, rate)
            run_step(where, longest)
            progress.step += 1
            step_done(1)
        return rate, float(self.loss_sum) / steps

    def begin(self, start: Start, grower: DendriteGrower | None) -> None:
        """Go on from another run's state, with one dendrite more where there is a grower."""
        if grower is not None:
            for _ in range(start.dendrites + 1):
                self.progress.dendrites = grower.grow(self.optimizer).dendrites
        self._model.go_back(start.tensors)
        self._new_optimizer()

    def resume(self, checkpoint: Path, identity: str, grower: DendriteGrower | None) -> None:
        """Bring everything to where it was when the checkpoint, if there is one, was written."""
        found = load_checkpoint(checkpoint, self._device, identity)
        if found is None:
            return
        self.progress = Progress.from_checkpoint(found, self._config.scored_by)
        if grower is not None:
            self._replay_growth(grower)
        self._model.copy_in(found.tensors["model"])
        self._new_optimizer()
        restore_optimizer(self.optimizer, found.tensors.get("optimizer", {}))

    def save(self, checkpoint: Path, identity: str) -> None:
        """Write what `resume` reads."""
        optimizer = optimizer_tensors(self.optimizer)
        kept = self.progress.to_checkpoint(identity, self._model.tensors(), optimizer)
        save_checkpoint(checkpoint, kept)

    def grow(self, grower: DendriteGrower, state: State, best: State) -> str | None:
        """Tell the library how the epoch that ended in `state` validates; it may grow dendrites.

        It goes back to the best state of the maps it knows, and never takes the first epoch for
        that. So all of the model goes back to `best`, the best of all epochs, or to `state` where
        growth does not restart the run; otherwise it would be of two states. Returns what was
        done, for the history, or None.
        """
        model, progress, rule = self._model, self.progress, grower.config
        validation, before = state.validation, model.tensors()
        grown = self._tell(grower, validation)
        if grown is None:
            return None
        restarts = rule.restarts_run([*progress.losses, validation.loss(progress.scored_by)])
        model.go_back((best if restarts else state).tensors)
        if rule.candidates == "refined":
            self._refine(grower.modules, validation.epoch + 1)
        progress.grown(grown.dendrites, prune=rule.prune)
        former = self.optimizer
        self._new_optimizer()
        if restarts:
            progress.learning_rate_factor = rule.learning_rate_factor
        else:
            carry_over(former, before, self.optimizer, model.tensors())
        return _growth_text(grown, restarts)

    def restart(self, rule: Restarts, best: State) -> str:
        """Do what growing does besides adding dendrites; returns what was done."""
        self._model.copy_in(best.tensors)
        self.progress.restarted(prune=rule.prune)
        self.progress.learning_rate_factor = rule.learning_rate_factor
        self._new_optimizer()
        return RESTARTED

    def finish(self) -> TrainResult:
        """Give the model its selected state and say what the run found."""
        model, progress = self._model, self.progress
        if progress.best is None:
            raise GrowthError("dendrites were grown but no epoch trained them")
        model.restore(progress.best.tensors)
        model.round_to_stored()
        return TrainResult(
            model=model,
            history=progress.history,
            selected=progress.best.validation,
            best_before_growth=progress.best_before_growth,
            dendrites=max((m.n_dendrites for m in model.dendritic_maps()), default=0),
            dendrite_logit_share=_logit_share(model, self._data),
            trainable_params=trainable_count(model.tensors()),
            optimizer_steps=progress.step,
            train_seconds=progress.seconds,
            peak_memory_mb=peak_memory_mb(self._device),
        )

    def _tell(self, grower: DendriteGrower, validation: Validation) -> GrowthEvent | None:
        may_grow = validation.epoch < self._config.epochs - 1
        score = growth_score(validation, self._config.scored_by)
        return grower.epoch_end(score, self.optimizer, may_grow=may_grow)

    def _refine(self, maps: Mapping[str, DendriticLinear], epoch: int) -> None:
        """Refine the dendrites just grown, on batches as `epoch`, the next, would make them."""
        data = self._data

        def loss(batch: Sequence[int]) -> Tensor:
            where = torch.tensor(batch, device=self._device)
            return self._loss(where, max(data.lengths[i] for i in batch))

        fit = data.batches(data.train, self._config, epoch)[:FITTING_BATCHES]
        choose = data.batches(data.validation, self._config, epoch)[:CHOOSING_BATCHES]
        with self._model.module_by_module():
            refine_new_dendrites(maps, loss, fit, choose, self._config.seed)

    def _replay_growth(self, grower: DendriteGrower) -> None:
        """Bring the library to where it was: tell it the scores of the epochs that are over.

        It decides by scores alone, draws the same new dendrites from the same seed, and keeps a
        copy of the best state it was shown, which therefore has to be the right one at that epoch.
        """
        history, best = self.progress.history, self.progress.best_of_all
        for epoch, record in enumerate(history):
            if best is not None and best.validation.epoch == epoch:
                self._model.copy_in(best.tensors)
            grown = self._tell(grower, record.validation)
            event = None
            if grown is not None:
                losses = self.progress.losses[: epoch + 1]
                event = _growth_text(grown, grower.config.restarts_run(losses))
                self._new_optimizer()
            if event != record.event:
                raise GrowthError(
                    f"told the scores of the unfinished run again, PerforatedAI did {event!r} "
                    f"after epoch {epoch}, not {record.event!r}; train the run anew with "
                    "--overwrite"
                )


def _growth_text(grown: GrowthEvent, restarts: bool) -> str:
    """A growth as the history tells it."""
    return grown.description if restarts else f"{grown.description}{UNINTERRUPTED}"
