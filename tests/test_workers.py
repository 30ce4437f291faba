"""Work spread by Ray: same results, GPUs in turns, workers that die, a cluster, an interrupt."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import gpus
from finsent.commands import cli
from finsent.config import STUDY_ARMS
from finsent.machine.workers import (
    INTERRUPTS,
    Pool,
    Workers,
    WorkersError,
    _orderly_end,
    add_worker_options,
    connected,
    settings,
    with_settings,
    workers_from_options,
)
from finsent.results import runs
from finsent.study.lora.runner import LoraStudyRunner, Resources
from finsent.study.plans import LoraRegime, LoraStudy
from finsent.study.rows import RESULTS, read_runs
from tests.test_scheduling import plan_of

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow
TRAIN = ["train", "--backbone", "tiny-phi", "--dataset", "sample", "--epochs", "2", "--lora-r", "2"]
TRAIN += ["--grow-by", "0", "--no-autocast", "--seeds", "0", "1", "--arms", "dendritic"]


def contents(root: Path) -> dict[str, Any]:
    """What the runs below a folder found, without times."""
    found: dict[str, Any] = {}
    for run in runs.find_runs(root):
        history = [{k: v for k, v in line.items() if k != "seconds"} for line in run.history]
        files = [(run.folder / f).read_bytes() for f in ("adapter.safetensors", "predictions.csv")]
        found[f"{run.arm} {run.seed}"] = (history, files)
    return found


def processes() -> dict[int, tuple[int, bytes]]:
    """Parent and command line of everything that runs."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(path.name)] = (int(parent), (path / "cmdline").read_bytes())
    return found


def children() -> list[int]:
    """Processes that make runs for a child of this one, or of one of its children."""
    all_of_them = processes()

    def ours(process: int) -> bool:
        while process in all_of_them and process != os.getpid():
            process = all_of_them[process][0]
        return process == os.getpid()

    return [
        p
        for p, (_, command) in all_of_them.items()
        if b"finsent.training.child_main" in command and ours(p)
    ]


@pytest.fixture(scope="module", autouse=True)
def token() -> Iterator[None]:
    """One for all Rays of this process: ray reads it once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "0" * 32)
        patch.setenv("RAY_DEDUP_LOGS", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def trained(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one worker makes of TRAIN."""
    root = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINSENT_CACHE_DIR", str(tiny_cache))
        patch.setattr(sys, "argv", ["train_models.py"])
        import train_models

        assert train_models.main([*TRAIN, "--artifacts", str(root)]) == 0
    return root


@pytest.fixture(scope="module")
def cluster(token: None, tiny_cache: Path) -> Iterator[str]:
    """Address of a Ray with two nodes, each with one CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINSENT_CACHE_DIR", str(tiny_cache))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            nodes.add_node(num_cpus=1)
            yield nodes.address
        finally:
            nodes.shutdown()


def test_two_workers_find_what_one_finds(
    trained: Path,
    tmp_path: Path,
    train_command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Side by side on this machine, each with a seed of its own, they end in the same bytes."""
    made = train_command(*TRAIN, "--workers", "2", "--artifacts", str(tmp_path))
    assert made.returncode == 0, made.stderr
    assert list(contents(tmp_path)) == ["dendritic 0", "dendritic 1"]
    assert contents(tmp_path) == contents(trained)
    for seed in (0, 1):
        assert f"sample dendritic seed {seed}: epoch 1, val NLL" in made.stderr
    assert not list(tmp_path.rglob("finsent-*")), "the mark of this command was left behind"


