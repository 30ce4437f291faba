"""Static-shape recordings of a forward pass: CUDA graphs by bucket of batch and length.

A sentence on a large GPU is a thousand small kernels whose launches cost more than their
arithmetic. A CUDA graph replays them as one, but only for the shapes it was recorded with: inputs
are padded up to the next bucket. A shape without a recording (yet) runs unrecorded, so recording
may go on in the background while requests are answered.
"""

from __future__ import annotations

import copy
import gc
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor], Tensor]
"""Ids (B, L) and last positions (B,) -> scores (B, classes)."""
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""From a computation on fixed tensors to a function that repeats it, and where its result lies."""

LENGTHS = (32, 24, 40, 16, 48, 64, 96, 128)
"""Tokens, the most frequent first; Financial PhraseBank has 31 on average and 107 at most."""
BATCHES = (1, 2, 4, 8)
RECOMPILE_LIMIT = 64
"""Forms of a block's code that are compiled: every kind of arm is one, and so is a batch of one."""


class FairLock:
    """Mutual exclusion in the order of arrival. A context manager; not to be entered twice."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._gates: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._gates.append(gate)
        try:
            gate.acquire()
        except BaseException:
            # A signal's handler raised while we waited: nobody may hand the lock to us any more.
            self._leave_queue(gate)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._guard:
            self._hand_over()

    def _leave_queue(self, gate: threading.Lock) -> None:
        with self._guard:
            if gate in self._gates:
                self._gates.remove(gate)
            else:
                self._hand_over()

    def _hand_over(self) -> None:
        """Never free in between, so that nobody can come first who has come later."""
        if self._gates:
            self._gates.popleft().release()
        else:
            self._held = False


DEVICE = FairLock()
"""Held by whoever answers or records. Recordings share their memory, and each keeps the workspace
of the stream it was made on: only one of them may run at a time, and nothing else on that stream.
What may compile for seconds does not hold it."""

_log = logging.getLogger(__name__)


class CudaGraphs:
    """Records on the current CUDA device, all recordings in one pool of memory.

    One pool is safe because nothing else runs during a replay, and its result is read before the
    next one (`DEVICE`); with a pool each, Phi-2's unpacked weights would be there for every bucket.
    """

    def __init__(self) -> None:
        self._graphs: weakref.WeakSet[Any] = weakref.WeakSet()
        self._streams: tuple[Any, Any] | None = None

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Two runs before the recording: the first may compile, the second makes sure that the
        stream's libraries have allocated what they need."""
        if self._streams is None:
            self._streams = torch.cuda.Stream(), torch.cuda.Stream()
        # Two streams, because the first run goes on beside replays, whose workspaces are those of
        # the second stream.
        first, recording = self._streams
        started = time.perf_counter()
        _run(first, compute)
        ran = time.perf_counter()
        with DEVICE, torch.inference_mode():
            waited = time.perf_counter()
            _run(recording, compute)
            graph = torch.cuda.CUDAGraph()
            # A pool may not be used again once the last of its recordings is gone.
            sharing = next(iter(self._graphs), None)
            # Other threads' work is not this graph's business: with the mode "global" a copy or an
            # allocation of theirs would fail, and spoil it. The stream is entered here because
            # torch does not leave it when ending a recording fails.
            with (
                torch.cuda.stream(recording),
                _no_collection(),
                torch.cuda.graph(
                    graph,
                    pool=None if sharing is None else sharing.pool(),
                    stream=recording,
                    capture_error_mode="thread_local",
                ),
            ):
                result = compute()
            self._graphs.add(graph)
        _log.debug(
            "first run %.2f s, waited %.2f s for the device, recorded in %.2f s",
            ran - started,
            waited - ran,
            time.perf_counter() - waited,
        )
        return graph.replay, result


def _run(stream: Any, compute: Callable[[], Tensor]) -> None:
    """Returns when the device is done, also on an error: what it reads may be let go then."""
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream), torch.inference_mode():
            compute()
    finally:
        stream.synchronize()


@contextmanager
def _no_collection() -> Iterator[None]:
    """An old graph or kernel that is collected during a recording would spoil it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True)
class _Recording:
    staging: Tensor
    """(batch, length + 1) on the host: ids, then the last token's position."""
    inputs: Tensor
    """The same on the device."""
    replay: Callable[[], None]
    result: Tensor
    forward: Forward
    """What was recorded. A recording holds addresses only: weights and work space of a forward that
    nobody else keeps would be given back, and overwritten or unmapped, while replays use them."""


