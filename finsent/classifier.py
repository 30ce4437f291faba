"""Serving: one frozen base in memory, any number of trained arms on it.

Needs neither peft nor PerforatedAI; an adapter file and the base are the whole model.
"""

from __future__ import annotations

import functools
import itertools
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finsent import runs
from finsent.adapters import AdapterBank, AdapterError, load_adapter
from finsent.backbones import (
    Backbone,
    BackboneError,
    default_device,
    load_backbone,
    pool,
    token_batches,
)
from finsent.config import TrainConfig
from finsent.latency import LatencyStats, time_interleaved
from finsent.weights import Progress

WARMUP_TEXT = "Net sales rose 4 percent while operating profit stayed flat."
BATCH_TOKENS = 4096


class InputError(ValueError):
    """A text that cannot be classified."""


@dataclass(frozen=True)
class ArmPrediction:
    """What one arm says about one text."""

    arm: str
    probabilities: tuple[float, ...]
    """In the order of the label names; sums to 1."""
    latency_ms: float
    """Model time of this very call: token ids in, probabilities out."""


@dataclass(frozen=True)
class ComparisonResult:
    """Several arms on one text."""

    text: str
    n_tokens: int
    truncated: bool
    """Whether the text was cut to the model's maximum length."""
    predictions: tuple[ArmPrediction, ...]
    label_names: tuple[str, ...]
    queue_ms: float = 0.0
    """Time the text waited for its turn, no part of any arm's latency."""


