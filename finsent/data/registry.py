"""Data sets by name, and their splits.

`load_dataset("allagree")` gives clean, labelled, twin-grouped examples; `make_split` divides them.
A further data set is one more entry in DATASETS: a loader that returns records, where the data
comes from, and how its labels are shown. Everything after the loader (grouping, fingerprints,
splits, training, pages) is shared. `news` is made of several data sets (finsent.data.sets.news):
each keeps its own split, and what would give one part away to another is left out. docs/data.md
describes the data sets.
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
from finsent.data.sets import fiqa, fomc, news, numclaim, phrasebank, tweets
from finsent.data.sets.examples import CLAIMS, HEADLINES, NEWS, STANCES, Headline
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
    source: str
    """The data set that the sentence comes from: one of several in `news`, else the set's name."""
    own_group: int
    """Its group among the sentences of its source alone."""


@dataclass(frozen=True)
class Dataset:
    """Labelled sentences in a fixed order."""

    name: str
    label_names: tuple[str, ...]
    examples: tuple[Example, ...]
    fingerprint: str
    """sha256 over the ordered lines `id<TAB>label name`."""
    left_out: str = ""
    """The source that is tested on and neither trained nor validated on; empty: none."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The data sets that the sentences come from, in order of first occurrence."""
        return tuple(dict.fromkeys(example.source for example in self.examples))


@dataclass(frozen=True)
class Split:
    """Ascending indices into Dataset.examples, in three parts that do not overlap.

    They cover a data set of one source; of several, sentences that would give another part away are
    in none.
    """

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
    left_out: str = ""
    """The source that is tested on and neither trained nor validated on; empty: none."""
    source_of: Callable[[str], str] | None = None
    """Tells the source that an id is of, where the data set is made of several; else None."""


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


