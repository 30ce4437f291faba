"""What is known of a run between two epochs, and how it gets into and out of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from finsent.training.checkpoints import Checkpoint

RESTARTED = "restarted from the best state"
"""What the history of an arm with restarts says where the dendritic arm grew."""
_NO_SCORE = 1e-9
"""Stands for an accuracy of zero, which the library would take for "no score yet"."""
UNINTERRUPTED = ", without a restart"
"""Ends the event of a growth that left a run its optimizer and its learning rate."""


@dataclass(frozen=True)
class EpochRecord:
    """A line of history.jsonl. Dendrites and parameters are those the epoch was trained with."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_macro_f1: float
    learning_rate: float
    dendrites: int
    trainable_params: int
    seconds: float
    event: str | None

    @property
    def validation(self) -> Validation:
        """Its scores on the validation part."""
        return Validation(self.epoch, self.val_accuracy, self.val_macro_f1, self.val_loss)


@dataclass(frozen=True)
class Validation:
    """Scores of one state on the validation part."""

    epoch: int
    accuracy: float
    macro_f1: float
    nll: float
    """Mean negative log-likelihood in nats, unweighted."""

    def loss(self, scored_by: str) -> float:
        """What states are selected by, lower is better: the NLL, or one minus the accuracy where
        that is the score (TrainConfig.scored_by)."""
        return self.nll if scored_by == "nll" else 1 - self.accuracy


def growth_score(validation: Validation, scored_by: str) -> float:
    """What PerforatedAI is told: exp(-NLL), the geometric mean probability of the true class, or
    the accuracy.

    It lies in (0, 1] and ranks states as the selection rule does.
    """
    if scored_by == "nll":
        return math.exp(-validation.nll)
    return max(validation.accuracy, _NO_SCORE)


@dataclass(frozen=True)
class State:
    """The tensors of an epoch's end and how they validate."""

    validation: Validation
    tensors: dict[str, Tensor] = field(repr=False)


@dataclass(frozen=True)
class Start:
    """The state of another run of the same maps from which a run goes on, as a new cycle."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    dendrites: int
    """On every map that may grow them."""


@dataclass
class Progress:
    """Where a run stands between two epochs."""

    scored_by: str = "nll"
    """As TrainConfig.scored_by."""
    history: list[EpochRecord] = field(default_factory=list)
    best: State | None = None
    """Best validation score so far, among the states with dendrites once there are any."""
    best_of_all: State | None = None
    """What the library goes back to when it grows, dendrites or not."""
    best_before_growth: Validation | None = None
    step: int = 0
    """Optimizer steps taken."""
    dendrites: int = 0
    learning_rate_factor: float = 1.0
    seconds: float = 0.0
    """Spent training, all attempts together."""

    def observe(self, state: State) -> State:
        """Take note of an epoch's end; returns the best state of all epochs so far."""
        loss = state.validation.loss(self.scored_by)
        if self.best is None or loss < self.best.validation.loss(self.scored_by):
            self.best = state
        if self.best_of_all is None or loss < self.best_of_all.validation.loss(self.scored_by):
            self.best_of_all = state
        return self.best_of_all

    @property
    def losses(self) -> list[float]:
        """Validation losses of the epochs so far."""
        return [record.validation.loss(self.scored_by) for record in self.history]

    def stalled(self, patience: int | None) -> bool:
        """Whether the last `patience` epochs brought no better score (None: never)."""
        losses = self.losses
        return (
            patience is not None
            and len(losses) > 0
            and len(losses) - 1 - losses.index(min(losses)) >= patience
        )

    def grown(self, dendrites: int, *, prune: bool) -> None:
        """Take note of growth: from now on there are `dendrites` on every map."""
        if self.dendrites == 0 and dendrites > 0 and self.best is not None:
            self.best_before_growth = self.best.validation
        if (self.dendrites == 0) != (dendrites == 0) and not prune:
            # A dendritic model is a state trained with dendrites: start comparing anew.
            self.best = None
        self.dendrites = dendrites

    def restarted(self, *, prune: bool) -> None:
        """Take note of a restart without growth: as after a growth, later epochs compete anew."""
        if all(record.event is None for record in self.history) and not prune:
            self.best = None

    def to_checkpoint(
        self, identity: str, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
    ) -> Checkpoint:
        """This progress, the model's tensors and the optimizer's, as one checkpoint."""
        states = {"best": self.best, "best_of_all": self.best_of_all}
        facts = {
            "history": [asdict(record) for record in self.history],
            "states": {k: asdict(s.validation) for k, s in states.items() if s is not None},
            "best_before_growth": (
                None if self.best_before_growth is None else asdict(self.best_before_growth)
            ),
            "step": self.step,
            "dendrites": self.dendrites,
            "learning_rate_factor": self.learning_rate_factor,
            "seconds": self.seconds,
        }
        tensors = {k: s.tensors for k, s in states.items() if s is not None}
        groups = {"model": dict(model), "optimizer": dict(optimizer), **tensors}
        return Checkpoint(identity, facts, groups)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, scored_by: str) -> Progress:
        """Inverse of `to_checkpoint`, without the model and the optimizer."""
        facts: dict[str, Any] = checkpoint.facts
        states = {
            name: State(Validation(**validation), checkpoint.tensors[name])
            for name, validation in facts["states"].items()
        }
        before = facts["best_before_growth"]
        return cls(
            scored_by=scored_by,
            history=[EpochRecord(**record) for record in facts["history"]],
            best=states.get("best"),
            best_of_all=states.get("best_of_all"),
            best_before_growth=None if before is None else Validation(**before),
            step=facts["step"],
            dendrites=facts["dendrites"],
            learning_rate_factor=facts["learning_rate_factor"],
            seconds=facts["seconds"],
        )
