"""Data sets by name, and their splits.

`load_dataset("allagree")` gives clean, labelled, twin-grouped examples; `make_split` divides them.
A further data set is one more entry in DATASETS: a loader that returns records, where the data
comes from, and how its labels are shown. Everything after the loader (grouping, fingerprints,
splits, training, pages) is shared. docs/data.md describes the data sets.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from finsent.data.records import LABELS, DataError, Record
from finsent.data.sets import fiqa, fomc, numclaim, phrasebank, tweets
from finsent.data.sets.examples import CLAIMS, HEADLINES, STANCES, Headline
from finsent.data.splits import FOLDS, grouped_parts, join_kin, twin_groups

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = [
    "DATASETS",
    "LABELS",
    "DataError",
    "Dataset",
    "DatasetEntry",
    "Example",
    "Record",
    "Split",
    "load_dataset",
    "local_texts",
    "make_split",
    "to_datasets",
]


@dataclass(frozen=True)
class Example:
    """One labelled sentence."""

    id: str
    text: str
    label: int
    """Index into the data set's label_names."""
    group: int
    """Template twins and kin have the same number and stay on one side of every split."""


@dataclass(frozen=True)
class Dataset:
    """Labelled sentences in a fixed order."""

    name: str
    label_names: tuple[str, ...]
    examples: tuple[Example, ...]
    fingerprint: str
    """sha256 over the ordered lines `id<TAB>label name`."""


@dataclass(frozen=True)
class Split:
    """Ascending indices into Dataset.examples. The three parts cover it and do not overlap."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    fingerprint: str
    """sha256 over the ordered lines `part<TAB>id`; parts in the order train, validation, test."""


@dataclass(frozen=True)
class DatasetEntry:
    """What DATASETS knows about a data set."""

    name: str
    title: str
    loader: Callable[[Path | None], Sequence[Record]]
    """Takes the data folder (None: the default place); returns records in a fixed order."""
    label_names: tuple[str, ...]
    licence: str
    citation: str
    url: str
    ships: bool = False
    """Whether the sentences are part of the package."""
    short_title: str = ""
    """For drop-downs and headings; empty: the name."""
    label_marks: tuple[str, ...] = ()
    """A shape for each label that tells it apart without colour; empty: squares. A label that
    several data sets have looks the same in all of them."""
    files: str = ""
    """What there is to download from `url`."""
    rules: str = ""
    """How rows became labelled sentences."""
    cue: str = ""
    """Ends every text for backbones that are given a sentence to complete (Recipe.cued)."""
    examples: tuple[Headline, ...] = HEADLINES
    """Texts to try."""


SENTIMENT_CUE = "\nFor the company's share price this news is"
"""The question Financial PhraseBank's annotators were asked, as a sentence to be completed."""
SENTIMENT_MARKS = ("▼", "●", "▲")


