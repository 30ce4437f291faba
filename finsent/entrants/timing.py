"""How long a model takes for a sentence, beside ours on the same machine at the same time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from finsent.config import BACKBONE_TITLES
from finsent.entrants.labels import Probabilities
from finsent.machine.timing import time_interleaved
from finsent.results.runs import find_runs
from finsent.serving.service import choose_backbone

Ask = Callable[[Sequence[str]], Probabilities]

ROUNDS, WARM_UP = 3, 3
ARMS = ("dendritic", "baseline")
"""Of ours, the first that is here is timed."""


def time_beside_ours(
    ask: Ask, texts: Sequence[str], device: str, artifacts: Path, dataset: str, seed: int
) -> dict[str, Any]:
    """What metrics.json holds of the time that a model takes for one text, tokenising included.

    Calls of the model and of ours, which answers on the page where no GPU is, take turns in a
    random order, so that both feel whatever else the machine does. The protocol names the time of
    ours, which makes times of different machines comparable.

    device: what the model computes on, in words.
    """
    calls = {"model": ask}
    ours = _ours(artifacts, dataset, seed)
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


def _ours(artifacts: Path, dataset: str, seed: int) -> tuple[str, Ask, str] | None:
    """Our model of a data set that a machine without a GPU answers with: its name, what asks it,
    and what it computes on. None where the artifacts have none of this seed."""
    runs = [run for run in find_runs(artifacts) if (run.dataset, run.seed) == (dataset, seed)]
    if not runs:
        return None
    backbones = sorted({run.backbone for run in runs})
    chosen = choose_backbone(backbones, cuda=False).backbone
    arms = {run.arm: run for run in runs if run.backbone == chosen}
    arm = next((name for name in ARMS if name in arms), next(iter(arms)))
    # torch or OpenVINO, which only a timed evaluation needs.
    from finsent.serving.comparer import Comparer

    comparer = Comparer.from_artifacts(arms[arm].folder.parent.parent, seed, [arm], device="cpu")
    title = f"{BACKBONE_TITLES.get(chosen, chosen)} {arm}"
    return title, lambda texts: comparer.predict_proba(texts, arm), comparer.device_name
