"""Encoders and decoders on a CPU, through OpenVINO.

The model is converted once for a form of adapters and compiled twice: in fp32, and quick. Quick is
bf16 where the processor multiplies it; else 8-bit weights (groups of 32, scale and zero point;
SmolLM2's embedded weights were 4-bit in such groups to begin with) and 8-bit activations quantised
as they come. Where the quick one is asked for, it answers unless its two best classes are closer
than CLOSE_CALL; then fp32 does, so that labels do not depend on the rounding.

Adapters are inputs of the compiled graph, never constants in it: every arm, seed and data set runs
on the same compiled base and costs its own size. All arms answer one text in one pass: each is a
row of the batch, with its own adapter. Compiled graphs are kept in a folder, so that only the first
start imports torch to convert a model.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from finsent.engines.openvino_inputs import (
    ROUNDED_GROUP,
    Array,
    Group,
    Structure,
    adapter_inputs,
    side_by_side,
)
from finsent.engines.rule import BATCH_TOKENS, EngineError, unsupported
from finsent.machine.files import write_bytes_atomically
from finsent.machine.timing import Conditions
from finsent.models.adapter_files import Adapter

CLOSE_CALL = {"bf16": 0.5, "int8": 2.0}
"""Nats between the two best classes below which fp32 answers. Above the largest error of a score
difference seen so far with every product in bf16 (0.33, encoders) or in 8 bits (1.8, SmolLM2);
bench/serve_cpu.py accuracy and bench/serve_sizes.py check it."""

KERNELS_KEPT = 128
"""Kernels that OpenVINO, and oneDNN below it, keep for shapes (texts of a batch, tokens of the
longest) that they have met; layers of one pass share theirs. A shape takes two kernels and 1.4 MiB.
Their own limits, 5,000 and 1,024, let memory grow by that with every new shape for thousands of
requests; so many hold the latest 64 shapes. bench/load.py shapes measures both."""


EXACT_TOLERANCE, QUICK_TOLERANCE = 1e-3, 0.5
"""Of an example's scores, as a share of the largest, when a graph is made. Loose for few bits:
random adapters amplify rounding."""
CODE = tuple(Path(__file__).with_name(f"openvino_{name}.py") for name in ("model", "inputs"))
"""What a compiled graph is made by. Not imported for its name alone: that would import torch."""
ALL = ""
"""Name of the request that all arms share; no arm is called so."""


def quick_precision() -> str:
    """The quick precision that suits this processor."""
    return "bf16" if multiplies_bf16() else "int8"


def multiplies_bf16() -> bool:
    """Whether this processor has instructions for products in bf16."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@dataclass
class _Compiled:
    model: Any
    groups: list[Group]
    stored_bytes: int
    requests: dict[str, Any] = field(default_factory=dict)