def test_a_cluster_finds_it_too_and_a_run_that_fails_leaves_the_others(
    cluster: str,
    trained: Path,
    tmp_path: Path,
    train_command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    work = tmp_path / ".work" / "tiny-phi" / "sample" / "dendritic" / "seed-0"
    work.mkdir(parents=True)
    (work / "checkpoint.safetensors").write_bytes(b"not one")
    command = [*TRAIN, "--workers", "2", "--ray-address", cluster, "--artifacts", str(tmp_path)]
    made = train_command(*command)
    assert made.returncode == 1
    assert "error: sample dendritic seed 0: cannot read the checkpoint" in made.stderr
    assert "error: 1 runs failed: sample dendritic seed 0" in made.stderr
    assert contents(tmp_path) == {"dendritic 1": contents(trained)["dendritic 1"]}


def test_two_workers_go_on_with_a_file_that_one_began_and_end_in_its_bytes(
    cluster: str,
    trained: Path,
    tmp_path: Path,
    tiny_environment: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "in.csv"
    lines = [f"{i},Profit of firm {i} rose by {i % 7} percent" for i in range(2100)]
    source.write_text("\n".join(["id,headline", *lines, ""]))
    common = ["score", str(source), "--column", "headline", "--runs"]
    common += [str(trained / "tiny-phi" / "sample")]
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    spread = ["--workers", "2", "--ray-address", cluster]
    assert cli.main([*common, "--out", str(one)]) == 0
    # Cut in the row after a block, where one that was killed may have stopped.
    whole = one.read_bytes().splitlines(keepends=True)
    (tmp_path / "two.csv.part").write_bytes(b"".join(whole[: 1 + 512]) + whole[513][:9])
    head, *steps = (tmp_path / "one.csv.finsent.jsonl").read_text().splitlines(keepends=True)
    begun = [step for step in steps if json.loads(step)["rows"] <= 512]
    (tmp_path / "two.csv.finsent.jsonl").write_text("".join([head, *begun]))
    assert cli.main([*common, "--out", str(two), *spread]) == 0
    assert two.read_bytes() == one.read_bytes()
    assert "2,100 rows, 512 of them by an earlier run" in capsys.readouterr().out


def test_workers_share_gpus_and_the_death_of_one_is_not_that_of_others() -> None:
    def place(number: int) -> tuple[str, float, float]:
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        started = time.time()
        time.sleep(1.0)
        return os.environ["CUDA_VISIBLE_DEVICES"], started, time.time()

    def late_when_even() -> Callable[[int], int]:
        process = os.getpid()

        def answer(number: int) -> int:
            assert os.getpid() == process
            time.sleep(0.2 * (number % 2 == 0))
            return number * number

        return answer

    def refuse() -> Callable[[int], int]:
        raise ValueError("not here")

    asked: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            asked.append(number)
            yield number

    with connected(Workers(2, gpus=("0", "3")), on_gpu=True) as pool:
        assert pool.slots == 4
        found = dict(pool.run(place, [(str(i), i) for i in range(9)]))
        died = found.pop(3)
        assert isinstance(died, WorkersError)
        assert "ended before its work did" in str(died)
        assert len(found) == 8
        turns = [turn for turn in found.values() if not isinstance(turn, WorkersError)]
        assert {gpu for gpu, _, _ in turns} == {"0", "3"}
        for gpu, started, _ in turns:
            beside = [1 for g, s, e in turns if g == gpu and s <= started < e]
            assert len(beside) <= 2, "more than two at a time on a GPU"
        squares = []
        for value in pool.map(late_when_even, numbers()):
            squares.append(value)
            assert len(asked) - len(squares) <= 2 * pool.slots
        assert squares == [number * number for number in range(20)]
        with pytest.raises(ValueError, match="not here"):
            list(pool.map(refuse, [1]))


def test_an_interrupt_ends_the_children_and_keeps_what_is_finished(
    tmp_path: Path,
    tiny_environment: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    root = tmp_path / "artifacts"
    command = [sys.executable, "train_models.py", *TRAIN, "--epochs", "2000", "--workers", "2"]
    command += ["--arms", "baseline", "--artifacts", str(root)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    work = root / ".work" / "tiny-phi" / "sample" / "baseline"
    checkpoints = [work / f"seed-{seed}" / "checkpoint.safetensors" for seed in (0, 1)]
    deadline = time.monotonic() + 300
    while not all(path.exists() for path in checkpoints) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    at_work = children()
    assert len(at_work) == 2
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 130, said
    assert "interrupted; finished runs are kept" in said
    assert "Traceback" not in said
    assert all(path.exists() for path in checkpoints)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in at_work):
        assert time.monotonic() < deadline, "a child outlived its trainer"
        time.sleep(0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["artifacts"], "hidden states were left"


def test_sigterm_leaves_neither_files_nor_processes() -> None:
    """Not in pytest's own folder: the names of Ray's sockets have to be short."""
    program = """
import time
from finsent.machine.workers import Workers, connected
with connected(Workers(2)) as pool:
    print("connected", flush=True)
    list(pool.run(lambda seconds: time.sleep(seconds), [("a", 600), ("b", 600)]))
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_TMPDIR": folder},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        (used,) = Path(folder).iterdir()
        process.terminate()
        process.communicate(timeout=120)
        assert process.returncode != 0
        assert not list(Path(folder).iterdir())
        deadline = time.monotonic() + 60
        while any(str(used).encode() in command for _, command in processes().values()):
            assert time.monotonic() < deadline, "a process of Ray was left"
            time.sleep(0.1)


def test_a_run_whose_worker_is_killed_goes_on_in_another(
    tmp_path: Path, tiny_environment: None
) -> None:
    """From its last whole epoch, in the same command, as bench/gpus.py measures it."""
    options = argparse.Namespace(
        device="cpu", seconds=300, backbone="tiny-phi", dataset="sample", epochs=30
    )
    found = gpus.Bench(options, tmp_path).killed()
    assert found["runs_ended"] == ["baseline seed 0", "baseline seed 1"]
    assert 1 <= found["epochs_done_before"] < 30
    assert found["epochs_told_of_that_run"] == list(range(1, 31))


def test_runs_are_compared_by_their_bytes_and_their_probabilities(trained: Path) -> None:
    same = gpus.compared(trained, trained)
    assert (same["runs_compared"], same["runs_of_the_same_bytes"]) == (2, 2)
    assert (same["largest_difference_of_a_probability"], same["labels_changed"]) == (0.0, 0)
    assert same["within_tolerance"]


def test_two_workers_make_the_lines_of_a_study(tmp_path: Path, tiny_environment: None) -> None:
    study = LoraStudy(
        name="tiny",
        datasets=("sample",),
        regimes=(LoraRegime("r1", r=1, last_layers=1, fraction=0.25),),
        splits=("fold-0", "fold-7"),
        seeds=(0,),
        epochs=3,
        backbone="tiny-phi",
    )
    found = []
    for workers in (Workers(), Workers(2)):
        root = tmp_path / str(workers.count)
        resources = Resources(plan_of(root).base, "cpu", workers, 1, None, None)
        assert LoraStudyRunner(study, root, resources).run() == []
        lines = read_runs(root / "studies" / "tiny" / RESULTS)
        found.append([replace(line, train_seconds=0.0) for line in lines])
    assert len(found[0]) == 2 * len(STUDY_ARMS)
    assert found[0] == found[1]


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_worker_options(parser, "seeds")
    return parser.parse_args(arguments)


def test_options_say_where_work_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert workers_from_options(options(), 2) == Workers()
    assert Workers().alone
    assert not Workers(gpus=("0",)).alone
    assert workers_from_options(options("--gpus", "all"), 2) == Workers(1, ("0", "1"))
    assert workers_from_options(options("--workers", "3"), 2) == Workers(3, ("0",))
    assert workers_from_options(options("--workers", "3"), 0) == Workers(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert workers_from_options(options("--gpus", "1,1"), 2) == Workers(1, ("7",))
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    assert workers_from_options(options(), 2) == Workers(address="there:6379")
    assert not workers_from_options(options(), 0).alone
    assert workers_from_options(options("--ray-address", "here:1"), 0).address == "here:1"
    assert workers_from_options(options("--ray-address", "local"), 0) == Workers()


@pytest.mark.parametrize(
    ("arguments", "present", "message"),
    [
        (("--gpus", "0,9"), 2, "'9' is none of the GPUs 0 to 1"),
        (("--gpus", "x"), 2, "'x' is none of"),
        (("--gpus", "0"), 0, "sees no CUDA GPU"),
        (("--workers", "0"), 0, "--workers must be at least 1, got 0"),
        (("--gpus", "0", "--ray-address", "there:1"), 2, "Ray hands out those of the cluster"),
    ],
)
def test_workers_that_are_not_there_are_refused(
    arguments: tuple[str, ...], present: int, message: str
) -> None:
    with pytest.raises(WorkersError, match=message):
        workers_from_options(options(*arguments), present)


def test_a_cluster_that_lacks_what_is_asked_for_is_refused(cluster: str) -> None:
    def connect(workers: Workers, on_gpu: bool | None = None) -> None:
        with connected(workers, on_gpu=on_gpu):
            pass

    with pytest.raises(WorkersError, match="3 workers need as many CPUs.*has 2"):
        connect(Workers(3, address=cluster))
    with pytest.raises(WorkersError, match="no node of the Ray cluster.*has a GPU; use --device"):
        connect(Workers(address=cluster), on_gpu=True)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://there:10001", "give host:port"),
        ("there", "give host:port"),
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_a_cluster_that_is_not_there_is_told_at_once(address: str, message: str) -> None:
    with (
        pytest.raises(WorkersError, match=message),
        connected(Workers(address=address)),
    ):
        pass


def test_work_elsewhere_finds_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads decide the last bits of sums; Ray sets them to 1 where nothing is said."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("FINSENT_CACHE_DIR", "/here")
    there = with_settings({"OMP_NUM_THREADS": "1", "PATH": "/bin"}, settings())
    assert "OMP_NUM_THREADS" not in there
    assert (there["PATH"], there["FINSENT_CACHE_DIR"]) == ("/bin", "/here")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("FINSENT_CACHE_DIR")
    monkeypatch.delenv("FINSENT_DATA_DIR", raising=False)
    there = with_settings({"FINSENT_CACHE_DIR": "/there"}, settings())
    assert there == {"FINSENT_CACHE_DIR": "/there", "OMP_NUM_THREADS": "2"}


def test_an_interrupt_that_ray_swallows_ends_the_work_all_the_same() -> None:
    """As where it is raised in a callback, which nothing that is raised leaves."""

    class Swallowing:
        def cluster_resources(self) -> dict[str, float]:
            return {"CPU": 1}

        def remote(self, **options: object) -> Callable[[object], Any]:
            return lambda function: SimpleNamespace(
                options=lambda name: SimpleNamespace(remote=lambda item: item)
            )

        def wait(
            self, references: list[object], *, num_returns: int, timeout: float
        ) -> tuple[list[object], list[object]]:
            if waits:
                with contextlib.suppress(KeyboardInterrupt):
                    os.kill(os.getpid(), number)
                    time.sleep(0.1)
            waits.append(timeout)
            return [], references

        def cancel(self, reference: object, *, force: bool) -> None:
            cancelled.append(reference)

    for number in INTERRUPTS:
        waits: list[float] = []
        cancelled: list[object] = []
        before = signal.getsignal(number)
        with _orderly_end() as interrupted:
            pool = Pool(Swallowing(), Workers(), None, interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(pool.run(str, [("a", 1)]))
        assert (len(waits), cancelled) == (2, [1])
        assert signal.getsignal(number) is before
