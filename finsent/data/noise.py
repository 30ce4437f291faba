"""Rows that say little or contradict each other, and the rule for them.

    python -m finsent.data.noise --dataset news            (FINSENT_DATA_DIR names the data)

prints how many there are of each kind in each source, and some of them. Training takes them as
`TrainConfig.noise` says; validation and test parts keep them always, so that scores compare.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from finsent.data.records import DataError
from finsent.data.registry import DATASETS, Dataset, Example, load_dataset
from finsent.data.sets.news import compared, wording

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "contradiction": "the same words and numbers as another row that has another label",
        "tickers": "one word at most, besides cashtags, hashtags, names of accounts and numbers",
        "spam": "asks the reader to subscribe, sign up, join, or read more elsewhere",
    }
)
"""Kind -> what it is; a row is of the first that fits."""

_SPAM = re.compile(
    r"\b(?:subscribe to|sign up for updates|read more(?:$|:| and (?:get|sign))"
    r"|get (?:more )?updates|(?:more )?info on seeking alpha|sponsored:|free trial"
    r"|join (?:us|our|now)|chat ?room|follow (?:us|me)\b|dm me|got a tip\?"
    r"|(?:our|my) (?:community|subscribers|alerts))",
    re.IGNORECASE,
)
_TAGS = re.compile(r"[#@]\w+")


def noisy(dataset: Dataset) -> dict[str, str]:
    """Example id -> kind, of the rows that are of one; in the order of the examples."""
    labels: dict[str, set[int]] = {}
    wordings = [wording(example.text) for example in dataset.examples]
    for example, said in zip(dataset.examples, wordings, strict=True):
        labels.setdefault(said, set()).add(example.label)
    found = {}
    for example, said in zip(dataset.examples, wordings, strict=True):
        kind = _kind(example, contradicted=bool(said) and len(labels[said]) > 1)
        if kind is not None:
            found[example.id] = kind
    return found


def _kind(example: Example, *, contradicted: bool) -> str | None:
    if contradicted:
        return "contradiction"
    if len(re.findall(r"[^\W\d_]+", _TAGS.sub(" ", compared(example.text)))) <= 1:
        return "tickers"
    return "spam" if _SPAM.search(example.text) else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints counts and rows; 0 when the data set could be read."""
    parser = argparse.ArgumentParser(prog="python -m finsent.data.noise", description=__doc__)
    parser.add_argument("--dataset", default="news", choices=list(DATASETS))
    parser.add_argument("--data-dir", type=Path, help="folder with the published files")
    parser.add_argument("--kind", choices=list(KINDS), help="show rows of one kind only")
    parser.add_argument("--rows", type=int, default=10, help="rows to show of each kind")
    options = parser.parse_args(arguments)
    try:
        dataset = load_dataset(options.dataset, options.data_dir)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    kinds = noisy(dataset)
    by_kind: dict[str, list[Example]] = {kind: [] for kind in KINDS}
    for example in dataset.examples:
        if example.id in kinds:
            by_kind[kinds[example.id]].append(example)
    for kind in KINDS if options.kind is None else (options.kind,):
        rows = by_kind[kind]
        counts = Counter((e.source, dataset.label_names[e.label]) for e in rows)
        print(f"{kind}: {len(rows)} rows; {KINDS[kind]}")
        for (source, label), n in sorted(counts.items()):
            print(f"  {source}, {label}: {n}")
        for example in rows[: options.rows]:
            print(f"    {example.id}  {dataset.label_names[example.label]}  {example.text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
