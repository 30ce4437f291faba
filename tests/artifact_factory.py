"""A small believable artifacts tree, made in about a second without torch or a data set.

    from tests.artifact_factory import make_artifacts
    root = make_artifacts(tmp_path / "artifacts")

Example ids are those of the data set named (Financial PhraseBank, sample), else `made-0001`...; the
labels and answers are invented. Every number in the tree is consistent: metrics are
computed from the predictions, parameter counts are those of the adapter files, and
`finsent.verification.verify(root)` finds nothing to complain about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from finsent.config import (
    ARMS,
    DendriteConfig,
    LoraConfig,
    MatchedCapacity,
    TrainConfig,
    Treatment,
    arm_config,
)
from finsent.data.agreement import agreement_levels
from finsent.data.registry import DATASETS
from finsent.data.sets.news import SOURCES
from finsent.data.sets.phrasebank import LEVELS
from finsent.machine import files
from finsent.models.adapter_files import FORMAT
from finsent.results import leaderboard, manifest, metrics, runs

LABEL_NAMES = ("negative", "neutral", "positive")
"""Of the data sets that are not in the registry."""
CLASS_SHARES = {2: (0.8, 0.2), 3: (0.15, 0.60, 0.25)}
POOL = 4
"""The imaginary data set is this many times as large as a test set, so seeds overlap."""
HIDDEN, LAYERS = 16, 8
EPOCHS, GROWTH_EPOCH = 8, 3


def label_names_of(dataset: str) -> tuple[str, ...]:
    return DATASETS[dataset].label_names if dataset in DATASETS else LABEL_NAMES


def make_artifacts(
    root: Path,
    *,
    backbones: Sequence[str] = ("tiny-phi", "smollm2-135m"),
    datasets: Sequence[str] = ("sample", "allagree"),
    arms: Sequence[str] = ARMS,
    seeds: Sequence[int] = (0, 1, 2),
    n_test: int = 60,
    effect: float = 0.05,
    without_dendrites: Collection[int] = (),
    without_validation: Collection[int] = (),
    publish: bool = True,
) -> Path:
    """Writes the tree and returns `root`.

    effect: added to the dendritic arm's logit margin (0: same as baseline but for noise).
    without_dendrites: seeds whose dendritic run keeps no dendrite.
    publish: also write leaderboard.json and SHA256SUMS.
    without_validation: seeds whose runs keep no validation predictions.
    """
    for backbone in backbones:
        for dataset in datasets:
            for seed in seeds:
                for arm in arms:
                    kept = 0 if seed in without_dendrites else 1
                    folder = make_run(root, backbone, dataset, arm, seed, n_test, effect, kept)
                    if seed in without_validation:
                        (folder / runs.VALIDATION_FILE).unlink()
    if publish:
        leaderboard.write(root)
        manifest.write_manifest(root)
    return root


def make_run(
    root: Path,
    backbone: str = "tiny-phi",
    dataset: str = "sample",
    arm: str = "baseline",
    seed: int = 0,
    n_test: int = 60,
    effect: float = 0.05,
    dendrites: int = 1,
) -> Path:
    """One finished run; returns its folder."""
    base = TrainConfig(
        backbone=backbone, dataset=dataset, seed=seed, epochs=EPOCHS, lora=LoraConfig(r=8)
    )
    k = len(label_names_of(dataset))
    grown = _adapter("dendritic", k, dendrites)
    target = sum(tensor.size for tensor in grown.values())
    treatment: Treatment = None
    if arm == "dendritic":
        treatment = DendriteConfig(grow_by=GROWTH_EPOCH)
    elif arm == "matched":
        treatment = MatchedCapacity(trainable_params=target)
    config = arm_config(base, arm, treatment)
    kept = dendrites if arm == "dendritic" else 0
    tensors = _adapter(arm, k, kept, target)
    parameters = sum(tensor.size for tensor in tensors.values())
    tensors["score.weight"] += 0.001 * seed  # no two seeds have the same weights
    predictions = _predictions(backbone, dataset, arm, seed, n_test, effect)
    validation = _predictions(backbone, dataset, arm, seed, n_test, effect, part="validation")
    nll = metrics.score(validation.label_indices, validation.probabilities, validation.label_names)[
        "nll"
    ]
    small = sum(tensor.size for tensor in _adapter("baseline", k, 0).values())
    history = _history(arm, kept, seed, parameters, small, nll)
    by_source = metrics.source_scores(dataset, predictions)
    folder = runs.run_folder(root, backbone, dataset, arm, seed)
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "activation": "relu" if kept else "none",
        "format": FORMAT,
        "scaling": base.lora.alpha / base.lora.r,
    }
    save_file(tensors, folder / manifest.ADAPTER_FILE, {"finsent": json.dumps(about)})
    adapter = {"sha256": files.sha256_file(folder / manifest.ADAPTER_FILE)}
    runs.write_run(
        folder,
        config={**_config(config, dataset, seed), "adapter": adapter},
        metrics={
            **_metrics(predictions, history, arm, kept, parameters, target),
            **({} if by_source is None else {"per_source": by_source}),
        },
        history=history,
        predictions=predictions,
        validation=validation,
    )
    return folder


def _adapter(arm: str, k: int, dendrites: int, target: int = 0) -> dict[str, np.ndarray]:
    """Tensors named as the real adapters are, for k classes; values do not matter here."""
    ranks = [8] * LAYERS
    if arm == "matched":
        total = round((target - k * HIDDEN) / (2 * HIDDEN))
        ranks = [total // LAYERS + (layer < total % LAYERS) for layer in range(LAYERS)]
    maps: dict[str, tuple[int, int]] = {}
    tensors: dict[str, np.ndarray] = {}
    for layer, rank in enumerate(ranks):
        path = f"model.layers.{layer}.self_attn.q_proj"
        tensors[f"{path}.lora_A.weight"] = np.full((rank, HIDDEN), 0.01, np.float32)
        maps[f"{path}.lora_B"] = (HIDDEN, rank)
    maps["score"] = (k, HIDDEN)
    for path, (out, inner) in maps.items():
        tensors[f"{path}.weight"] = np.full((out, inner), 0.02, np.float32)
        for i in range(dendrites):
            tensors[f"{path}.dendrites.{i}.weight"] = np.full((out, inner), 0.03, np.float32)
            if i >= 1:
                tensors[f"{path}.recurrent.{i}"] = np.full((i, out), 0.1, np.float32)
        if dendrites:
            tensors[f"{path}.output_weights"] = np.full((dendrites, out), 0.05, np.float32)
    return tensors


def _digest(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def _random(*parts: object) -> np.random.Generator:
    return np.random.default_rng(int(_digest(*parts)[:15], 16))


def _predictions(
    backbone: str,
    dataset: str,
    arm: str,
    seed: int,
    n_test: int,
    effect: float,
    part: str = "test",
) -> runs.Predictions:
    label_names = label_names_of(dataset)
    k = len(label_names)
    pool = POOL * n_test
    shared = _random(dataset)
    labels = shared.choice(k, size=pool, p=CLASS_SHARES[k])
    easiness = shared.normal(2.6, 1.5, size=pool) + (0.8 if backbone != "tiny-phi" else 0.0)
    names = _ids(dataset, pool)
    chosen = np.sort(_random(dataset, seed).choice(pool, size=n_test, replace=False))
    if part == "validation":
        others = np.setdiff1d(np.arange(pool), chosen)
        chosen = np.sort(_random(dataset, seed, part).choice(others, size=n_test, replace=False))
    # Both arms of a seed see nearly the same noise: they are the same run until growth.
    noise = _random(backbone, dataset, seed).normal(0, 0.8, size=(pool, k))
    noise += _random(backbone, dataset, arm, seed).normal(0, 0.35, size=(pool, k))
    margin = easiness + (effect * 10 if arm == "dendritic" else 0.0)
    logits = noise[chosen]
    logits[np.arange(n_test), labels[chosen]] += margin[chosen]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return runs.Predictions(
        ids=tuple(names[index] for index in chosen),
        labels=tuple(label_names[label] for label in labels[chosen]),
        probabilities=tuple(tuple(row) for row in probabilities.tolist()),
        label_names=label_names,
    )


def _ids(dataset: str, pool: int) -> list[str]:
    if dataset == "sample":
        found = [record.id for record in DATASETS["sample"].loader(None)]
    elif dataset in LEVELS:
        allowed = list(LEVELS)[: list(LEVELS).index(dataset) + 1]
        found = [name for name, level in agreement_levels().items() if level in allowed]
    elif dataset in DATASETS and DATASETS[dataset].source_of is not None:
        prefixes = [source.prefix for source in SOURCES]
        return [f"{prefixes[index % len(prefixes)]}-{index:04d}" for index in range(pool)]
    else:
        return [f"made-{index:04d}" for index in range(pool)]
    assert len(found) >= pool, f"{dataset} has {len(found)} examples, {pool} asked for"
    return found[:pool]


def _history(
    arm: str, kept: int, seed: int, parameters: int, small: int, nll: float
) -> list[dict[str, Any]]:
    """small: parameters before growth. nll: what the selected epoch reached on validation, to
    which the losses are shifted."""
    before = _random("history", seed).normal(0, 0.008, size=EPOCHS)
    after = _random("history", seed, arm).normal(0, 0.008, size=EPOCHS)
    lines = []
    for epoch in range(EPOCHS):
        grown = bool(kept) and epoch > GROWTH_EPOCH
        noise = before[epoch] if arm != "matched" and not grown else after[epoch]
        loss = 0.18 + 0.75 * 0.55**epoch + noise - (0.012 if grown else 0.0)
        lines.append(
            {
                "epoch": epoch,
                "train_loss": round(0.08 + 0.95 * 0.5**epoch, 6),
                "val_loss": round(float(loss), 6),
                "val_accuracy": round(float(0.945 - 0.3 * 0.55**epoch - noise), 6),
                "val_macro_f1": round(float(0.925 - 0.4 * 0.55**epoch - noise), 6),
                "learning_rate": round(5e-4 * (1 - epoch / EPOCHS), 9),
                "dendrites": kept if grown else 0,
                "trainable_params": small if arm == "dendritic" and not grown else parameters,
                "seconds": 3.1 if grown else 2.6,
                "event": "grew dendrite 1" if kept and epoch == GROWTH_EPOCH else None,
            }
        )
    shift = nll - _selected([line for line in lines if line["dendrites"] == kept])["nll"]
    for line in lines:
        line["val_loss"] = round(line["val_loss"] + shift, 6)
    return lines


def _selected(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    best = min(lines, key=lambda line: line["val_loss"])
    return {
        "epoch": best["epoch"],
        "accuracy": best["val_accuracy"],
        "macro_f1": best["val_macro_f1"],
        "nll": best["val_loss"],
    }


def _metrics(
    predictions: runs.Predictions,
    history: list[dict[str, Any]],
    arm: str,
    kept: int,
    parameters: int,
    target: int,
) -> dict[str, Any]:
    labels, probabilities = predictions.label_indices, predictions.probabilities
    with_dendrites = [line for line in history if line["dendrites"] == kept]
    best = _selected(with_dendrites)
    before = [line for line in history if line["dendrites"] == 0]
    return {
        **metrics.score(labels, probabilities, predictions.label_names),
        "ci": metrics.confidence_intervals(labels, probabilities),
        "trainable_params": parameters,
        "dendrites": kept,
        "optimizer_steps": EPOCHS * 20,
        "epochs": EPOCHS,
        "train_seconds": round(sum(line["seconds"] for line in history), 3),
        "peak_memory_mb": 812.5,
        "latency_ms_p50": 21.4 if kept else 20.1,
        "latency_ms_p95": 26.9 if kept else 25.2,
        "latency_protocol": "arms interleaved, n = 90, on CPU, 2 threads, fp32",
        "best_epoch": best["epoch"],
        "best_before_growth": _selected(before) if kept else None,
        "dendrite_logit_share": 0.041 if kept else None,
        "dendrites_requested": arm == "dendritic",
        "matched_params_target": target if arm == "matched" else None,
        "validation": {name: best[name] for name in ("accuracy", "macro_f1", "nll")},
    }


def _config(config: TrainConfig, dataset: str, seed: int) -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "command": f"python train_models.py --dataset {dataset} --seeds {seed}",
        "versions": {"python": "3.11.0", "torch": "0.0", "perforatedai": "0.0"},
        "device": "CPU, 2 threads, fp32",
        "git_commit": _digest("commit")[:40],
        "dataset_sha256": _digest("dataset", dataset),
        "split_sha256": _digest("split", dataset, seed),
        "backbone_sha256": _digest("backbone", config.backbone),
        "label_names": list(label_names_of(dataset)),
        "finished_at": "2025-01-01T00:00:00+00:00",
    }
