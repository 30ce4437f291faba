"""Disks that are full or take nothing, clocks that go back, and two who write the same file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.trust.kills import killed, table
from bench.trust.scenario import COMMAND_SECONDS, ROOT, RUNS, Setting, Tally, finsent, is_told

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from finsent.commands.cli import main
sys.exit(main(sys.argv[2:]))
"""
"""A command whose files may not grow beyond so many bytes, as on a disk that is full."""


def full_disk(setting: Setting) -> Tally:
    """The command says so in a line, and goes on when there is room, to the same file."""
    tally, draw = Tally(), setting.random
    source = table(setting.folder, draw, 600)
    options = ["--column", "text", "--runs", str(RUNS), "--out"]
    whole, torn = setting.folder / "whole.csv", setting.folder / "torn.csv"
    tally.check(finsent("score", source, *options, whole).returncode == 0, "without a limit")
    size = whole.stat().st_size
    for _ in range(setting.count(5)):
        torn.unlink(missing_ok=True)
        for left in setting.folder.glob("*torn.csv*"):
            left.unlink()
        limit = draw.randrange(1, size)
        ended = subprocess.run(
            [sys.executable, "-c", LIMITED, str(limit), "score", str(source), *options, str(torn)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        tally.check(is_told(ended), f"{limit} bytes: {ended.returncode} {ended.stderr[-200:]}")
        again = finsent("score", source, *options, torn)
        same = again.returncode == 0 and torn.read_bytes() == whole.read_bytes()
        tally.check(same, f"after {limit} bytes: {again.stderr[-200:]}")
    return tally


def unwritable(setting: Setting) -> Tally:
    """Places that take no file: said in a line."""
    tally = Tally()
    source = table(setting.folder, setting.random, 3)
    (setting.folder / "file").touch()
    places = ["/proc/out.csv", "/sys/out.csv", setting.folder, setting.folder / "file/out.csv"]
    places += [setting.folder / ("x" * 300), "/dev/null/out.csv"]
    for place in places:
        ended = finsent("score", source, "--column", "text", "--runs", RUNS, "--out", place)
        tally.check(is_told(ended), f"{place}: {ended.stderr[-200:]}")
    for place in ("/proc/runs", "/sys/runs", setting.folder / "file"):
        ended = finsent("train", "--backbone", "tiny-phi", "--dataset", "sample", "--out", place)
        tally.check(is_told(ended), f"{place}: {ended.stderr[-200:]}")
    return tally


def clock_moved_back(setting: Setting) -> Tally:
    """Files from the future: an output that was torn is resumed to the same bytes."""
    tally, draw = Tally(), setting.random
    source = table(setting.folder, draw, 600)
    options = ["score", str(source), "--column", "text", "--runs", str(RUNS), "--out"]
    whole = setting.folder / "whole.csv"
    started = time.monotonic()
    tally.check(finsent(*options, whole).returncode == 0, "before")
    took = time.monotonic() - started
    for number in range(setting.count(3)):
        torn = setting.folder / f"torn-{number}.csv"
        killed(
            [sys.executable, "-m", "finsent", *options, str(torn)], draw.uniform(0.7, 1.0) * took
        )
        for path in setting.folder.glob(f"*{torn.name}*"):
            os.utime(path, (time.time() + 1e8, time.time() + 1e8))
        os.utime(source, (time.time() + 2e8, time.time() + 2e8))
        ended = finsent(*options, torn)
        tally.check(
            ended.returncode == 0 and torn.read_bytes() == whole.read_bytes(), ended.stderr[-200:]
        )
    return tally


def two_writers(setting: Setting) -> Tally:
    """Two commands with the same output at once: it ends whole, and whoever failed says why."""
    tally = Tally()
    source = table(setting.folder, setting.random, 600)
    options = ["score", str(source), "--column", "text", "--runs", str(RUNS), "--out"]
    whole = setting.folder / "whole.csv"
    tally.check(finsent(*options, whole).returncode == 0, "alone")
    for number in range(setting.count(3)):
        out = setting.folder / f"both-{number}.csv"
        command = [sys.executable, "-m", "finsent", *options, str(out)]
        both = [
            subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        said = [process.communicate(timeout=COMMAND_SECONDS)[1] for process in both]
        tally.check(Path(out).read_bytes() == whole.read_bytes(), "the output differs")
        tally.check(
            any(process.returncode == 0 for process in both)
            and not any("Traceback" in text for text in said),
            " | ".join(text[-150:] for text in said),
        )
    return tally