class Comparer:
    """Arms of one data set and seed side by side on one base. Safe to call from many threads."""

    def __init__(
        self,
        folder: Path | str,
        seed: int,
        arms: Sequence[str],
        *,
        device: torch.device | None = None,
        backbone_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(0)
        self._device = device or default_device()
        self._backbone_dir = backbone_dir
        self._progress = progress
        self._backbone: Backbone | None = None
        self._base_key: tuple[str, str, int | None] | None = None
        self.use(folder, seed, arms)

    @classmethod
    def from_artifacts(
        cls,
        folder: Path | str,
        seed: int,
        arms: Sequence[str] = ("baseline", "dendritic"),
        *,
        device: torch.device | None = None,
        backbone_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> Comparer:
        """Load the runs <folder>/<arm>/seed-<n>, `folder` being artifacts/<backbone>/<dataset>.

        Raises ArtifactError, AdapterError, BackboneError or WeightsError, each saying what to do.
        """
        return cls(folder, seed, arms, device=device, backbone_dir=backbone_dir, progress=progress)

    def use(self, folder: Path | str, seed: int, arms: Sequence[str]) -> None:
        """Switch to other runs. The base stays in memory when they were trained on it."""
        if not arms:
            raise AdapterError("name at least one arm")
        found = [runs.read_run(Path(folder) / arm / f"seed-{seed}") for arm in arms]
        configs = [TrainConfig.from_dict(run.config["config"]) for run in found]
        first, about = configs[0], found[0].config
        keys = {(c.backbone, c.precision, c.depth, c.pooling, c.max_length) for c in configs}
        if len(keys) != 1:
            raise AdapterError(f"the arms of {folder} were not trained alike: {sorted(keys)}")
        adapters = [load_adapter(run.folder / "adapter.safetensors") for run in found]
        with self._lock:
            base_key = (first.backbone, first.precision, first.depth)
            if self._backbone is None or self._base_key != base_key:
                # The old base goes before the new one comes: two may not fit.
                self._backbone = None
                self._backbone = self._load_base(first, about["backbone_sha256"])
                self._base_key = base_key
                self._bank = AdapterBank(self._backbone.decoder)
            for name in self._bank.names:
                self._bank.remove(name)
            for arm, adapter in zip(arms, adapters, strict=True):
                self._bank.add(arm, adapter)
            self.arms = tuple(arms)
            self.label_names = found[0].label_names
            self._pooling = first.pooling
            self._max_length = first.max_length
            ids = self._backbone.tokenize([WARMUP_TEXT], self._max_length)
            for arm in self.arms:
                self._probabilities(arm, ids)

    def _load_base(self, config: TrainConfig, sha256: str) -> Backbone:
        backbone = load_backbone(
            config.backbone,
            config.precision,
            self._device,
            depth=config.depth,
            folder=self._backbone_dir,
            progress=self._progress,
        )
        if backbone.sha256 != sha256:
            raise BackboneError(
                f"the weights of {config.backbone} have checksum {backbone.sha256}, but the "
                f"adapters were trained on {sha256}: they do not fit"
            )
        return backbone

    @property
    def backbone(self) -> Backbone:
        """The base in memory."""
        if self._backbone is None:
            raise BackboneError("no base is loaded; call use() with runs that exist")
        return self._backbone

    @property
    def device_name(self) -> str:
        """Where and how the model computes, e.g. "CPU, 2 threads, fp32"."""
        if self._device.type == "cuda":
            where = torch.cuda.get_device_name(self._device)
        else:
            where = f"CPU, {torch.get_num_threads()} threads"
        return f"{where}, {self.backbone.precision}"

    def compare(self, text: str) -> ComparisonResult:
        """Ask every arm about one text. Raises InputError when there is nothing to classify.

        The order in which arms run is random for every call, so that neither always pays for a
        cold cache.
        """
        _require_text(text)
        with self._lock:
            whole = self.backbone.tokenizer(text)["input_ids"]
            ids = self.backbone.tokenize([text], self._max_length)
            order = list(self.arms)
            self._random.shuffle(order)
            answers: dict[str, ArmPrediction] = {}
            for arm in order:
                self._synchronize()
                started = time.perf_counter_ns()
                row = self._probabilities(arm, ids)[0].tolist()
                self._synchronize()
                elapsed = (time.perf_counter_ns() - started) / 1e6
                answers[arm] = ArmPrediction(arm, tuple(row), elapsed)
            return ComparisonResult(
                text=text,
                n_tokens=len(ids[0]),
                truncated=len(whole) > len(ids[0]),
                predictions=tuple(answers[arm] for arm in self.arms),
                label_names=self.label_names,
            )

    def time_arms(
        self, texts: Sequence[str], *, rounds: int = 1, warmup: int = 3, seed: int = 0
    ) -> dict[str, LatencyStats]:
        """Model time of every arm on each text alone, `rounds` times, the arms interleaved."""
        with self._lock:
            ids = self.backbone.tokenize(texts, self._max_length)
            turns = {arm: itertools.cycle(ids) for arm in self.arms}

            def call(arm: str) -> Tensor:
                return self._probabilities(arm, [next(turns[arm])])

            return time_interleaved(
                {arm: functools.partial(call, arm) for arm in self.arms},
                repeats=rounds * len(texts),
                warmup=warmup,
                seed=seed,
                synchronize=self._synchronize,
            )

    def predict_proba(self, texts: Sequence[str], arm: str) -> NDArray[np.float64]:
        """Probabilities (n, classes) of one arm, in the order of the texts.

        Raises InputError naming the position of a text that is empty, KeyError for an arm that is
        not loaded.
        """
        if isinstance(texts, str):
            raise InputError("give a list of texts, not one string")
        for position, text in enumerate(texts):
            _require_text(text, position)
        result = np.empty((len(texts), len(self.label_names)))
        with self._lock:
            ids = self.backbone.tokenize(texts, self._max_length) if texts else []
            for batch in token_batches([len(tokens) for tokens in ids], BATCH_TOKENS):
                result[batch] = self._probabilities(arm, [ids[i] for i in batch]).numpy()
        return result

    @torch.inference_mode()
    def _probabilities(self, arm: str, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """(n, classes) float64 on the CPU."""
        head = self._bank.activate(arm)
        lengths = torch.tensor([len(ids) for ids in token_ids])
        padded = torch.zeros(len(token_ids), int(lengths.max()), dtype=torch.long)
        for row, ids in enumerate(token_ids):
            padded[row, : len(ids)] = torch.tensor(ids)
        states = self.backbone.decoder(input_ids=padded.to(self._device)).last_hidden_state
        pooled = pool(states, (lengths - 1).to(self._device), self._pooling)
        return head(pooled).cpu().double().softmax(dim=1)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class Classifier:
    """One trained arm as a classifier."""

    def __init__(self, comparer: Comparer, arm: str) -> None:
        self._comparer = comparer
        self.arm = arm

    @classmethod
    def from_artifacts(
        cls,
        folder: Path | str,
        arm: str = "dendritic",
        seed: int = 0,
        *,
        device: torch.device | None = None,
        backbone_dir: Path | None = None,
        progress: Progress | None = None,
    ) -> Classifier:
        """Load <folder>/<arm>/seed-<n>. Errors as `Comparer.from_artifacts`."""
        comparer = Comparer.from_artifacts(
            folder, seed, (arm,), device=device, backbone_dir=backbone_dir, progress=progress
        )
        return cls(comparer, arm)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Classes in the order of the columns of `predict_proba`."""
        return self._comparer.label_names

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probabilities (n, classes), columns as `label_names` (negative, neutral, positive)."""
        return self._comparer.predict_proba(texts, self.arm)


def _require_text(text: str, position: int | None = None) -> None:
    where = "" if position is None else f" at position {position}"
    if not isinstance(text, str):
        raise InputError(f"a text must be a string, got {type(text).__name__}{where}")
    if not text.strip():
        raise InputError(f"the text{where} is empty; give a sentence or a headline")