def _load_sample(data_dir: Path | None) -> list[Record]:
    """The sentences that ship with the package; `data_dir` is not used."""
    content = resources.files("finsent.data").joinpath("sample.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(content.splitlines())
    return [Record(row["id"], row["text"], row["label"]) for row in rows]


def _phrasebank_entry(level: str, short_title: str, agreement: str) -> DatasetEntry:
    return DatasetEntry(
        name=level,
        title=f"Financial PhraseBank, {agreement}",
        loader=partial(phrasebank.load_phrasebank, level),
        label_names=LABELS,
        licence="CC BY-NC-SA 3.0",
        citation=(
            "P. Malo, A. Sinha, P. Korhonen, J. Wallenius, P. Takala: Good debt or bad debt: "
            "Detecting semantic orientations in economic texts. Journal of the Association for "
            "Information Science and Technology 65(4), 782-796, 2014"
        ),
        url=phrasebank.PAGE,
        short_title=short_title,
        label_marks=SENTIMENT_MARKS,
        files=phrasebank.ZIP_NAME,
        rules="mojibake repaired; copies with different labels take the label that more annotators "
        "agreed on, else neutral",
        cue=SENTIMENT_CUE,
    )


_MAJORITY = "copies with different labels take the most frequent one, a tie is left out"

DATASETS: Mapping[str, DatasetEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            _phrasebank_entry("allagree", "AllAgree", "all annotators agree"),
            _phrasebank_entry("75agree", "75Agree", "at least 75 % of annotators agree"),
            _phrasebank_entry("66agree", "66Agree", "at least 66 % of annotators agree"),
            _phrasebank_entry("50agree", "50Agree", "at least 50 % of annotators agree"),
            DatasetEntry(
                name="fiqa",
                title="FiQA-2018 task 1, headlines and microblogs, mean score cut at \u00b10.1",
                loader=fiqa.load_fiqa,
                label_names=LABELS,
                licence="none stated: data of a research challenge",
                citation=(
                    "M. Maia, S. Handschuh, A. Freitas, B. Davis, R. McDermott, M. Zarrouk, "
                    "A. Balahur: WWW'18 open challenge: Financial opinion mining and question "
                    "answering. Companion of The Web Conference 2018, 1941-1942, 2018"
                ),
                url=fiqa.FILES.page,
                short_title="FiQA",
                label_marks=SENTIMENT_MARKS,
                files="the four files task1_*.json",
                rules="mean of a sentence's scores: above 0.1 positive, below -0.1 negative, else "
                "neutral; left out when one score is above 0.1 and another below -0.1; web "
                f"addresses removed; {_MAJORITY}",
                cue=SENTIMENT_CUE,
            ),
            DatasetEntry(
                name="twitter",
                title="Twitter Financial News Sentiment, train and validation parts",
                loader=tweets.load_tweets,
                label_names=LABELS,
                licence="MIT, by its page",
                citation=f"Twitter Financial News Sentiment, version 1.0.0. {tweets.FILES.page}",
                url=tweets.FILES.page,
                short_title="Twitter",
                label_marks=SENTIMENT_MARKS,
                files="sent_train.csv and sent_valid.csv",
                rules="bearish is negative, bullish is positive; web addresses removed, a tweet "
                f"without other words left out; {_MAJORITY}",
                cue=SENTIMENT_CUE,
            ),
            DatasetEntry(
                name="fomc",
                title="FOMC monetary-policy stance, split sentences, all sources",
                loader=fomc.load_fomc,
                label_names=fomc.LABELS,
                licence="CC BY-NC 4.0",
                citation=(
                    "A. Shah, S. Paturi, S. Chava: Trillion dollar words: A new financial dataset, "
                    "task & market analysis. Proceedings of the 61st Annual Meeting of the "
                    "Association for Computational Linguistics, 6664-6679, 2023"
                ),
                url=fomc.FILES.page,
                short_title="FOMC stance",
                label_marks=("▽", "●", "△"),
                files=" and ".join(fomc.FILES.sha256),
                rules="train and test of one published seed, which hold the same sentences as the "
                f"other two seeds; pieces of one sentence stay on one side; {_MAJORITY}",
                cue="\nFor interest rates this sentence is",
                examples=STANCES,
            ),
            DatasetEntry(
                name="numclaim",
                title="Numerical claims in analysts' reports and earnings calls",
                loader=numclaim.load_numclaim,
                label_names=numclaim.LABELS,
                licence="CC BY-NC 4.0",
                citation=(
                    "A. Shah, A. Hiray, P. Shah, A. Banerjee, A. Singh, D. Eidnani, S. Chava, "
                    "B. Chaudhury, S. Chava: Numerical claim detection in finance: A new financial "
                    "dataset, weak-supervision model, and market analysis. arXiv 2402.11728, 2024"
                ),
                url=numclaim.FILES.page,
                short_title="Numerical claims",
                label_marks=("◇", "◆"),
                files="gold_{arpts,ec}_numclaim-{train,test}-5768.xlsx",
                rules="train and test of one published seed, which hold the same sentences as the "
                f"other two seeds; reports and calls as one set; {_MAJORITY}",
                cue="\nThe number in this sentence is",
                examples=CLAIMS,
            ),
            DatasetEntry(
                name="sample",
                title="Sample headlines, invented for this project",
                loader=_load_sample,
                label_names=LABELS,
                licence="the project's own licence",
                citation="Written for this project; companies and figures are invented",
                url="",
                ships=True,
                short_title="Sample",
                label_marks=SENTIMENT_MARKS,
                files="nothing: part of the package",
                rules="written one by one",
                cue=SENTIMENT_CUE,
            ),
        )
    }
)


