"""One training run: the loop, read top to bottom.

The base is frozen and its lower blocks are already applied (`HiddenStates`); what is trained are
LoRA maps in the upper blocks, a score head on the last token, and, in the dendritic arm, dendrites
on either. Every arm goes through the same lines; the only branch is whether a grower is present.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor, nn

from finsent.config import DendriteConfig, TrainConfig
from finsent.growth.grower import DendriteGrower, GrowthError
from finsent.growth.lora_refinement import BATCHES, CHOOSING_BATCHES, refine_new_dendrites
from finsent.models.adapters import save_adapter, trainable_count
from finsent.models.backbones import Backbone, HiddenStates
from finsent.models.dendritic_linear import DendriticLinear
from finsent.models.tokenization import token_batches
from finsent.training.adapted_model import (
    AdaptedModel,
    adopt_grown_modules,
    build_model,
    growable_maps,
)
from finsent.training.checkpoints import (
    CHECKPOINT,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from finsent.training.optimizers import carry_over, new_optimizer, set_learning_rate
from finsent.training.progress import UNINTERRUPTED, EpochRecord, Progress, State, Validation
from finsent.training.stepping import StepRunner

EVALUATION_TOKENS = 8192
"""Padded tokens per evaluation batch."""

RESTARTED = "restarted from the best state"
"""What the history of an arm with restarts says where the dendritic arm grew."""

BUCKET = 32
"""Batches whose examples are sorted by length together; larger pads less and shuffles less."""


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


def learning_rate_at(step: int, total: int, config: TrainConfig) -> float:
    """Linear warm-up, then linear decay to zero at `total` steps."""
    warmup = round(config.warmup_fraction * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * (total - step) / max(1, total - warmup)


def class_weights(labels: Sequence[int], n_classes: int) -> Tensor:
    """Inverse class frequencies, scaled so that a balanced set gets 1: (n_classes,).

    A class that does not occur gets weight 0; its loss never occurs either.
    """
    counts = torch.bincount(torch.tensor(labels), minlength=n_classes).float()
    weights = len(labels) / (n_classes * counts)
    return torch.where(counts > 0, weights, torch.zeros(()))


def weighted_loss(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    smoothing: float,
    real: Tensor | None = None,
    targets: Tensor | None = None,
) -> Tensor:
    """`F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)`: scalar.

    Written out because torch's smoothing waits for the device, which a captured step must not. For
    K runs side by side: logits (K, n, classes), labels (K, n), weights (K, 1, classes) and which
    examples are `real` (K, n), 1.0 or 0.0; then a loss for each run (K,). `targets`, distributions
    of the shape of the logits, stand in for the labels; those still decide what an example weighs.
    """
    n_classes = logits.shape[-1]
    true = F.one_hot(labels, n_classes)
    aims = (true if targets is None else targets) * (1 - smoothing) + smoothing / n_classes
    losses = -(F.log_softmax(logits, dim=-1) * aims * weights).sum(dim=-1)
    shares = (true * weights).sum(dim=-1)
    if real is None:
        return losses.sum() / shares.sum()
    # A run without an example has no loss; it takes no step either.
    return (losses * real).sum(dim=-1) / (shares * real).sum(dim=-1).clamp(min=1e-9)


def epoch_batches(
    indices: Sequence[int], lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Shuffled batches of examples of similar length.

    Depends on (seed, epoch) only, never on how far a global generator has moved: arms with other
    numbers of parameters see the same batches, and a resumed run the ones it would have seen. Which
    place of the epoch gets long sentences does not even depend on the seed, so that runs stacked
    side by side (finsent.study.lora.training) have batches of similar length at a time.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(np.asarray(indices))
    span = batch_size * BUCKET
    batches: list[list[int]] = []
    for start in range(0, len(order), span):
        bucket = sorted(order[start : start + span].tolist(), key=lambda i: lengths[i])
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    return [batches[i] for i in batch_order(len(batches), epoch)]


def batch_order(batches: int, epoch: int) -> list[int]:
    """Order of an epoch's batches. Leaving out the last ones leaves the order of the others."""
    order: list[int] = np.random.default_rng(epoch).random(batches).argsort().tolist()
    return order


