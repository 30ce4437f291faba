"""Engines that run the forward pass in torch; finsent.engine_rule has what all have in common.

`TorchEngine` is the reference: any decoder, any device, nothing compiled. `GraphEngine` is for a
GPU of one's own.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finsent.adapter_files import Adapter
from finsent.adapters import AdapterBank
from finsent.backbones import Backbone, pool
from finsent.engine_rule import BATCH_TOKENS
from finsent.fused import FusedArm, FusedDecoder
from finsent.graphs import GraphedForward, compiled, pad
from finsent.latency import Conditions
from finsent.products import FusionError


def few_rows_forward(decoder: FusedDecoder, arm: FusedArm) -> tuple[Any, str]:
    """Kernels for the few rows of one sentence where they know the decoder and the arm, else None;
    and why, in words for people."""
    if decoder.embedding.weight.device.type != "cuda":
        return None, "no GPU"
    if decoder.dtype != torch.bfloat16:
        return None, f"{decoder.dtype} on a GPU"
    if importlib.util.find_spec("triton") is None:
        return None, "triton is not installed"
    from finsent.few_rows import FewRows

    try:
        return FewRows(decoder, arm), "kernels for few rows"
    except FusionError as error:
        return None, str(error)


class TorchEngine:
    """transformers' own forward; adapters switch on the shared base."""

    def __init__(self, backbone: Backbone, pooling: str) -> None:
        self.backbone = backbone
        self._pooling = pooling
        self._bank = AdapterBank(backbone.decoder)
        self._base_bytes = _bytes_of(backbone.decoder)
        self._arm_bytes: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def description(self) -> str:
        """Library and precision."""
        return f"PyTorch {self.backbone.precision}"

    @property
    def conditions(self) -> Conditions:
        """Where and how it computes."""
        return _conditions(self.backbone.device, self.description)

    @property
    def names(self) -> tuple[str, ...]:
        """Arms that are loaded."""
        return self._bank.names

    def set_arms(self, adapters: Mapping[str, Adapter]) -> None:
        """Exchange all arms."""
        with self._lock:
            for name in self._bank.names:
                self._bank.remove(name)
            self._arm_bytes = {}
            for name, adapter in adapters.items():
                before = _bytes_of(self.backbone.decoder)
                self._bank.add(name, adapter)
                added = _bytes_of(self.backbone.decoder) - before
                self._arm_bytes[name] = added + _bytes_of(self._bank.activate(name))

    @property
    def batch_tokens(self) -> int:
        """By type of device."""
        return BATCH_TOKENS[self.backbone.device.type]

    @torch.inference_mode()
    def scores(self, name: str, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Class scores (n, classes) of one arm."""
        rows = pad(token_ids, max(len(ids) for ids in token_ids)).to(self.backbone.device)
        with self._lock:
            head = self._bank.activate(name)
            states = self.backbone.decoder(input_ids=rows[:, :-1]).last_hidden_state
            found = head(pool(states, rows[:, -1], self._pooling)).float().cpu()
        return found.numpy()

    @property
    def warm(self) -> bool:
        """Nothing is loaded later."""
        return True

    def warm_up(self) -> None:
        """Nothing is compiled here."""

    def parameter_bytes(self) -> tuple[int, dict[str, int]]:
        """Bytes of the base, and of each arm."""
        return self._base_bytes, dict(self._arm_bytes)


class GraphEngine:
    """Fused products, element-wise kernels compiled, replayed as CUDA graphs by bucket.

    Answers at once, unrecorded; `warm_up` records the plain kernels, then compiles and records
    again, the small buckets with the kernels of `few_rows_forward`. What is faster replaces what
    was there.
    """

    def __init__(
        self, backbone: Backbone, pooling: str, max_length: int, *, compile_kernels: bool = True
    ) -> None:
        self._decoder = FusedDecoder(backbone.decoder, pooling, max_length)
        self._device = backbone.device
        self._precision = backbone.precision
        self._compile = compile_kernels
        self._layouts: dict[str, FusedArm] = {}
        self._runs: dict[str, GraphedForward] = {}
        self._stage = "recording"
        self._few_rows = "not compiled yet"
        self._warming = threading.Lock()
        self._exchange = threading.Lock()

    @property
    def description(self) -> str:
        """Library, precision, and how far warming up has come."""
        stage = self._stage
        if stage == "compiled":
            stage += f"; one sentence: {self._few_rows}"
        return f"PyTorch {self._precision}, fused, CUDA graphs ({stage})"

    @property
    def conditions(self) -> Conditions:
        """Where and how it computes."""
        return _conditions(self._device, self.description)

    @property
    def names(self) -> tuple[str, ...]:
        """Arms that are loaded."""
        return tuple(self._layouts)

    def set_arms(self, adapters: Mapping[str, Adapter]) -> None:
        """Exchange all arms; their recordings are made anew by `warm_up`."""
        layouts = {name: self._decoder.arm(a) for name, a in adapters.items()}
        with self._exchange:
            self._layouts, self._runs = layouts, self._graphed(layouts, self._decoder)

    def _graphed(self, layouts: Mapping[str, FusedArm], forward: Any) -> dict[str, GraphedForward]:
        return {
            name: GraphedForward(partial(forward, arm=layout), self._device)
            for name, layout in layouts.items()
        }

    def _compiled(self, layouts: Mapping[str, FusedArm]) -> dict[str, GraphedForward]:
        forward = compiled(self._decoder)
        runs = {}
        for name, layout in layouts.items():
            few, self._few_rows = few_rows_forward(self._decoder, layout)
            many = partial(forward, arm=layout)
            run = many if few is None else partial(_by_rows, few, few.most, many)
            runs[name] = GraphedForward(run, self._device)
        return runs

    @property
    def batch_tokens(self) -> int:
        """By type of device."""
        return BATCH_TOKENS[self._device.type]

    def scores(self, name: str, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Class scores (n, classes) of one arm."""
        return self._runs[name](token_ids).float().numpy()

    @property
    def warm(self) -> bool:
        """What is not recorded yet runs unrecorded; nothing waits."""
        return True

    def warm_up(self) -> None:
        """Record every bucket of every arm, then once more with compiled kernels."""
        with self._warming:
            layouts = self._layouts
            stages: list[tuple[str, Any]] = [
                ("ready", partial(self._graphed, forward=self._decoder))
            ]
            if self._compile:
                stages.append(("compiled", self._compiled))
            for stage, make in stages:
                fresh = make(layouts)
                for run in fresh.values():
                    for bucket in run.buckets:
                        if self._layouts is not layouts:
                            return  # other arms have come, with a warm-up of their own
                        run.record(bucket)
                with self._exchange:
                    if self._layouts is layouts:
                        self._runs, self._stage = fresh, stage

    def parameter_bytes(self) -> tuple[int, dict[str, int]]:
        """Bytes of the base, and of each arm."""
        arms = {name: _bytes_of(layout) for name, layout in self._layouts.items()}
        return _bytes_of(self._decoder), arms


def _by_rows(few: Any, most: int, many: Any, ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    return (few if ids.numel() <= most else many)(ids, last)


def _conditions(device: torch.device, description: str) -> Conditions:
    if device.type == "cuda":
        return Conditions(torch.cuda.get_device_name(device), None, description)
    return Conditions("CPU", torch.get_num_threads(), description)


def _bytes_of(module: Any) -> int:
    tensors = {t.data_ptr(): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
