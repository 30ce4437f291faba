"""What every engine can do, and the rule that chooses one.

An engine takes token ids and the name of an arm and returns class scores; the base is in memory
once, whatever the number of arms. Free of torch, which takes seconds to import: an engine that does
without should not wait for it.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from finsent.config import TrainConfig
from finsent.machine.timing import Conditions
from finsent.models.adapter_files import Adapter
from finsent.models.presets import preset
from finsent.models.weights import ReportProgress

BATCH_TOKENS = {"cpu": 512, "cuda": 4096}
"""Most tokens of a batch that pay, by type of device: a CPU's caches hold less than what a GPU
needs to be busy. Measured by bench/serve_cpu.py batches."""
ENGINES = ("torch", "graphs", "openvino", "openvino-fp32")
"""`torch`: transformers' forward. `graphs`: recorded as CUDA graphs, decoders fused. `openvino`:
bf16 (8-bit where the processor lacks it), fp32 for close calls. `openvino-fp32`: all in fp32."""

ENCODERS = ("bert", "mpnet", "roberta")
"""Those of CONVERTED_FAMILIES that are faster in bf16; decoders, which are not, stay in fp32."""
CONVERTED_FAMILIES = ("bert", "llama", "mpnet", "phi", "roberta")
"""`model_type` in config.json of the models whose conversion for OpenVINO the tests cover."""


class EngineError(RuntimeError):
    """An engine that cannot run here."""


def check_engine(name: str, *, on_gpu: bool) -> None:
    """Raises EngineError for an engine that does not exist, or that needs a GPU where none is."""
    if name not in ENGINES:
        raise EngineError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if name == "graphs" and not on_gpu:
        raise EngineError(
            "engine graphs records CUDA graphs and needs a GPU, which torch does not see here; "
            "choose another engine, or none: a rule then finds one that runs"
        )


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


@runtime_checkable
class JoinsArms(Protocol):
    """An engine that answers one text by all arms in less time than by one after the other."""

    def scores_of_all(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Class scores (arms, classes) of one text, in the order of the engine's `names`."""
        ...


def unsupported(model: Mapping[str, Any]) -> str | None:
    """Why OpenVINO is not known to serve a model with this config.json; None when it is."""
    family = model.get("model_type")
    if family not in CONVERTED_FAMILIES:
        known = ", ".join(CONVERTED_FAMILIES)
        return f"OpenVINO is tested with {known} models, this is a {family} model"
    return None


def choose_engine(
    model: Mapping[str, Any],
    precision: str,
    device: str,
    environment: Mapping[str, str],
    *,
    openvino_installed: bool | None = None,
    bf16: bool | None = None,
) -> str:
    """The name of the engine. model: config.json of the backbone; environment: os.environ.

    A GPU: graphs for encoders and where a decoder can be fused, except on ZeroGPU, which lends a
    GPU for single calls and forbids compilation. A CPU: OpenVINO where it is known to run the
    model; encoders in bf16 where the processor multiplies it (None: ask), with fp32 for close
    calls; else in fp32: 8 bits move probabilities more than most pairs of arms differ. Else plain
    PyTorch.
    """
    if device == "cuda":
        # Torch will be needed anyway.
        from finsent.models.fused_decoder import FUSED_FAMILIES
        from finsent.models.products import has_whole_blocks

        if precision == "nf4":
            fits = model.get("model_type") in FUSED_FAMILIES and has_whole_blocks(model)
        else:
            fits = model.get("model_type") in (*FUSED_FAMILIES, *ENCODERS)
        return "graphs" if fits and not environment.get("SPACES_ZERO_GPU") else "torch"
    if openvino_installed is None:
        openvino_installed = importlib.util.find_spec("openvino") is not None
    if precision != "fp32" or not openvino_installed or unsupported(model) is not None:
        return "torch"
    if model["model_type"] not in ENCODERS:
        return "openvino-fp32"
    if bf16 is None:
        from finsent.engines.openvino_engine import multiplies_bf16

        bf16 = multiplies_bf16()
    return "openvino" if bf16 else "openvino-fp32"


def chosen_engine(
    config: TrainConfig,
    device: str,
    asked: str | None,
    backbone_dir: Path | None = None,
    progress: ReportProgress | None = None,
) -> tuple[str, Path | None]:
    """The engine for a run's backbone, and the local folder of the weights if they have one.

    Loads nothing, but takes the weights where the rule has to look at them.
    """
    source, on_gpu = backbone_dir, device.startswith("cuda")
    if source is None and (not on_gpu or asked):
        source = Path(preset(config.backbone).source(progress))
    local = source if source is not None and (source / "config.json").is_file() else None
    if asked is not None:
        return asked, local
    if config.adapt == "full":
        return "torch", local  # whole weights differ from arm to arm
    if local is not None:
        about = json.loads((local / "config.json").read_text(encoding="utf-8"))
    elif on_gpu:
        from transformers import AutoConfig

        about = AutoConfig.from_pretrained(preset(config.backbone).source(None)).to_dict()
    else:
        return "torch", None
    kind = "cuda" if on_gpu else "cpu"
    return choose_engine(about, config.precision, kind, os.environ), local
