"""What is known of a run between two epochs, and how it gets into and out of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from finsent.training.checkpoints import Checkpoint

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


@dataclass(frozen=True)
class Validation:
    """Scores of one state on the validation part."""

    epoch: int
    accuracy: float
    macro_f1: float
    nll: float
    """Mean negative log-likelihood in nats, unweighted: what states are selected by."""


@dataclass(frozen=True)
class State:
    """The tensors of an epoch's end and how they validate."""

    validation: Validation
    tensors: dict[str, Tensor] = field(repr=False)


@dataclass
class Progress:
    """Where a run stands between two epochs."""

    history: list[EpochRecord] = field(default_factory=list)
    best: State | None = None
    """Lowest validation NLL so far, among the states with dendrites once there are any."""
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
        if self.best is None or state.validation.nll < self.best.validation.nll:
            self.best = state
        if self.best_of_all is None or state.validation.nll < self.best_of_all.validation.nll:
            self.best_of_all = state
        return self.best_of_all

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
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Progress:
        """Inverse of `to_checkpoint`, without the model and the optimizer."""
        facts: dict[str, Any] = checkpoint.facts
        states = {
            name: State(Validation(**validation), checkpoint.tensors[name])
            for name, validation in facts["states"].items()
        }
        before = facts["best_before_growth"]
        return cls(
            history=[EpochRecord(**record) for record in facts["history"]],
            best=states.get("best"),
            best_of_all=states.get("best_of_all"),
            best_before_growth=None if before is None else Validation(**before),
            step=facts["step"],
            dendrites=facts["dendrites"],
            learning_rate_factor=facts["learning_rate_factor"],
            seconds=facts["seconds"],
        )
