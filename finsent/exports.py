"""Entries of the leaderboard as a CSV table for spreadsheets and notebooks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]

IDENTITY = ("backbone", "dataset", "protocol", "arm", "seeds", "rank", "tie_group", "n_test")


def arms_csv(arms: Sequence[Entry]) -> str:
    """One line an arm (an entry of leaderboard.json's `arms`), in the order given.

    Columns: what the arm is, then for each metric its mean, standard deviation over seeds
    (`_sd`) and, where there is one, 95 % interval (`_low`, `_high`). Shares are in 0..1, times in
    the unit of their name; a missing value is an empty cell.
    """
    metrics = list(dict.fromkeys(name for arm in arms for name in arm["mean"]))
    intervals = {name for arm in arms for name in arm["ci"]}
    header = [*IDENTITY, "dendrites_min", "dendrites_max"]
    for name in metrics:
        header += [name, f"{name}_sd"]
        if name in intervals:
            header += [f"{name}_low", f"{name}_high"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, lineterminator="\n", restval="")
    writer.writeheader()
    for arm in arms:
        line = {name: arm.get(name, "") for name in IDENTITY}
        line["seeds"] = " ".join(map(str, arm["seeds"]))
        line["dendrites_min"], line["dendrites_max"] = arm["dendrites_min"], arm["dendrites_max"]
        for name in metrics:
            line[name], line[f"{name}_sd"] = arm["mean"].get(name), arm["sd"].get(name)
            if name in arm["ci"]:
                line[f"{name}_low"], line[f"{name}_high"] = arm["ci"][name]
        writer.writerow(line)
    return buffer.getvalue()
