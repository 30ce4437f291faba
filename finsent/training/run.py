"""One run from its configuration to its folder: load, train, evaluate once on test, publish."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from finsent.config import DendriteConfig, MatchedCapacity, TrainConfig
from finsent.data.folds import part_examples
from finsent.data.mixture import epoch_rows
from finsent.data.registry import Dataset, load_dataset
from finsent.data.variation import varied
from finsent.machine.devices import use_deterministic_kernels
from finsent.machine.files import published, sha256_file
from finsent.machine.timing import time_interleaved
from finsent.models.backbones import (
    Backbone,
    HiddenStates,
    check_decomposition,
    entering_hidden_states,
    load_backbone,
    pool,
)
from finsent.models.encoders import final_states
from finsent.results import runs
from finsent.results.manifest import ADAPTER_FILE, ADAPTER_SHA256
from finsent.results.metrics import confidence_intervals, score, source_scores
from finsent.results.provenance import versions
from finsent.results.schema import PER_SOURCE
from finsent.training.checkpoints import CHECKPOINT
from finsent.training.child import Job
from finsent.training.loop import (
    TrainingData,
    TrainResult,
    class_logits,
    train,
)
from finsent.training.progress import EpochRecord
from finsent.training.progress_lines import ProgressBar, ShowProgress

LATENCY_SENTENCES = 30


class JobError(RuntimeError):
    """A run that cannot be made now."""


class Bases:
    """The frozen base that was used last, kept for the next run that is made on the same one."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._backbone: Backbone | None = None

    def get(self, job: Job, progress: Callable[[str, float], None]) -> Backbone:
        """The job's base, loaded unless it is the one at hand."""
        c = job.config
        key = (c.backbone, c.precision, c.depth, job.device, job.backbone_dir)
        if self._backbone is None or key != self._key:
            self._backbone = None  # the old one goes first: two may not fit
            self._backbone = load_backbone(
                c.backbone,
                c.precision,
                torch.device(job.device),
                depth=c.depth,
                folder=job.backbone_dir,
                progress=progress,
            )
            self._key = key
        return self._backbone


def run_job(
    job: Job,
    bases: Bases | None = None,
    show: ShowProgress | None = None,
) -> Path:
    """Train and evaluate one run; returns its folder.

    A run that was killed resumes after its last whole epoch, and two processes never make the same
    one at the same time.

    Args:
        bases: Keeps the base for the next run on the same one; None: this run's alone.
        show: Makes what shows the progress; None: a bar.

    Raises:
        JobError: Another process is making this run. What else a user can mend is told by an
            error of finsent or of the file system; see `finsent.machine.errors`.
    """
    job.work_folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.work_folder.with_name(f"{job.work_folder.name}.lock"), timeout=0)
    try:
        with lock:
            return _run_locked(job, bases or Bases(), show or ProgressBar)
    except Timeout as error:
        raise JobError(
            f"another process is making this run in {job.work_folder}; wait for it or stop it, or "
            "use another --artifacts folder"
        ) from error


