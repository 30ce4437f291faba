"""One GPU and two of one machine, through Ray: the same results, in what time, and what is lost.

    python bench/gpus.py [--parts PART ...] [--backbone NAME] [--seconds N] [--out FILE]
    python bench/gpus.py --device cpu --backbone tiny-phi --dataset sample --epochs 20

Parts, in this order; one that would not end in the time left is not begun, one that fails is
recorded with its error, and results are written after each:

- `train`: both arms of four seeds on one GPU, and the same on two; predictions compared.
- `killed`: two of these runs once more, one worker killed by its id after its first epoch.
- `study`: a study's cells by two workers on one GPU, and by two on each of two; rows compared.
- `large`: Phi-2 at full geometry with random weights, both arms of two seeds at once on two GPUs,
  beside one run at a time on one: seconds an epoch, memory of each GPU.

With `--device cpu` two workers on CPUs take the place of two GPUs, and tiny-phi that of Phi-2:
everything is exercised but the GPUs. Work has to be the same wherever it is made, so results are
compared byte by byte, and by TOLERANCE where kernels add up in another order.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil

from finsent.commands.options import recipe_config
from finsent.machine.devices import gpu_count
from finsent.machine.workers import Workers
from finsent.results import runs
from finsent.results.provenance import git_commit, versions
from finsent.study.lora.runner import LoraStudyRunner, Resources
from finsent.study.plans import KEPT
from finsent.study.rows import RESULTS, read_runs

TOLERANCE = 1e-3
"""Largest difference of a probability that still counts as the same result."""
SEEDS = ("0", "1", "2", "3")
ARMS = ("baseline", "dendritic")
FOLDS_STACKED = 3
"""Of ten folds in a cell, so that there are four cells for four workers."""
STUDY_REGIME = "r8-all-data-10"
LOOK_SECONDS = 0.2


class Bench:
    """What the parts share."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.on_gpu = options.device == "cuda"
        self.deadline = time.monotonic() + options.seconds
        self.commands: list[str] = []

    @property
    def left(self) -> float:
        """Seconds until everything has to be over."""
        return self.deadline - time.monotonic()

    def spread(self, two: bool, each: int = 1) -> list[str]:
        """Options that spread work over two GPUs, or keep it on one."""
        if not self.on_gpu:
            return ["--workers", "2" if two else "1"]
        return ["--gpus", "0,1" if two else "0", "--workers", str(each)]

    def start(self, root: Path, *arguments: str, backbone: str | None = None) -> Training:
        """A training command that writes below `root`, under way."""
        given = ["--backbone", backbone or self.options.backbone, "--dataset", self.options.dataset]
        given += ["--epochs", str(self.options.epochs), "--grow-by", "0", *arguments]
        given += [] if self.on_gpu else ["--device", "cpu", "--no-autocast"]
        self.commands.append(" ".join(["train_models.py train", *given]))
        return Training(root, given)

    def train(self, root: Path, *arguments: str, backbone: str | None = None) -> Training:
        """The same, ended. RuntimeError when a run failed."""
        training = self.start(root, *arguments, backbone=backbone)
        training.wait(self.left)
        return training

    def trained(self) -> dict[str, Any]:
        """Both arms of four seeds on one GPU and on two."""
        given = ["--arms", *ARMS, "--seeds", *SEEDS]
        one = self.train(self.folder / "one", *given, *self.spread(two=False))
        two = self.train(self.folder / "two", *given, *self.spread(two=True))
        return {
            "runs": len(runs.find_runs(one.root)),
            "seconds": {"one": one.seconds, "two": two.seconds},
            "times_as_fast": one.seconds / two.seconds,
            **compared(one.root, two.root),
        }

    def killed(self) -> dict[str, Any]:
        """Two seeds on two GPUs; the worker that makes seed 0 is killed after its first epoch."""
        root = self.folder / "killed"
        given = ["--arms", "baseline", "--seeds", "0", "1", *self.spread(two=True)]
        training = self.start(root, *given)
        history = root / ".work" / self.options.backbone / self.options.dataset
        history = history / "baseline" / "seed-0" / "history.jsonl"
        while not (history.exists() and history.read_text(encoding="utf-8").endswith("\n")):
            training.still_running(self.left)
            time.sleep(LOOK_SECONDS)
        worker = training.process_named("ray::seed 0")
        done = len(runs.read_history(history))
        worker.kill()
        training.wait(self.left)
        told = re.findall(r"baseline seed 0: epoch (\d+),", training.said)
        whole = compared(root, self.folder / "one") if (self.folder / "one").exists() else {}
        return {
            "seconds": training.seconds,
            "epochs_done_before": done,
            "epochs_told_of_that_run": [int(number) for number in told],
            "runs_ended": [f"{r.arm} seed {r.seed}" for r in runs.find_runs(root)],
            "compared_with_train": whole,
        }

    def studied(self) -> dict[str, Any]:
        """A study's cells by the workers of one GPU, and by those of two."""
        device, backbone = self.options.device, self.options.backbone
        study = replace(
            KEPT,
            datasets=(self.options.dataset,),
            regimes=(KEPT.regime(STUDY_REGIME),),
            seeds=(0,),
            backbone=backbone,
            epochs=self.options.study_epochs,
        )
        one, two = Workers(), Workers(2)
        if self.on_gpu:
            one, two = Workers(2, ("0",)), Workers(2, ("0", "1"))
        found, seconds = [], {}
        for name, workers in (("one", one), ("two", two)):
            base = recipe_config(backbone, "allagree", "cuda", bf16=self.on_gpu)
            resources = Resources(base, device, workers, FOLDS_STACKED, self.options.data_dir, None)
            runner = LoraStudyRunner(study, self.folder / f"study-{name}", resources)
            began = time.monotonic()
            failed = runner.run()
            seconds[name] = time.monotonic() - began
            if failed:
                raise RuntimeError(f"{len(failed)} runs of the study failed: {failed[:3]}")
            found.append(
                {r.key: replace(r, train_seconds=0.0) for r in read_runs(runner.folder / RESULTS)}
            )
        first, second = found
        return {
            "runs": len(first),
            "seconds": seconds,
            "times_as_fast": seconds["one"] / seconds["two"],
            "identical": first == second,
            "largest_difference_of_nll": max(abs(first[k].nll - second[k].nll) for k in first),
            "largest_difference_of_accuracy": max(
                abs(first[k].accuracy - second[k].accuracy) for k in first
            ),
        }

    def large(self) -> dict[str, Any]:
        """Phi-2's geometry: one run at a time on one GPU, then both arms of two seeds at once."""
        backbone, where = "tiny-phi", []
        if self.on_gpu:
            import torch

            from bench.phi2_setup import make_phi2

            backbone = "phi-2"
            where = ["--backbone-dir", str(self.folder / backbone), "--precision", "bf16"]
            make_phi2(self.folder / backbone)
            gc.collect()
            torch.cuda.empty_cache()  # or it would count as memory of the runs
        alone = self.folder / "alone"
        given = ["--arms", *ARMS, "--seeds", "0", *self.spread(two=False), *where]
        with memory() as alone_memory:
            self.train(alone, *given, backbone=backbone)
        beside = []
        with memory() as beside_memory:
            for arm in ARMS:  # two commands: one would make the arms of a seed in turn
                given = ["--arms", arm, "--seeds", "0", "1", *self.spread(two=True), *where]
                beside.append(self.start(self.folder / f"beside-{arm}", *given, backbone=backbone))
            for training in beside:
                training.wait(self.left)
        return {
            "alone": {"gpu_memory_gb": alone_memory, **figures(alone)},
            "beside": {
                "gpu_memory_gb": beside_memory,
                **{k: v for training in beside for k, v in figures(training.root).items()},
            },
            "compared": {arm: compared(t.root, alone) for arm, t in zip(ARMS, beside, strict=True)},
        }


