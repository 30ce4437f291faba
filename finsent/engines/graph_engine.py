"""The engine of a GPU of one's own: recorded forward passes of decoders and encoders."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from finsent.engines.cuda_graphs import (
    BATCHES,
    DEVICE,
    LENGTHS,
    CudaGraphs,
    Forward,
    GraphedForward,
    Record,
    compiled,
)
from finsent.engines.encoder_arms import AdaptedEncoder, EncoderArm
from finsent.engines.rule import BATCH_TOKENS
from finsent.engines.torch_engine import bytes_of, conditions
from finsent.kernels.triton_support import without_triton
from finsent.machine.timing import Conditions
from finsent.models.adapter_files import Adapter
from finsent.models.backbones import Backbone
from finsent.models.encoders import family_of
from finsent.models.fused_decoder import FusedArm, FusedDecoder
from finsent.models.products import FusionError

_log = logging.getLogger(__name__)


def few_rows_forward(decoder: FusedDecoder, arm: FusedArm) -> tuple[Any, str]:
    """Kernels for the few rows of one sentence where they know the decoder and the arm, else None;
    and why, in words for people."""
    device = decoder.embedding.weight.device
    missing = without_triton(device)
    if missing is not None:
        return None, missing
    if decoder.dtype != torch.bfloat16:
        return None, f"{decoder.dtype} on a GPU"
    from finsent.engines.few_rows import FewRows

    try:
        return FewRows(decoder, arm), "kernels for few rows"
    except FusionError as error:
        return None, str(error)


@dataclass
class _Loaded:
    """Arms, what answers for them, and how far warming up has come."""

    layouts: Mapping[str, FusedArm | EncoderArm]
    runs: Mapping[str, GraphedForward]
    stage: str = "recording"
    few_rows: dict[str, str] = field(default_factory=dict)
    """By arm, in words for people: what answers one sentence, or why it is nothing special."""
    failures: list[str] = field(default_factory=list)
    settled: set[tuple[str, tuple[int, int]]] = field(default_factory=set)
    """Arms and buckets whose recording is the fastest there is."""
    done: bool = False


class _Exchanged(Exception):
    """Other arms have come, with a warm-up of their own."""


class GraphEngine:
    """A forward pass replayed as CUDA graphs by bucket of batch and length.

    Answers at once, unrecorded. `warm_up` records. A decoder's products are fused: first one short
    text with the kernels of `few_rows_forward`, which compile in seconds, then other single texts,
    then everything else with element-wise kernels compiled. An encoder, which is small, is recorded
    as it is. A recording is used as soon as it is there.
    """

    def __init__(
        self,
        backbone: Backbone,
        pooling: str,
        max_length: int,
        *,
        compile_kernels: bool = True,
        record: Record | None = None,
    ) -> None:
        """record: how, None for CUDA graphs."""
        self._model: FusedDecoder | AdaptedEncoder
        if family_of(backbone.decoder) is None:
            self._model = FusedDecoder(backbone.decoder, pooling, max_length)
        else:
            self._model = AdaptedEncoder(backbone.decoder, pooling)
        self._fused = isinstance(self._model, FusedDecoder)
        self._device = backbone.device
        self._precision = backbone.precision
        self._compile = compile_kernels and self._fused
        self._record = record or CudaGraphs()
        # There are no angles for positions beyond the maximum length.
        self._lengths = tuple(dict.fromkeys(min(length, max_length) for length in LENGTHS))
        self._loaded = _Loaded({}, {})
        self._warming = threading.Lock()

    @property
    def description(self) -> str:
        """Library, precision, how far warming up has come, and what went wrong in it."""
        loaded = self._loaded
        about = [loaded.stage]
        kinds = set(loaded.few_rows.values())
        if len(kinds) == 1:
            about.append(f"one sentence: {kinds.pop()}")
        elif kinds:
            each = ", ".join(f"{name}: {why}" for name, why in loaded.few_rows.items())
            about.append(f"one sentence: {each}")
        about += loaded.failures
        how = f"{self._precision}, fused" if self._fused else self._precision
        return f"PyTorch {how}, CUDA graphs ({'; '.join(about)})"

    @property
    def conditions(self) -> Conditions:
        """Where and how it computes."""
        return conditions(self._device, self.description)

    @property
    def names(self) -> tuple[str, ...]:
        """Arms that are loaded."""
        return tuple(self._loaded.layouts)

    def set_arms(self, adapters: Mapping[str, Adapter]) -> None:
        """Exchange all arms; their recordings are made anew by `warm_up`."""
        with DEVICE:
            layouts = {name: self._model.arm(a) for name, a in adapters.items()}
        runs = {
            name: GraphedForward(
                partial(self._model, arm=layout),
                self._device,
                lengths=self._lengths,
                record=self._record,
            )
            for name, layout in layouts.items()
        }
        self._loaded = _Loaded(layouts, runs)

    @property
    def batch_tokens(self) -> int:
        """By type of device."""
        return BATCH_TOKENS[self._device.type]

    def scores(self, name: str, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Class scores (n, classes) of one arm."""
        return self._loaded.runs[name](token_ids).float().numpy()

    @property
    def warm(self) -> bool:
        """What is not recorded yet runs unrecorded; nothing waits."""
        return True

    def warm_up(self) -> None:
        """Record every bucket of every arm; nothing to do when that was done.

        An error ends its stage only: it is logged and named in the description, and what is there
        goes on answering.
        """
        with self._warming:
            loaded = self._loaded
            if loaded.done:
                return
            stages = [
                ("kernels for few rows", self._record_few_rows),
                ("recording of single texts", self._record_single_texts),
                ("compiling", self._record_compiled),
                ("recording", self._record_rest),
            ]
            for title, stage in stages:
                try:
                    stage(loaded)
                except _Exchanged:
                    return
                except Exception as error:
                    # Of any library below; without the faster way the slower one still answers.
                    _log.exception("warming up: %s failed", title)
                    reason = (str(error).strip() or "no reason given").splitlines()[0]
                    loaded.failures.append(
                        f"{title} failed: {type(error).__name__}: {reason}"[:200]
                    )
            loaded.done = True

    def _record_few_rows(self, loaded: _Loaded) -> None:
        ways: dict[str, Forward] = {}
        why: dict[str, str] = {}
        most = 0
        if not isinstance(self._model, FusedDecoder):
            return
        for name, layout in loaded.layouts.items():
            few, why[name] = few_rows_forward(self._model, cast(FusedArm, layout))
            if few is not None:
                ways[name], most = few, few.most
        small = [(n, length) for n, length in self._buckets() if n * length <= most]
        self._record_all(loaded, ways, small, "few rows", settled=True)
        loaded.few_rows = why

    def _record_single_texts(self, loaded: _Loaded) -> None:
        single = [bucket for bucket in self._buckets() if bucket[0] == 1]
        self._record_all(loaded, self._plain(loaded), single, "plain")

    def _record_compiled(self, loaded: _Loaded) -> None:
        left = [
            bucket
            for bucket in self._buckets()
            if any((name, bucket) not in loaded.settled for name in loaded.runs)
        ]
        if not self._compile or not left:
            return
        forward = compiled(self._model)
        ways = {name: partial(forward, arm=arm) for name, arm in loaded.layouts.items()}
        self._record_all(loaded, ways, left, "compiled", settled=True)
        # Only now: with every form compiled, no question waits for a compiler.
        for name, run in loaded.runs.items():
            run.forward = ways[name]
        loaded.stage = "compiled"

    def _record_rest(self, loaded: _Loaded) -> None:
        if loaded.stage == "compiled":
            return
        left = [
            bucket
            for bucket in self._buckets()
            if any(bucket not in run.recorded for run in loaded.runs.values())
        ]
        self._record_all(loaded, self._plain(loaded), left, "plain")
        loaded.stage = "ready"

    def _buckets(self) -> list[tuple[int, int]]:
        return [(batch, length) for batch in BATCHES for length in self._lengths]

    def _plain(self, loaded: _Loaded) -> dict[str, Forward]:
        return {name: partial(self._model, arm=arm) for name, arm in loaded.layouts.items()}

    def _record_all(
        self,
        loaded: _Loaded,
        ways: Mapping[str, Forward],
        buckets: Sequence[tuple[int, int]],
        kind: str,
        *,
        settled: bool = False,
    ) -> None:
        """Bucket by bucket, all arms of one before the next: they are compared with each other.

        ways: by arm. settled: whether later stages have nothing better.
        """
        for bucket in buckets:
            for name, forward in ways.items():
                if self._loaded is not loaded:
                    raise _Exchanged
                if (name, bucket) in loaded.settled:
                    continue
                started = time.perf_counter()
                loaded.runs[name].record(bucket, forward)
                if settled:
                    loaded.settled.add((name, bucket))
                elapsed = time.perf_counter() - started
                _log.info("%s, %s, %d x %d tokens: %.2f s", kind, name, *bucket, elapsed)

    def close(self) -> None:
        """Warming up ends after the bucket it is at."""
        self.set_arms({})

    def parameter_bytes(self) -> tuple[int, dict[str, int]]:
        """Bytes of the base, and of each arm."""
        arms = {
            name: bytes_of(layout, besides=self._model)
            for name, layout in self._loaded.layouts.items()
        }
        return bytes_of(self._model), arms
