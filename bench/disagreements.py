"""Search made-up headlines for those that two variants of a model answer differently.

    python bench/disagreements.py --candidates 40000

Candidates are put together from the phrases below, which were written for this project: companies
that do not exist, an event, and often a second one that pulls the other way, for that is where two
models of equal skill part. Every candidate is answered by both variants of each training run of
MiniLM on news. How many were searched, how many are answered differently and the clearest of them
go to artifacts/disagreements/, from where the page offers them.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from numpy.typing import NDArray

from finsent.machine.files import sha256_file
from finsent.results.catalog import Catalog, Selection
from finsent.results.disagreements import found_file
from finsent.results.runs import write_json
from finsent.serving.comparer import Comparer

PAIR = ("baseline", "dendritic")
SHOWN = 24
"""Sentences kept for each training run."""
BATCH = 512


def _phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in text.strip().splitlines()]


COMPANIES = _phrases("""
    Tarnfield Foods
    Ostrell Glass
    Hedrow Shipping
    Quaylor Robotics
    Marlotec
    Dunbury Signals
    Pellumex
    Corvane Mills
    Brightmere Energy
    Kestrelon
    Vaskia Bank
    Norwend Paper
    Halvorn Steel
    Lumetra Health
    Saltreach Airlines
    Orvane Chemicals
    Finmark Timber
    Castellow Retail
    Drevno Mining
    Yarrowby Homes
    Telvanta
    Ruskell Motors
    Plinth Insurance
    Ambry Software
""")
GOOD = _phrases("""
    beats profit estimates
    raises its full-year outlook
    wins a {n} mn euro order
    cuts its debt by {n} mn euros
    lifts its dividend by {p} %
    returns to profit
    narrows its loss
    gains {p} % in early trading
    opens a second plant
    settles the patent case
    sees demand recover
    sells its loss-making arm
    posts record orders
    hires {n} engineers
    wins approval for the merger
    buys back {n} mn euros of shares
    refinances its bonds early
    keeps its credit rating
    finds a buyer for the mill
    ends the strike at its main plant
""")
BAD = _phrases("""
    misses revenue forecasts
    trims its guidance
    loses a {n} mn euro contract
    takes on {n} mn euros of debt
    halves its dividend
    slips into the red
    widens its loss
    falls {p} % in late trading
    shuts a plant
    faces a patent suit
    sees demand soften
    writes down its newest arm
    reports fewer orders
    cuts {n} jobs
    delays the merger
    suspends its buyback
    defers a bond payment
    is put on review by a rating agency
    recalls {n} machines
    is fined {p} mn euros
""")
FLAT = _phrases("""
    names a new finance chief
    moves its headquarters
    renews its lease
    changes its auditor
    issues {n} mn euros of bonds
    keeps prices unchanged
    reviews its strategy
    signs a memorandum with the port
    extends the offer period
    expects sales of {n} mn euros this year
    holds its annual meeting in Porto
    replaces the head of its cable unit
""")
JOINTS = _phrases("""
    {a} but {b}
    {a}, yet {b}
    {a} even as it {b}
    {a} after it {b}
    {a} and {b}
    {a} while its rival {b}
    {a} before it {b}
    {a}, then {b}
""")
ENDS = ("", "", "", ", analysts say", ", as expected", ", better than a year earlier")
PREFIXES = ("", "", "", "UPDATE 1-", "BRIEF-", "Exclusive: ")


def candidates(count: int, seed: int) -> list[tuple[str, str]]:
    """So many different sentences, each with the pattern that it was made from.

    Raises SystemExit when the phrases do not give so many.
    """
    draw = random.Random(seed)
    found: dict[str, str] = {}
    for text, pattern in _drawn(draw, 20 * count):
        found.setdefault(text, pattern)
        if len(found) == count:
            return list(found.items())
    raise SystemExit(f"the phrases give only {len(found):,} sentences, not {count:,}")


def _drawn(draw: random.Random, tries: int) -> Iterator[tuple[str, str]]:
    kinds = {"good": GOOD, "bad": BAD, "flat": FLAT}
    for _ in range(tries):
        first, second = draw.sample(sorted(kinds), 2)
        a, b = draw.choice(kinds[first]), draw.choice(kinds[second])
        joint = draw.choice(JOINTS) if draw.random() < 0.7 else "{a}"
        said = joint.format(a=a, b=b)
        end, prefix = draw.choice(ENDS), draw.choice(PREFIXES)
        text = f"{prefix}{draw.choice(COMPANIES)} {said}{end}"
        numbers = {
            "n": str(draw.choice((12, 40, 65, 90, 150, 300, 480))),
            "p": draw.choice("23469"),
        }
        yield text.format(**numbers), f"{a}|{b if joint != '{a}' else ''}"


def different(
    pool: Sequence[tuple[str, str]], labels: Sequence[str], found: dict[str, NDArray[np.float64]]
) -> tuple[int, list[dict[str, Any]]]:
    """How many sentences are answered differently, and the clearest, one of each pattern.

    found: variant -> (n, classes). Clear is where both are sure of their label.
    """
    tops = {arm: values.argmax(axis=1) for arm, values in found.items()}
    first, second = PAIR
    differ = np.flatnonzero(tops[first] != tops[second])
    sure = np.minimum(*(found[arm].max(axis=1) for arm in PAIR))
    kept: list[dict[str, Any]] = []
    patterns: set[str] = set()
    for place in differ[np.argsort(-sure[differ], kind="stable")]:
        text, pattern = pool[place]
        if pattern not in patterns and len(kept) < SHOWN:
            patterns.add(pattern)
            kept.append({"text": text, **{arm: labels[tops[arm][place]] for arm in PAIR}})
    return len(differ), kept


def search(catalog: Catalog, selection: Selection, pool: Sequence[tuple[str, str]]) -> Any:
    """What one training run's two variants answer differently."""
    folder = catalog.folder(selection)
    comparer = Comparer.from_artifacts(folder, selection.seed, PAIR)
    texts = [text for text, _ in pool]
    found = {
        arm: np.concatenate(
            [comparer.predict_proba(texts[i : i + BATCH], arm) for i in range(0, len(texts), BATCH)]
        )
        for arm in PAIR
    }
    count, kept = different(pool, comparer.label_names, found)
    comparer.close()
    weights = {
        arm: sha256_file(folder / arm / f"seed-{selection.seed}" / "adapter.safetensors")
        for arm in PAIR
    }
    print(f"{selection.dataset}, training run {selection.seed}: {count:,} of {len(pool):,} differ")
    return {"differ": count, "adapters": weights, "sentences": kept}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    parser.add_argument("--backbone", default="minilm-l6", help="folder of the base model")
    parser.add_argument("--dataset", default="news")
    parser.add_argument("--candidates", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of candidates")
    options = parser.parse_args(arguments)
    catalog = Catalog.read(options.artifacts)
    pool = candidates(options.candidates, options.seed)
    runs = {
        str(seed): search(catalog, catalog.select(options.backbone, options.dataset, seed), pool)
        for seed in catalog.seeds(options.backbone, options.dataset)
    }
    path = found_file(options.artifacts, options.backbone, options.dataset)
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"searched": len(pool), "seed": options.seed, "runs": runs})
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
