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
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.trust import artifacts, files, kills, parsers, storage, texts, users
from bench.trust.scenario import ROOT, Scenario, Setting, Tally
from finsent.machine.files import write_bytes_atomically
from finsent.results.provenance import git_commit
from finsent.results.runs import write_json

DAMAGE = {
    "a bit flipped": artifacts.flipped,
    "cut off": artifacts.cut,
    "swapped": artifacts.swapped,
}

SCENARIOS: dict[str, Scenario] = {
    "texts-model": Scenario(
        "generated texts, page functions",
        "answered or refused with a reason",
        texts.through_the_model,
    ),
    "texts-api": Scenario(
        "generated texts and values, API",
        "answered or refused with a reason",
        texts.through_the_api,
    ),
    "texts-command": Scenario(
        "generated texts, `finsent score`",
        "the same cells, each with a label",
        texts.through_the_command,
    ),
    "files-reader": Scenario(
        "generated and damaged files, reader", "its cells, or a reason", files.through_the_reader
    ),
    "files-command": Scenario(
        "broken files, `finsent score`", "one line, no output", files.through_the_command
    ),
    "parsers": Scenario("parsers, coverage-guided", "a value or an error of ours", parsers.fuzzed),
    **{
        f"artifacts-{name.replace(' ', '-')}{'-forged' if forged else ''}": Scenario(
            f"artifact {name}" + (", checksums written again" if forged else ""),
            "no crash, the rest served" + ("" if forged else ", `verify` fails"),
            partial(artifacts.damaged, kind=kind, forged=forged),
        )
        for name, kind in DAMAGE.items()
        for forged in (False, True)
    },
    "kills-trainer": Scenario(
        "SIGKILL of the trainer, MiniLM",
        "byte-identical results",
        partial(kills.trainer, workers=1),
    ),
    "kills-trainer-2": Scenario(
        "SIGKILL of the trainer, MiniLM, 2 workers",
        "byte-identical results",
        partial(kills.trainer, workers=2),
    ),
    "kills-scorer": Scenario(
        "SIGKILL of `finsent score`", "a byte-identical file", partial(kills.scorer, workers=1)
    ),
    "kills-scorer-2": Scenario(
        "SIGKILL of `finsent score`, 2 workers",
        "a byte-identical file",
        partial(kills.scorer, workers=2),
    ),
    "kills-app": Scenario("SIGKILL of the app", "the same answers afterwards", kills.app),
    "full-disk": Scenario(
        "disk full", "one line, then goes on to the same file", storage.full_disk
    ),
    "unwritable": Scenario("places that take no file", "one line", storage.unwritable),
    "clock": Scenario("clock moved back", "a byte-identical file", storage.clock_moved_back),
    "two-writers": Scenario("two writers of one file", "one whole file", storage.two_writers),
    "users": Scenario(
        f"{users.USERS} users, slow readers, dropped connections",
        "every answer its question's own",
        users.crowd,
    ),
}


def tried(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One scenario's line."""
    started = time.monotonic()
    scenario = SCENARIOS[name]
    with tempfile.TemporaryDirectory(prefix="finsent-trust-") as folder:
        try:
            tally = scenario.run(Setting(Path(folder), options.seed, options.scale))
        except Exception as error:
            # A scenario that could not be run to its end has not held.
            tally = Tally(1, [f"{type(error).__name__}: {error}"[:300]])
    row = {
        "name": name,
        "scenario": scenario.title,
        "held_if": scenario.held_if,
        "tried": tally.tried,
        "held": tally.tried - len(tally.failures),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(f"{row['held']}/{row['tried']}  {scenario.title}  ({row['seconds']} s)", flush=True)
    for failure in tally.failures[:5]:
        print(f"    {failure}", flush=True)
    return row


def page(rows: list[dict[str, Any]], scale: float) -> str:
    """docs/trust.md."""
    lines = [
        "# What was tried to break it",
        "",
        f"{sum(r['held'] for r in rows):,} of {sum(r['tried'] for r in rows):,} tries held, in "
        f"{sum(r['seconds'] for r in rows) / 60:.0f} minutes. `make trust` does it again"
        + ("" if scale == 1 else f"; this was a run at {scale:g} of its size")
        + " and writes this page; `bench/trust/` holds the scenarios.",
        "",
        "| tried | holds if | tries | held |",
        "|---|---|---:|---:|",
        *(f"| {r['scenario']} | {r['held_if']} | {r['tried']:,} | {r['held']:,} |" for r in rows),
        "",
        "Texts and files are drawn from a fixed seed. Kills come at random moments of the time",
        "that an undisturbed run takes. [SECURITY.md](../SECURITY.md) says what is promised.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.trust", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of the tries (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[""])
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names = [name for name in SCENARIOS if any(part in name for part in options.only)]
    rows = [tried(name, options) for name in names]
    if len(names) == len(SCENARIOS):
        result = {
            "command": f"python -m bench.trust --scale {options.scale:g} --seed {options.seed}",
            "commit": git_commit(ROOT),
            "n": sum(row["tried"] for row in rows),
            "rows": rows,
        }
        write_json(ROOT / "bench/results/trust.json", result)
        write_bytes_atomically(ROOT / "docs/trust.md", page(rows, options.scale).encode())
    return 0 if all(row["held"] == row["tried"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
