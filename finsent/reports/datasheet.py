"""The table of docs/data.md, counted from the data.

python -m finsent.reports.datasheet [--data-dir DIR] prints it; a test fails when document and data
differ.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finsent.data.records import DataError
from finsent.data.registry import DATASETS, load_dataset
from finsent.results.text import render


def datasheet_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of these rows, then what was done to every data set and what to download for it."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name in listed():
        entry = DATASETS[name]
        alike.setdefault((entry.rules, entry.files), []).append(name)
    return render("finsent.reports", "datasheet.md.j2", rows=rows, alike=alike)


def listed() -> list[str]:
    """Names of the data sets in the table: `news-without-*` hold what `news` holds."""
    return [name for name, entry in DATASETS.items() if not entry.left_out]


def row_values(name: str, data_dir: Path | None = None) -> dict[str, Any]:
    """One data set, counted. Raises DataError as `load_dataset`."""
    dataset = load_dataset(name, data_dir)
    counts = Counter(example.label for example in dataset.examples)
    sizes = Counter(example.group for example in dataset.examples)
    return {
        "name": name,
        "entry": DATASETS[name],
        "sentences": len(dataset.examples),
        "classes": [(label, counts[index]) for index, label in enumerate(dataset.label_names)],
        "related": sum(size for size in sizes.values() if size > 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and the rules; 0 when every data set could be read."""
    parser = argparse.ArgumentParser(
        prog="python -m finsent.reports.datasheet", description=__doc__
    )
    parser.add_argument("--data-dir", type=Path, help="folder that holds all data sets")
    options = parser.parse_args(arguments)
    try:
        rows = [row_values(name, options.data_dir) for name in listed()]
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(datasheet_markdown(rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
