"""Work side by side, in processes that Ray starts on this machine or on a cluster.

The one module that names ray. What is done does not depend on it: `Workers.alone` says that the
caller does the same work itself. Ray decides when and where, hands out GPUs, carries results and
what is printed, and ends what is left.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from finsent.machine.extras import missing
from finsent.machine.files import search_path

Item = TypeVar("Item")
Found = TypeVar("Found")


THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Sums in another number of threads end in other bits; Ray would set it to 1."""
FOLDERS = ("FINSENT_CACHE_DIR", "FINSENT_DATA_DIR")

OBJECT_STORE_BYTES = 80 * 2**20
"""The least that Ray accepts; hardly anything goes through it."""
RETRIES = 1
"""Times that work is given to another worker after its own was killed: runs that keep checkpoints
go on there. What kills two workers is taken to be the work's own fault."""
IN_FLIGHT = 2
"""Items given to a worker at a time: one it works on and one that waits for it."""
LOG_SECONDS = 0.5
"""For lines that workers printed last and that are still on their way."""
CLEANING_SECONDS = 60.0
CONNECT_SECONDS = 10.0
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
LOOK_SECONDS = 1.0
"""Between two looks at whether an interrupt was asked for."""
TIDY_SECONDS = 10.0


class WorkersError(RuntimeError):
    """Workers that cannot be had, or that ended before their work did."""


@dataclass(frozen=True)
class Workers:
    """Where work goes that can be done side by side."""

    count: int = 1
    """At a time: on each GPU where GPUs are used, else in all."""
    gpus: tuple[str, ...] = ()
    """GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    address: str | None = None
    """Of a Ray cluster; None: processes of this machine, for this command alone."""

    @property
    def alone(self) -> bool:
        """Whether there is nothing to spread: the caller's own process does the work."""
        return self.count == 1 and not self.gpus and self.address is None


def add_worker_options(parser: argparse.ArgumentParser, what: str) -> None:
    """The options that `Workers.from_options` reads; what: what goes side by side."""
    add = parser.add_argument
    add("--workers", type=int, default=1, help=f"{what} side by side, on each GPU (%(default)s)")
    add("--gpus", metavar="LIST", help=f"spread {what} over GPUs: numbers such as 0,1, or 'all'")
    add(
        "--ray-address",
        metavar="ADDRESS",
        help=f"spread {what} over a running Ray cluster: host:port, or 'auto' on one of its nodes "
        "(default: the environment's RAY_ADDRESS, else this machine)",
    )


def workers_from_options(options: argparse.Namespace, present: int) -> Workers:
    """What the command line asks for, `present` being the GPUs that torch sees and may be used.

    Raises WorkersError for GPUs that are not there and for what does not go together.
    """
    if options.workers < 1:
        raise WorkersError(f"--workers must be at least 1, got {options.workers}")
    address = options.ray_address or os.environ.get("RAY_ADDRESS") or None
    if address == "local":
        address = None
    if address is not None:
        if options.gpus is not None:
            raise WorkersError(
                f"--gpus {options.gpus} names GPUs of this machine, but Ray hands out those of the "
                f"cluster at {address}; leave it out"
            )
        return Workers(options.workers, address=address)
    gpus = _chosen_gpus(options.gpus, present)
    if present and options.workers > 1 and not gpus:
        gpus = _chosen_gpus("0", present)  # where work goes when nothing is chosen
    return Workers(options.workers, gpus)


def _chosen_gpus(given: str | None, present: int) -> tuple[str, ...]:
    if given is None:
        return ()
    if present == 0:
        raise WorkersError(f"--gpus {given}: torch sees no CUDA GPU here; leave it out")
    numbers = [str(i) for i in range(present)] if given == "all" else given.split(",")
    for number in numbers:
        if not number.isdigit() or int(number) >= present:
            raise WorkersError(f"--gpus {given}: {number!r} is none of the GPUs 0 to {present - 1}")
    # torch counts among those that it may see.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(present)] if visible is None else visible.split(",")
    return tuple(dict.fromkeys(names[int(number)] for number in numbers))


def settings() -> dict[str, str | None]:
    """What work must find in its environment to be the same work elsewhere; None: not set."""
    folders = {name: os.environ[name] for name in FOLDERS if os.environ.get(name)}
    return {**{name: os.environ.get(name) for name in THREADS}, **folders}


