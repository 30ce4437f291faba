"""Processes killed at random moments: what is done again is what would have been made at once."""

from __future__ import annotations

import csv
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from bench.screenshots import own_app
from bench.trust.scenario import COMMAND_SECONDS, ROOT, RUNS, Setting, Tally, finsent
from bench.trust.texts import post, text

TRAIN = (
    *("train", "--backbone", "minilm-l6", "--dataset", "sample", "--device", "cpu"),
    *("--epochs", "2", "--grow-by", "0", "--arms", "dendritic", "--seeds"),
)
"""Seeds follow, one for each worker."""
STORED = ("predictions.csv", "validation.csv", "adapter.safetensors")
TRAIN_SECONDS = 600
KILLS = 4
"""Of each of the five things that are killed."""
TIMED = ("latency", "train_seconds", "peak_memory")
"""Begin the names of metrics that are measured anew."""


def killed(
    command: Sequence[str], seconds: float, when: Callable[[], bool] = lambda: False
) -> bool:
    """Kills a command with all that it started after a while, or as soon as something is so.

    False if it ended before.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until and not when():
        time.sleep(0.02)
    if process.poll() is None:
        # Found before the first is gone, or they would be nobody's children.
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            try:
                os.kill(member.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
        return True
    return False


def made(root: Path) -> dict[str, object]:
    """What training made, without times: bytes of tables and weights, and every other number."""
    from finsent.results.runs import find_runs

    found: dict[str, object] = {}
    for run in find_runs(root):
        name = run.folder.relative_to(root).as_posix()
        found |= {f"{name}/{file}": (run.folder / file).read_bytes() for file in STORED}
        found[name] = {k: v for k, v in run.metrics.items() if not k.startswith(TIMED)}
    return found


def trainer(setting: Setting, workers: int) -> Tally:
    """MiniLM on the embedded sample, killed and started again until it is done."""
    tally, draw = Tally(), setting.random
    train = [*TRAIN, *map(str, range(workers))]
    train += ["--workers", str(workers)] if workers > 1 else []
    started = time.monotonic()
    whole = setting.folder / "whole"
    ended = finsent(*train, "--artifacts", whole, seconds=TRAIN_SECONDS)
    tally.check(ended.returncode == 0, ended.stderr[-300:])
    if tally.failures:
        return tally
    took, expected = time.monotonic() - started, made(whole)
    torn, names = setting.folder / "torn", itertools.count()
    kills = pending = 0
    while kills < setting.count(KILLS):
        command = [sys.executable, "-m", "finsent", *train, "--artifacts", str(torn)]
        if killed(command, draw.uniform(0.1, 0.9) * took):
            kills, pending = kills + 1, pending + 1
        else:
            # It ended before: what the kills up to here left is compared, and it is begun anew.
            _compare(tally, torn, expected, pending)
            torn, pending = setting.folder / f"torn-{next(names)}", 0
    ended = finsent(*train, "--artifacts", torn, seconds=TRAIN_SECONDS)
    tally.check(ended.returncode == 0, ended.stderr[-300:])
    _compare(tally, torn, expected, pending)
    ended = finsent("verify", "--artifacts", torn)
    tally.check(ended.returncode == 0, ended.stderr[-300:])
    return tally


def _compare(tally: Tally, root: Path, expected: dict[str, object], kills: int) -> None:
    found = made(root)
    differing = sorted(name for name in expected if found.get(name) != expected[name])
    for _ in range(kills):
        tally.check(not differing and len(found) == len(expected), f"differ: {differing}")


def scorer(setting: Setting, workers: int) -> Tally:
    """A file that is scored in many goes holds what it holds when scored in one."""
    tally, draw = Tally(), setting.random
    source = table(setting.folder, draw, setting.count(1500))
    options = ["--column", "text", "--runs", str(RUNS)]
    options += ["--workers", str(workers)] if workers > 1 else []
    started = time.monotonic()
    ended = finsent("score", source, *options, "--out", setting.folder / "whole.csv")
    took = time.monotonic() - started
    tally.check(ended.returncode == 0, ended.stderr[-300:])
    whole = (setting.folder / "whole.csv").read_bytes()
    torn, names = setting.folder / "torn.csv", itertools.count()
    kills = pending = 0
    while pending or kills < setting.count(KILLS):
        command = ["score", str(source), *options, "--out", str(torn)]
        last = kills == setting.count(KILLS)
        seconds = COMMAND_SECONDS if last else draw.uniform(0.2, 0.9) * took
        if killed([sys.executable, "-m", "finsent", *command], seconds):
            if last:
                tally.check(False, "it did not end")
                break
            kills, pending = kills + 1, pending + 1
            continue
        # It ended: what the kills up to here left is compared, and it is begun anew.
        same = torn.exists() and torn.read_bytes() == whole
        for _ in range(pending):
            tally.check(same, f"{workers} workers: the files differ")
        torn, pending = setting.folder / f"torn-{next(names)}.csv", 0
    return tally


def table(folder: Path, draw: random.Random, rows: int) -> Path:
    """A CSV file of texts."""
    path = folder / "in.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["n", "text"])
        writer.writerows([i, text(draw).replace("\r", " ").strip() or "x"] for i in range(rows))
    return path


def app(setting: Setting) -> Tally:
    """An app that was killed answers after its next start as before."""
    tally, draw = Tally(), setting.random
    with own_app(None) as url:
        before = answer(url)
    for _ in range(setting.count(KILLS)):
        port = str(draw.randrange(20_000, 30_000))
        killed([sys.executable, "app.py", "--port", port], draw.uniform(1.0, 10.0))
        with own_app(None) as url:
            tally.check(answer(url) == before, "answers otherwise after a kill")
    return tally


def answer(url: str) -> str:
    """What the API says of one text, without times."""
    said = post(url, [["Northmill's profit fell by a third."], "dendritic", ""], "score")
    return said if "event: complete" in said else f"no answer: {said[:100]}"
