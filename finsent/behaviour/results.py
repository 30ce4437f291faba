"""How a model does on the suite: pass rates by capability, and what became worse since."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from finsent.behaviour.suite import Case, Suite
from finsent.results.runs import read_json

FOLDER = "behaviour"
"""Below an artifacts root."""

PredictProba = Callable[[Sequence[str]], ArrayLike]
"""Texts -> probabilities (n, classes)."""
Notices = Callable[[str], Sequence[object]]
"""A text -> what the model was not made for in it; empty: nothing."""


class BehaviourError(ValueError):
    """A model or results that the suite says nothing about."""


def results_path(artifacts: Path, backbone: str, dataset: str) -> Path:
    """Where the results of a backbone's runs on a data set are."""
    return artifacts / FOLDER / f"{backbone}-{dataset}.json"


def read_results(
    artifacts: Path, backbone: str, dataset: str, suite: Suite
) -> list[dict[str, Any]]:
    """What runs pass: arm and seed, and what `run_suite` returns; none where nothing was measured.

    Raises:
        ArtifactError: The file is damaged.
        BehaviourError: It is of another suite, whose cases are not these.
    """
    path = results_path(artifacts, backbone, dataset)
    if not path.is_file():
        return []
    stored = read_json(path)
    if stored.get("suite_sha256") != suite.sha256:
        raise BehaviourError(
            f"{path.name} is of another version of the suite; run `python -m finsent.behaviour "
            f"--runs artifacts/{backbone}/{dataset}` again"
        )
    return list(stored["runs"])


def run_suite(
    suite: Suite,
    predict_proba: PredictProba,
    label_names: Sequence[str],
    notices: Notices | None = None,
) -> dict[str, Any]:
    """What a model gets right: {passed, n, capabilities: {name: {kind, n, passed, failed}}}.

    `failed` are the places of the cases among those of their capability. Every text is answered
    once. notices: what the model's server says of a text beside the label; None: nothing.

    Raises BehaviourError when the model does not know the labels that the suite expects.
    """
    unknown = {label for case in suite.cases for label in case.expect} - set(label_names)
    unknown |= {"negative", "positive"} - set(label_names)
    if unknown:
        raise BehaviourError(
            f"the suite is about labels {sorted(unknown)}, which the model does not have; its "
            f"labels are {tuple(label_names)}"
        )
    texts = list(dict.fromkeys(text for case in suite.cases for text in case.texts))
    probabilities = np.asarray(predict_proba(texts), dtype=np.float64)
    if probabilities.shape != (len(texts), len(label_names)):
        raise BehaviourError(
            f"the model answered with shape {probabilities.shape} to {len(texts)} texts and "
            f"{len(label_names)} labels"
        )
    answers = dict(zip(texts, probabilities, strict=True))
    capabilities = {}
    for name, cases in suite.capabilities.items():
        right = [_passes(case, answers, tuple(label_names), notices) for case in cases]
        failed = [place for place, passed in enumerate(right) if not passed]
        capabilities[name] = {
            "kind": cases[0].kind,
            "n": len(cases),
            "passed": len(cases) - len(failed),
            "failed": failed,
        }
    return {
        "passed": sum(entry["passed"] for entry in capabilities.values()),
        "n": len(suite.cases),
        "capabilities": capabilities,
    }


def _passes(
    case: Case,
    answers: Mapping[str, np.ndarray],
    names: tuple[str, ...],
    notices: Notices | None,
) -> bool:
    rows = [answers[text] for text in case.texts]
    if case.kind == "direction":
        up, down = names.index("positive"), names.index("negative")
        lower, higher = (row[up] - row[down] for row in rows)
        return bool(higher > lower)
    labels = [names[int(row.argmax())] for row in rows]
    if case.kind == "invariance":
        return labels[0] == labels[1]
    if labels[0] in case.expect:
        return True
    return case.notice_counts and notices is not None and bool(notices(case.texts[0]))


def by_kind(result: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """{kind: (cases passed, cases)} of what `run_suite` returns."""
    found: dict[str, tuple[int, int]] = {}
    for entry in result["capabilities"].values():
        passed, n = found.get(entry["kind"], (0, 0))
        found[entry["kind"]] = (passed + entry["passed"], n + entry["n"])
    return found


def regressions(before: Mapping[str, Any], after: Mapping[str, Any], allowed: int = 0) -> list[str]:
    """Capabilities of which `after` passes fewer cases than `before` by more than `allowed`, each
    a sentence; empty when nothing became worse. Both are what `run_suite` returns.

    Raises BehaviourError when they are not of the same cases.
    """
    sizes = [
        {name: entry["n"] for name, entry in result["capabilities"].items()}
        for result in (before, after)
    ]
    if sizes[0] != sizes[1]:
        raise BehaviourError("results of different cases do not compare; run the suite on both")
    return [
        f"{name}: {entry['passed']} of {entry['n']} cases pass, {then['passed']} did before"
        for name, entry in after["capabilities"].items()
        if entry["passed"] < (then := before["capabilities"][name])["passed"] - allowed
    ]