class OpenVinoEngine:
    """The base compiled, adapters as its inputs; see `finsent.engines.rule.Engine`."""

    def __init__(
        self,
        folder: Path,
        weights_sha256: str,
        *,
        pooling: str,
        depth: int | None = None,
        cache: Path | None = None,
        threads: int | None = None,
        quick: str | None = None,
    ) -> None:
        """folder: a transformers model, whose weights' checksum is given; depth: its first blocks
        only.

        cache: folder where compiled graphs are kept (None: nowhere). quick: "bf16" or "int8" first,
        fp32 for close calls; None: everything in fp32. Raises EngineError for a model of another
        family.
        """
        self._about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        why_not = unsupported(self._about)
        if why_not:
            raise EngineError(f"{folder}: {why_not}; choose --engine torch")
        self._folder, self._weights_sha256, self._cache = folder, weights_sha256, cache
        self._pooling, self._depth, self._quick = pooling, depth, quick is not None
        self._quick_precision = quick or "bf16"
        self.threads = threads or len(os.sched_getaffinity(0))
        # oneDNN reads this when it is first used, and can be told in no other way.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS_KEPT))
        self._core = ov.Core()
        # No part of `_options`: it changes nothing about the compiled graph that is stored.
        self._core.set_property("CPU", {"CPU_RUNTIME_CACHE_CAPACITY": str(KERNELS_KEPT)})
        self._arms: dict[str, dict[str, Array]] = {}
        """Inputs of the graphs."""
        self._together: dict[str, Array] = {}
        """The same of all arms, one a row."""
        self._structure: Structure | None = None
        self._compiled: dict[bool, _Compiled] = {}
        self._lock = threading.Lock()
        self._compiling = threading.RLock()
        self.close_call = CLOSE_CALL[self._quick_precision]
        self.close_calls = 0
        """Texts that fp32 answered because the quick answer was close."""

    @property
    def description(self) -> str:
        """Library and precision."""
        quick = f"OpenVINO {self._quick_precision}, close calls fp32"
        return quick if self._quick else "OpenVINO fp32"

    @property
    def conditions(self) -> Conditions:
        """Where and how it computes."""
        return Conditions("CPU", self.threads, self.description)

    @property
    def names(self) -> tuple[str, ...]:
        """Arms that are loaded."""
        return tuple(self._arms)

    def set_arms(self, adapters: Mapping[str, Adapter]) -> None:
        """Exchange all arms. The compiled base stays unless it cannot take their form."""
        wanted = Structure.of(list(adapters.values()))
        # Always in this order: a close call compiles while it holds the first.
        with self._lock, self._compiling:
            if self._structure is None or not self._structure.holds(wanted):
                self._structure = wanted
                self._compiled = {}
            ready, structure = self._ready(self._quick), self._structure
            arms = {
                name: adapter_inputs(
                    adapter, ready.groups, structure.dendrites, self._about["hidden_size"]
                )
                for name, adapter in adapters.items()
            }
            for compiled in self._compiled.values():
                compiled.requests = {}
            self._arms, self._together = arms, side_by_side(list(arms.values()))

    @property
    def warm(self) -> bool:
        """Whether the fp32 graph is ready."""
        return False in self._compiled

    def warm_up(self) -> None:
        """Make the fp32 graph ready for close calls; the first one waits for it otherwise."""
        self._ready(False)

    def close(self) -> None:
        """What still compiles in the background ends by itself."""

    @property
    def batch_tokens(self) -> int:
        """What two cores are fastest with."""
        return BATCH_TOKENS["cpu"]

    def scores(self, name: str, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Class scores (n, classes) of one arm. KeyError when no such arm is loaded."""
        with self._lock:
            inputs = self._arms[name]
            ids, last = pad(token_ids)
            found = self._run(name, inputs, ids, last, self._quick)
            close = self._close(found)
            if len(close):
                longest = int(last[close].max()) + 1
                found[close] = self._run(name, inputs, ids[close, :longest], last[close], False)
            return found

    def scores_of_all(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Class scores (arms, classes) of one text, in the order of `names`.

        Weights are read once for all arms, which takes less time than one pass for each.
        """
        with self._lock:
            ids, last = pad([token_ids] * len(self._arms))
            found = self._run(ALL, self._together, ids, last, self._quick)
            names = list(self._arms)
            for row in self._close(found):
                exact = self._run(names[row], self._arms[names[row]], ids[:1], last[:1], False)
                found[row] = exact[0]
            return found

    def _close(self, scores: Array) -> Array:
        """Rows of quick scores that fp32 has to answer."""
        if not self._quick:
            return np.empty(0, np.int64)
        top = np.sort(scores, axis=1)
        close = np.flatnonzero(top[:, -1] - top[:, -2] < self.close_call)
        self.close_calls += len(close)
        return close

    def scores_in(
        self, name: str, token_ids: Sequence[Sequence[int]], *, quick: bool
    ) -> NDArray[np.float32]:
        """Class scores of one of the two graphs, whatever the rule says: to measure their error."""
        with self._lock:
            return self._run(name, self._arms[name], *pad(token_ids), quick)

    def parameter_bytes(self) -> tuple[int, dict[str, int]]:
        """Bytes of the compiled bases, as they are stored, and of each arm."""
        base = sum(compiled.stored_bytes for compiled in self._compiled.values())
        arms = {
            name: sum(value.nbytes for value in inputs.values())
            for name, inputs in self._arms.items()
        }
        return base, arms

    def _run(
        self, name: str, inputs: Mapping[str, Array], ids: Array, last: Array, quick: bool
    ) -> Array:
        compiled = self._ready(quick)
        request = compiled.requests.get(name)
        if request is None:
            request = compiled.model.create_infer_request()
            for key, value in inputs.items():
                request.set_tensor(key, ov.Tensor(value, shared_memory=True))
            compiled.requests[name] = request
        request.set_tensor("input_ids", ov.Tensor(ids, shared_memory=True))
        request.set_tensor("last", ov.Tensor(last, shared_memory=True))
        request.infer()
        # The request writes its next answer to the same place.
        return np.array(request.get_output_tensor(0).data)

    def _ready(self, quick: bool) -> _Compiled:
        """The compiled graph, from memory, the cache folder, or the weights."""
        found = self._compiled.get(quick)
        if found is not None:
            return found  # without waiting for the other one, which may be under way
        with self._compiling:
            if quick not in self._compiled:
                self._compiled[quick] = self._load(quick)
            return self._compiled[quick]

    @property
    def _in_8_bits(self) -> bool:
        return self._quick_precision == "int8"

    def _options(self, quick: bool) -> dict[str, Any]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if quick and not self._in_8_bits else "f32",
            "INFERENCE_NUM_THREADS": self.threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(
                ROUNDED_GROUP if quick and self._in_8_bits else 0
            ),
        }

    def _load(self, quick: bool) -> _Compiled:
        options = self._options(quick)
        store = None
        if self._cache is not None:
            store = _Stored(self._cache, self._key(quick, options))
            found = store.read()
            if found is not None:
                groups, blob = found
                model = self._core.import_model(io.BytesIO(blob), "CPU", options)
                return _Compiled(model, groups, len(blob))
        model, groups = self._convert(quick, options)
        stream = io.BytesIO()
        model.export_model(stream)
        blob = stream.getvalue()
        if store is not None:
            store.write(groups, blob)
        return _Compiled(model, groups, len(blob))

    def _key(self, quick: bool, options: Mapping[str, Any]) -> str:
        """Digest over everything that the compiled graph depends on."""
        about = {
            "weights": self._weights_sha256,
            "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in CODE],
            "versions": [
                ov.get_version(),
                *(importlib.metadata.version(name) for name in ("torch", "transformers")),
            ],
            "cpu": [
                self._core.get_property("CPU", "FULL_DEVICE_NAME"),
                self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
            ],
            "model": self._about,
            "structure": asdict(self._form),
            "graph": [self._pooling, self._depth, quick and self._quick_precision],
            "options": dict(options),
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    @property
    def _form(self) -> Structure:
        if self._structure is None:
            raise EngineError("no arms are loaded; call set_arms first")
        return self._structure

    def _convert(self, quick: bool, options: Mapping[str, Any]) -> tuple[Any, list[Group]]:
        """The model compiled, and its groups. EngineError when OpenVINO computes something else
        than torch."""
        from finsent.engines.openvino_model import convert, load

        converted = convert(
            load(self._folder, self._depth),
            self._form,
            self._pooling,
            eight_bits=quick and self._in_8_bits,
        )
        model = self._core.compile_model(converted.model, "CPU", dict(options))
        found = model(converted.example)[0]
        difference = np.abs(found - converted.expected).max() / np.abs(converted.expected).max()
        tolerance = QUICK_TOLERANCE if quick else EXACT_TOLERANCE
        if not difference <= tolerance:
            raise EngineError(
                f"{self._folder}: OpenVINO's scores of an example differ from PyTorch's by "
                f"{difference:.2g} of the largest, {tolerance:g} is allowed; choose --engine torch"
            )
        return model, converted.groups


class _Stored:
    """A compiled graph in a folder: its bytes, their checksum, and the graph's groups."""

    def __init__(self, folder: Path, key: str) -> None:
        self._blob, self._about = folder / f"{key}.blob", folder / f"{key}.json"

    def read(self) -> tuple[list[Group], bytes] | None:
        """None when it is not there or its bytes are not those that were written."""
        if not (self._blob.is_file() and self._about.is_file()):
            return None
        about = json.loads(self._about.read_text(encoding="utf-8"))
        blob = self._blob.read_bytes()
        if hashlib.sha256(blob).hexdigest() != about["sha256"]:
            return None
        groups = [
            Group(tuple((path, n) for path, n in group["layers"]), group["inner"])
            for group in about["groups"]
        ]
        return groups, blob

    def write(self, groups: Sequence[Group], blob: bytes) -> None:
        """Both files whole or not at all; the one that is looked for last comes last."""
        about = {
            "sha256": hashlib.sha256(blob).hexdigest(),
            "groups": [asdict(group) for group in groups],
        }
        write_bytes_atomically(self._blob, blob)
        write_bytes_atomically(self._about, json.dumps(about).encode())


def pad(token_ids: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """Right-padded ids (n, longest) and the positions of the last tokens (n,), int64."""
    longest = max(len(ids) for ids in token_ids)
    rows = np.zeros((len(token_ids), longest), np.int64)
    for row, ids in zip(rows, token_ids, strict=True):
        row[: len(ids)] = ids
    return rows, np.array([len(ids) - 1 for ids in token_ids], np.int64)
