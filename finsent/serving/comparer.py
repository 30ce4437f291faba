"""One frozen base in memory and any number of trained arms on it, answering the same texts.

Needs neither peft nor PerforatedAI; an adapter file and the base are the whole model.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finsent.config import BACKBONE_TITLES, TrainConfig
from finsent.engines.rule import Engine, EngineError, JoinsArms, check_engine, chosen_engine
from finsent.machine.devices import cuda_available
from finsent.machine.timing import Conditions, LatencyStats, time_interleaved, timed
from finsent.models.adapter_files import AdapterError, load_adapter
from finsent.models.presets import BackboneError
from finsent.models.tokenization import (
    FileTokenizer,
    repeated,
    require_text,
    require_texts,
    token_batches,
)
from finsent.models.weights import ReportProgress, default_cache_dir, folder_sha256
from finsent.results import runs
from finsent.results.calibration import softmax
from finsent.results.manifest import ADAPTER_FILE, check_run, checksums_of
from finsent.serving.batching import BatchQueue
from finsent.serving.windows import window_spans

if TYPE_CHECKING:
    # Not every engine needs torch, which takes seconds to import.
    import torch

    from finsent.models.backbones import Backbone


WARMUP_TEXT = "Net sales rose 4 percent while operating profit stayed flat."


WINDOWS_AT_ONCE = 512
"""Parts of long texts in memory at a time."""


TokenIds = list[int]


Tokenize = Callable[[Sequence[str]], list[tuple[TokenIds, bool]]]
"""From texts to their ids, and whether each was cut to the maximum length."""


@dataclass(frozen=True)
class ArmPrediction:
    """What one arm says about one text."""

    arm: str
    probabilities: tuple[float, ...]
    """In the order of the label names; sums to 1."""
    latency_ms: float
    """Model time of the pass that answered, token ids in, class scores out: of all arms where they
    answered in one."""


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
    """How long the text waited before the model ran; no part of any latency."""
    batch_size: int = 1
    """Texts answered in the same pass. Above 1 the latency is that of the whole batch."""


@dataclass(frozen=True)
class Window:
    """A part of a long text that the model reads in one piece."""

    text: str
    start: int
    """Position of its first character in the long text."""
    n_tokens: int
    """Without those of the cue."""


@dataclass(frozen=True)
class _Base:
    """A base in memory, and what answers on it."""

    key: tuple[object, ...]
    sha256: str
    """Of its weights."""
    engine: Engine
    engine_name: str
    """Of finsent.engines.rule.ENGINES."""
    tokenize: Tokenize
    suffix_length: int
    """Tokens at the end of every text that are not the text's."""


