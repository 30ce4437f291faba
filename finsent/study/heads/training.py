"""Training a stack of heads: one function, read top to bottom, the same lines for every arm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finsent.data.folds import Fold
from finsent.study.head_recipe import HEAD_ARMS, HeadRecipe
from finsent.study.heads.candidates import (
    StackedExamples,
    held_out,
    nll,
    random_candidate,
    refined_candidate,
)
from finsent.study.heads.stack import HeadStack, matching_hidden_units, where_better
from finsent.study.rows import StudyError


@dataclass(frozen=True)
class FeatureTransform:
    """What a head sees of the features of one fold, fitted on its training part alone."""

    mean: Tensor
    """(d,)"""
    projection: Tensor | None
    """(d, k), columns scaled to unit variance; None: all features, each scaled."""
    scale: Tensor
    """(d,) standard deviations, which scale features that are not projected."""

    @classmethod
    def fit(cls, x: Tensor, dimensions: int | None) -> FeatureTransform:
        """x: training features (n, d). dimensions: leading principal components (None: all d)."""
        mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
        if dimensions is None:
            return cls(mean, None, scale)
        centred = (x - mean).double()
        values, vectors = torch.linalg.eigh(centred.T @ centred / (len(x) - 1))
        leading = vectors[:, -dimensions:].flip(1)
        # The sign of an eigenvector is arbitrary and differs by library: fix it.
        signs = leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
        spread = values[-dimensions:].flip(0).clamp_min(1e-12).sqrt()
        return cls(mean, (leading * signs / spread).float(), scale)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, d) to (n, k)."""
        centred = x - self.mean
        return centred / self.scale if self.projection is None else centred @ self.projection


@dataclass
class StackResult:
    """What R stacked runs ended with."""

    heads: HeadStack
    """In the selected state."""
    dendrites: list[int]
    """Of each run, kept per class: those grown before the selected epoch."""
    best_epoch: list[int]
    validation_nll: list[float]
    validation_accuracy: list[float]
    optimizer_steps: int
    seconds: float
    """Of the whole stack."""


def stacked_examples(
    views: Sequence[FeatureTransform], x: Tensor, y: Tensor, indices: Sequence[np.ndarray]
) -> StackedExamples:
    """Runs' examples, padded to the longest: a run sees `x` (n, d) through its own view."""
    longest = max(map(len, indices))
    width = views[0](x[:1]).shape[1]
    out = StackedExamples(
        torch.zeros(len(indices), longest, width),
        torch.zeros(len(indices), longest, dtype=torch.long),
        torch.zeros(len(indices), longest),
    )
    for row, (view, rows) in enumerate(zip(views, indices, strict=True)):
        chosen = torch.as_tensor(rows)
        out.x[row, : len(rows)] = view(x[chosen])
        out.y[row, : len(rows)] = y[chosen]
        out.real[row, : len(rows)] = 1.0
    return out


def run_generator(fold: Fold, stream: int) -> torch.Generator:
    """Randomness of one run: stream 0 for weights, 1 for the order of examples."""
    return torch.Generator().manual_seed(1_000_003 * fold.seed + 1009 * fold.number + stream)


