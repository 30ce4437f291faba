"""The page over data sets with other classes, without a matched control and with a single seed."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from bench.screenshots import TABS, open_tab, panel_of
from finsent.results import leaderboard, manifest
from tests.app_fixtures import running_app
from tests.artifact_factory import make_artifacts
from tests.test_app_browser import BROWSER, Watched, held_back, settled
from tests.test_app_browser import chromium as chromium

pytestmark = BROWSER
TITLES = {"numclaim": "Numerical claims", "fomc": "FOMC stance"}
CLASSES = {"numclaim": {"out-of-claim", "in-claim"}, "fomc": {"dovish", "neutral", "hawkish"}}
EVIDENCE = ("Training curves", "Where they differ")
"""Sections that share one choice."""
WITH_DATA_SET = tuple(tab for tab in TABS if tab not in ("What it gets wrong", "Studies", "About"))


@pytest.fixture(scope="module")
def two_arms_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("two")
    root = folder / "artifacts"
    one = ("smollm2-135m",)
    make_artifacts(root, backbones=one, datasets=("allagree",), publish=False)
    make_artifacts(
        root,
        backbones=one,
        datasets=tuple(TITLES),
        arms=("baseline", "dendritic"),
        seeds=(0,),
        publish=False,
    )
    leaderboard.write(root)
    manifest.write_manifest(root)
    with running_app(root, folder / "log") as url:
        yield url


def choose(page: Page, tab: str, title: str) -> None:
    place = "#tab-evidence" if tab in EVIDENCE else panel_of(tab)
    page.locator(place).get_by_label("Data set", exact=True).first.click()
    page.get_by_role("option", name=title, exact=True).click()


def compare(watched: Watched, dataset: str) -> None:
    """Asks two arms in the Compare tab and looks at what they answer."""
    watched.ask("profit rose")
    watched.answered()
    for label in CLASSES[dataset]:
        expect(watched.page.locator(f"#answer .fs-bar[data-label={label}]")).to_have_count(2)
    expect(watched.page.locator("#answer")).to_contain_text(f"× 1 run ({TITLES[dataset]})")


def test_three_other_classes_are_named(chromium: Browser, two_arms_url: str) -> None:
    watched = Watched(chromium, two_arms_url)
    choose(watched.page, "One headline", TITLES["fomc"])
    compare(watched, "fomc")
    watched.page.close()
    assert watched.problems == []


def test_at_most_one_listener_to_an_event_waits(two_arms_url: str) -> None:
    """Two that wait for each other call each other for ever (finsent.ui.parts.events)."""
    with urllib.request.urlopen(f"{two_arms_url}config") as response:
        listeners = json.load(response)["dependencies"]
    waiting = Counter(
        (source, event)
        for listener in listeners
        if listener["trigger_mode"] == "always_last"
        for source, event in listener["targets"]
        if source is not None
    )
    assert waiting
    assert waiting.most_common(1)[0][1] == 1


def test_the_page_comes_to_rest_after_quick_choices(chromium: Browser, two_arms_url: str) -> None:
    """What listens to the data set is still at work when it changes again, and again."""
    watched = Watched(chromium, two_arms_url)
    page = watched.page
    watched.answered()
    asked: list[float] = []
    page.on("request", lambda request: asked.append(time.monotonic()))
    with held_back(page):
        for title in (*TITLES.values(), "AllAgree", TITLES["fomc"]):
            choose(page, "One headline", title)
    expect(page.locator("#answer .fs-bar[data-label=dovish]")).to_have_count(2)
    until = time.monotonic() + 20
    while asked and time.monotonic() < until:
        asked.clear()
        page.wait_for_timeout(1500)
    assert asked == [], f"{len(asked)} requests in 1.5 s, though nothing is asked"
    page.close()
    assert watched.problems == []


def test_every_tab_shows_two_arms_of_two_classes(chromium: Browser, two_arms_url: str) -> None:
    watched = Watched(chromium, two_arms_url)
    page, title = watched.page, TITLES["numclaim"]
    for tab in WITH_DATA_SET:
        open_tab(page, tab)
        if tab == "Many headlines":
            page.locator("#batch-which .label-wrap").click()
        choose(page, tab, title)
    open_tab(page, "One headline")
    box = page.locator("#matched input")
    expect(box).to_be_disabled()
    expect(page.locator("#matched")).to_contain_text("none for these runs")
    compare(watched, "numclaim")
    open_tab(page, "Many headlines")
    expect(page.locator("#batch-matched input")).to_be_disabled()
    page.locator("#batch-lines textarea").fill("profit rose\nsplit\nrates held")
    page.locator("#batch-start").click()
    expect(page.locator("#batch-status")).to_contain_text("3 texts scored")
    expect(page.locator("#batch-chart .main-svg").first).to_be_visible()
    open_tab(page, "Training curves")
    expect(page.locator("#growth tbody tr")).to_have_count(1)
    open_tab(page, "Board")
    expect(page.locator("#verdicts")).to_contain_text("Dendritic against baseline")
    expect(page.locator("#verdicts")).not_to_contain_text("matched")
    expect(page.locator("#board-table tbody tr")).to_have_count(2)
    open_tab(page, "Where they differ")
    page.locator("#differ-scores .label-wrap").click()
    expect(page.locator(panel_of("Where they differ"))).to_contain_text(
        "does not say how far its annotators agreed"
    )
    open_tab(page, "Speed")
    expect(page.locator("#latency-matched input")).to_be_disabled()
    for tab in WITH_DATA_SET:
        open_tab(page, tab)
        settled(page)
    # Back to runs that have one.
    open_tab(page, "One headline")
    choose(page, "One headline", "AllAgree")
    expect(box).to_be_enabled()
    box.check()
    watched.answered(arms=3)
    page.close()
    assert watched.problems == []
