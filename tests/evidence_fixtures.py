"""Made-up artifacts with evidence of every kind, and the app over them in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.app_fixtures import running_app
from tests.artifact_factory import make_artifacts
from tests.study_factory import make_classical, make_study
from tests.test_app_browser import Watched
from tests.test_app_browser import chromium as chromium

GETS_A_SIZE = """
async (chart) => {
  const start = performance.now();
  const box = () => chart.querySelector(".main-svg").getBoundingClientRect();
  while (!(box().width > 300 && box().height > 200)) {
    if (performance.now() - start > 60000) throw new Error(`${box().width} x ${box().height}`);
    await new Promise((resume) => setTimeout(resume, 50));
  }
}
"""
TITLES = {"allagree": "AllAgree", "50agree": "50Agree", "sample": "Sample"}
SIZES = {"allagree": 340, "50agree": 340, "sample": 60}
"""Test sentences a seed."""
WITHOUT_DENDRITES = 2


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evidence") / "artifacts"
    make_study(root)
    make_study(
        root, "lora", datasets=("50agree",), regimes=("r1-all", "r16-all"), recipes=("grown-1",)
    )
    make_classical(root)
    for dataset, size in SIZES.items():
        make_artifacts(
            root,
            backbones=("smollm2-135m",),
            datasets=(dataset,),
            n_test=size,
            without_dendrites=(WITHOUT_DENDRITES,),
            publish=dataset == list(SIZES)[-1],
        )
    return root


@pytest.fixture(scope="module")
def board(artifacts: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifacts / "leaderboard.json").read_text())
    return found


@pytest.fixture(scope="module")
def url(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        # As on a machine without the data; sentences of `sample` ship with the package.
        patch.delenv("FINSENT_DATA_DIR", raising=False)
        with running_app(artifacts, tmp_path_factory.mktemp("log") / "app.log") as address:
            yield address


@pytest.fixture
def watched(chromium: Browser, url: str) -> Iterator[Watched]:
    watched = Watched(chromium, url)
    watched.page.on(
        "console",
        lambda message: (
            watched.problems.append(f"console: {message.text}") if message.type == "error" else None
        ),
    )
    yield watched
    watched.page.close()
    assert watched.problems == [], watched.problems


def pick(page: Page, elem_id: str, option: str) -> None:
    page.locator(f"#{elem_id} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def drawn(chart: Locator) -> None:
    """A Plotly chart with ink in it and a size on the page."""
    # Attached, not visible: a level line has no height, which counts as invisible.
    chart.locator(".scatterlayer .trace path").first.wait_for(state="attached")
    expect(chart.locator(".main-svg").first).to_be_visible()
    # Drawn anew, it is another element, and gets its size a moment after its ink.
    chart.evaluate(GETS_A_SIZE)


def data_of(chart: Locator) -> list[dict[str, Any]]:
    """The traces that Plotly holds: name, x, y."""
    found: list[dict[str, Any]] = chart.locator(".js-plotly-plot").evaluate(
        "plot => plot.data.map(t => ({name: t.name, x: [...plot.calcdata ? t.x._inputArray ?? t.x "
        ": t.x], y: [...t.y._inputArray ?? t.y]}))"
    )
    return found
