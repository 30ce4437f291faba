"""Runs of one regime side by side in one process: a step is one pass over a batch of each.

The base computes the batches of all runs as one large batch; every trainable map is called once for
all runs, each with its own parameters (torch.func.vmap over the map as it is), so whatever the
trainer can train can be stacked. Start, batches, loss, schedule, clipping, AdamW, selection and
stopping are the trainer's (finsent.training.loop.train), and tests hold the two together. What a
run becomes does not depend on its neighbours, but for dropout, which draws for all runs at once.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from finsent.config import ConfigError, DendriteConfig, TrainConfig
from finsent.models.adapters import rounded_as_stored
from finsent.models.backbones import Backbone
from finsent.models.encoders import captures
from finsent.study.lora.optimizer import StackedAdamW
from finsent.study.side_by_side import logits_side_by_side, packed, steps_of_epoch
from finsent.training.adapted_model import AdaptedModel, build_model, growing
from finsent.training.loop import TrainingData, TrainingDiverged, autocast, validate
from finsent.training.optimization import (
    class_weights,
    learning_rate_at,
    new_optimizer,
    weighted_loss,
)
from finsent.training.progress import EpochRecord, Progress, Start, State, Validation
from finsent.training.stepping import StepRunner


@dataclass(frozen=True)
class Asked:
    """A run to be made."""

    config: TrainConfig
    data: TrainingData
    test: Sequence[int]
    """Of whom the selected state is asked, at the end."""
    start: Start | None = None


@dataclass(frozen=True)
class Made:
    """What became of it."""

    selected: Validation
    tensors: dict[str, Tensor] = field(repr=False)
    """Of the selected state, rounded as it would be stored."""
    dendrites: int
    test_logits: Tensor = field(repr=False)
    """(test, classes), on the CPU."""
    trained_params: int
    steps: int
    epochs: int
    seconds: float
    """Its share of the stack's time."""


def train_side_by_side(
    asked: Sequence[Asked], backbone: Backbone, *, most: int, pad_multiple: int
) -> list[Made]:
    """Every run's outcome. Runs whose tensors have equal shapes go side by side, at most `most`.

    Raises:
        TrainingDiverged: A loss became NaN or infinite.
        GrowthError: PerforatedAI failed.
        ConfigError: The runs do not share states, labels or a recipe.
    """
    _require_alike(asked)
    beginnings = _Beginnings(backbone)
    groups: dict[object, list[int]] = {}
    for index, run in enumerate(asked):
        shapes = {n: t.shape for n, t in beginnings.of(run).items()}
        groups.setdefault(tuple(sorted(shapes.items())), []).append(index)
    made: dict[int, Made] = {}
    for members in groups.values():
        for at in range(0, len(members), most):
            chosen = members[at : at + most]
            stack = [asked[i] for i in chosen]
            found = _Training(stack, backbone, beginnings, pad_multiple).results()
            made.update(zip(chosen, found, strict=True))
    return [made[index] for index in range(len(asked))]


def _require_alike(asked: Sequence[Asked]) -> None:
    def shared(config: TrainConfig) -> TrainConfig:
        return replace(config, seed=0, split="70/15/15", learning_rate=1.0, treatment=None)

    first = asked[0]
    if any(run.data.states is not first.data.states for run in asked):
        raise ConfigError("runs go side by side on the same texts only")
    if any(shared(run.config) != shared(first.config) for run in asked):
        raise ConfigError("runs that go side by side differ in seed, split and rate only")
    if first.config.layer_decay != 1 or first.data.views:
        raise ConfigError("runs with a layer decay or views do not go side by side")


