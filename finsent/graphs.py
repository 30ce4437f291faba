"""Static-shape recordings of a forward pass: CUDA graphs by bucket of batch and length.

A sentence on a large GPU is a thousand small kernels whose launches cost more than their
arithmetic. A CUDA graph replays them as one, but only for the shapes it was recorded with: inputs
are padded up to the next bucket. A shape without a recording (yet) runs unrecorded, so recording
may go on in the background while requests are answered.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor], Tensor]
"""Ids (B, L) and last positions (B,) -> scores (B, classes)."""
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""From a computation on fixed tensors to a function that repeats it, and where its result lies."""

LENGTHS = (16, 24, 32, 40, 48, 64, 96, 128)
"""Tokens; Financial PhraseBank has 31 on average and 107 at most."""
BATCHES = (1, 2, 4, 8)
WARMUP = 3


def record_cuda_graph(compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record on the current CUDA device. Warms up first: libraries allocate on their first call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(WARMUP):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads go on answering while this one records.
    with (
        torch.inference_mode(),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        result = compute()
    return graph.replay, result


@dataclass(frozen=True)
class _Recording:
    staging: Tensor
    """(batch, length + 1) on the host: ids, then the last token's position."""
    inputs: Tensor
    """The same on the device."""
    replay: Callable[[], None]
    result: Tensor


class GraphedForward:
    """A forward pass with a recording for every bucket that has been recorded. Thread-safe."""

    def __init__(
        self,
        forward: Forward,
        device: torch.device,
        *,
        lengths: Sequence[int] = LENGTHS,
        batches: Sequence[int] = BATCHES,
        record: Record = record_cuda_graph,
    ) -> None:
        self._forward = forward
        self._device = device
        self._lengths, self._batches = sorted(lengths), sorted(batches)
        self._record = record
        self._recordings: dict[tuple[int, int], _Recording] = {}
        self._lock = threading.Lock()

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """Every (batch, length) worth recording, the most asked for first."""
        return [(batch, length) for batch in self._batches for length in self._lengths]

    @property
    def recorded(self) -> int:
        """How many buckets have a recording."""
        return len(self._recordings)

    def record(self, bucket: tuple[int, int]) -> None:
        """Record one bucket; nothing to do when it is there already."""
        if bucket in self._recordings:
            return
        batch, length = bucket
        with self._lock:
            staging = torch.zeros(batch, length + 1, dtype=torch.long)
            if self._device.type == "cuda":
                staging = staging.pin_memory()
            inputs = staging.to(self._device)
            # Views made once: slicing inside the recording would be recorded as nothing anyway.
            ids, last = inputs[:, :length], inputs[:, length]
            replay, result = self._record(lambda: self._forward(ids, last))
            self._recordings[bucket] = _Recording(staging, inputs, replay, result)

    def __call__(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Scores (n, classes) on the CPU for texts given as token ids."""
        bucket = self._bucket(len(token_ids), max(len(ids) for ids in token_ids))
        recording = None if bucket is None else self._recordings.get(bucket)
        with self._lock, torch.inference_mode():
            if recording is None:
                rows = pad(token_ids, max(len(ids) for ids in token_ids))
                inputs = rows.to(self._device)
                return self._forward(inputs[:, :-1], inputs[:, -1]).cpu()
            length = recording.staging.shape[1] - 1
            recording.staging[: len(token_ids)] = pad(token_ids, length)
            recording.inputs.copy_(recording.staging, non_blocking=True)
            recording.replay()
            return recording.result[: len(token_ids)].cpu()

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


def compiled(decoder: Any, mode: str | None = None) -> Any:
    """The fused decoder with the element-wise kernels of a block joined by torch.compile.

    Shapes are left open, and only one block is compiled: the others are the same code, and the
    whole as one graph takes minutes.
    """
    # Every arm is a specialisation of the same code, and so is a batch of one.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    twin = copy.copy(decoder)
    twin.step = torch.compile(decoder.step, mode=mode, dynamic=True, fullgraph=True)
    return twin
