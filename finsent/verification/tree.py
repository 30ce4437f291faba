"""Re-reads an artifacts tree and says everything that does not add up.

Nothing here trusts a stored number that can be computed again: metrics come from predictions,
parameter counts from the adapters, the leaderboard from the runs, hashes from the bytes.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from finsent.config import ConfigError, TrainConfig
from finsent.data.records import DataError
from finsent.machine.files import sha256_file
from finsent.models.adapter_files import AdapterError, load_adapter
from finsent.results import leaderboard
from finsent.results.external.runs import FILES, FOLDS, entrant_folder, external_folders
from finsent.results.manifest import (
    ADAPTER_FILE,
    MANIFEST,
    check_adapter,
    files_below,
    manifest_text,
    read_manifest,
)
from finsent.results.metrics import EvaluationError, confidence_intervals, score, source_scores
from finsent.results.runs import (
    EXTERNAL,
    LEADERBOARD,
    RESERVED_FOLDERS,
    RUN_FILES,
    VALIDATION_FILE,
    WORK_FOLDER,
    Run,
    canonical_json,
    find_runs,
    read_run,
)
from finsent.results.schema import PER_SOURCE, ArtifactError
from finsent.results.unseen.files import PREDICTIONS, TRANSFERS
from finsent.study.rows import RESULTS, SUMMARY, StudyError, read_runs
from finsent.study.summary import summarize
from finsent.verification.entrants import entrant_problems
from finsent.verification.left_out import left_out_problems

RELATIVE_TOLERANCE = 1e-9
"""Recomputed metrics may differ in the last bits between processors, not more."""

VALIDATION_TOLERANCE = 0.01
"""Adapters are rounded when the state has been selected; validation.csv is of the rounded one."""

MATCHED_TOLERANCE = 0.01
"""How far the matched arm's parameter count may be from its dendritic run's."""

LAYOUT = tuple(
    map(
        re.compile,
        (
            re.escape(MANIFEST),
            re.escape(LEADERBOARD),
            r"figures/[^/]+\.png",
            r"(?:behaviour|disagreements)/[^/]+\.json",
            rf"[^/]+/[^/]+/(?:{re.escape(PREDICTIONS)}|{re.escape(TRANSFERS)})",
            r"studies/[^/]+/[^/]+\.(?:csv|json)",
            rf"{EXTERNAL}/[^/]+/[^/]+/seed-\d+/(?:{'|'.join(map(re.escape, (*FILES, FOLDS)))})",
            rf"(?!{EXTERNAL}/)[^/]+/[^/]+/[^/]+/seed-\d+/(?:PAI\.png|"
            + "|".join(map(re.escape, (*RUN_FILES, VALIDATION_FILE)))
            + ")",
        ),
    )
)
"""Which files artifacts consist of, relative to their root."""

SHARED_CONFIG = ("dataset_sha256", "split_sha256", "backbone_sha256", "label_names")
"""Keys of config.json in which arms of one seed must agree."""

SHARED_METRICS = ("optimizer_steps", "epochs", "n_test")
"""Keys of metrics.json in which arms of one seed must agree."""


def verify(root: Path | str) -> list[str]:
    """Problems found below root, each a sentence that names the file; empty when all is well."""
    root = Path(root)
    if not root.is_dir():
        return [f"{root}: no such folder; train something first"]
    problems = _guarded(root, lambda: _layout_problems(root))
    problems += _guarded(root / MANIFEST, lambda: _manifest_problems(root))
    runs: list[Run] = []
    for folder in _run_folders(root):
        problems += _guarded(folder, partial(_read_into, runs, folder))
    for run in runs:
        for check in RUN_CHECKS:
            problems += _guarded(run.folder, partial(check, run))
    for folder in external_folders(root):
        problems += _guarded(folder, partial(entrant_problems, folder, runs, _metric_problems))
    problems += _guarded(root, lambda: _fairness_problems(runs))
    problems += _guarded(root / LEADERBOARD, lambda: _leaderboard_problems(root))
    problems += _guarded(root / "studies", lambda: _study_problems(root))
    problems += _guarded(root, lambda: left_out_problems(root, runs))
    return problems


def verify_entrant(root: Path | str, name: str) -> list[str]:
    """Problems of one model that was not trained here, as for a pull request that adds it.

    Nothing else below root is checked but what its runs are compared with.
    """
    folder = entrant_folder(root, name)
    folders = [path for path in external_folders(root) if folder in path.parents]
    if not folders:
        return [f"{folder}: no runs of an entrant of that name"]
    ours = find_runs(root)
    return [
        problem
        for path in folders
        for problem in _guarded(path, partial(entrant_problems, path, ours, _metric_problems))
    ]


def _read_into(runs: list[Run], folder: Path) -> Iterator[str]:
    try:
        run = read_run(folder)
        TrainConfig.from_dict(run.config["config"])
    except (ArtifactError, ConfigError, KeyError, TypeError) as error:
        # The last two: settings that are missing, or of a kind that no setting has.
        said = str(error)
        yield said if isinstance(error, ArtifactError) else f"{folder / 'config.json'}: {said}"
    else:
        runs.append(run)


def _layout_problems(root: Path) -> Iterator[str]:
    """Links, which lead out of the tree or make one file stand for two, and what has no place."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name.split("/")[0] == WORK_FOLDER:
            continue
        if path.is_symlink():
            yield f"{path}: is a link; artifacts are plain files: put the file itself there"
        elif path.is_dir():
            if not any(path.iterdir()):
                yield f"{path}: an empty folder; remove it"
        elif not path.is_file():
            yield f"{path}: is no plain file; remove it"
        elif not any(pattern.fullmatch(name) for pattern in LAYOUT):
            yield f"{path}: has no place among the artifacts; remove it"


