"""`finsent evaluate`: a model tested on the data sets whose labels it has, and put on the board."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finsent.behaviour.results import run_suite
from finsent.behaviour.suite import load_suite
from finsent.data.records import LABELS
from finsent.data.registry import DATASETS, Dataset, Split, load_dataset
from finsent.data.sets.news import SOURCES
from finsent.data.sets.phrasebank import LEVELS
from finsent.entrants.labels import EntrantError, Labels
from finsent.entrants.measuring import (
    Answers,
    Report,
    Tested,
    fold_model,
    fold_simple,
    test_model,
    test_simple,
)
from finsent.entrants.models import Model, load_classifier
from finsent.entrants.publishing import Staged, staged
from finsent.entrants.simple import SIMPLE, TRAINED, SimpleEntrant
from finsent.entrants.sources import Source, find_source, local_source
from finsent.entrants.timing import Ask, Ours, time_beside_ours
from finsent.machine.places import checkout
from finsent.machine.timing import Conditions
from finsent.models.presets import PRESETS
from finsent.models.weights import default_cache_dir
from finsent.results.external.rows import BACKBONE_LICENCES
from finsent.results.external.runs import (
    FoldScore,
    external_folder,
    fold_means,
    write_external,
)
from finsent.results.metrics import confidence_intervals, score, source_scores
from finsent.results.provenance import git_commit, versions
from finsent.results.runs import EXTERNAL, Predictions, find_runs, slug, write_json
from finsent.results.schema import HERE, PER_SOURCE

TIMED_TEXTS = 30
BEHAVIOUR = "behaviour"
BEHAVIOUR_DATASETS = ("news", "allagree")
"""An entrant is asked the behaviour suite once: as it was trained for the first of these that it is
tested on."""


@dataclass(frozen=True)
class Request:
    """What is tested, and what its owner says of it."""

    model: str
    """A name in SIMPLE, a preset with `zero_shot`, a folder, or a Hub id."""
    name: str | None = None
    """On the board; None: the model's own."""
    revision: str | None = None
    zero_shot: bool = False
    labels: Mapping[str, str] | None = None
    base: str | None = None
    """Of a PEFT adapter."""
    datasets: tuple[str, ...] | None = None
    """None: those that the board has runs of and whose labels the model has."""
    seeds: tuple[int, ...] = (0,)
    trained_on: tuple[str, ...] | None = None
    """Data sets that the model was trained on; None: nobody knows."""
    licence: str | None = None
    folds: bool = True
    timed: bool = False
    command: str = ""


def evaluate(
    request: Request,
    artifacts: Path,
    *,
    data_dir: Path | None = None,
    backbone_dir: Path | None = None,
    report: Report = lambda what, done: None,
    say: Callable[[str], None] = print,
) -> int:
    """Tests the model and puts it on the board; returns how many runs it has there.

    Raises:
        EntrantError: What is wrong with the model, and what to do. The board is as it was.
        DataError: A data set is not here, or is not known.
    """
    _check_datasets([*(request.datasets or ()), *(request.trained_on or ())])
    tester: _Simple | _Asked
    if request.model in SIMPLE:
        tester = _Simple(request, backbone_dir, report)
    else:
        tester = _Asked(request, backbone_dir, report)
    wanted, ours = request.datasets or on_board(artifacts), Ours(artifacts)
    for_suite = next((name for name in BEHAVIOUR_DATASETS if name in wanted), None)
    with staged(artifacts, tester.name, tester.about["source"]) as place:
        for name in wanted:
            labels = DATASETS[name].label_names
            if labels not in tester.label_sets:
                say(f"{name}: left out, its labels are {', '.join(labels)}")
                continue
            dataset = load_dataset(name, data_dir)
            folds = tester.folds(dataset) if request.folds else ()
            for number, one in enumerate(tester.test(dataset)):
                # Folds are of all sentences, whatever the seed of the split: they are kept once.
                ask = tester.asker(dataset, one.split)
                timed: dict[str, Any] = {}
                if request.timed:
                    texts = [dataset.examples[row].text for row in one.split.test[:TIMED_TEXTS]]
                    beside = ours.of(dataset.name, one.seed)
                    timed = time_beside_ours(ask, texts, tester.device, beside)
                say(_write(place, tester, dataset, one, () if number else folds, timed, request))
                if name == for_suite and not number:
                    say(_write_behaviour(place, tester.name, dataset.name, ask, one.seed))
        return place.publish()