class _Beginnings:
    """The tensors that runs begin with. Those of a seed are drawn once: folds share them."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._fresh: dict[object, dict[str, Tensor]] = {}

    def of(self, run: Asked) -> dict[str, Tensor]:
        """Copies of a run's tensors before its first step."""
        before = None if run.start is None else run.start.dendrites
        key = (run.config.seed, run.config.treatment, before)
        if key not in self._fresh:
            model = self.model(run)
            self._fresh[key] = model.snapshot()
            model.detach()
        tensors = {name: tensor.clone() for name, tensor in self._fresh[key].items()}
        for name, value in (run.start.tensors if run.start is not None else {}).items():
            tensors[name][: len(value)].copy_(value)  # output weights may have a row more
        return tensors

    def model(self, run: Asked) -> AdaptedModel:
        """The run's model before its first step, attached; values of `start` are not in it."""
        config, device = run.config, self._backbone.device
        model = build_model(config, self._backbone, run.data.n_classes)
        if run.start is not None and isinstance(config.treatment, DendriteConfig):
            with (
                tempfile.TemporaryDirectory() as scratch,
                growing(model, config.treatment, device, Path(scratch)) as grower,
            ):
                optimizer = new_optimizer({1.0: model.parameters()}, config, device)
                for _ in range(run.start.dendrites + 1):
                    grower.grow(optimizer)
        return model


class _Called(nn.Module):
    """A map, and A where it is named elsewhere."""

    def __init__(self, called: nn.Module, beside: nn.Module | None) -> None:
        super().__init__()
        self.called, self.beside = called, beside

    def forward(self, x: Tensor) -> Tensor:
        """The map's output."""
        y: Tensor = self.called(x)
        return y


class _OfRuns(nn.Module):
    """Stands for a map: row block k of its input goes through the map of run k."""

    def __init__(self, whole: _Called, tensors: Mapping[str, Tensor], runs: int) -> None:
        super().__init__()
        # In containers of Python: nothing here is a parameter of the model it stands in.
        self._whole, self._tensors, self._runs = [whole], dict(tensors), runs

    @property
    def weight(self) -> Tensor:
        """For its precision."""
        return next(iter(self._tensors.values()))

    def forward(self, x: Tensor) -> Tensor:
        """(K * B, ..., in) -> (K * B, ..., out)."""
        (whole,) = self._whole

        def of_run(tensors: dict[str, Tensor], rows: Tensor) -> Tensor:
            y: Tensor = functional_call(whole, tensors, (rows,))
            return y

        y: Tensor = vmap(of_run)(self._tensors, x.unflatten(0, (self._runs, -1)))
        return y.flatten(0, 1)


class RunStack:
    """Trainable tensors of K runs as one matrix (K, parameters), and a model that computes with
    them. Row k is run k's; a row's gradient is that of its own loss."""

    def __init__(self, model: AdaptedModel, beginnings: Sequence[Mapping[str, Tensor]]) -> None:
        self.model, self.runs = model, len(beginnings)
        self._names = list(beginnings[0])
        self._shapes = [beginnings[0][name].shape for name in self._names]
        self.values = torch.stack([self._flat(tensors) for tensors in beginnings])
        self.grads = torch.zeros_like(self.values)
        leaves: dict[str, Tensor] = {}
        views = zip(self._views(self.values), self._views(self.grads), strict=True)
        for name, (value, grad) in zip(self._names, views, strict=True):
            leaves[name] = value.detach().requires_grad_()
            leaves[name].grad = grad
        names = {id(tensor): name for name, tensor in model.tensors().items()}

        def stand_in(module: nn.Module, beside: nn.Module | None) -> nn.Module:
            whole = _Called(module, beside)
            of_map = {
                inner: leaves[names[id(parameter)]]
                for inner, parameter in whole.named_parameters()
                if id(parameter) in names
            }
            return _OfRuns(whole, of_map, self.runs)

        model.each_map(stand_in)

    def _flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([tensors[name].detach().flatten() for name in self._names])

    def _views(self, flat: Tensor) -> Iterator[Tensor]:
        """(K, *shape) of every tensor inside (K, parameters)."""
        parts = flat.split([shape.numel() for shape in self._shapes], dim=1)
        for part, shape in zip(parts, self._shapes, strict=True):
            yield part.unflatten(1, shape)

    def gather(self) -> Tensor:
        """After a backward pass: the gradients of `values` (K, parameters)."""
        return self.grads

    def tensors(self, row: Tensor, stored: str) -> dict[str, Tensor]:
        """One row of such a matrix (parameters,), by name, rounded as it would be stored."""
        parts = row.split([shape.numel() for shape in self._shapes])
        return {
            name: rounded_as_stored(part.view(shape), stored).clone()
            for name, part, shape in zip(self._names, parts, self._shapes, strict=True)
        }

    @torch.no_grad()
    def load(self, tensors: Sequence[Mapping[str, Tensor]]) -> None:
        """Give every run these values."""
        for row, of_run in zip(self.values, tensors, strict=True):
            row.copy_(self._flat(of_run))


