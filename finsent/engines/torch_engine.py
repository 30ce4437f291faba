"""The reference engine: any backbone, any device, plain PyTorch, nothing compiled."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finsent.engines.cuda_graphs import pad
from finsent.engines.rule import BATCH_TOKENS
from finsent.machine.timing import Conditions
from finsent.models.adapter_files import Adapter
from finsent.models.adapters import AdapterBank
from finsent.models.backbones import Backbone, pool
from finsent.models.encoders import final_states


class TorchEngine:
    """The forward of `final_states`; adapters switch on the shared base."""

    def __init__(self, backbone: Backbone, pooling: str) -> None:
        self.backbone = backbone
        self._pooling = pooling
        self._bank = AdapterBank(backbone.decoder)
        self._base_bytes = bytes_of(backbone.decoder)
        self._arm_bytes: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def description(self) -> str:
        """Library and precision."""
        return f"PyTorch {self.backbone.precision}"

    @property
    def conditions(self) -> Conditions:
        """Where and how it computes."""
        return conditions(self.backbone.device, self.description)

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
                before = bytes_of(self.backbone.decoder)
                self._bank.add(name, adapter)
                added = bytes_of(self.backbone.decoder) - before
                self._arm_bytes[name] = added + bytes_of(self._bank.activate(name))

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
            states = final_states(self.backbone.decoder, rows[:, :-1], rows[:, -1])
            found = head(pool(states, rows[:, -1], self._pooling)).float().cpu()
        return found.numpy()

    @property
    def warm(self) -> bool:
        """Nothing is loaded later."""
        return True

    def warm_up(self) -> None:
        """Nothing is compiled here."""

    def close(self) -> None:
        """Nothing runs in the background."""

    def parameter_bytes(self) -> tuple[int, dict[str, int]]:
        """Bytes of the base, and of each arm."""
        return self._base_bytes, dict(self._arm_bytes)


def conditions(device: torch.device, description: str) -> Conditions:
    if device.type == "cuda":
        return Conditions(torch.cuda.get_device_name(device), None, description)
    return Conditions("CPU", torch.get_num_threads(), description)


def bytes_of(module: Any, besides: Any = None) -> int:
    """Bytes of a module's tensors, each counted once, without those of the other module."""
    tensors = {t.data_ptr(): t for t in (*module.parameters(), *module.buffers())}
    if besides is not None:
        for tensor in (*besides.parameters(), *besides.buffers()):
            tensors.pop(tensor.data_ptr(), None)
    return sum(t.numel() * t.element_size() for t in tensors.values())
