"""How many annotators of Financial PhraseBank agreed on a sentence, by sentence id.

The list ships with the package as ids and levels, without a word of the data set, so that scores
by agreement level can be computed where the sentences are not at hand. It is made from them with

    python -m finsent.data.agreement            (FINSENT_DATA_DIR names the data)
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from finsent.data.records import DataError
from finsent.data.sets.phrasebank import LEVELS, load_phrasebank
from finsent.machine.files import write_bytes_atomically

if TYPE_CHECKING:
    from finsent.data.registry import Dataset

AGREEMENT_FILE = "agreement.csv"
BANDS: Mapping[str, str] = MappingProxyType(
    {
        "allagree": "all agree",
        "75agree": "75 % or more, not all",
        "66agree": "66 to 75 %",
        "50agree": "50 to 66 %",
    }
)
"""Share of annotators behind a sentence's label, by the strictest file that holds it."""


@cache
def agreement_levels() -> Mapping[str, str]:
    """Sentence id -> strictest agreement level (a key of BANDS), from the list in the package.

    Raises DataError when the list is damaged.
    """
    text = resources.files("finsent.data").joinpath(AGREEMENT_FILE).read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or rows[0] != ["id", "level"]:
        raise DataError(f"{AGREEMENT_FILE}: no header id,level; restore it from version control")
    levels: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 2 or row[1] not in BANDS or row[0] in levels:
            raise DataError(
                f"{AGREEMENT_FILE}, line {number}: {row!r} is not a new id and one of "
                f"{tuple(BANDS)}; restore it from version control"
            )
        levels[row[0]] = row[1]
    return MappingProxyType(levels)


MIDDLE = MappingProxyType({"allagree": 1.0, "75agree": 0.875, "66agree": 0.705, "50agree": 0.58})
"""Share of annotators behind a label, by level: the middle of its band."""


def agreed_shares(dataset: Dataset) -> list[list[float]]:
    """The share of annotators behind every class, as far as the level tells it: (n, 3).

    The label has the middle of its band. The others are taken to have said what stands beside it
    in the order negative, neutral, positive (who said what was never published). Raises DataError
    for a data set other than Financial PhraseBank's.
    """
    levels, last = agreement_levels(), len(dataset.label_names) - 1
    found = []
    for example in dataset.examples:
        if example.id not in levels:
            raise DataError(
                f"{dataset.name}: how many annotators agreed on {example.id} is not known; that is "
                f"for the data sets {', '.join(LEVELS)}"
            )
        share = MIDDLE[levels[example.id]]
        beside = [place for place in (example.label - 1, example.label + 1) if 0 <= place <= last]
        row = [0.0] * (last + 1)
        row[example.label] = share
        for place in beside:
            row[place] = (1 - share) / len(beside)
        found.append(row)
    return found


def agreement_csv(data_dir: Path | None = None) -> str:
    """The list as it follows from the data: `id,level`, sorted by id.

    data_dir: as in finsent.data.registry.load_dataset. Raises DataError as that does.
    """
    levels: dict[str, str] = {}
    for level in LEVELS:
        for record in load_phrasebank(level, data_dir):
            levels.setdefault(record.id, level)
    return "id,level\n" + "".join(f"{name},{levels[name]}\n" for name in sorted(levels))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the list beside this module."""
    parser = argparse.ArgumentParser(prog="python -m finsent.data.agreement", description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder or zip of Financial PhraseBank")
    options = parser.parse_args(arguments)
    path = Path(__file__).with_name(AGREEMENT_FILE)
    write_bytes_atomically(path, agreement_csv(options.data_dir).encode())
    print(f"wrote {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