class Training:
    """A command of train_models.py that makes runs."""

    def __init__(self, root: Path, arguments: list[str]) -> None:
        self.root = root
        self._log = root.with_name(f"{root.name}.log")
        self._began = time.monotonic()
        self.seconds = 0.0
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "train_models.py", "train", *arguments, "--artifacts", str(root)],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": "1", **os.environ},
            )

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def still_running(self, left: float) -> None:
        """RuntimeError, the command ended, where it ended by itself or its time is up."""
        if self._process.poll() is not None or left <= 0:
            self.wait(0)
            raise RuntimeError(f"the command ended too early: {self.said[-1500:]}")

    def wait(self, left: float) -> None:
        """Until it ends. RuntimeError when a run failed or the time is up."""
        try:
            self._process.wait(max(0.0, left))
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()
        self.seconds = time.monotonic() - self._began
        if self._process.returncode != 0:
            raise RuntimeError(f"ended with {self._process.returncode}: {self.said[-1500:]}")

    def process_named(self, title: str) -> psutil.Process:
        """The one below it whose title begins so. RuntimeError where there is none."""
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(title):
                    return process
        raise RuntimeError(f"no process is called {title!r}")


def compared(root: Path, reference: Path) -> dict[str, Any]:
    """Runs below `root` against those of the same arm and seed below `reference`."""
    other = {(run.arm, run.seed): run for run in runs.find_runs(reference)}
    differences, changed, identical, count = [0.0], 0, 0, 0
    for run in runs.find_runs(root):
        if (run.arm, run.seed) not in other:
            continue
        count += 1
        beside = other[run.arm, run.seed]
        identical += all(
            (run.folder / file).read_bytes() == (beside.folder / file).read_bytes()
            for file in ("predictions.csv", "adapter.safetensors")
        )
        pairs = zip(
            run.read_predictions().probabilities,
            beside.read_predictions().probabilities,
            strict=True,
        )
        for ours, theirs in pairs:
            differences.append(max(abs(p - q) for p, q in zip(ours, theirs, strict=True)))
            changed += ours.index(max(ours)) != theirs.index(max(theirs))
    return {
        "runs_compared": count,
        "runs_of_the_same_bytes": identical,
        "labels_changed": changed,
        "largest_difference_of_a_probability": max(differences),
        "within_tolerance": max(differences) <= TOLERANCE,
    }