class Comparer:
    """Arms of one data set and seed side by side on one base. Safe to call from many threads.

    Simultaneous calls of `compare` are answered in batches. Nothing is remembered between calls:
    a text that comes twice is computed twice.
    """

    def __init__(
        self,
        folder: Path | str,
        seed: int,
        arms: Sequence[str],
        *,
        device: torch.device | str | None = None,
        backbone_dir: Path | None = None,
        engine: str | None = None,
        progress: ReportProgress | None = None,
    ) -> None:
        self._device = str(device or ("cuda" if cuda_available() else "cpu"))
        self._on_gpu = self._device.startswith("cuda")
        if engine is not None:
            check_engine(engine, on_gpu=self._on_gpu)
        self._lock = threading.Lock()
        self._random = random.Random(0)
        self._backbone_dir = backbone_dir
        self._asked_engine = engine
        self._progress = progress
        self._base: _Base | None = None
        self._queue: BatchQueue[_Question, ComparisonResult] = BatchQueue(self._answer)
        self.use(folder, seed, arms)

    @classmethod
    def from_artifacts(
        cls,
        folder: Path | str,
        seed: int,
        arms: Sequence[str] = ("baseline", "dendritic"),
        *,
        device: torch.device | str | None = None,
        backbone_dir: Path | None = None,
        engine: str | None = None,
        progress: ReportProgress | None = None,
    ) -> Comparer:
        """Load the runs <folder>/<arm>/seed-<n>, `folder` being artifacts/<backbone>/<dataset>.

        engine: one of finsent.engines.rule.ENGINES; None follows the rule of `chosen_engine`.
        Raises ArtifactError, AdapterError, BackboneError, EngineError or WeightsError, each saying
        what to do.
        """
        return cls(
            folder,
            seed,
            arms,
            device=device,
            backbone_dir=backbone_dir,
            engine=engine,
            progress=progress,
        )

    def use(self, folder: Path | str, seed: int, arms: Sequence[str]) -> None:
        """Switch to other runs. The base stays in memory when they were trained on it."""
        if not arms:
            raise AdapterError("name at least one arm")
        found = [_checked_run(Path(folder) / arm / f"seed-{seed}") for arm in arms]
        configs = [TrainConfig.from_dict(run.config["config"]) for run in found]
        first = configs[0]
        of_base = ("backbone", "precision", "depth", "pooling", "max_length", "prompt_suffix")
        keys = {tuple(getattr(c, name) for name in (*of_base, "copies", "adapt")) for c in configs}
        if len(keys) != 1:
            raise AdapterError(f"the arms of {folder} were not trained alike: {sorted(keys)}")
        weights = {run.config["backbone_sha256"] for run in found}
        if len(weights) != 1:
            raise AdapterError(
                f"the arms of {folder} were trained on different weights: {sorted(weights)}"
            )
        adapters = {
            arm: load_adapter(run.folder / ADAPTER_FILE)
            for arm, run in zip(arms, found, strict=True)
        }
        with self._lock:
            (key,), (sha256,) = keys, weights
            if self._base is not None and self._base.key == key:
                _require_weights(first.backbone, self._base.sha256, sha256)
            else:
                # The old base goes before the new one comes: two may not fit.
                if self._base is not None:
                    self._base.engine.close()
                self._base = None
                self._base = self._load_base(key, first, sha256)
            base = self._base
            base.engine.set_arms(adapters)
            self.arms = tuple(arms)
            self.label_names = found[0].label_names
            for arm in self.arms:
                base.engine.scores(arm, [base.tokenize([WARMUP_TEXT])[0][0]])
        # What makes later calls faster need not be waited for.
        threading.Thread(target=base.engine.warm_up, name="warm-up", daemon=True).start()

    def _load_base(self, key: tuple[object, ...], config: TrainConfig, sha256: str) -> _Base:
        name, folder = chosen_engine(
            config, self._device, self._asked_engine, self._backbone_dir, self._progress
        )
        if name.startswith("openvino"):
            return self._load_openvino(key, name, folder, config, sha256)
        import torch

        from finsent.engines.graph_engine import GraphEngine
        from finsent.engines.torch_engine import TorchEngine
        from finsent.models.backbones import load_backbone

        backbone = load_backbone(
            config.backbone,
            config.precision,
            torch.device(self._device),
            depth=config.depth,
            folder=self._backbone_dir,
            progress=self._progress,
        )
        _require_weights(config.backbone, backbone.sha256, sha256)
        engine: Engine = TorchEngine(backbone, config.pooling)
        if name == "graphs":
            engine = GraphEngine(backbone, config.pooling, config.longest)
        tokenize = _backbone_tokenizer(backbone, config)
        suffix = backbone.tokenizer(config.prompt_suffix, add_special_tokens=False)["input_ids"]
        return _Base(key, sha256, engine, name, tokenize, len(suffix))

    def _load_openvino(
        self,
        key: tuple[object, ...],
        name: str,
        folder: Path | None,
        config: TrainConfig,
        sha256: str,
    ) -> _Base:
        from finsent.engines.openvino_engine import OpenVinoEngine, quick_precision

        if folder is None:
            raise EngineError(f"{name} needs the weights of {config.backbone} in a local folder")
        if self._progress is not None:
            title = BACKBONE_TITLES.get(config.backbone, config.backbone)
            self._progress(f"loading {title}", 0.0)
        found = folder_sha256(folder)
        _require_weights(config.backbone, found, sha256)
        engine = OpenVinoEngine(
            folder,
            found,
            pooling=config.pooling,
            depth=config.depth,
            cache=default_cache_dir() / "openvino",
            quick=quick_precision() if name == "openvino" else None,
        )
        tokenize = FileTokenizer(folder, config.longest, config.prompt_suffix, config.copies)
        return _Base(key, sha256, engine, name, tokenize, tokenize.suffix_length)

    @property
    def _loaded(self) -> _Base:
        if self._base is None:
            raise BackboneError("no base is loaded; call use() with runs that exist")
        return self._base

    @property
    def engine(self) -> Engine:
        """What runs the forward pass."""
        return self._loaded.engine

    @property
    def engine_name(self) -> str:
        """Which of finsent.engines.rule.ENGINES it is."""
        return self._loaded.engine_name

    @property
    def conditions(self) -> Conditions:
        """Where and how the model computes."""
        return self.engine.conditions

    @property
    def device_name(self) -> str:
        """The same in words, e.g. "CPU, 2 threads, PyTorch fp32"."""
        return str(self.conditions)

    def compare(self, text: str) -> ComparisonResult:
        """Ask every arm about one text.

        Arms run in one pass where the engine can, else one after the other, in an order drawn anew
        for every call, so that neither always pays for a cold cache. Raises InputError when there
        is nothing to classify, BusyError when too many others are waiting.
        """
        require_text(text)
        ((ids, truncated),) = self._loaded.tokenize([text])
        result, queue_ms = self._queue.ask(_Question(text, ids, truncated))
        return dataclasses.replace(result, queue_ms=queue_ms)

    def close(self) -> None:
        """Answer what is waiting and end the worker thread."""
        self._queue.close()

    def _answer(self, questions: Sequence[_Question]) -> list[ComparisonResult]:
        """All arms on one batch of texts, texts of similar length together."""
        with self._lock:
            engine = self._loaded.engine
            found: dict[int, dict[str, ArmPrediction]] = {}
            sizes: dict[int, int] = {}
            lengths = [len(question.ids) for question in questions]
            for batch in token_batches(lengths, engine.batch_tokens):
                passes = self._passes(engine, [questions[i].ids for i in batch])
                for arm, scores, elapsed in passes:
                    for i, row in zip(batch, softmax(scores).tolist(), strict=True):
                        sizes[i] = len(batch)
                        found.setdefault(i, {})[arm] = ArmPrediction(arm, tuple(row), elapsed)
            return [
                ComparisonResult(
                    text=question.text,
                    n_tokens=len(question.ids),
                    truncated=question.truncated,
                    predictions=tuple(found[i][arm] for arm in self.arms),
                    label_names=self.label_names,
                    batch_size=sizes[i],
                )
                for i, question in enumerate(questions)
            ]

    def _passes(
        self, engine: Engine, ids: Sequence[TokenIds]
    ) -> Iterator[tuple[str, NDArray[np.float32], float]]:
        """(arm, class scores (n, classes), milliseconds) of every arm for one batch of texts."""
        if isinstance(engine, JoinsArms) and len(ids) == 1 and len(self.arms) > 1:
            ask = functools.partial(engine.scores_of_all, ids[0])
            if not engine.warm:
                # Loading that this call may have to wait for is no model time.
                ask()
            rows, elapsed = timed(ask)
            for arm, row in zip(engine.names, rows, strict=True):
                yield arm, row[None], elapsed
            return
        order = list(self.arms)
        self._random.shuffle(order)
        for arm in order:
            if not engine.warm:
                engine.scores(arm, ids)
            scores, elapsed = timed(functools.partial(engine.scores, arm, ids))
            yield arm, scores, elapsed

    def time_arms(
        self, texts: Sequence[str], *, rounds: int = 1, warmup: int = 3, seed: int = 0
    ) -> dict[str, LatencyStats]:
        """Model time of every arm on each text alone, `rounds` times, the arms interleaved."""
        # Before the lock is taken: it may take minutes, and others can be answered meanwhile.
        self._loaded.engine.warm_up()
        with self._lock:
            base = self._loaded
            ids = [tokens for tokens, _ in base.tokenize(texts)]
            turns = {arm: itertools.cycle(ids) for arm in self.arms}

            def call(arm: str) -> NDArray[np.float32]:
                return base.engine.scores(arm, [next(turns[arm])])

            return time_interleaved(
                {arm: functools.partial(call, arm) for arm in self.arms},
                repeats=rounds * len(texts),
                warmup=warmup,
                seed=seed,
            )

    def predict_proba(self, texts: Sequence[str], arm: str) -> NDArray[np.float64]:
        """Probabilities (n, classes) of one arm, in the order of the texts.

        Raises InputError naming the position of a text that is empty, KeyError for an arm that is
        not loaded.
        """
        require_texts(texts)
        result = np.empty((len(texts), len(self.label_names)))
        if not texts:
            return result
        ids = [tokens for tokens, _ in self._loaded.tokenize(texts)]
        for batch in token_batches([len(tokens) for tokens in ids], self.engine.batch_tokens):
            # Let go between batches: a visitor need not wait for a whole file.
            with self._lock:
                result[batch] = softmax(self.engine.scores(arm, [ids[i] for i in batch]))
        return result

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Whether `predict_proba` reads only the beginning of each text. Errors as there."""
        require_texts(texts)
        return [cut for _, cut in self._loaded.tokenize(texts)] if texts else []

    def windows(self, text: str) -> tuple[Window, ...]:
        """What `predict_document_proba` reads of a text, in order. InputError for an empty one."""
        require_text(text)
        base = self._loaded
        spans = window_spans(text, lambda part: not base.tokenize([part])[0][1])
        parts = [text[start:end] for start, end in spans]
        lengths = [len(ids) - base.suffix_length for ids, _ in base.tokenize(parts)]
        return tuple(
            Window(part, start, length)
            for part, (start, _), length in zip(parts, spans, lengths, strict=True)
        )

    def predict_document_proba(self, texts: Sequence[str], arm: str) -> NDArray[np.float64]:
        """Probabilities (n, classes) of one arm on texts of any length, in the order of the texts.

        A text that the model reads whole is answered as by `predict_proba`. A longer one is cut
        into windows (see `finsent.serving.windows.window_spans`), each is answered alone, and the
        text's probabilities are their mean, weighted by the windows' tokens. The arms are trained
        on sentences: what a long text says as a whole is more than a mean knows. Errors as
        `predict_proba`.
        """
        require_texts(texts)
        result = np.zeros((len(texts), len(self.label_names)))
        shares = (
            (place, window.text, window.n_tokens / total)
            for place, text in enumerate(texts)
            for windows in [self.windows(text)]
            for total in [sum(window.n_tokens for window in windows)]
            for window in windows
        )
        while block := list(itertools.islice(shares, WINDOWS_AT_ONCE)):
            places, parts, weights = zip(*block, strict=True)
            found = self.predict_proba(parts, arm)
            np.add.at(result, list(places), np.array(weights)[:, None] * found)
        return result


@dataclass(frozen=True)
class _Question:
    text: str
    ids: TokenIds
    truncated: bool


def _backbone_tokenizer(backbone: Backbone, config: TrainConfig) -> Tokenize:
    suffix, copies = config.prompt_suffix, config.copies

    def tokenize(texts: Sequence[str]) -> list[tuple[TokenIds, bool]]:
        cut = backbone.tokenize(texts, config.longest, suffix, copies)
        full = [len(ids) == config.longest for ids in cut]
        whole = [
            len(backbone.tokenizer(repeated(text, copies) + suffix)["input_ids"]) if is_full else 0
            for text, is_full in zip(texts, full, strict=True)
        ]
        return [(ids, n > len(ids)) for ids, n in zip(cut, whole, strict=True)]

    return tokenize


def _checked_run(folder: Path) -> runs.Run:
    """A run whose files are the published ones. Raises ArtifactError for any other."""
    run = runs.read_run(folder)
    check_run(run, checksums_of(run.folder.parents[3]))
    return run


def _require_weights(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise BackboneError(
            f"the weights of {name} have checksum {found}, but the adapters were trained on "
            f"{expected}: they do not fit"
        )
