"""Evidence, what it gets wrong: the behaviour suite by capability and model, and failing cases.

Pass rates are read from artifacts/behaviour. All texts were written for this project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from finsent.behaviour.results import BehaviourError, by_kind, read_results
from finsent.behaviour.suite import Case, load_suite
from finsent.results.catalog import Catalog, backbone_title, dataset_title
from finsent.results.runs import slug
from finsent.results.schema import ArtifactError
from finsent.ui.parts.events import interactive_html, sent
from finsent.ui.parts.markup import html, notice
from finsent.ui.parts.selectors import QUICK

SHOWN = 8
"""Failing cases of a capability that are listed."""


@dataclass(frozen=True)
class Tested:
    """A run that the suite was put to."""

    backbone: str
    dataset: str
    result: Mapping[str, Any]

    @property
    def arm(self) -> str:
        return str(self.result["arm"])

    @property
    def title(self) -> str:
        return backbone_title(self.backbone)

    @property
    def note(self) -> str:
        return f"{dataset_title(self.dataset)}, run {self.result['seed']}"

    def failed(self, capability: str) -> set[int]:
        """Places of the cases of a capability that it does not pass."""
        places: list[int] = self.result["capabilities"][capability]["failed"]
        return set(places)


def tested_runs(catalog: Catalog) -> tuple[list[Tested], list[str]]:
    """Every run with results, and what is wrong with those that cannot be shown."""
    found, problems = [], []
    places = [(name, dataset) for name in catalog.backbones() for dataset in catalog.datasets(name)]
    places += dict.fromkeys((slug(run.backbone), run.dataset) for run in catalog.external)
    for backbone, dataset in places:
        try:
            results = read_results(catalog.root, backbone, dataset, load_suite())
        except (ArtifactError, BehaviourError) as error:
            problems.append(str(error))
            continue
        found += [Tested(backbone, dataset, result) for result in results]
    return found, problems


def rates_html(tested: Sequence[Tested], chosen: str) -> str:
    """Pass rates by capability and model, the hardest capability first."""
    capabilities = load_suite().capabilities
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "kind": cases[0].kind,
            "n": len(cases),
            "passed": [run.result["capabilities"][name]["passed"] for run in tested],
        }
        for name, cases in capabilities.items()
    ]
    rows.sort(key=lambda row: sum(row["passed"]) / row["n"])
    return html(
        "rates",
        tested=tested,
        rows=rows,
        chosen=chosen,
        kinds=[by_kind(run.result) for run in tested],
        cases=len(load_suite().cases),
    )


def failures_html(tested: Sequence[Tested], capability: str) -> str:
    """Cases of a capability that some model does not pass, with who passes and who does not."""
    cases = load_suite().capabilities[capability]
    failed = [run.failed(capability) for run in tested]
    wrong = [place for place in range(len(cases)) if any(place in places for places in failed)]
    return html(
        "failures",
        capability=capability,
        tested=tested,
        n=len(cases),
        wrong=len(wrong),
        rows=[
            (cases[place], [place not in places for places in failed]) for place in wrong[:SHOWN]
        ],
    )


def differing_html(catalog: Catalog, backbone: str, dataset: str) -> str:
    """Cases that one variant of a choice passes and another does not; nothing without results."""
    wanted = catalog.select(backbone, dataset)
    tested = [
        run
        for run in tested_runs(catalog)[0]
        if (run.backbone, run.dataset) == (wanted.backbone, wanted.dataset)
    ]
    found: list[tuple[Case, list[bool]]] = []
    for name, cases in load_suite().capabilities.items() if len(tested) > 1 else ():
        failed = [run.failed(name) for run in tested]
        for place in sorted(failed[0].union(*failed) - failed[0].intersection(*failed)):
            found.append((cases[place], [place not in places for places in failed]))
    # Cases with a right label say most by themselves.
    found.sort(key=lambda row: row[0].kind != "label")
    return html("written", tested=tested, n=len(found), rows=found[:SHOWN])


def add_behaviour_tab(catalog: Catalog) -> None:
    """Draws the section inside the current gr.Tab."""
    tested, problems = tested_runs(catalog)
    for problem in problems:
        gr.HTML(notice("Not shown.", problem, tone="warning"))
    if not tested:
        gr.HTML(
            notice(
                "Nothing tested yet.",
                "`python -m finsent.behaviour --runs artifacts/<model>/<data set>` tests runs on "
                "the cases written for this project.",
            )
        )
        return
    capabilities = load_suite().capabilities
    first = min(
        (name for name, cases in capabilities.items() if cases[0].kind == "label"),
        key=lambda name: (
            sum(run.result["capabilities"][name]["passed"] for run in tested)
            / len(capabilities[name])
        ),
    )
    rates = interactive_html(rates_html(tested, first), "behaviour-rates")
    failures = gr.HTML(failures_html(tested, first), elem_id="behaviour-failures")

    def open_capability(event: gr.EventData) -> tuple[Any, Any]:
        name = sent(event)
        if name not in capabilities:
            return gr.skip(), gr.skip()
        return rates_html(tested, name), failures_html(tested, name)

    rates.click(open_capability, outputs=[rates, failures], **QUICK)