def with_settings(
    environment: Mapping[str, str], settings: Mapping[str, str | None]
) -> dict[str, str]:
    """An environment changed to what `settings` told elsewhere."""
    changed = {**environment, **settings}
    return {name: value for name, value in changed.items() if value is not None}


@contextlib.contextmanager
def connected(workers: Workers, *, on_gpu: bool | None = None) -> Iterator[Pool]:
    """A pool of workers: those of a cluster, else of this machine until the block ends.

    on_gpu: whether the work needs a GPU; None: where there are some.
    Raises WorkersError when the cluster cannot be reached or has not what is needed.
    """
    ray = _import_ray(local=workers.address is None)
    with (
        _local(ray, workers) if workers.address is None else _remote(ray, workers.address),
        _orderly_end() as interrupted,
    ):
        yield Pool(ray, workers, on_gpu, interrupted)
        time.sleep(LOG_SECONDS)


class Pool:
    """Workers of a Ray that this process is connected to."""

    def __init__(
        self, ray: Any, workers: Workers, on_gpu: bool | None, interrupted: Callable[[], bool]
    ) -> None:
        self._ray, self._interrupted = ray, interrupted
        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        if on_gpu is None:
            on_gpu = gpus > 0
        if on_gpu and gpus == 0:
            raise WorkersError(
                f"no node of the Ray cluster at {workers.address} has a GPU; use --device cpu or "
                "start nodes that have one"
            )
        self.slots = workers.count * (gpus if on_gpu else 1)
        """Workers at a time."""
        if cpus < self.slots:
            raise WorkersError(
                f"{self.slots} workers need as many CPUs, but the Ray cluster at "
                f"{workers.address} has {cpus}; ask for fewer --workers"
            )
        self._share = {"num_cpus": 1, "num_gpus": 1 / workers.count if on_gpu else 0}

    def run(
        self, function: Callable[[Item], Found], items: Iterable[tuple[str, Item]]
    ) -> Generator[tuple[Item, Found | WorkersError], None, None]:
        """Calls the function once on every item, as many at a time as there are slots.

        Items come with a name that stands before what a worker prints, and results come in the
        order in which they end.

        The item of a worker that is killed goes to another one, and ends with a WorkersError when
        that is killed too; the others go on. What the function itself raises is raised here. What
        still runs when the caller stops is killed.
        """
        ray = self._ray
        task = ray.remote(max_retries=RETRIES, max_calls=1, **self._share)(function)
        waiting = iter(items)
        running: dict[Any, Item] = {}
        try:
            while True:
                for name, item in itertools.islice(waiting, self.slots - len(running)):
                    running[task.options(name=name).remote(item)] = item
                if not running:
                    return
                done = self._ready(list(running))
                yield running.pop(done), self._result(done)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _result(self, reference: Any) -> Any:
        try:
            return self._get(reference)
        except WorkersError as error:
            return error

    def map(
        self, make: Callable[[], Callable[[Item], Found]], items: Iterable[Item]
    ) -> Generator[Found, None, None]:
        """A function's values in the order of the items, of which few are in memory at a time.

        Every worker makes the function for itself, once. Raises what it raises, and WorkersError
        when a worker ends.
        """
        actor = self._ray.remote(max_restarts=0, **self._share)(_Holder)
        holders = [actor.remote(settings()) for _ in range(self.slots)]
        for loading in [holder.make.remote(make) for holder in holders]:
            self._get(loading)
        pending: deque[Any] = deque()
        for place, item in enumerate(items):
            pending.append(holders[place % len(holders)].call.remote(item))
            if len(pending) == IN_FLIGHT * self.slots:
                yield self._get(pending.popleft())
        while pending:
            yield self._get(pending.popleft())

    def everywhere(self, function: Callable[[Item], None], item: Item) -> None:
        """Call the function once on every node; WorkersError where that was not possible."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = self._ray.remote(num_cpus=0, max_retries=0)(function)
        nodes = [node["NodeID"] for node in self._ray.nodes() if node["Alive"]]
        for reference in [
            task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(item)
            for node in nodes
        ]:
            self._get(reference, timeout=CLEANING_SECONDS)

    def _ready(self, references: Sequence[Any]) -> Any:
        """The first of them to end. KeyboardInterrupt also where Ray has swallowed one."""
        while True:
            done, _ = self._ray.wait(references, num_returns=1, timeout=LOOK_SECONDS)
            if self._interrupted():
                raise KeyboardInterrupt
            if done:
                return done[0]

    def _get(self, reference: Any, timeout: float | None = None) -> Any:
        errors = self._ray.exceptions
        if timeout is None:
            self._ready([reference])  # where an interrupt is seen
        try:
            return self._ray.get(reference, timeout=timeout)
        except errors.RayTaskError as error:
            # Ray's own text is the worker's traceback; callers know the error itself.
            raise error.cause from error
        except errors.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise WorkersError(
                f"a worker ended before its work did; the same command goes on with it: {reason}"
            ) from error


class _Holder:
    """A process that keeps what is expensive to make."""

    def __init__(self, settings: Mapping[str, str | None]) -> None:
        environment = with_settings(os.environ, settings)
        os.environ.clear()
        os.environ.update(environment)
        self._function: Callable[[Any], Any] | None = None

    def make(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        """Before the first call."""
        self._function = make()

    def call(self, item: Any) -> Any:
        """The function's value."""
        if self._function is None:
            raise RuntimeError("call `make` before `call`: this worker has no function yet")
        return self._function(item)


