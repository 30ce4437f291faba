"""The table of docs/data.md, counted from the data.

python -m finsent.reports.datasheet [--data-dir DIR] prints it; a test fails when document and data
differ.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from finsent.data.records import DataError
from finsent.data.registry import DATASETS, load_dataset

HEADER = (
    "| name | data set | sentences | classes | with a twin or kin | licence |\n"
    "|---|---|---|---|---|---|"
)


def table_row(name: str, data_dir: Path | None = None) -> str:
    """One data set as a row in Markdown. Raises DataError as `load_dataset`."""
    entry = DATASETS[name]
    dataset = load_dataset(name, data_dir)
    counts = Counter(example.label for example in dataset.examples)
    classes = ", ".join(
        f"{label} {counts[index]:,}" for index, label in enumerate(dataset.label_names)
    )
    sizes = Counter(example.group for example in dataset.examples)
    related = sum(size for size in sizes.values() if size > 1)
    title = f"[{entry.title}]({entry.url})" if entry.url else entry.title
    cells = (f"`{name}`", title, f"{len(dataset.examples):,}", classes, f"{related:,}")
    return f"| {' | '.join((*cells, entry.licence))} |"


def rules_markdown() -> str:
    """What was done to every data set, and what there is to download for it."""
    alike: dict[str, list[str]] = {}
    for name, entry in DATASETS.items():
        alike.setdefault(f"{entry.rules}. Download: {entry.files}.", []).append(f"`{name}`")
    return "\n".join(f"- {', '.join(names)}: {said}" for said, names in alike.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and the rules; 0 when every data set could be read."""
    parser = argparse.ArgumentParser(
        prog="python -m finsent.reports.datasheet", description=__doc__
    )
    parser.add_argument("--data-dir", type=Path, help="folder that holds all data sets")
    options = parser.parse_args(arguments)
    try:
        rows = [table_row(name, options.data_dir) for name in DATASETS]
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join([HEADER, *rows, "", rules_markdown()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
