"""Latency of finished runs, arms side by side on one base, as the app serves them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch

from finsent.config import STUDY_ARMS
from finsent.data.registry import load_dataset
from finsent.results.runs import Run, read_json, write_json
from finsent.serving.comparer import Comparer

TEXTS = 30
ROUNDS = 3


def retime(
    runs: Sequence[Run], device: torch.device, backbone_dir: Path | None = None
) -> list[str]:
    """Time every seed's arms together and write p50 and p95 into their metrics.json.

    The texts are the first sentences of the project's own sample, so that anyone can repeat it.
    Returns a line for each arm. Refresh the leaderboard and the manifest afterwards.
    """
    texts = [e.text for e in load_dataset("sample").examples[:TEXTS]]
    lines = []
    comparer: Comparer | None = None
    for (backbone, dataset, seed), members in groupby(
        sorted(runs, key=_place), key=lambda run: _place(run)[:3]
    ):
        together = sorted(members, key=lambda run: STUDY_ARMS.index(run.arm))
        arms = [run.arm for run in together]
        folder = together[0].folder.parent.parent
        if comparer is None:
            comparer = Comparer.from_artifacts(
                folder, seed, arms, device=device, backbone_dir=backbone_dir
            )
        else:
            comparer.use(folder, seed, arms)
        timed = comparer.time_arms(texts, rounds=ROUNDS)
        for run in together:
            stats = timed[run.arm]
            path = run.folder / "metrics.json"
            measured = {
                "latency_ms_p50": round(stats.p50_ms, 3),
                "latency_ms_p95": round(stats.p95_ms, 3),
                "latency_protocol": (
                    f"{len(arms)} arms interleaved, n = {stats.n}, on {comparer.device_name}"
                ),
            }
            write_json(path, {**read_json(path), **measured})
            lines.append(
                f"{backbone} {dataset} seed {seed} {run.arm}: p50 {stats.p50_ms:.1f} ms, "
                f"p95 {stats.p95_ms:.1f} ms"
            )
    return lines


def _place(run: Run) -> tuple[str, str, int, str]:
    return run.backbone, run.dataset, run.seed, run.arm
