"""How long a model takes for a sentence, beside ours on the same machine at the same time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finsent.config import BACKBONE_TITLES
from finsent.entrants.labels import Probabilities
from finsent.machine.timing import time_interleaved
from finsent.results.runs import find_runs
from finsent.serving.service import choose_backbone

if TYPE_CHECKING:
    from finsent.serving.comparer import Comparer

Ask = Callable[[Sequence[str]], Probabilities]

ROUNDS, WARM_UP = 3, 3
ARMS = ("dendritic", "baseline")
"""Of ours, the first that is here is timed."""


def time_beside_ours(
    ask: Ask, texts: Sequence[str], device: str, ours: tuple[str, Ask, str] | None
) -> dict[str, Any]:
    """What metrics.json holds of the time that a model takes for one text, tokenising included.

    Calls of the model and of ours take turns in a random order, so that both feel whatever else the
    machine does. The protocol names the time of ours, which makes times of different machines
    comparable.

    device: what the model computes on, in words. ours: as `Ours.of` returns it.
    """
    calls = {"model": ask}
    beside, of_ours = "alone", ""
    if ours is not None:
        title, calls["ours"], of_ours = ours
    turns = {name: itertools.cycle(texts) for name in calls}

    def call(name: str) -> Probabilities:
        return calls[name]([next(turns[name])])

    found = time_interleaved(
        {name: partial(call, name) for name in calls},
        repeats=ROUNDS * len(texts),
        warmup=WARM_UP,
        seed=0,
    )
    stats = found["model"]
    if ours is not None:
        beside = f"beside {title} with {found['ours'].p50_ms:.1f} ms on {of_ours}"
    return {
        "latency_ms_p50": round(stats.p50_ms, 3),
        "latency_ms_p95": round(stats.p95_ms, 3),
        "latency_protocol": f"{beside}, n = {stats.n}, on {device}",
    }


class Ours:
    """Our models that a machine without a GPU answers with, the base of one in memory."""

    def __init__(self, artifacts: Path) -> None:
        self._artifacts = artifacts
        self._comparer: Comparer | None = None

    def of(self, dataset: str, seed: int) -> tuple[str, Ask, str] | None:
        """The one of a data set: its name, what asks it, and what it computes on. None where the
        artifacts have none of this seed."""
        runs = [r for r in find_runs(self._artifacts) if (r.dataset, r.seed) == (dataset, seed)]
        if not runs:
            return None
        chosen = choose_backbone(sorted({run.backbone for run in runs}), cuda=False).backbone
        arms = {run.arm: run for run in runs if run.backbone == chosen}
        arm = next((name for name in ARMS if name in arms), next(iter(arms)))
        folder = arms[arm].folder.parent.parent
        if self._comparer is None:
            # torch or OpenVINO, which only a timed evaluation needs.
            from finsent.serving.comparer import Comparer

            self._comparer = Comparer.from_artifacts(folder, seed, [arm], device="cpu")
        else:
            self._comparer.use(folder, seed, [arm])
        comparer = self._comparer
        # Else it would go on in the background while it is timed.
        comparer.engine.warm_up()
        title = f"{BACKBONE_TITLES.get(chosen, chosen)} {arm}"
        return title, lambda texts: comparer.predict_proba(texts, arm), comparer.device_name
