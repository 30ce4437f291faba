"""The runs of a stack while they train: their state, their growth, their result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finsent.config import DendriteConfig, TrainConfig
from finsent.models.backbones import HiddenStates
from finsent.training.fused_blocks import FusedBlocks
from finsent.training.progress import Validation

WORST = Validation(epoch=-1, accuracy=0.0, macro_f1=0.0, nll=math.inf)
"""Worse than any state."""


@dataclass(frozen=True)
class StackContext:
    """What all runs of a stack share: frozen blocks, data and recipe."""

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
    """(texts, classes) target distributions; None: the labels. Scores are by labels always."""

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.states.values.device


@dataclass(frozen=True)
class OptimizerSnapshot:
    """A run between two epochs: its tensors and AdamW's state."""

    tensors: dict[str, Tensor] = field(repr=False)
    """See LoraStack.tensors."""
    exp_avg: dict[str, Tensor] = field(repr=False)
    """Running mean of the gradients, as torch's AdamW names it."""
    exp_avg_sq: dict[str, Tensor] = field(repr=False)
    """Running mean of the squared gradients."""
    steps: float


@dataclass(frozen=True)
class ForkPoint:
    """Where the arms of a seed part: after an epoch at whose end a run grows or restarts."""

    epoch: int
    """The epoch that is over."""
    tensors: dict[str, Tensor] = field(repr=False)
    """Of the best state so far (see LoraStack.tensors)."""
    validation: Validation
    """How that state validates."""
    snapshot: OptimizerSnapshot | None = field(repr=False)
    """The run at the end of the epoch; None where growth restarts it from the best state."""


@dataclass(frozen=True)
class StackRun:
    """One run of a stack."""

    seed: int
    train: Sequence[int]
    validation: Sequence[int]
    test: Sequence[int]
    ranks: Mapping[str, int]
    """Of every adapted layer."""
    fork: ForkPoint | None = None
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
        return 0 if self.fork is None else self.fork.epoch + 1


@dataclass(frozen=True)
class SplitLogits:
    """Logits (n, classes) of a state, rounded as it would be stored, on the CPU."""

    validation: Tensor
    test: Tensor
    """Read once, after the selection."""


@dataclass
class RunResult:
    """What one run became."""

    tensors: dict[str, Tensor] = field(repr=False)
    """The selected state, rounded as it would be stored."""
    logits: SplitLogits = field(repr=False)
    """In the selected state."""
    last_logits: SplitLogits | None = field(repr=False)
    """After the last epoch, whichever was selected; None unless asked for."""
    selected: Validation
    """Of a run with dendrites that may be dropped, this may be the state it forked from."""
    validation_nlls: list[float]
    """Of every epoch trained here."""
    fork: ForkPoint
    """Where a dendrite is grown: for a run from scratch, decided as PerforatedAI would
    under the same DendriteConfig; otherwise
    where it started."""
    trainable_params: int
    """Of the selected state."""
    trained_params: int
    """Of the state after the last epoch."""
    dendrites: int
    """Of the selected state."""
    optimizer_steps: int
    """Those before its fork included."""
    seconds: float
    """Its share of the stack's time."""


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