@torch.no_grad()
def class_logits(
    model: AdaptedModel, states: HiddenStates, indices: Sequence[int], lengths: Sequence[int]
) -> Tensor:
    """Logits (n, classes) in fp32 on the CPU, in the order of `indices`, never autocast."""
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


def _logit_share(
    model: AdaptedModel, states: HiddenStates, indices: Sequence[int], lengths: Sequence[int]
) -> float | None:
    """How much the dendrites contribute: mean |logits - logits without them| / mean |logits|."""
    if not model.dendritic_maps():
        return None
    logits = class_logits(model, states, indices, lengths)
    with model.dendrites_silenced():
        silenced = class_logits(model, states, indices, lengths)
    return float((logits - silenced).abs().mean() / logits.abs().mean())


def _keep_last_good(
    model: AdaptedModel, last_good: State | None, folder: Path, epoch: int, rate: float
) -> str:
    """Save the state of the last epoch that was finite; returns what to tell the user."""
    where = "there was no good state yet"
    if last_good is not None:
        path = folder / "last_good.safetensors"
        save_adapter(path, last_good.tensors, model.scaling, model.activation)
        where = f"the state after epoch {last_good.validation.epoch} is kept in {path}"
    return (
        f"the loss became NaN or infinite in epoch {epoch} (learning rate {rate:.3g}); {where}. "
        "Lower --learning-rate or raise the precision."
    )