class GraphedForward:
    """A forward pass with a recording for every bucket that has been recorded. Thread-safe."""

    forward: Forward
    """For what has no recording. May be exchanged; recordings stay as they are."""

    def __init__(
        self,
        forward: Forward,
        device: torch.device,
        *,
        lengths: Sequence[int] = LENGTHS,
        batches: Sequence[int] = BATCHES,
        record: Record | None = None,
    ) -> None:
        """lengths, batches: of buckets, the most frequent first. record: None for CUDA graphs that
        share their memory with no other forward's."""
        self.forward = forward
        self._device = device
        self.buckets = [(batch, length) for batch in batches for length in lengths]
        """Every (batch, length) worth recording, the most asked for first."""
        self._lengths, self._batches = sorted(lengths), sorted(batches)
        self._record = record or CudaGraphs()
        self._recordings: dict[tuple[int, int], _Recording] = {}

    @property
    def recorded(self) -> frozenset[tuple[int, int]]:
        """Buckets that have a recording."""
        return frozenset(self._recordings)

    def record(self, bucket: tuple[int, int], forward: Forward | None = None) -> None:
        """Record one bucket, in place of an earlier recording; forward: another way to the same."""
        compute = forward or self.forward
        batch, length = bucket
        staging = torch.zeros(batch, length + 1, dtype=torch.long)
        if self._device.type == "cuda":
            staging = staging.pin_memory()
        inputs = staging.to(self._device)
        # Views made once: slicing inside the recording would be recorded as nothing anyway.
        ids, last = inputs[:, :length], inputs[:, length]
        replay, result = self._record(lambda: compute(ids, last))
        # An earlier one goes here, where nothing is recorded and it is not running.
        with DEVICE:
            self._recordings[bucket] = _Recording(staging, inputs, replay, result, compute)

    def __call__(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Scores (n, classes) on the CPU for texts given as token ids."""
        bucket = self._bucket(len(token_ids), max(len(ids) for ids in token_ids))
        with DEVICE, torch.inference_mode():
            if bucket is not None and bucket in self._recordings:
                return self._replayed(bucket, token_ids)
            # A length of one would be compiled as a form of its own, while the text waits.
            rows = pad(token_ids, max(2, *(len(ids) for ids in token_ids)))
            inputs = rows.to(self._device)
            return self.forward(inputs[:, :-1], inputs[:, -1]).cpu()

    def _replayed(self, bucket: tuple[int, int], token_ids: Sequence[Sequence[int]]) -> Tensor:
        recording, n = self._recordings[bucket], len(token_ids)
        recording.staging[:n] = pad(token_ids, bucket[1])
        recording.inputs.copy_(recording.staging, non_blocking=True)
        recording.replay()
        # Waits for the device: inputs and result are written again as soon as we let go of it.
        return recording.result[:n].to("cpu", copy=True)

    def _bucket(self, n: int, length: int) -> tuple[int, int] | None:
        """The smallest bucket that holds n texts of that length; None when none does."""
        batch = next((b for b in self._batches if b >= n), None)
        padded = next((size for size in self._lengths if size >= length), None)
        return None if batch is None or padded is None else (batch, padded)


def pad(token_ids: Sequence[Sequence[int]], length: int) -> Tensor:
    """(n, length + 1) int64: ids, zeros behind them, and the last token's position at the end."""
    rows: list[list[int]] = [
        [*ids, *([0] * (length - len(ids))), len(ids) - 1] for ids in token_ids
    ]
    return torch.tensor(rows, dtype=torch.long)


def compiled(decoder: Any, mode: str | None = None) -> Callable[..., Tensor]:
    """The fused decoder's forward with the element-wise kernels of a block joined by torch.compile.

    Shapes are left open, and only one block is compiled: the others are the same code, and the
    whole as one graph takes minutes. Compiles on the first call of every form: an arm's kind of
    adapters, a block without any, a batch of one or more texts.
    """
    twin = copy.copy(decoder)
    twin.step = torch.compile(decoder.step, mode=mode, dynamic=True, fullgraph=True)

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        # In recent torch every thread has settings of its own.
        settings = torch._dynamo.config
        if settings.recompile_limit < RECOMPILE_LIMIT:
            settings.recompile_limit = RECOMPILE_LIMIT
        result: Tensor = twin(*args, **kwargs)
        return result

    return forward
