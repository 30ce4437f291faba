"""Whether a run of a model that was not trained here is what it says, and tested as ours are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from finsent.data.registry import DATASETS
from finsent.entrants.simple import TRAINED
from finsent.results.external.runs import FOLDS, read_external, read_folds
from finsent.results.runs import Run
from finsent.results.schema import ArtifactError


def entrant_problems(
    folder: Path, ours: Sequence[Run], metric_problems: Callable[[Run], Iterator[str]]
) -> Iterator[str]:
    """Problems of one run, each a sentence that names the file.

    ours: runs of this project, whose test parts it has to have. metric_problems: says which of a
    run's metrics its predictions do not give.
    """
    try:
        run = read_external(folder)
        folds = read_folds(folder)
        found = labels_of(run)
    except ArtifactError as error:
        yield str(error)
        return
    yield from metric_problems(run)
    path = folder / "config.json"
    if folds and run.config["trained_on_data"] == "yes" and run.config["form"] != TRAINED:
        yield f"{folder / FOLDS}: folds of a model that was trained on the data say nothing"
    where = f"{run.dataset}, seed {run.seed}"
    if run.dataset not in DATASETS:
        yield f"{path}: {run.dataset} is no data set of this project"
    mine = next((own for own in ours if (own.dataset, own.seed) == (run.dataset, run.seed)), None)
    if mine is None:
        yield f"{path}: no run of this project has the test part of {where}"
        return
    for key in ("dataset_sha256", "split_sha256", "label_names"):
        if run.config[key] != mine.config[key]:
            yield f"{path}: {key} is {run.config[key]!r}, ours is {mine.config[key]!r}"
    if found != labels_of(mine):
        predictions = folder / run.predictions_file
        yield f"{predictions}: not the ids and labels of the test part of {where}"


def labels_of(run: Run) -> dict[str, str]:
    """Test sentence id -> true label."""
    predictions = run.read_predictions()
    return dict(zip(predictions.ids, predictions.labels, strict=True))