def _autocast(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    # A base held in bf16 or NF4 computes in bf16 by itself; autocast would only add copies.
    enabled = config.autocast and config.precision == "fp32"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def use_deterministic_kernels(device: torch.device) -> None:
    """Same seed, same device, same numbers. Call before anything runs on the device: cuBLAS reads
    the variable once."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Filling new tensors with NaN finds bugs in kernels, at a launch for every tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _peak_memory_mb(device: torch.device) -> float:
    """Peak of the CUDA allocator, or of the process's resident memory on a CPU, in MB (1e6 B)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1.0 if sys.platform == "darwin" else 1024.0) / 1e6


def train(
    config: TrainConfig,
    backbone: Backbone,
    states: HiddenStates,
    labels: Sequence[int],
    train_indices: Sequence[int],
    validation_indices: Sequence[int],
    n_classes: int,
    folder: Path,
    *,
    identity: str | None = None,
    step_done: Callable[[int], None] = lambda steps: None,
    epoch_done: Callable[[EpochRecord], None] = lambda record: None,
) -> TrainResult:
    """Train one arm of one seed and return its best-validation state.

    `states` and `labels` cover the whole data set, `*_indices` say which of it to use. `folder`
    receives the last good state if the loss diverges, and the library's chart of a dendritic run.
    With an `identity` it also receives a checkpoint after every epoch, and a run that finds one of
    the same identity goes on from there to the same result.
    Raises TrainingDiverged, ConfigError, GrowthError, CheckpointError.
    """
    device = backbone.device
    lengths = states.lengths.tolist()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = build_model(config, backbone, n_classes)
    all_labels = torch.tensor(labels)
    device_labels = all_labels.to(device)
    validation_labels = all_labels[list(validation_indices)]
    weights = torch.ones(n_classes, device=device)
    if config.class_weighted:
        weights = class_weights([labels[i] for i in train_indices], n_classes).to(device)

    with contextlib.ExitStack() as stack:
        grower = None
        if isinstance(config.treatment, DendriteConfig):
            maps = growable_maps(model, config.treatment.placement)
            grower = stack.enter_context(DendriteGrower(maps, config.treatment, device, folder))
            adopt_grown_modules(model, grower.modules)
            model.activation = config.treatment.activation

        progress, optimizer = _start_or_resume(config, model, grower, device, folder, identity)
        parameters = model.parameters()
        loss_sum = torch.zeros((), device=device, dtype=torch.float64)

        def loss_of(where: Tensor, longest: int) -> Tensor:
            hidden, last = states.batch(where, longest)
            with _autocast(config, device):
                pooled = model.pooled(hidden, last)
            # Head and loss in fp32, outside autocast.
            logits = model.head(pooled)
            return weighted_loss(logits, device_labels[where], weights, config.label_smoothing)

        def one_step(where: Tensor, longest: int) -> None:
            loss = loss_of(where, longest)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            # Summed on the device: asking for each value would stall the GPU at every step. A
            # single NaN or infinity survives the sum.
            loss_sum.add_(loss.detach())

        run_step = StepRunner(one_step, device)
        steps_per_epoch = math.ceil(len(train_indices) / config.batch_size)
        total_steps = steps_per_epoch * config.epochs
        last_good: State | None = None
        step_done(progress.step)

        for epoch in range(len(progress.history), config.epochs):
            started = time.perf_counter()
            loss_sum.zero_()
            rate = 0.0
            batches = epoch_batches(train_indices, lengths, config.batch_size, config.seed, epoch)
            # One transfer an epoch; a transfer a step would make every step wait for the host.
            on_device = torch.tensor([i for batch in batches for i in batch]).to(device)
            chunks = on_device.split([len(batch) for batch in batches])
            for batch, where in zip(batches, chunks, strict=True):
                scheduled = learning_rate_at(progress.step, total_steps, config)
                rate = progress.learning_rate_factor * scheduled
                set_learning_rate(optimizer, rate)
                run_step(where, max(lengths[i] for i in batch))
                progress.step += 1
                step_done(1)

            train_loss = float(loss_sum) / steps_per_epoch
            logits = class_logits(model, states, validation_indices, lengths)
            if not math.isfinite(train_loss) or not bool(logits.isfinite().all()):
                raise TrainingDiverged(_keep_last_good(model, last_good, folder, epoch, rate))
            validation = validate(logits, validation_labels, epoch)
            trainable = trainable_count(model.tensors())
            last_good = State(validation, model.snapshot())
            progress.observe(last_good)

            event = None
            trained_with = progress.dendrites
            if grower is not None:
                before = model.tensors()
                grown = grower.epoch_end(
                    growth_score(validation.nll), optimizer, may_grow=epoch < config.epochs - 1
                )
                if grown is not None:
                    event = grown.description
                    rule = grower.config
                    # The library went back to its best state of the maps it knows, and never takes
                    # the first epoch for it. All of the model goes back to the best of all epochs,
                    # or stays where it was; otherwise it would be of two.
                    assert progress.best_of_all is not None
                    goes_on = epoch - progress.best_of_all.validation.epoch < rule.restart_age
                    model.go_back((last_good if goes_on else progress.best_of_all).tensors)
                    if rule.candidates == "refined":
                        with model.module_by_module():
                            _refine(
                                grower.modules,
                                loss_of,
                                config,
                                epoch,
                                lengths,
                                train_indices,
                                validation_indices,
                            )
                    progress.grown(grown.dendrites, prune=rule.prune)
                    former, optimizer = optimizer, new_optimizer(model.parameters(), config, device)
                    if goes_on:
                        event += UNINTERRUPTED
                        carry_over(former, before, optimizer, model.tensors())
                    else:
                        progress.learning_rate_factor = rule.learning_rate_factor
                    parameters = model.parameters()
                    run_step.reset()
            elif config.restarts is not None and epoch in config.restarts.epochs:
                event = RESTARTED
                assert progress.best_of_all is not None
                model.copy_in(progress.best_of_all.tensors)
                progress.restarted(prune=config.restarts.prune)
                progress.learning_rate_factor = config.restarts.learning_rate_factor
                optimizer = new_optimizer(parameters, config, device)
                run_step.reset()
            record = EpochRecord(
                epoch=epoch,
                train_loss=train_loss,
                val_loss=validation.nll,
                val_accuracy=validation.accuracy,
                val_macro_f1=validation.macro_f1,
                learning_rate=rate,
                dendrites=trained_with,
                trainable_params=trainable,
                seconds=time.perf_counter() - started,
                event=event,
            )
            progress.history.append(record)
            progress.seconds += record.seconds
            if identity is not None:
                save_checkpoint(
                    folder / CHECKPOINT,
                    progress.to_checkpoint(identity, model.tensors(), optimizer_tensors(optimizer)),
                )
            epoch_done(record)

        if progress.best is None:
            raise GrowthError("dendrites were grown but no epoch trained them")
        model.restore(progress.best.tensors)
        model.round_to_stored()
        if grower is not None:
            grower.draw(folder / "PAI.png")

    return TrainResult(
        model=model,
        history=progress.history,
        selected=progress.best.validation,
        best_before_growth=progress.best_before_growth,
        dendrites=max((m.n_dendrites for m in model.dendritic_maps()), default=0),
        dendrite_logit_share=_logit_share(model, states, validation_indices, lengths),
        trainable_params=trainable_count(model.tensors()),
        optimizer_steps=progress.step,
        train_seconds=progress.seconds,
        peak_memory_mb=_peak_memory_mb(device),
    )


def _refine(
    maps: Mapping[str, DendriticLinear],
    loss_of: Callable[[Tensor, int], Tensor],
    config: TrainConfig,
    epoch: int,
    lengths: Sequence[int],
    train_indices: Sequence[int],
    validation_indices: Sequence[int],
) -> None:
    """Refine the dendrites just grown, on batches as the next epoch would make them."""
    device = next(iter(maps.values())).weight.device

    def loss(batch: Sequence[int]) -> Tensor:
        return loss_of(torch.tensor(batch, device=device), max(lengths[i] for i in batch))

    fit, choose = (
        epoch_batches(indices, lengths, config.batch_size, config.seed, epoch + 1)[:count]
        for indices, count in (
            (train_indices, BATCHES),
            (validation_indices, CHOOSING_BATCHES),
        )
    )
    refine_new_dendrites(maps, loss, fit, choose, config.seed)


def _start_or_resume(
    config: TrainConfig,
    model: AdaptedModel,
    grower: DendriteGrower | None,
    device: torch.device,
    folder: Path,
    identity: str | None,
) -> tuple[Progress, torch.optim.Optimizer]:
    """A fresh start, or everything as it was when the checkpoint in `folder` was written."""
    found = None
    if identity is not None:
        found = load_checkpoint(folder / CHECKPOINT, device, identity)
    if found is None:
        return Progress(), new_optimizer(model.parameters(), config, device)
    progress = Progress.from_checkpoint(found)
    if grower is not None:
        _replay_growth(grower, model, config, progress)
    model.copy_in(found.tensors["model"])
    optimizer = new_optimizer(model.parameters(), config, device)
    restore_optimizer(optimizer, found.tensors.get("optimizer", {}))
    return progress, optimizer


def growth_score(nll: float) -> float:
    """What the library is told: exp(-NLL), the geometric mean probability of the true class.

    It lies in (0, 1] and ranks states as the selection rule does.
    """
    return math.exp(-nll)


def _replay_growth(
    grower: DendriteGrower, model: AdaptedModel, config: TrainConfig, progress: Progress
) -> None:
    """Bring the library to where it was: tell it the scores of the epochs that are over.

    It decides by scores alone, draws the same new dendrites from the same seed, and keeps a copy
    of the best state it was shown, which therefore has to be the right one at that epoch.
    """
    optimizer = new_optimizer(model.parameters(), config, grower.device)
    for record in progress.history:
        best = progress.best_of_all
        if best is not None and best.validation.epoch == record.epoch:
            model.copy_in(best.tensors)
        may_grow = record.epoch < config.epochs - 1
        grown = grower.epoch_end(growth_score(record.val_loss), optimizer, may_grow=may_grow)
        event = None if grown is None else grown.description
        if event != (record.event and record.event.removesuffix(UNINTERRUPTED)):
            raise GrowthError(
                f"told the scores of the unfinished run again, PerforatedAI did {event!r} after "
                f"epoch {record.epoch}, not {record.event!r}; train the run anew with --overwrite"
            )
        if grown is not None:
            optimizer = new_optimizer(model.parameters(), config, grower.device)
