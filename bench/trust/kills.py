"""Processes killed at random moments: what is done again is what would have been made at once."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from bench.trust.scenario import ROOT, RUNS, Setting, Tally, finsent
from bench.trust.texts import post, text

TRAIN = (
    *("train", "--backbone", "minilm-l6", "--dataset", "sample", "--device", "cpu"),
    *("--epochs", "2", "--grow-by", "0", "--seeds", "0", "1", "--arms", "baseline", "dendritic"),
)
STORED = ("predictions.csv", "validation.csv", "adapter.safetensors")
TIMED = ("latency", "train_seconds", "peak_memory")
"""Begin the names of metrics that are measured anew."""


def killed(command: list[str], seconds: float) -> bool:
    """Kills a command with all that it started after a while; False if it ended before."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
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
    options = ("--workers", workers) if workers > 1 else ()
    started = time.monotonic()
    whole = setting.folder / "whole"
    ended = finsent(*TRAIN, *options, "--artifacts", whole, seconds=900)
    if ended.returncode != 0:
        tally.check(False, ended.stderr[-300:])
        return tally
    took, expected = time.monotonic() - started, made(whole)
    torn = setting.folder / "torn"
    command = [sys.executable, "-m", "finsent", *TRAIN, *map(str, options)]
    kills, wanted = 0, setting.count(8)
    while kills < wanted:
        if not killed([*command, "--artifacts", str(torn)], draw.uniform(0.3, 0.9) * took):
            ended = finsent("verify", "--artifacts", torn)
            tally.check(ended.returncode == 0 and made(torn) == expected, "differs after kills")
            torn = setting.folder / f"torn-{kills}"
        kills += 1
    ended = finsent(*TRAIN, *options, "--artifacts", torn, seconds=900)
    for _ in range(kills):
        tally.check(ended.returncode == 0 and made(torn) == expected, "differs after kills")
    return tally


def scorer(setting: Setting, workers: int) -> Tally:
    """A file that is scored in many goes holds what it holds when scored in one."""
    tally, draw = Tally(), setting.random
    source = table(setting.folder, draw, setting.count(4000))
    options = ["--column", "text", "--runs", str(RUNS)]
    options += ["--workers", str(workers)] if workers > 1 else []
    started = time.monotonic()
    ended = finsent("score", source, *options, "--out", setting.folder / "whole.csv")
    took = time.monotonic() - started
    tally.check(ended.returncode == 0, ended.stderr[-300:])
    torn = setting.folder / "torn.csv"
    command = [sys.executable, "-m", "finsent", "score", str(source), *options, "--out", str(torn)]
    wanted = setting.count(6)
    for _ in range(wanted):
        killed(command, draw.uniform(0.4, 1.0) * took)
    ended = finsent(*command[3:])
    same = (
        ended.returncode == 0 and torn.read_bytes() == (setting.folder / "whole.csv").read_bytes()
    )
    for _ in range(wanted):
        tally.check(same, f"{workers} workers: {ended.stderr[-200:] or 'the files differ'}")
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
    from bench.screenshots import own_app

    tally, draw = Tally(), setting.random
    with own_app(None) as url:
        before = answer(url)
    for _ in range(setting.count(6)):
        port = str(draw.randrange(20_000, 30_000))
        killed([sys.executable, "app.py", "--port", port], draw.uniform(1.0, 12.0))
        with own_app(None) as url:
            tally.check(answer(url) == before, "answers otherwise after a kill")
    return tally


def answer(url: str) -> str:
    """What the API says of one text, without times."""
    said = post(url, [["Northmill's profit fell by a third."], "dendritic", ""], "score")
    return said if "event: complete" in said else f"no answer: {said[:100]}"
