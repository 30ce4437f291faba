"""What spreading work costs: starting and ending Ray, its memory, tiny runs by one worker and two.

    python bench/workers.py [--out bench/results/workers.json]

The runs are of tiny-phi, a second of training each: what is timed is everything around it. Wall
times say little beside other work, so the load of the machine before it started is recorded too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil

from finsent.machine.workers import Workers, connected
from finsent.models.weights import ensure_tiny_phi
from finsent.results.provenance import git_commit
from finsent.results.runs import write_json

REPEATS = 5
SEEDS = 4


def main() -> int:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/workers.json")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    result: dict[str, Any] = {
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load_before": load,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("ray", "torch")},
        },
        "command": "python bench/workers.py",
        "commit": git_commit(ROOT),
        "n": {"starts": REPEATS, "seeds": SEEDS},
        **ray_alone(),
        **tiny_runs(),
    }
    write_json(options.out, result)
    print(f"wrote {options.out}")
    return 0


def nothing(number: int) -> int:
    """Work that costs nothing."""
    return number


def ray_alone() -> dict[str, float]:
    """Medians of starting a Ray with two workers, of ending it, and its memory meanwhile."""
    starts, ends, memory = [], [], []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        with connected(Workers(2)) as pool:
            ended = len(list(pool.run(nothing, [("first", 0), ("second", 1)])))
            if ended != 2:
                raise RuntimeError(f"{ended} of 2 tasks ended; see what Ray printed above")
            starts.append(time.perf_counter() - begun)
            processes = psutil.Process().children(recursive=True)
            memory.append(sum(process.memory_full_info().pss for process in processes) / 2**20)
            ending = time.perf_counter()
        ends.append(time.perf_counter() - ending)
    return {
        "seconds_to_first_results": statistics.median(starts),
        "seconds_to_end": statistics.median(ends),
        "memory_mb": statistics.median(memory),
    }


def tiny_runs() -> dict[str, dict[str, float]]:
    """Seconds of one command that makes the same runs, by workers."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        ensure_tiny_phi(cache)
        for workers in (1, 2):
            command = [sys.executable, "train_models.py", "train", "--backbone", "tiny-phi"]
            command += ["--dataset", "sample", "--arms", "baseline", "--epochs", "2"]
            command += ["--seeds", *map(str, range(SEEDS)), "--workers", str(workers)]
            command += ["--no-autocast", "--artifacts", f"{folder}/{workers}"]
            begun = time.perf_counter()
            subprocess.run(
                command,
                cwd=ROOT,
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "FINSENT_CACHE_DIR": str(cache)},
            )
            seconds[str(workers)] = time.perf_counter() - begun
    return {"seconds_by_workers": seconds}


if __name__ == "__main__":
    sys.exit(main())
