"""python -m finsent.behaviour --runs artifacts/<backbone>/<dataset> [--seeds 0] [--arms ...]

Runs the suite on trained arms, prints what passes, and writes
artifacts/behaviour/<backbone>-<dataset>.json; --check fails where a run became worse than in there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from finsent.behaviour.results import (
    BehaviourError,
    by_kind,
    regressions,
    results_path,
    run_suite,
)
from finsent.behaviour.suite import Suite, load_suite
from finsent.machine.errors import end_with
from finsent.machine.files import ROOT
from finsent.machine.options import Distinct, add_seeds
from finsent.results.runs import read_json, write_json
from finsent.serving.comparer import Comparer
from finsent.serving.notices import notices


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the suite; 0 when every run was tested and, with --check, none became worse."""
    parser = argparse.ArgumentParser(prog="python -m finsent.behaviour", description=__doc__)
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "artifacts" / "smollm2-135m" / "allagree"
    )
    add_seeds(parser, "of the runs (default: 0)", [0])
    parser.add_argument("--arms", nargs="+", action=Distinct, default=["baseline", "dendritic"])
    parser.add_argument(
        "--check", action="store_true", help="compare with the file, leave it alone"
    )
    parser.add_argument("--allowed", type=int, default=0, help="cases a capability may lose")
    parser.add_argument("--engine", help="as for scoring (default: a rule)")
    parser.add_argument("--worst", type=int, default=12, help="capabilities to print (%(default)s)")
    options = parser.parse_args(arguments)
    runs = options.runs.resolve()
    path = results_path(runs.parent.parent, runs.parent.name, runs.name)
    suite = load_suite()
    try:
        made = [
            found
            for seed in options.seeds
            for found in _results(runs, seed, tuple(options.arms), suite, options.engine)
        ]
        for found in made:
            _print(found, options.worst)
        if options.check:
            worse = _worse(read_json(path), made, suite, options.allowed)
            print("\n".join(worse), file=sys.stderr)
            return 1 if worse else 0
    except Exception as error:
        return end_with(error)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"suite_sha256": suite.sha256, "cases": len(suite.cases), "runs": made})
    print(f"wrote {path}; the manifest of the artifacts has to be written again")
    return 0


def _results(
    runs: Path, seed: int, arms: tuple[str, ...], suite: Suite, engine: str | None
) -> list[dict[str, Any]]:
    comparer = Comparer.from_artifacts(runs, seed, arms, engine=engine)
    return [
        {
            "arm": arm,
            "seed": seed,
            **run_suite(
                suite, partial(comparer.predict_proba, arm=arm), comparer.label_names, notices
            ),
        }
        for arm in arms
    ]


def _print(found: Mapping[str, Any], worst: int) -> None:
    print(f"{found['arm']}, seed {found['seed']}: {found['passed']} of {found['n']} cases pass")
    for kind, (passed, n) in by_kind(found).items():
        print(f"  {kind}: {passed} of {n} ({passed / n:.0%})")
    shares = sorted(
        found["capabilities"].items(), key=lambda item: item[1]["passed"] / item[1]["n"]
    )
    for name, entry in shares[:worst]:
        print(f"    {entry['passed']:3d} of {entry['n']:3d}  {name}")


def _worse(
    stored: Mapping[str, Any], made: Sequence[Mapping[str, Any]], suite: Suite, allowed: int
) -> list[str]:
    if stored["suite_sha256"] != suite.sha256:
        raise BehaviourError("the stored results are of another suite; run without --check first")
    before = {(run["arm"], run["seed"]): run for run in stored["runs"]}
    found = []
    for run in made:
        key = (run["arm"], run["seed"])
        if key not in before:
            raise BehaviourError(
                f"no stored results of {key[0]}, seed {key[1]}; run without --check"
            )
        found += [
            f"{key[0]}, seed {key[1]}, {said}" for said in regressions(before[key], run, allowed)
        ]
    return found


if __name__ == "__main__":
    sys.exit(main())