def on_board(artifacts: Path) -> tuple[str, ...]:
    """The data sets that the board has runs of, in the registry's order.

    EntrantError where it has none.
    """
    found = {run.dataset for run in find_runs(artifacts)}
    names = tuple(name for name in DATASETS if name in found)
    if not names:
        raise EntrantError(f"{artifacts} has no runs to stand beside; name data sets by --datasets")
    return names


def _check_datasets(names: Sequence[str]) -> None:
    for name in names:
        if name not in DATASETS:
            raise EntrantError(f"unknown data set {name!r}; choose of {', '.join(DATASETS)}")


class _Simple:
    """An entrant that is trained on the training part of every data set."""

    form = TRAINED
    label_sets = tuple(dict.fromkeys(entry.label_names for entry in DATASETS.values()))

    def __init__(self, request: Request, backbone_dir: Path | None, report: Report) -> None:
        self._request = request
        self._backbone_dir, self._report = backbone_dir, report
        self._last: tuple[str, SimpleEntrant] | None = None
        import torch

        simple = SIMPLE[request.model]
        self.device = str(Conditions("CPU", torch.get_num_threads(), simple.engine))
        self.name = request.name or request.model
        self.settings: dict[str, Any] = {"what": simple.what}
        if simple.backbone is not None:
            self.settings |= {"backbone": simple.backbone, "precision": "fp32"}
        self.about: dict[str, Any] = {
            "source": request.model,
            "revision": None,
            "licence": request.licence or simple.licence,
            "url": simple.url,
        }

    def test(self, dataset: Dataset) -> Iterator[Tested]:
        return test_simple(self._entrant(dataset), dataset, self._request.seeds)

    def folds(self, dataset: Dataset) -> Sequence[FoldScore]:
        return fold_simple(self._entrant(dataset), dataset, self._report)

    def seen(self, dataset: str) -> tuple[str, bool]:
        return "yes", False

    def asker(self, dataset: Dataset, split: Split) -> Ask:
        return self._entrant(dataset).asker(split)

    def _entrant(self, dataset: Dataset) -> SimpleEntrant:
        if self._last is None or self._last[0] != dataset.name:
            made = SimpleEntrant(self._request.model, dataset, backbone_dir=self._backbone_dir)
            self._last = dataset.name, made
        return self._last[1]


class _Asked:
    """A model that is asked as it is."""

    def __init__(self, request: Request, backbone_dir: Path | None, report: Report) -> None:
        self._request, self._report = request, report
        source = _source_of(request, backbone_dir, report)
        if request.zero_shot:
            if request.labels is not None or request.base is not None:
                raise EntrantError("--zero-shot has its own words for the labels and no --base")
            from finsent.entrants.zero_shot import ZeroShot

            self.model: Model = ZeroShot(source.folder)
        else:
            self.model = load_classifier(source, request.labels, request.base)
        self.name = request.name or source.name + ("-zero-shot" if request.zero_shot else "")
        self.form, self.device = self.model.form, self.model.device
        self.settings, self.label_sets = self.model.settings, self.model.label_sets
        self.about: dict[str, Any] = {
            "source": source.name,
            "revision": source.revision,
            "licence": request.licence or source.licence,
            "url": source.url,
        }

    def test(self, dataset: Dataset) -> Iterator[Tested]:
        answers = self._answers(dataset.label_names)
        trained = 0 if self._request.zero_shot else self.model.parameters
        return test_model(dataset, self._request.seeds, answers, trained)

    def folds(self, dataset: Dataset) -> Sequence[FoldScore]:
        # What a model was trained on tells nothing about it.
        if self.seen(dataset.name)[0] == "yes":
            return ()
        return fold_model(dataset, self._answers(dataset.label_names))

    def seen(self, dataset: str) -> tuple[str, bool]:
        return knowledge(dataset, self._request.trained_on)

    def asker(self, dataset: Dataset, split: Split) -> Ask:
        return lambda texts: self.model.answer(texts, dataset.label_names)

    def _answers(self, labels: Labels) -> Answers:
        folder = default_cache_dir() / "answers"
        return Answers(self.model, self.about["revision"], labels, folder, self._report)