def _guarded(where: Path, check: Callable[[], Iterable[str]]) -> list[str]:
    """What a check finds. One that stumbles over what it was given has found something, too: files
    are read strictly, but nobody thinks of everything that can be forged."""
    try:
        return list(check())
    except Exception as error:
        return [f"{where}: cannot be checked ({type(error).__name__}: {str(error)[:200]})"]


def _run_folders(root: Path) -> list[Path]:
    """Every folder that is, or was meant to be, a run: a damaged one must not be passed over."""
    found = {
        path.parent
        for name in RUN_FILES
        for path in root.glob(f"*/*/*/*/{name}")
        if path.relative_to(root).parts[0] not in RESERVED_FOLDERS
    }
    return sorted(found)


def _manifest_problems(root: Path) -> Iterator[str]:
    try:
        listed = read_manifest(root)
        expected = manifest_text(root)
    except ArtifactError as error:
        yield str(error)
        return
    present = files_below(root)
    for name in sorted(set(listed) - set(present)):
        yield f"{root / name}: listed in {MANIFEST} but missing; restore it"
    for name in present:
        if name not in listed:
            yield f"{root / name}: not listed in {MANIFEST}; remove it or rewrite the manifest"
        elif listed[name] != sha256_file(root / name):
            yield f"{root / name}: bytes differ from {MANIFEST}; restore it"
    # Order and spelling count as well: the manifest vouches for itself by having one form only.
    if (root / MANIFEST).read_bytes() != expected.encode():
        yield f"{root / MANIFEST}: not the manifest of this tree; restore it or write it again"


def _metric_problems(run: Run) -> Iterator[str]:
    path = run.folder / "metrics.json"
    try:
        predictions = run.read_predictions()
        labels, probabilities = predictions.label_indices, predictions.probabilities
        computed = score(labels, probabilities, predictions.label_names)
        computed["ci"] = confidence_intervals(labels, probabilities)
        by_source = source_scores(run.dataset, predictions)
    except (ArtifactError, DataError, EvaluationError) as error:
        yield f"{run.folder / run.predictions_file}: {error}"
        return
    if by_source is not None or PER_SOURCE in run.metrics:
        computed[PER_SOURCE] = by_source
    for name, value in computed.items():
        for where, stored, fresh in _differences(name, run.metrics.get(name), value):
            yield f"{path}: {where} is {stored!r}, {run.predictions_file} gives {fresh!r}"