def train_heads(
    arm: str,
    recipe: HeadRecipe,
    folds: Sequence[Fold],
    train: StackedExamples,
    validation: StackedExamples,
    n_classes: int,
    steps_per_epoch: int,
) -> StackResult:
    """Train one head for each fold, all at once.

    `steps_per_epoch` is given, and the same for every fold, so that budgets are equal. Raises
    StudyError for an unknown arm, or when a loss is no longer finite.
    """
    if arm not in HEAD_ARMS:
        raise StudyError(f"arm must be one of {HEAD_ARMS}, got {arm!r}")
    started = time.perf_counter()
    features = train.x.shape[2]
    hidden = 0
    if arm == "matched":
        hidden = matching_hidden_units(features, n_classes, recipe.dendrites)
    heads = HeadStack(
        features,
        n_classes,
        [run_generator(fold, 0) for fold in folds],
        hidden=hidden,
        activation=recipe.activation,
    )
    orders = [
        _ShuffledOrder(int(n), run_generator(f, 1))
        for n, f in zip(train.real.sum(1), folds, strict=True)
    ]
    optimizer = _optimizer(heads, recipe)
    total, step, factor = recipe.epochs * steps_per_epoch, 0, 1.0
    best = _Best(recipe.score, len(folds))
    rows = torch.arange(len(folds))[:, None]

    for epoch in range(recipe.epochs):
        for _ in range(steps_per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * factor * (1 - step / total)
            batch = torch.stack([order.take(recipe.batch_size) for order in orders])
            logits = heads.logits(train.x[rows, batch])
            # Runs are independent: the gradient of the sum is each run's own.
            loss = F.cross_entropy(logits.transpose(1, 2), train.y[rows, batch], reduction="none")
            optimizer.zero_grad()
            loss.mean(1).sum().backward()
            optimizer.step()
            step += 1
        best.observe(heads, validation, epoch)
        if epoch in recipe.growth_epochs and arm != "baseline":
            heads.restore(best.state)
            if arm == "dendritic":
                if recipe.candidates == "random":
                    random_candidate(heads, recipe.init_scale)
                else:
                    fit, choose = train, validation
                    if recipe.chosen_on == "training":
                        fit, choose = held_out(heads, train)
                    refined_candidate(heads, fit, choose)
            best.restructured(heads, keep=recipe.prune)
            factor = recipe.learning_rate_factor
            optimizer = _optimizer(heads, recipe)

    heads.restore(best.state)
    return StackResult(
        heads,
        dendrites=[
            sum(e > g for g in recipe.growth_epochs) if arm == "dendritic" else 0
            for e in best.epoch.tolist()
        ],
        best_epoch=best.epoch.tolist(),
        validation_nll=best.nll.tolist(),
        validation_accuracy=best.accuracy.tolist(),
        optimizer_steps=step,
        seconds=time.perf_counter() - started,
    )


def _optimizer(heads: HeadStack, recipe: HeadRecipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        heads.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )


class _ShuffledOrder:
    """Endless passes over n examples, each in a new order."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self._n, self._generator = n, generator
        self._left = torch.empty(0, dtype=torch.long)

    def take(self, count: int) -> Tensor:
        while len(self._left) < count:
            fresh = torch.randperm(self._n, generator=self._generator)
            self._left = torch.cat([self._left, fresh])
        taken, self._left = self._left[:count], self._left[count:]
        return taken


class _Best:
    """The best epoch of every run so far, by validation."""

    def __init__(self, score: str, runs: int) -> None:
        self._by_nll = score == "nll"
        self.state: dict[str, Tensor] = {}
        self.epoch = torch.full((runs,), -1)
        self.nll = torch.full((runs,), float("inf"))
        self.accuracy = torch.zeros(runs)
        self._any = False

    @torch.no_grad()
    def observe(self, heads: HeadStack, validation: StackedExamples, epoch: int) -> None:
        logits = heads.logits(validation.x)
        losses = nll(logits, validation)
        if not bool(losses.isfinite().all()):
            raise StudyError(f"validation loss is not finite in epoch {epoch}; lower learning_rate")
        right = (logits.argmax(-1) == validation.y) * validation.real
        accuracy = right.sum(1) / validation.real.sum(1)
        ahead = losses < self.nll if self._by_nll else accuracy > self.accuracy
        if not self._any:
            ahead = torch.ones_like(ahead)
            self.state = heads.snapshot()
        self._any = True
        self.state = where_better(ahead, heads.snapshot(), self.state)
        self.epoch = torch.where(ahead, epoch, self.epoch)
        self.nll = torch.where(ahead, losses, self.nll)
        self.accuracy = torch.where(ahead, accuracy, self.accuracy)

    def restructured(self, heads: HeadStack, *, keep: bool) -> None:
        """The heads went back to the best state and may have grown. keep: that state stays a
        candidate, with the new dendrites silent; otherwise epochs from here on compete anew."""
        if not keep:
            self._any = False
            return
        self.state = {
            name: self.state[name] if name in self.state else torch.zeros_like(tensor)
            for name, tensor in heads.snapshot().items()
        }