def _source_of(request: Request, backbone_dir: Path | None, report: Report) -> Source:
    """The model's files; a preset's are those that this project takes and checks itself."""
    if not request.zero_shot or request.model not in PRESETS:
        return find_source(request.model, request.revision, generative=request.zero_shot)
    if request.revision is not None:
        raise EntrantError(f"{request.model} is of this project and has no --revision")
    found = str(backbone_dir) if backbone_dir else PRESETS[request.model].source(report)
    if not Path(found).is_dir():
        return find_source(found, generative=True)
    source = local_source(Path(found), generative=True)
    licence = BACKBONE_LICENCES.get(request.model, source.licence)
    return dataclasses.replace(source, name=request.model, licence=licence)


def knowledge(dataset: str, trained_on: Sequence[str] | None) -> tuple[str, bool]:
    """Whether a model was trained on a data set (yes, no, unknown), and whether it may have seen
    sentences of its test part.

    trained_on: names of data sets; None: nobody knows. Data sets share sentences: the levels of
    PhraseBank, and news with its sources.
    """
    if trained_on is None:
        return "unknown", True
    shared = bool(_sources(dataset) & {source for name in trained_on for source in _sources(name)})
    return ("yes", True) if shared else ("no", False)


def _sources(dataset: str) -> set[str]:
    if DATASETS[dataset].source_of is not None:
        return {source.dataset for source in SOURCES}
    return {"50agree"} if dataset in LEVELS else {dataset}


def _write(
    place: Staged,
    tester: _Simple | _Asked,
    dataset: Dataset,
    tested: Tested,
    folds: Sequence[FoldScore],
    timed: Mapping[str, Any],
    request: Request,
) -> str:
    """Writes a run to the place where it waits; returns what it says in a line."""
    trained, seen = tester.seen(dataset.name)
    metrics = {
        **scores_of(dataset.name, tested.predictions),
        "trainable_params": tested.parameters,
        "train_seconds": tested.train_seconds,
        **timed,
    }
    config = {
        "kind": EXTERNAL,
        "name": tester.name,
        "form": tester.form,
        **tester.about,
        "dataset": dataset.name,
        "seed": tested.seed,
        "trained_on_data": trained,
        "may_have_seen_test": seen,
        "tested": HERE,
        "settings": dict(tester.settings),
        "label_names": list(dataset.label_names),
        "dataset_sha256": dataset.fingerprint,
        "split_sha256": tested.split.fingerprint,
        "command": request.command,
        "versions": versions(),
        "device": tester.device,
        "git_commit": git_commit(checkout()),
        "finished_at": now(),
    }
    folder = external_folder(place.root, tester.name, dataset.name, tested.seed)
    write_external(
        folder, config=config, metrics=metrics, predictions=tested.predictions, folds=folds
    )
    found = f"{dataset.name}, seed {tested.seed}: accuracy {metrics['accuracy']:.3f}, macro-F1 "
    found += f"{metrics['macro_f1']:.3f} on {metrics['n_test']} sentences"
    means = fold_means(folds)
    if means is not None:
        found += f"; {means['folds']} folds: {means['mean']['accuracy']:.3f}"
        found += f" ± {means['sd']['accuracy']:.3f} on {means['n_test']}"
    return found


def scores_of(dataset: str, found: Predictions) -> dict[str, Any]:
    """What metrics.json holds of predictions: scores, intervals, and scores by source."""
    labels, probabilities = found.label_indices, found.probabilities
    by_source = source_scores(dataset, found)
    return {
        **score(labels, probabilities, found.label_names),
        "ci": confidence_intervals(labels, probabilities),
        **({} if by_source is None else {PER_SOURCE: by_source}),
    }


def now() -> str:
    """The time, as runs record it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write_behaviour(place: Staged, name: str, dataset: str, ask: Ask, seed: int) -> str:
    suite = load_suite()
    found = run_suite(suite, ask, LABELS)
    path = place.root / BEHAVIOUR / f"{slug(name)}-{dataset}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"suite_sha256": suite.sha256, "cases": len(suite.cases)}
    write_json(path, {**about, "runs": [{"arm": EXTERNAL, "seed": seed, **found}]})
    return f"behaviour suite: {found['passed']} of {found['n']} cases pass"
