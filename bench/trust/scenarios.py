"""All scenarios by name, and how one is run."""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.trust import artifacts, files, kills, parsers, storage, texts, users
from bench.trust.scenario import Scenario, Setting, Tally

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
        "ugly and generated files, reader", "its cells, or a reason", files.through_the_reader
    ),
    "files-page": Scenario(
        "generated and damaged files, page functions",
        "texts to score, or a reason",
        files.through_the_page,
    ),
    "files-command": Scenario(
        "broken, generated and damaged files, `finsent score`",
        "its cells, or one line and no output",
        files.through_the_command,
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
            tally = scenario.run(
                Setting(Path(folder), options.seed, options.scale, options.users_seconds)
            )
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
    if name == "users":
        row["users_seconds"] = options.users_seconds
    print(f"{row['held']}/{row['tried']}  {scenario.title}  ({row['seconds']} s)", flush=True)
    for failure in tally.failures[:5]:
        print(f"    {failure}", flush=True)
    return row