def _run_locked(job: Job, bases: Bases, show: ShowProgress) -> Path:
    config = job.config
    dataset = load_dataset(config.dataset, job.data_dir)
    split = part_examples(dataset, config.split, config.seed, config.train_fraction, job.data_dir)
    rows = epoch_rows(dataset, split.train, config.balance, config.noise)
    label = f"{config.dataset} {config.arm} seed {config.seed}"
    with show(label) as bar:
        device = torch.device(job.device)
        use_deterministic_kernels(device)
        backbone = bases.get(job, bar.status)
        texts = [example.text for example in dataset.examples]
        texts += [varied(text, config.seed, view) for view in range(config.views) for text in texts]
        token_ids = backbone.tokenize(texts, config.longest, config.prompt_suffix, config.copies)
        block = backbone.first_adapted_block(config.lora.last_layers)
        check_decomposition(backbone, token_ids, block)
        key = f"{runs.slug(config.backbone)}-{config.precision}-{dataset.name}-{block}"
        tokens_sha256 = hashlib.sha256(json.dumps(token_ids).encode()).hexdigest()
        cache = job.shared / f"{key}-{tokens_sha256[:16]}.safetensors"
        if backbone.is_encoder:
            states = entering_hidden_states(backbone, token_ids, block)
        else:
            states = _shared_states(cache, backbone, token_ids, block, bar.status)
        if job.overwrite or not (job.work_folder / CHECKPOINT).exists():
            shutil.rmtree(job.work_folder)  # what a run that failed early may have left
            job.work_folder.mkdir()
        labels = [e.label for e in dataset.examples] * (config.views + 1)
        classes = len(dataset.label_names)
        data = TrainingData(states, labels, classes, rows, split.validation, config.views)
        steps = -(-len(rows) // config.batch_size)
        bar.start_training(steps * config.epochs)

        def epoch_done(record: EpochRecord) -> None:
            bar.epoch(record)
            # For whoever watches a run; written whole and checked when it is finished.
            with (job.work_folder / "history.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(record), sort_keys=True) + "\n")

        result = train(
            config,
            backbone,
            data,
            job.work_folder,
            identity=_identity(config, dataset.fingerprint, split.fingerprint, backbone.sha256),
            step_done=bar.advance,
            epoch_done=epoch_done,
        )
        # The test part is read here, once, after the state has been selected.
        predictions = _predictions(result, states, dataset, split.test)
        validation = _predictions(result, states, dataset, split.validation)
        latency = _latency(result, backbone, [token_ids[i] for i in split.test])
        result.model.detach()
    metrics = _metrics(config, result, predictions, latency)
    provenance = {
        "config": config.to_dict(),
        "command": job.command,
        "versions": versions(),
        "device": _device_name(device),
        "git_commit": job.git_commit,
        "dataset_sha256": dataset.fingerprint,
        "split_sha256": split.fingerprint,
        "backbone_sha256": backbone.sha256,
        "label_names": list(dataset.label_names),
        "adapter": {
            "scaling": result.model.scaling,
            "activation": result.model.activation,
            "pooling": result.model.pooling,
            "first_adapted_block": block,
            "max_length": config.max_length,
        },
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _publish(job, result, provenance, metrics, predictions, validation)
    if isinstance(config.treatment, DendriteConfig) and result.dendrites == 0:
        why = f"validation never plateaued in {config.epochs} epochs (--grow-by forces growth)"
        if result.best_before_growth is not None:
            why = "no epoch with them validated better than the best before, and --prune was given"
        print(f"WARNING: {label} asked for dendrites and kept none: {why}", file=sys.stderr)
    return job.folder


def _identity(config: TrainConfig, *fingerprints: str) -> str:
    """What a checkpoint must agree on to be gone on with: everything that decides the result."""
    settled = json.dumps([config.to_dict(), *fingerprints], sort_keys=True)
    return hashlib.sha256(settled.encode()).hexdigest()


@torch.no_grad()
def _predictions(
    result: TrainResult, states: HiddenStates, dataset: Dataset, indices: Sequence[int]
) -> runs.Predictions:
    """What the selected state says of some examples of the data set."""
    logits = class_logits(result.model, states, indices, states.lengths.tolist())
    return runs.Predictions(
        ids=tuple(dataset.examples[i].id for i in indices),
        labels=tuple(dataset.label_names[dataset.examples[i].label] for i in indices),
        probabilities=tuple(map(tuple, logits.double().softmax(dim=1).tolist())),
        label_names=tuple(dataset.label_names),
    )


def _shared_states(
    path: Path,
    backbone: Backbone,
    token_ids: Sequence[Sequence[int]],
    block: int,
    status: Callable[[str, float], None],
) -> HiddenStates:
    """Hidden states from `path`, or computed and left there for the next arm or seed."""
    if path.exists():
        with safe_open(path, framework="pt", device=str(backbone.device)) as archive:
            if (archive.metadata() or {}).get("backbone") == backbone.sha256:
                return HiddenStates(archive.get_tensor("values"), archive.get_tensor("offsets"))
    states = entering_hidden_states(backbone, token_ids, block, progress=status)
    tensors = {"values": states.values.cpu(), "offsets": states.offsets.cpu()}
    # Several runs may compute the same states at once; each publishes whole files only.
    with published(path) as partial:
        save_file(tensors, partial, metadata={"backbone": backbone.sha256})
    return states


@torch.no_grad()
def _latency(
    result: TrainResult, backbone: Backbone, token_ids: Sequence[Sequence[int]]
) -> dict[str, float | str]:
    """Model time of one test sentence at a time, whole model, eager, on the training device.

    Arms timed in processes of their own are not comparable; `finsent.serving.retiming` times them
    together.
    """
    device = backbone.device
    sentences = [torch.tensor([ids], device=device) for ids in token_ids[:LATENCY_SENTENCES]]
    position = 0

    def call() -> Tensor:
        nonlocal position
        ids = sentences[position % len(sentences)]
        position += 1
        last = torch.tensor([ids.shape[1] - 1], device=device)
        hidden = final_states(backbone.decoder, ids, last)
        return result.model.head(pool(hidden, last, result.model.pooling))

    synchronize = torch.cuda.synchronize if device.type == "cuda" else None
    stats = time_interleaved(
        {"model": call}, repeats=len(sentences), warmup=3, seed=0, synchronize=synchronize
    )["model"]
    return {
        "latency_ms_p50": stats.p50_ms,
        "latency_ms_p95": stats.p95_ms,
        "latency_protocol": f"alone, n = {stats.n}, on {_device_name(device)}, in the trainer",
    }


def _metrics(
    config: TrainConfig,
    result: TrainResult,
    predictions: runs.Predictions,
    latency: Mapping[str, float | str],
) -> dict[str, Any]:
    labels, probabilities = predictions.label_indices, predictions.probabilities
    before = result.best_before_growth
    selected = asdict(result.selected)
    matched = config.treatment if isinstance(config.treatment, MatchedCapacity) else None
    by_source = source_scores(config.dataset, predictions)
    return {
        **({} if by_source is None else {PER_SOURCE: by_source}),
        **score(labels, probabilities, predictions.label_names),
        "ci": confidence_intervals(labels, probabilities),
        "trainable_params": result.trainable_params,
        "dendrites": result.dendrites,
        "dendrites_requested": isinstance(config.treatment, DendriteConfig),
        "dendrite_logit_share": result.dendrite_logit_share,
        "matched_params_target": None if matched is None else matched.trainable_params,
        "optimizer_steps": result.optimizer_steps,
        "epochs": len(result.history),
        "best_epoch": selected.pop("epoch"),
        "best_before_growth": None if before is None else asdict(before),
        "validation": selected,
        "train_seconds": round(result.train_seconds, 3),
        "peak_memory_mb": round(result.peak_memory_mb, 1),
        **latency,
    }


def _publish(
    job: Job,
    result: TrainResult,
    provenance: dict[str, Any],
    metrics: dict[str, Any],
    predictions: runs.Predictions,
    validation: runs.Predictions,
) -> None:
    """Write the run whole beside its place, then put it there; an older run is lost only then."""
    result.model.save(job.work_folder / ADAPTER_FILE)
    # So that no other weights can be taken for this run's, published or not.
    provenance["adapter"][ADAPTER_SHA256] = sha256_file(job.work_folder / ADAPTER_FILE)
    history = [asdict(record) for record in result.history]
    runs.write_run(
        job.work_folder,
        config=provenance,
        metrics=metrics,
        history=history,
        predictions=predictions,
        validation=validation,
    )
    (job.work_folder / CHECKPOINT).unlink()
    if job.folder.exists():
        shutil.rmtree(job.folder)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    job.work_folder.replace(job.folder)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
