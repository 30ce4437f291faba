"""Whether weights give the predictions that are stored: some rows of every run, computed again.

Everything else that `verify` does compares files with each other. Files that were all forged alike
agree; what the weights answer does not.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finsent.data.records import DataError
from finsent.data.registry import DATASETS, Dataset, load_dataset, local_texts
from finsent.engines.rule import EngineError
from finsent.models.adapter_files import AdapterError
from finsent.models.presets import BackboneError
from finsent.models.weights import WeightsError
from finsent.results.catalog import Catalog
from finsent.results.runs import Predictions, Run, slug
from finsent.results.schema import ArtifactError
from finsent.serving.comparer import Comparer

TOLERANCE = 1e-3
"""How far a probability may be from the stored one: the device that a run was made on rounds
otherwise than this one. The runs in artifacts/ differ by up to 0.00002 on a CPU."""


@dataclass
class Recomputed:
    """What came of it."""

    runs: int = 0
    rows: int = 0
    largest: float = 0.0
    """Largest difference of a probability among rows that agree."""
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """What could not be computed again, and why."""


def recompute(
    root: Path | str,
    rows: int,
    *,
    data_dir: Path | None = None,
    backbone_dir: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Recomputed:
    """Compares `rows` rows of every run below root, drawn anew at each call, with its weights.

    Runs that share a base are loaded onto it one after the other. A run whose sentences or base are
    not on this machine is skipped with the reason. A damaged run is a problem.
    """
    catalog = Catalog.read(root)
    found = Recomputed(problems=[damage.reason for damage in catalog.damaged])
    by_base: dict[tuple[str, str, int], list[Run]] = defaultdict(list)
    for run in catalog.runs:
        by_base[slug(run.backbone), run.dataset, run.seed].append(run)
    texts: dict[str, _Sentences | str] = {}
    comparer: Comparer | None = None
    for (backbone, dataset, seed), runs in by_base.items():
        where = f"{backbone}/{dataset}/*/seed-{seed}"
        if dataset not in texts:
            texts[dataset] = _sentences(dataset, data_dir)
        sentences = texts[dataset]
        if isinstance(sentences, str):
            found.skipped.append(f"{where}: {sentences}")
            continue
        folder, arms = runs[0].folder.parents[1], [run.arm for run in runs]
        try:
            if comparer is None:
                comparer = Comparer.from_artifacts(
                    folder, seed, arms, device="cpu", backbone_dir=backbone_dir, engine="torch"
                )
            else:
                comparer.use(folder, seed, arms)
        except (AdapterError, ArtifactError) as error:
            found.problems.append(f"{where}: cannot be loaded: {error}")
            continue
        except (BackboneError, EngineError, WeightsError, OSError) as error:
            found.skipped.append(f"{where}: {error}")
            continue
        for run in runs:
            report(f"{backbone}/{dataset}/{run.arm}/seed-{seed}")
            _compare(run, sentences, comparer, rows, found)
    return found


@dataclass(frozen=True)
class _Sentences:
    texts: Mapping[str, str]
    labels: Mapping[str, str]


def _sentences(name: str, data_dir: Path | None) -> _Sentences | str:
    """Texts and labels by id, or why they are not here. Never downloads."""
    if name not in DATASETS:
        return f"no data set {name!r} is known here"
    try:
        if data_dir is None and local_texts(name) is None:
            return "its sentences are not on this machine; give --data-dir or set FINSENT_DATA_DIR"
        dataset: Dataset = load_dataset(name, data_dir)
    except (DataError, OSError) as error:
        return str(error)
    return _Sentences(
        {example.id: example.text for example in dataset.examples},
        {example.id: dataset.label_names[example.label] for example in dataset.examples},
    )


def _compare(
    run: Run, sentences: _Sentences, comparer: Comparer, rows: int, found: Recomputed
) -> None:
    path = run.folder / "predictions.csv"
    stored = run.read_predictions()
    unknown = [example for example in stored.ids if example not in sentences.texts]
    if unknown:
        found.skipped.append(
            f"{path}: {len(unknown)} of {len(stored)} ids, such as {unknown[0]}, are not in the "
            f"{run.dataset} that is here"
        )
    found.problems += _wrong_labels(path, stored, sentences)
    known = [i for i, example in enumerate(stored.ids) if example in sentences.texts]
    # Drawn anew every time: who knew the rows could forge the others.
    some = sorted(random.SystemRandom().sample(known, min(rows, len(known))))
    if not some:
        return
    given = comparer.predict_proba([sentences.texts[stored.ids[i]] for i in some], run.arm)
    found.runs += 1
    found.rows += len(some)
    for i, fresh in zip(some, given, strict=True):
        difference = float(np.abs(fresh - np.array(stored.probabilities[i])).max())
        # `not (...)` also catches what is no number.
        if not difference <= TOLERANCE:
            found.problems.append(
                f"{path}: {stored.ids[i]} has probabilities {_shown(stored.probabilities[i])}, "
                f"the weights give {_shown(fresh.tolist())}"
            )
        else:
            found.largest = max(found.largest, difference)


def _wrong_labels(path: Path, stored: Predictions, sentences: _Sentences) -> list[str]:
    wrong = [
        (example, label, sentences.labels[example])
        for example, label in zip(stored.ids, stored.labels, strict=True)
        if sentences.labels.get(example, label) != label
    ]
    if not wrong:
        return []
    example, label, true = wrong[0]
    return [
        f"{path}: {len(wrong)} labels are not those of the data, such as {example}: {label} "
        f"instead of {true}"
    ]


def _shown(row: Sequence[float]) -> str:
    return "(" + ", ".join(f"{p:.4f}" for p in row) + ")"
