"""Benchmarks: what the page times on request, and the results that are kept in bench/results."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finsent.data.sets.examples import HEADLINES
from finsent.machine.timing import summarize

ABOUT_KEYS = ("device", "n", "command", "commit", "versions")
"""Keys of a result file that say how it was made; every other number in it is a figure."""

UNITS = {
    "ms": "milliseconds",
    "seconds": "seconds",
    "mb": "MB",
    "gb": "GB",
    "ratio": "ratio",
    "speedup": "times faster",
}


class BenchmarkError(ValueError):
    """A benchmark that cannot be run, or a result file that cannot be read."""


@dataclass(frozen=True)
class BenchResult:
    """One file of bench/results."""

    name: str
    about: Mapping[str, Any]
    figures: Mapping[str, float]
    """Every number, nested keys joined by `/`."""

    def groups(self) -> dict[str, dict[str, float]]:
        """Unit -> figures, for units with at least two figures to compare.

        Nested figures are details: they are left to the table where a unit has enough others.
        """
        found: dict[str, dict[str, float]] = {}
        for name, value in self.figures.items():
            unit = unit_of(name)
            if unit is not None:
                found.setdefault(unit, {})[name] = value
        for unit, values in found.items():
            main = {name: value for name, value in values.items() if "/" not in name}
            found[unit] = main if len(main) > 1 else values
        return {unit: values for unit, values in found.items() if len(values) > 1}


def read_results(folder: Path) -> list[BenchResult]:
    """Every *.json of a folder by name; none when there is no such folder.

    Raises BenchmarkError naming a file that is not a JSON object.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BenchmarkError(f"{path.name}: cannot be read ({error}); run it again") from error
        if not isinstance(data, dict):
            raise BenchmarkError(f"{path.name}: holds no object; run the benchmark again")
        about = {key: data[key] for key in ABOUT_KEYS if key in data}
        rest = {key: value for key, value in data.items() if key not in ABOUT_KEYS}
        results.append(BenchResult(path.stem, about, dict(_numbers(rest, ""))))
    return results


def unit_of(name: str) -> str | None:
    """The unit that the last part of a figure's name spells, e.g. `p50_ms_nf4` -> milliseconds."""
    for word in name.rsplit("/", 1)[-1].split("_"):
        if word in UNITS:
            return UNITS[word]
    return None


def _numbers(value: Any, name: str) -> list[tuple[str, float]]:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return []
    if isinstance(value, int | float):
        return [(name, value)]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [
        found
        for key, part in inner
        for found in _numbers(part, f"{name}/{key}" if name else str(key))
    ]


# ------------------------------------------------------------------------------------- live

MAX_TEXTS = 4_000
"""Texts per arm and benchmark: a minute or two on two CPU cores."""


def batch_name(words: int, size: int) -> str:
    """How a condition is called on screen."""
    return f"{size} × {words} words"


def benchmark_batches(
    lengths: Sequence[int], sizes: Sequence[int], repeats: int
) -> dict[str, list[str]]:
    """Name -> texts of one call, for every length (words) and batch size.

    Raises BenchmarkError when nothing is chosen or it would take too long.
    """
    if not lengths or not sizes:
        raise BenchmarkError("tick at least one length and one batch size")
    if repeats < 1:
        raise BenchmarkError(f"repeats must be at least 1, got {repeats}")
    total = len(lengths) * sum(sizes) * repeats
    if total > MAX_TEXTS:
        raise BenchmarkError(
            f"{total:,} texts per arm would take too long (at most {MAX_TEXTS:,}): choose fewer "
            "repeats, lengths or batch sizes"
        )
    return {
        batch_name(words, size): [text_of(words, start) for start in range(size)]
        for words in sorted(lengths)
        for size in sorted(sizes)
    }


def text_of(words: int, start: int = 0) -> str:
    """A text of so many words, taken in turn from the examples from the start-th word on."""
    source = itertools.cycle(" ".join(example.text for example in HEADLINES).split())
    return " ".join(itertools.islice(source, start, start + words))


def throughput(times_ms: Sequence[float], size: int) -> float:
    """Texts a second at the median time of a call."""
    return 1000 * size / summarize(times_ms).p50_ms
