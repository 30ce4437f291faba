"""What a training run prints while it goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from finsent.training.progress import EpochRecord


class ProgressBar:
    """tqdm for one run: first what is being prepared, then optimizer steps with scores.

    `status` tells a stage and the share of it that is done, `start_training` the optimizer steps to
    come, `advance` those just made, `epoch` the record of an epoch.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: tqdm[Any] = tqdm(
            total=1.0, desc=label, bar_format="{l_bar}{bar}| {postfix}", mininterval=0.5
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def status(self, what: str, done: float) -> None:
        self._bar.n = done
        self._bar.set_postfix_str(what)

    def start_training(self, steps: int) -> None:
        self._bar.close()
        self._bar = tqdm(total=steps, desc=self._label, unit="step", mininterval=0.5)

    def advance(self, steps: int) -> None:
        self._bar.update(steps)

    def epoch(self, record: EpochRecord) -> None:
        self._bar.set_postfix_str(_scores(record))
        if record.event is not None:
            tqdm.write(f"{self._label}: {record.event} after epoch {record.epoch + 1}", sys.stderr)


class ProgressLines:
    """The same in whole lines, for output that several runs share: one a stage and one an epoch."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._stage = ""

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def status(self, what: str, done: float) -> None:
        if what != self._stage:
            self._say(what)
        self._stage = what

    def start_training(self, steps: int) -> None:
        self._say(f"training, {steps} steps")

    def advance(self, steps: int) -> None:
        pass  # epochs are told

    def epoch(self, record: EpochRecord) -> None:
        event = "" if record.event is None else f", {record.event}"
        self._say(f"{_scores(record)}{event}")

    def _say(self, what: str) -> None:
        print(f"{self._label}: {what}", file=sys.stderr, flush=True)


def _scores(record: EpochRecord) -> str:
    return (
        f"epoch {record.epoch + 1}, val NLL {record.val_loss:.3f}, "
        f"accuracy {record.val_accuracy:.3f}"
    )


ShowProgress = Callable[[str], ProgressBar | ProgressLines]
"""Makes what shows the progress of a run, from the run's label."""