def _news_entry(left_out: str = "") -> DatasetEntry:
    """All sources of news, or the entry that trains on all but one and is tested on that one."""
    title = "Financial news of three sources: PhraseBank 50Agree, Twitter, FiQA"
    rules = (
        "every source by its own rules and its own split; what is to train or validate and says "
        "what a sentence of a later part says, web addresses and cashtags aside, is left out"
    )
    return DatasetEntry(
        name=f"news-without-{left_out}" if left_out else "news",
        title=f"{title}; trained without {left_out}, tested on it" if left_out else title,
        loader=news.load_news,
        label_names=LABELS,
        licence="that of every source: CC BY-NC-SA 3.0, MIT by its page, none stated",
        citation="; ".join(f"{source.name}: data set {source.dataset}" for source in news.SOURCES),
        url=phrasebank.PAGE,
        short_title=f"News without {left_out}" if left_out else "News",
        label_marks=SENTIMENT_MARKS,
        files="FinancialPhraseBank-v1.0.zip, and what `twitter` and `fiqa` need from their pages",
        rules=rules,
        cue=SENTIMENT_CUE,
        examples=NEWS,
        left_out=left_out,
        source_of=news.source_of,
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
            _news_entry(),
            *(_news_entry(source.name) for source in news.SOURCES),
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
    sources = [record.source or name for record in records]
    own = np.zeros(len(records), dtype=np.int64)
    for source in dict.fromkeys(sources):
        rows = [row for row, found in enumerate(sources) if found == source]
        texts = [records[row].text for row in rows]
        own[rows] = join_kin(twin_groups(texts), [records[row].kin for row in rows])
    groups = own if len(set(sources)) == 1 else _groups_across(records, own, sources)
    examples = tuple(
        Example(r.id, r.text, entry.label_names.index(r.label), group, source, own_group)
        for r, group, source, own_group in zip(
            records, groups.tolist(), sources, own.tolist(), strict=True
        )
    )
    fingerprint = _sha256(f"{record.id}\t{record.label}" for record in records)
    return Dataset(name, entry.label_names, examples, fingerprint, entry.left_out)


def _groups_across(
    records: Sequence[Record], own: np.ndarray, sources: Sequence[str]
) -> np.ndarray:
    """Groups (n,) over all sources.

    They join those of each source, and twins and copies wherever they are once web addresses and
    cashtags are gone, which a text has in one source and not in another.
    """
    twins = twin_groups([news.compared(record.text) for record in records])
    kin = []
    for record, group, source in zip(records, own.tolist(), sources, strict=True):
        wording = news.wording(record.text)
        kin.append((f"{source} {group}", *([f"= {wording}"] if wording else [])))
    return join_kin(twins, kin)


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

    The same data set and seed give the same split. Of several sources each is divided as if it were
    alone, so that its test part is the one that its own data set has, and `apart` keeps the parts
    apart. Where one is left out, the others train and validate, and the test part is that source's
    training and validation part: its own test part stays unread, so that what is chosen by how it
    does on a source never seen can be tested on it.

    Raises DataError when a class is too small to reach all parts.
    """
    dealt = {source: _dealt(dataset, source, seed) for source in dataset.sources}
    left_out = dealt.pop(dataset.left_out, None)
    train, validation, test = (
        np.sort(np.concatenate(part)) for part in zip(*dealt.values(), strict=True)
    )
    if left_out is not None:
        test = np.sort(np.concatenate(left_out[:2]))
    if len(dataset.sources) > 1:
        groups = np.array([example.group for example in dataset.examples])
        unseen = test if left_out is None else np.concatenate(left_out)
        train, validation = apart(groups, train, validation, unseen)
    parts = (tuple(train.tolist()), tuple(validation.tolist()), tuple(test.tolist()))
    return Split(*parts, split_fingerprint(dataset, *parts))


def apart(
    groups: np.ndarray, train: np.ndarray, validation: np.ndarray, unseen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Takes out of training and validation what would give a later part away.

    Args:
        groups: Group (n,) of every row of the data set.
        train: Row numbers.
        validation: Row numbers.
        unseen: Row numbers of the test part, and of whatever else must stay unseen.

    Returns:
        The training rows without those that share a group with an unseen row or with a validation
        row that is left, and the validation rows without those that share one with an unseen row.
    """
    validation = validation[~np.isin(groups[validation], groups[unseen])]
    seen_later = np.concatenate([groups[unseen], groups[validation]])
    return train[~np.isin(groups[train], seen_later)], validation


def _dealt(dataset: Dataset, source: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers of the parts of one source, divided as if it were alone."""
    rows = np.array([i for i, e in enumerate(dataset.examples) if e.source == source])
    labels = np.array([dataset.examples[i].label for i in rows])
    groups = np.array([dataset.examples[i].own_group for i in rows])
    counts = Counter(labels.tolist())
    name = source if source == dataset.name else f"{dataset.name}, source {source}"
    for label, label_name in enumerate(dataset.label_names):
        if counts[label] < FOLDS:
            raise DataError(
                f"data set {name!r} has {counts[label]} examples of class {label_name!r}; "
                f"a split needs at least {FOLDS} of every class"
            )
    train, validation, test = grouped_parts(labels, groups, seed)
    for part, indices in (("train", train), ("validation", validation), ("test", test)):
        for label in set(range(len(dataset.label_names))) - set(labels[indices].tolist()):
            raise DataError(
                f"data set {name!r}, seed {seed}: the {part} part got no example of class "
                f"{dataset.label_names[label]!r}, because its twins form too few groups; "
                "add different sentences of that class"
            )
    return rows[train], rows[validation], rows[test]


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

    Keys train, validation, test; columns id, text, label (a ClassLabel), group, source, own_group.
    """
    from datasets import ClassLabel, DatasetDict, Features, Value
    from datasets import Dataset as Table

    features = Features(
        {
            "id": Value("string"),
            "text": Value("string"),
            "label": ClassLabel(names=list(dataset.label_names)),
            "group": Value("int64"),
            "source": Value("string"),
            "own_group": Value("int64"),
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