def _validation_problems(run: Run) -> Iterator[str]:
    """validation.csv holds the selected state, but rounded as stored: scores agree roughly."""
    path = run.folder / VALIDATION_FILE
    try:
        validation = run.read_validation()
        if validation is None:
            return
        shared = set(validation.ids) & set(run.read_predictions().ids)
        nll = score(validation.label_indices, validation.probabilities, validation.label_names)[
            "nll"
        ]
    except (ArtifactError, EvaluationError) as error:
        yield f"{path}: {error}"
        return
    if shared:
        yield f"{path}: {len(shared)} ids are also in predictions.csv, such as {min(shared)}"
    stored = run.metrics["validation"]["nll"]
    if not math.isclose(nll, stored, rel_tol=VALIDATION_TOLERANCE):
        yield f"{path}: its NLL is {nll!r}, metrics.json says {stored!r}"


def _differences(where: str, stored: Any, fresh: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(fresh, dict) and isinstance(stored, dict) and set(fresh) == set(stored):
        for key in fresh:
            yield from _differences(f"{where}.{key}", stored[key], fresh[key])
    elif isinstance(fresh, list) and isinstance(stored, list) and len(fresh) == len(stored):
        for index, (one, other) in enumerate(zip(stored, fresh, strict=True)):
            yield from _differences(f"{where}[{index}]", one, other)
    elif isinstance(fresh, float) and isinstance(stored, int | float):
        if not math.isclose(stored, fresh, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-12):
            yield where, stored, fresh
    elif stored != fresh or type(stored) is not type(fresh):
        yield where, stored, fresh


def _adapter_problems(run: Run) -> Iterator[str]:
    try:
        check_adapter(run)
        load_adapter(run.folder / ADAPTER_FILE)
    except (ArtifactError, AdapterError) as error:
        yield str(error)


def _growth_problems(run: Run) -> Iterator[str]:
    requested = run.arm == "dendritic"
    if run.metrics["dendrites_requested"] != requested:
        yield f"{run.folder / 'metrics.json'}: dendrites_requested is not {requested}"
    kept = run.metrics["dendrites"]
    if kept and not requested:
        yield f"{run.folder / 'metrics.json'}: {kept} dendrites in the {run.arm} arm"
    if kept and not leaderboard.growth_epochs(run.history):
        yield f"{run.folder / 'history.jsonl'}: {kept} dendrites but no epoch grew one"


def _selection_problems(run: Run) -> Iterator[str]:
    """The selected state must be an epoch of the history, with that epoch's scores, and the best
    by validation NLL among the epochs that may be selected: those with as many dendrites and,
    where a control restarts as a dendritic run does, those after its first restart."""
    path = run.folder / "metrics.json"
    metrics, history = run.metrics, run.history
    if metrics["epochs"] != len(history):
        yield f"{path}: epochs is {metrics['epochs']}, history.jsonl has {len(history)}"
    if not 0 <= metrics["best_epoch"] < len(history):
        yield f"{path}: best_epoch {metrics['best_epoch']} is not in history.jsonl"
        return
    line = history[metrics["best_epoch"]]
    first = _first_selectable(run.config["config"]["treatment"])
    alike = [
        other
        for other in history
        if bool(other["dendrites"]) == bool(metrics["dendrites"]) and other["epoch"] >= first
    ]
    by_accuracy = run.config["config"].get("scored_by") == "accuracy"
    name, sign = ("accuracy", -1) if by_accuracy else ("loss", 1)
    best = min(alike, key=lambda other: sign * other[f"val_{name}"], default=line)
    if sign * best[f"val_{name}"] < sign * line[f"val_{name}"]:
        yield (
            f"{path}: best_epoch {metrics['best_epoch']} has validation {name} "
            f"{line[f'val_{name}']}, but epoch {best['epoch']} has {best[f'val_{name}']}"
        )
    for name, stored, fresh in (
        ("validation.nll", metrics["validation"]["nll"], line["val_loss"]),
        ("validation.accuracy", metrics["validation"]["accuracy"], line["val_accuracy"]),
        ("validation.macro_f1", metrics["validation"]["macro_f1"], line["val_macro_f1"]),
        ("dendrites", metrics["dendrites"], line["dendrites"]),
    ):
        if not math.isclose(stored, fresh, rel_tol=RELATIVE_TOLERANCE):
            yield f"{path}: {name} is {stored!r}, history.jsonl has {fresh!r} at best_epoch"


def _first_selectable(treatment: Mapping[str, Any] | None) -> int:
    """The first epoch whose state a control may keep: after its first restart, unless it prunes."""
    restarts = treatment or {}
    restarts = restarts.get("restarts") or restarts
    epochs = restarts.get("epochs") or ()
    return min(epochs) + 1 if epochs and not restarts["prune"] else 0


RUN_CHECKS = (
    _metric_problems,
    _validation_problems,
    _adapter_problems,
    _growth_problems,
    _selection_problems,
)


def _fairness_problems(runs: list[Run]) -> Iterator[str]:
    by_seed: dict[tuple[str, str, int], dict[str, Run]] = defaultdict(dict)
    for run in runs:
        by_seed[run.backbone, run.dataset, run.seed][run.arm] = run
    for arms in by_seed.values():
        first = arms.get("baseline") or next(iter(arms.values()))
        for run in arms.values():
            yield from _unfair(first, run)
        if "matched" in arms and "dendritic" in arms:
            yield from _unmatched(arms["matched"], arms["dendritic"])


def _unfair(first: Run, other: Run) -> Iterator[str]:
    # A run that is older than a setting was trained with what is now its default.
    settings, others = (
        TrainConfig.from_dict(run.config["config"]).to_dict() for run in (first, other)
    )
    for key in sorted(set(settings) - {"treatment"}):
        one, two = settings[key], others[key]
        if one != two:
            yield f"{other.folder / 'config.json'}: {key} is {two!r}, {first.arm} has {one!r}"
    for file, keys, mine, theirs in (
        ("config.json", SHARED_CONFIG, other.config, first.config),
        ("metrics.json", SHARED_METRICS, other.metrics, first.metrics),
    ):
        for key in keys:
            if mine[key] != theirs[key]:
                yield (
                    f"{other.folder / file}: {key} is {mine[key]!r}, "
                    f"{first.arm} of the same seed has {theirs[key]!r}"
                )


def _unmatched(matched: Run, dendritic: Run) -> Iterator[str]:
    have, want = matched.metrics["trainable_params"], dendritic.metrics["trainable_params"]
    if abs(have - want) > MATCHED_TOLERANCE * want:
        yield (
            f"{matched.folder / 'metrics.json'}: {have} trainable parameters, more than "
            f"{MATCHED_TOLERANCE:.0%} away from the dendritic run's {want}"
        )


def _leaderboard_problems(root: Path) -> Iterator[str]:
    yield from _derived_problems(
        root / LEADERBOARD,
        lambda: leaderboard.build(root),
        "the runs give",
        "write the leaderboard again",
    )


def _study_problems(root: Path) -> Iterator[str]:
    for results in sorted((root / "studies").glob(f"*/{RESULTS}")):
        yield from _derived_problems(
            results.parent / SUMMARY,
            partial(_summary_of, results),
            f"{RESULTS} gives",
            "run the study again, which writes it",
        )


def _summary_of(results: Path) -> dict[str, Any]:
    return summarize(read_runs(results))


def _derived_problems(
    path: Path, build: Callable[[], Any], what: str, remedy: str
) -> Iterator[str]:
    """A file that is made from others: there, and what they give."""
    try:
        fresh = canonical_json(build()).encode()
    except (ArtifactError, EvaluationError, StudyError) as error:
        yield f"{path}: cannot be built again: {error}"
        return
    if not path.is_file():
        yield f"{path}: missing; {remedy}"
    elif path.read_bytes() != fresh:
        yield f"{path}: not what {what}; {remedy}"
