"""What every engine can do, and the rule that chooses one.

An engine takes token ids and the name of an arm and returns class scores; the base is in memory
once, whatever the number of arms. Free of torch, which takes seconds to import: an engine that does
without should not wait for it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finsent.machine.timing import Conditions
from finsent.models.adapter_files import Adapter

BATCH_TOKENS = {"cpu": 512, "cuda": 4096}
"""Most tokens of a batch that pay, by type of device: a CPU's caches hold less than what a GPU
needs to be busy. Measured by bench/serve_cpu.py batches."""
ENGINES = ("torch", "graphs", "openvino", "openvino-fp32")
"""`torch`: transformers' forward. `graphs`: fused products, compiled, as CUDA graphs. `openvino`:
8-bit with fp32 for close calls. `openvino-fp32`: everything in fp32."""


class EngineError(RuntimeError):
    """An engine that cannot run here."""


class Engine(Protocol):
    """A base in memory with any number of arms on it. Safe to call from many threads."""

    @property
    def description(self) -> str:
        """Library and precision, for people."""
        ...

    @property
    def conditions(self) -> Conditions:
        """Where and how it computes."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Arms that are loaded."""
        ...

    def set_arms(self, adapters: Mapping[str, Adapter]) -> None:
        """Exchange all arms; the base stays. AdapterError when one does not fit."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Tokens, with padding, beyond which a larger batch is no faster for each text."""
        ...

    def scores(self, name: str, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Class scores (n, classes) of one arm; returns when the device is done.

        KeyError when no such arm is loaded.
        """
        ...

    @property
    def warm(self) -> bool:
        """False while a call may still wait for something to be loaded."""
        ...

    def warm_up(self) -> None:
        """Whatever makes later calls faster; may take minutes, scores() works meanwhile."""
        ...

    def close(self) -> None:
        """No call will come any more: let the arms go, and end what runs in the background."""
        ...

    def parameter_bytes(self) -> tuple[int, dict[str, int]]:
        """Bytes of the base's parameters, and of each arm's."""
        ...


@dataclass(frozen=True)
class EngineChoice:
    """Which engine, and why, in words for people."""

    name: str
    reason: str


def choose_engine(
    model: Mapping[str, Any],
    precision: str,
    device: str,
    environment: Mapping[str, str],
    *,
    openvino_installed: bool | None = None,
) -> EngineChoice:
    """The rule. model: the decoder's config.json; environment: os.environ.

    A GPU: graphs where the decoder can be fused, except on ZeroGPU, which lends a GPU for single
    calls and forbids compilation. A CPU: OpenVINO where it can run the decoder. Else plain PyTorch.
    """
    family = model.get("model_type")
    if device == "cuda":
        # Torch will be needed anyway.
        from finsent.models.fused_decoder import FUSED_FAMILIES
        from finsent.models.products import has_whole_blocks

        if environment.get("SPACES_ZERO_GPU"):
            return EngineChoice("torch", "ZeroGPU forbids compilation")
        if precision == "nf4" and not has_whole_blocks(model):
            return EngineChoice("torch", "4-bit blocks that lie across rows, so cannot be joined")
        if family in FUSED_FAMILIES:
            return EngineChoice("graphs", f"a GPU of one's own and a {family} decoder")
        return EngineChoice("torch", f"a {family} decoder, which cannot be fused")
    if precision != "fp32":
        return EngineChoice("torch", f"{precision} weights on a CPU")
    if openvino_installed is None:
        openvino_installed = importlib.util.find_spec("openvino") is not None
    if not openvino_installed:
        return EngineChoice("torch", "openvino is not installed")
    from finsent.engines.openvino_graph import unsupported

    why_not = unsupported(model)
    if why_not:
        return EngineChoice("torch", why_not)
    # Not the 8-bit one: its rounding moves probabilities more than most pairs of arms differ.
    return EngineChoice("openvino-fp32", f"a CPU and a {family} decoder")
