"""Everything that is known to break such a project, tried, and how often it held.

    python -m bench.trust                      # all of it: `make trust`
    python -m bench.trust --scale 0.1          # a tenth of the tries
    python -m bench.trust --only kills users   # scenarios whose name holds one of these

Prints a line for each scenario. At full size its row in bench/results/trust.json is replaced, and
docs/trust.md is written from them. Exit status 1 if something did not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from filelock import FileLock

from bench.trust.scenario import ROOT
from bench.trust.scenarios import SCENARIOS, tried
from bench.trust.users import READING_SECONDS
from finsent.machine.files import write_bytes_atomically
from finsent.results.provenance import git_commit
from finsent.results.runs import read_json, write_json

RESULTS = ROOT / "bench/results/trust.json"
JOBS = 3
"""Scenarios at a time: one of them waits for users who read."""


def page(rows: list[dict[str, Any]], wall_seconds: float | None) -> str:
    """docs/trust.md. wall_seconds: of all scenarios in one go, where that was the last run."""
    users = next((row["users_seconds"] for row in rows if row["name"] == "users"), None)
    there = {row["name"] for row in rows}
    missing = [s.title for name, s in SCENARIOS.items() if name not in there]
    if wall_seconds is None:
        took = f"{sum(row['seconds'] for row in rows) / 60:.0f} minutes if one adds them up."
    else:
        took = f"{wall_seconds / 60:.0f} minutes in one go."
    lines = [
        "# What was tried to break it",
        "",
        f"{sum(r['held'] for r in rows):,} of {sum(r['tried'] for r in rows):,} tries held. `make "
        f"trust` does all of it again, {JOBS} scenarios at a time, and writes",
        "this page from `bench/results/trust.json`; `bench/trust/` holds the scenarios, which took",
        took,
        "",
        "| tried | holds if | tries | held | seconds |",
        "|---|---|---:|---:|---:|",
        *(
            f"| {r['scenario']} | {r['held_if']} | {r['tried']:,} | {r['held']:,} "
            f"| {r['seconds']:.0f} |"
            for r in rows
        ),
        "",
        *([f"Not run at full size yet: {'; '.join(missing)}.", ""] if missing else []),
        "Texts and files are drawn from a fixed seed. Kills come at random moments of the time",
        "that an undisturbed run takes, to the command with all its processes; it is started again",
        "until it ends."
        if users is None
        else f"until it ends. The users ask for {users / 60:g} minutes and read an answer for\n"
        f"{READING_SECONDS:g} seconds on the mean.",
        "",
        "[SECURITY.md](../SECURITY.md) says what is promised.",
    ]
    return "\n".join(lines) + "\n"


def kept(row: dict[str, Any], wall_seconds: float | None = None) -> None:
    """Puts a row into the results, and writes the page anew."""
    with FileLock(Path(tempfile.gettempdir(), "finsent-trust.lock")):
        before = read_json(RESULTS)["rows"] if RESULTS.exists() else []
        found = {old["name"]: old for old in before} | {row["name"]: row}
        rows = [found[name] for name in SCENARIOS if name in found]
        total = sum(row["tried"] for row in rows)
        about = {
            "command": "python -m bench.trust",
            "commit": row["commit"],
            "device": f"CPU, {len(os.sched_getaffinity(0))} threads",
            "versions": {name: version(name) for name in ("gradio", "openvino", "torch")},
        }
        whole = {} if wall_seconds is None else {"wall_seconds": round(wall_seconds)}
        write_json(RESULTS, about | whole | {"n": total, "rows": rows})
        write_bytes_atomically(ROOT / "docs/trust.md", page(rows, wall_seconds).encode())


def main() -> int:
    """Runs what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.trust", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of the tries (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--users-seconds", type=float, default=600.0, help="for how long the users ask (600)"
    )
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"scenarios at a time ({JOBS})")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[""])
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = [name for name in SCENARIOS if any(part in name for part in options.only)]
    # The users first: they take longest, however little else there is to do.
    names.sort(key=lambda name: name != "users")
    commit, all_held, started = git_commit(ROOT), True, time.monotonic()
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for running in as_completed(pool.submit(tried, name, options) for name in names):
            row = running.result()
            all_held = all_held and row["held"] == row["tried"]
            if options.scale == 1:
                row |= {"commit": commit, "seed": options.seed}
                kept(row)
    if options.scale == 1 and len(names) == len(SCENARIOS):
        kept(row, time.monotonic() - started)
    return 0 if all_held else 1


if __name__ == "__main__":
    sys.exit(main())