class _Training:
    """The loop's state: all runs are in the same epoch."""

    def __init__(
        self, asked: Sequence[Asked], backbone: Backbone, beginnings: _Beginnings, pad: int
    ) -> None:
        self._began = time.perf_counter()
        self._asked, self._config, self._device = asked, asked[0].config, backbone.device
        self._states, self._lengths = asked[0].data.states, asked[0].data.lengths
        self._model = beginnings.model(asked[0])
        self._grown = max((m.n_dendrites for m in self._model.dendritic_maps()), default=0)
        self._stack = RunStack(self._model, [beginnings.of(run) for run in asked])
        self._optimizer = StackedAdamW(self._stack, self._config)
        graphs = captures(backbone.decoder)
        self._run_step = StepRunner(self._step, self._device, captures=graphs, pad_multiple=pad)
        self._labels = torch.tensor(asked[0].data.labels)
        self._on_device = self._labels.to(self._device)
        self._weights = torch.stack([self._weights_of(run) for run in asked])[:, None]
        self._weights = self._weights.to(self._device)
        self._targets: Tensor | None = None
        if any(run.data.targets is not None for run in asked):
            self._targets = torch.stack([self._targets_of(run) for run in asked])
        self._loss_sums = torch.zeros(len(asked), dtype=torch.float64, device=self._device)
        self._progress = [Progress(self._config.scored_by) for _ in asked]
        self._best = self._stack.values.clone()
        self._params = self._stack.values.shape[1]

    def _weights_of(self, run: Asked) -> Tensor:
        if not self._config.class_weighted:
            return torch.ones(run.data.n_classes)
        seen = [run.data.labels[i] for i in run.data.train]
        return class_weights(seen, run.data.n_classes, self._config.class_weight_power)

    def _targets_of(self, run: Asked) -> Tensor:
        if run.data.targets is not None:
            return run.data.targets
        one_hot = nn.functional.one_hot(self._on_device, run.data.n_classes)
        return one_hot.float()

    def _logits(self, texts: Tensor, longest: int, *, training: bool) -> Tensor:
        """(K, B) -> (K, B, classes)."""
        hidden, last = self._states.batch(texts.flatten(), longest)
        # What stands in for a missing text may be longer than the batch.
        last = last.clamp(max=longest - 1)
        if training:
            with autocast(self._config, self._device), self._model.dropping():
                pooled = self._model.pooled(hidden, last)
        else:
            pooled = self._model.pooled(hidden, last)
        # Head and loss in fp32, outside autocast.
        logits: Tensor = self._model.head(pooled)
        return logits.unflatten(0, (self._stack.runs, -1))

    def _step(self, where: Tensor, longest: int) -> None:
        """One optimizer step of every run that has a text in `where` (K * B,), -1 for none."""
        taken = where.unflatten(0, (self._stack.runs, -1))
        texts, mask = taken.clamp(min=0), taken >= 0
        targets = None
        if self._targets is not None:
            rows = torch.arange(self._stack.runs, device=self._device)[:, None]
            targets = self._targets[rows, texts]
        losses = weighted_loss(
            self._logits(texts, longest, training=True),
            self._on_device[texts],
            self._weights,
            self._config.label_smoothing,
            mask=mask.float(),
            targets=targets,
        )
        self._stack.grads.zero_()
        losses.sum().backward()
        self._optimizer.step(mask.any(dim=1))
        self._loss_sums.add_(losses.detach())

    @torch.no_grad()
    def _asked_of(self, indices: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits of each run for texts of its own, on the CPU."""

        def logits_of(texts: Tensor, longest: int) -> Tensor:
            return self._logits(texts.to(self._device), longest, training=False)

        return logits_side_by_side(indices, self._lengths, logits_of)

    def _epoch(self, epoch: int, active: Sequence[bool]) -> None:
        config, device = self._config, self._device
        began = time.perf_counter()
        parts = [r.data.train if on else () for r, on in zip(self._asked, active, strict=True)]
        seeds = [run.config.seed for run in self._asked]
        steps = steps_of_epoch(parts, seeds, config.batch_size, self._lengths, epoch)
        rates: list[list[list[float]]] = []
        for batches in steps:
            rates.append([])
            for run, progress, batch in zip(self._asked, self._progress, batches, strict=True):
                total = math.ceil(len(run.data.train) / config.batch_size) * config.epochs
                rates[-1].append([learning_rate_at(progress.step, total, run.config)])
                progress.step += bool(batch)
        # One transfer an epoch; a transfer a step would make every step wait for the host.
        taken = [packed(batches, config.batch_size, self._lengths) for batches in steps]
        where = torch.stack([texts for texts, _ in taken]).to(device)
        on_device = torch.tensor(rates).to(device)
        self._loss_sums.zero_()
        for index, (_, longest) in enumerate(taken):
            self._optimizer.rates.copy_(on_device[index])
            self._run_step(where[index].flatten(), longest)
        self._validated(epoch, active, began)

    def _validated(self, epoch: int, active: Sequence[bool], began: float) -> None:
        losses = self._loss_sums.tolist()
        found = self._asked_of([run.data.validation for run in self._asked])
        seconds = (time.perf_counter() - began) / sum(active)
        for row, (run, progress, logits) in enumerate(
            zip(self._asked, self._progress, found, strict=True)
        ):
            if not active[row]:
                continue
            if not (math.isfinite(losses[row]) and bool(logits.isfinite().all())):
                raise TrainingDiverged(
                    f"{run.config.split} seed {run.config.seed}: the loss became NaN or infinite "
                    f"in epoch {epoch}; lower the learning rate or raise the precision"
                )
            validation = validate(logits, self._labels[list(run.data.validation)], epoch)
            state = State(validation, {})
            progress.observe(state)
            if progress.best is state:
                self._best[row] = self._stack.values[row]
            progress.history.append(
                EpochRecord(
                    epoch=epoch,
                    train_loss=losses[row],
                    val_loss=validation.nll,
                    val_accuracy=validation.accuracy,
                    val_macro_f1=validation.macro_f1,
                    learning_rate=run.config.learning_rate,
                    dendrites=self._grown,
                    trainable_params=self._params,
                    seconds=seconds,
                    event=None,
                )
            )

    def results(self) -> list[Made]:
        """Train all runs to their end, leave the base as it was, and say what was found."""
        for epoch in range(self._config.epochs):
            active = [not p.stalled(self._config.stop_patience) for p in self._progress]
            if not any(active):
                break
            self._epoch(epoch, active)
        tensors = [self._stack.tensors(row, self._config.stored) for row in self._best]
        self._stack.load(tensors)
        logits = self._asked_of([run.test for run in self._asked])
        self._model.detach()
        seconds = (time.perf_counter() - self._began) / len(self._asked)
        return [
            self._made(progress, of_run, said, seconds)
            for progress, of_run, said in zip(self._progress, tensors, logits, strict=True)
        ]

    def _made(
        self, progress: Progress, tensors: dict[str, Tensor], logits: Tensor, seconds: float
    ) -> Made:
        if progress.best is None:
            raise ConfigError("a run of no epochs has no state to select")
        return Made(
            selected=progress.best.validation,
            tensors=tensors,
            dendrites=self._grown,
            test_logits=logits,
            trained_params=self._params,
            steps=progress.step,
            epochs=len(progress.history),
            seconds=seconds,
        )
