"""Everything that is known to break such a project, tried, and how often it held.

    python -m bench.trust                      # all of it: `make trust`, some 15 minutes when quiet
    python -m bench.trust --scale 0.1          # a tenth of the tries
    python -m bench.trust --only kills users   # scenarios whose name holds one of these

Prints a line for each scenario, and writes docs/trust.md and bench/results/trust.json if all ran.
Exit status 1 if something did not hold.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from bench.trust.scenario import ROOT
from bench.trust.scenarios import SCENARIOS, tried
from bench.trust.users import READING_SECONDS
from finsent.machine.files import write_bytes_atomically
from finsent.results.provenance import git_commit
from finsent.results.runs import write_json


def page(rows: list[dict[str, Any]], scale: float, users_seconds: float, seconds: float) -> str:
    """docs/trust.md. seconds: that all of it took."""
    lines = [
        "# What was tried to break it",
        "",
        f"{sum(r['held'] for r in rows):,} of {sum(r['tried'] for r in rows):,} tries held, in "
        f"{seconds / 60:.0f} minutes on {os.cpu_count()} cores. `make trust` does it again"
        + ("" if scale == 1 else f"; this was a run at {scale:g} of its size")
        + " and writes this page; `bench/trust/` holds the scenarios.",
        "",
        "| tried | holds if | tries | held |",
        "|---|---|---:|---:|",
        *(f"| {r['scenario']} | {r['held_if']} | {r['tried']:,} | {r['held']:,} |" for r in rows),
        "",
        "Texts and files are drawn from a fixed seed. Kills come at random moments of the time",
        "that an undisturbed run takes, to the command with all its processes; it is started again",
        f"until it ends. The users ask for {users_seconds / 60:g} minutes and read an answer for",
        f"{READING_SECONDS:g} seconds on the mean.",
        "",
        "[SECURITY.md](../SECURITY.md) says what is promised.",
    ]
    return "\n".join(lines) + "\n"


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
    parser.add_argument("--jobs", type=int, default=2, help="scenarios at a time (2)")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[""])
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = [name for name in SCENARIOS if any(part in name for part in options.only)]
    started = time.monotonic()
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        # The users first: they take longest, however little else there is to do.
        order = sorted(names, key=lambda name: name != "users")
        running = {name: pool.submit(tried, name, options) for name in order}
        rows = [running[name].result() for name in names]
    seconds = time.monotonic() - started
    if len(names) == len(SCENARIOS):
        result = {
            "command": shlex.join(["python", "-m", "bench.trust", *sys.argv[1:]]),
            "seconds": round(seconds, 1),
            "users_seconds": options.users_seconds,
            "commit": git_commit(ROOT),
            "n": sum(row["tried"] for row in rows),
            "rows": rows,
        }
        write_json(ROOT / "bench/results/trust.json", result)
        write_bytes_atomically(
            ROOT / "docs/trust.md",
            page(rows, options.scale, options.users_seconds, seconds).encode(),
        )
    return 0 if all(row["held"] == row["tried"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