def _sha256(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _check_records(entry: DatasetEntry, records: Sequence[Record]) -> None:
    if not records:
        raise DataError(f"data set {entry.name!r} is empty; check what its loader read")
    seen: set[str] = set()
    for record in records:
        if record.label not in entry.label_names:
            raise DataError(
                f"data set {entry.name!r}, {record.id}: unknown label {record.label!r}; "
                f"expected one of {entry.label_names}"
            )
        if not record.text.strip():
            raise DataError(f"data set {entry.name!r}, {record.id}: the text is empty")
        if record.id in seen:
            raise DataError(f"data set {entry.name!r}: the id {record.id!r} occurs twice")
        seen.add(record.id)


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    *,
    registry: Mapping[str, DatasetEntry] = DATASETS,
) -> Dataset:
    """The data set registered as `name`, with twin groups and a fingerprint.

    `data_dir` is a folder or zip with the raw files; None means the environment's FINSENT_DATA_DIR,
    else a download from the Hub. Raises DataError for an unknown name, missing or altered files,
    and records that are empty, unlabelled or not unique.
    """
    if name not in registry:
        raise DataError(f"unknown data set {name!r}; choose one of {', '.join(registry)}")
    entry = registry[name]
    records = entry.loader(data_dir)
    _check_records(entry, records)
    twins = twin_groups([record.text for record in records])
    groups = join_kin(twins, [record.kin for record in records]).tolist()
    examples = tuple(
        Example(record.id, record.text, entry.label_names.index(record.label), group)
        for record, group in zip(records, groups, strict=True)
    )
    fingerprint = _sha256(f"{record.id}\t{record.label}" for record in records)
    return Dataset(name, entry.label_names, examples, fingerprint)


def local_texts(name: str) -> dict[str, str] | None:
    """Sentences by id where a copy of the data set is on this machine, else None. Never downloads.

    A copy is what FINSENT_DATA_DIR names, or a data set that ships with the package. Raises
    DataError when that copy is damaged or lacks the file.
    """
    entry = DATASETS.get(name)
    if entry is None or not (entry.ships or os.environ.get("FINSENT_DATA_DIR")):
        return None
    return {record.id: record.text for record in entry.loader(None)}


def make_split(dataset: Dataset, seed: int) -> Split:
    """Divide into 70 % train, 15 % validation, 15 % test, class shares kept, twin groups whole.

    The same data set and seed give the same split. Raises DataError when a class is too small to
    reach all parts.
    """
    labels = np.array([example.label for example in dataset.examples])
    groups = np.array([example.group for example in dataset.examples])
    counts = Counter(labels.tolist())
    for label, name in enumerate(dataset.label_names):
        if counts[label] < FOLDS:
            raise DataError(
                f"data set {dataset.name!r} has {counts[label]} examples of class {name!r}; "
                f"a split needs at least {FOLDS} of every class"
            )
    parts = {
        part: tuple(indices.tolist())
        for part, indices in zip(
            ("train", "validation", "test"), grouped_parts(labels, groups, seed), strict=True
        )
    }
    for part, indices in parts.items():
        for label in set(range(len(dataset.label_names))) - set(labels[list(indices)].tolist()):
            raise DataError(
                f"data set {dataset.name!r}, seed {seed}: the {part} part got no example of class "
                f"{dataset.label_names[label]!r}, because its twins form too few groups; "
                "add different sentences of that class"
            )
    return Split(**parts, fingerprint=split_fingerprint(dataset, *parts.values()))


def split_fingerprint(
    dataset: Dataset, train: Sequence[int], validation: Sequence[int], test: Sequence[int]
) -> str:
    """What `Split.fingerprint` is, of parts given by indices into the examples."""
    parts = {"train": train, "validation": validation, "test": test}
    return _sha256(
        f"{part}\t{dataset.examples[index].id}"
        for part, indices in parts.items()
        for index in indices
    )


def to_datasets(dataset: Dataset, split: Split) -> DatasetDict:
    """The leak-free split in the Hugging Face container, to train other models on the same parts.

    Keys train, validation, test; columns id, text, label (a ClassLabel) and group.
    """
    from datasets import ClassLabel, DatasetDict, Features, Value
    from datasets import Dataset as Table

    features = Features(
        {
            "id": Value("string"),
            "text": Value("string"),
            "label": ClassLabel(names=list(dataset.label_names)),
            "group": Value("int64"),
        }
    )
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    return DatasetDict(
        {
            part: Table.from_list(
                [dataclasses.asdict(dataset.examples[i]) for i in indices], features=features
            )
            for part, indices in parts.items()
        }
    )