def _import_ray(local: bool) -> Any:
    """ray, which reads its settings from the environment when it is imported."""
    if (problem := missing("ray")) is not None:
        raise WorkersError(f"several workers: {problem}")
    if local:
        # Its ports are open to the network: only who has the token may use them.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Else the work would stand behind everything else on the machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing leaves the machine
    os.environ["RAY_DEDUP_LOGS"] = "0"  # the lines of two runs differ in their numbers only
    os.environ["RAY_COLOR_PREFIX"] = "0"  # what is printed may go to a file
    # Work on a CPU sees the GPUs that it sees without Ray.
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import ray

    return ray


@contextlib.contextmanager
def _local(ray: Any, workers: Workers) -> Iterator[None]:
    """A Ray of this command's own."""
    # As in Ray, not TMPDIR: names of sockets have to be short.
    folder = tempfile.mkdtemp(prefix="ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    # Workers import finsent from where it was imported here.
    changes = {"PYTHONPATH": search_path(os.environ)}
    if workers.gpus:
        changes["CUDA_VISIBLE_DEVICES"] = ",".join(workers.gpus)
    try:
        try:
            with _changed_environment(changes):
                ray.init(
                    address="local",
                    num_cpus=workers.count * max(1, len(workers.gpus)),
                    num_gpus=len(workers.gpus),
                    include_dashboard=False,
                    logging_level=logging.WARNING,
                    object_store_memory=OBJECT_STORE_BYTES,
                    # A container's /dev/shm may be smaller than that.
                    _plasma_directory=folder,
                    _temp_dir=folder,
                )
        except Exception as error:  # Ray raises just that where its node is slow to start
            raise WorkersError(f"Ray could not be started here: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()
    finally:
        _remove(Path(folder))


@contextlib.contextmanager
def _orderly_end() -> Iterator[Callable[[], bool]]:
    """Let SIGTERM be an interrupt, after which all is tidied up; Ray would abort the program.

    What is given says whether there was one: raised inside a callback of Ray's or while an object
    is collected, the exception ends there, and the work would go on.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may say what signals do
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.default_int_handler(number, frame)

    before = {number: signal.signal(number, interrupt) for number in INTERRUPTS}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
    """For processes that are started in this block."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in changes:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


def _remove(folder: Path) -> None:
    """What is left of a Ray whose last processes may still be writing to it."""
    deadline = time.monotonic() + TIDY_SECONDS
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _remote(ray: Any, address: str) -> Iterator[None]:
    if address != "auto" and not re.fullmatch(r"[^/]+:\d{1,5}", address):
        raise WorkersError(
            f"--ray-address {address}: give host:port, on a machine that is a node of the cluster "
            "(`ray start` joins it)"
        )
    try:
        if address != "auto":
            # Ray itself would try for minutes.
            place = urlsplit(f"//{address}")
            socket.create_connection((place.hostname, place.port), CONNECT_SECONDS).close()
        ray.init(address=address, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise WorkersError(f"no Ray cluster answers at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