def figures(root: Path) -> dict[str, Any]:
    """Of every run: seconds of the epochs, and of one after those in which steps are captured."""
    found = {}
    for run in runs.find_runs(root):
        seconds = [epoch["seconds"] for epoch in run.history]
        # Growth after the first epoch makes the second one that captures too.
        captured = 2 if run.arm == "dendritic" else 1
        found[f"{run.arm} seed {run.seed}"] = {
            "epochs": seconds,
            "epoch_seconds": statistics.median(seconds[captured:] or seconds),
            "peak_memory_gb": run.metrics["peak_memory_mb"] / 1e3,
        }
    return found


@contextlib.contextmanager
def memory() -> Iterator[dict[str, float]]:
    """Most memory in use on each GPU while the block runs, GB, filled in as it goes on."""
    most: dict[str, float] = {}
    over = threading.Event()

    def look() -> None:
        query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
        while not over.wait(LOOK_SECONDS):
            lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout
            for index, used in (line.split(",") for line in lines.splitlines()):
                most[index] = max(most.get(index, 0.0), float(used) * 2**20 / 1e9)

    watcher = threading.Thread(target=look, daemon=True)
    if gpu_count():
        watcher.start()
    try:
        yield most
    finally:
        over.set()
        if watcher.is_alive():
            watcher.join()


PARTS: dict[str, tuple[float, Callable[[Bench], dict[str, Any]]]] = {
    "train": (60, Bench.trained),
    "killed": (30, Bench.killed),
    "study": (40, Bench.studied),
    "large": (80, Bench.large),
}
"""What each takes at the least, in seconds on GPUs, and how it is measured."""


def main() -> int:
    """Measure and write the results. 1 when a part failed or was not begun."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--backbone", default="smollm2-135m", help="of all parts but the last (%(default)s)")
    add("--dataset", default="allagree")
    add("--data-dir", type=Path, default=None, help="default: FINSENT_DATA_DIR")
    add("--epochs", type=int, default=4, help="of a run (%(default)s)")
    add("--study-epochs", type=int, default=4, help="of a run of the study (%(default)s)")
    add("--seconds", type=float, default=480.0, help="for everything (%(default)s)")
    add("--scratch", type=Path, default=None, help="where runs and random weights go")
    add("--out", type=Path, default=ROOT / "bench/results/gpus.json")
    options = parser.parse_args()
    if options.device == "cuda" and gpu_count() < 2:
        parser.error(f"{gpu_count()} GPUs are here, two are needed; or give --device cpu")
    # Sums of another number of threads end in other bits.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(dir=options.scratch, ignore_cleanup_errors=True) as folder:
        bench = Bench(options, Path(folder))
        return measure(bench)


def measure(bench: Bench) -> int:
    """Every part in turn; results are written after each."""
    options = bench.options
    # Other parts of an earlier call stay: a call of limited time may make some of them.
    result: dict[str, Any] = runs.read_json(options.out) if options.out.exists() else {}
    result |= {
        "device": device_name(options.device),
        "cpus": os.cpu_count(),
        "versions": {**versions(), "ray": importlib.metadata.version("ray")},
        "backbone": options.backbone,
        "dataset": options.dataset,
        "epochs": options.epochs,
        "tolerance": TOLERANCE,
    }
    failed = 0
    for part in options.parts:
        least, make = PARTS[part]
        began, bench.commands = time.monotonic(), []
        made: dict[str, Any]
        if bench.on_gpu and bench.left < least:
            made = {"error": f"not begun: {bench.left:.0f} s were left"}
        else:
            try:
                made = make(bench)
            except Exception as error:
                traceback.print_exc()
                made = {"error": f"{type(error).__name__}: {error}"}
        failed += "error" in made
        shown = f"python bench/gpus.py --parts {part} --device {options.device}"
        shown += f" --backbone {options.backbone} --dataset {options.dataset}"
        shown += f" --epochs {options.epochs} --study-epochs {options.study_epochs}"
        result[part] = {
            **made,
            "commands": bench.commands,
            "wall_seconds": time.monotonic() - began,
            "command": shown,
            "commit": git_commit(ROOT),
        }
        result |= {"command": result[part]["command"], "commit": result[part]["commit"]}
        runs.write_json(options.out, result)
        print(f"{part}: {result[part]}", flush=True)
    return 1 if failed else 0


def device_name(device: str) -> str:
    """The GPUs, or the processor."""
    if device == "cpu":
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    import torch

    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"


if __name__ == "__main__":
    sys.exit(main())
