"""The page in a real browser, over made-up artifacts and a made-up model."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from bench.screenshots import CHROMIUM, FLAGS, TABS, open_tab
from finsent.data.sets.examples import HEADLINES
from finsent.ui.build import STATUS_SECONDS
from tests.app_fixtures import WITHOUT_DENDRITES, running_app
from tests.app_fixtures import app_artifacts as app_artifacts
from tests.app_fixtures import app_url as app_url

BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}; install Debian's chromium"
    ),
]
"""Marks of tests in a real browser."""
pytestmark = BROWSER
SECONDS = 1000
PATIENCE = 60 * SECONDS
"""A machine that is busy elsewhere starves a browser before anything else."""
CUT_OFF = """
[...document.querySelectorAll('p, li, h1, h2, h3, dd, blockquote, button, input, textarea')]
  .filter(e => e.checkVisibility() && !e.closest('.fs-table, #runs, .js-plotly-plot'))
  .filter(e => !e.closest('.visually-hidden') && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 120))
"""
ANSWER = ".fs-answer:not([data-label=none])"


STILL = """
() => {
  const moving = document.getAnimations().some(
    (a) => a.playState === 'running' && a.effect.getTiming().iterations !== Infinity);
  const undrawn = [...document.querySelectorAll('[id^=chart-], [id^=bench-]')].some(
    (chart) => chart.checkVisibility() && chart.offsetHeight > 0
      && !chart.querySelector('.main-svg .trace'));
  return !moving && !undrawn;
}
"""


def settled(page: Page) -> None:
    """Waits until nothing moves and every chart in sight is drawn."""
    page.wait_for_function(STILL, timeout=60 * SECONDS)


def becomes(page: Page, expression: str, wanted: object, where: object) -> None:
    """Waits until an expression has a value, and says what it has instead."""
    deadline = time.monotonic() + 20
    while (found := page.evaluate(expression)) != wanted and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert found == wanted, where


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    # Not pytest-playwright's `browser`: that one insists on a browser downloaded by playwright.
    # A busy machine draws late; nothing here is a measurement.
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield browser
        browser.close()


class Watched:
    """A page that notes errors and every request that leaves the machine."""

    def __init__(self, browser: Browser, url: str, width: int = 1280, mode: str = "light") -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(PATIENCE)
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        self.page.on("console", self._listen)
        self.page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self._check(request.url, url))
        self.page.goto(f"{url}?__theme={mode}")
        self.page.locator("#headline textarea").wait_for()

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text}")

    def _check(self, address: str, url: str) -> None:
        if not address.startswith((url, "data:", "blob:")):
            self.problems.append(f"asked {address}")

    def ask(self, text: str) -> None:
        self.page.locator("#headline textarea").fill(text)
        self.page.locator("#headline textarea").press("Enter")

    def answered(self, arms: int = 2) -> None:
        expect(self.page.locator(ANSWER)).to_have_count(arms)


@pytest.fixture
def watched(chromium: Browser, app_url: str) -> Iterator[Watched]:
    watched = Watched(chromium, app_url)
    yield watched
    watched.page.close()
    assert watched.problems == []


def test_typed_headline_shows_both_predictions(watched: Watched) -> None:
    watched.ask("Operating profit rose to a record")
    watched.answered()
    page = watched.page
    for arm in ("Baseline", "Dendritic"):
        card = page.get_by_role("region", name=arm, exact=True)
        expect(card).to_contain_text(re.compile(r"positive\s*\d+\.\d", re.I))
        expect(card).to_contain_text(re.compile(r"\d\sms model time"))
        expect(card).to_contain_text("over 1 call on CPU, 2 threads, fp32")
        label = card.locator(ANSWER).get_attribute("data-label")
        expect(card.locator(".fs-bar[data-top=true] dt")).to_have_text(str(label))
    expect(page.locator("#banner")).to_contain_text("Both say")
    expect(page.locator("#status")).to_contain_text("SmolLM2-135M on CPU, 2 threads, fp32")
    expect(page.locator("#status")).to_contain_text("the embedded default")


def test_disagreement_is_said(watched: Watched) -> None:
    watched.ask("Analysts are split")
    expect(watched.page.locator("#banner")).to_contain_text("They differ: baseline says")


def test_examples_and_the_button_answer(watched: Watched) -> None:
    page = watched.page
    page.get_by_role("button", name=HEADLINES[1].kind).click()
    expect(page.locator("#headline textarea")).to_have_value(HEADLINES[1].text)
    watched.answered()
    expect(page.locator("#banner blockquote")).to_have_text(HEADLINES[1].text)
    page.locator("#headline textarea").fill("Another one")
    page.locator("#compare").click()
    expect(page.locator("#banner blockquote")).to_have_text("Another one")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "type a headline"), ("   ", "type a headline"), ("x" * 10_000, "at most 2,000")],
)
def test_unusable_text_gets_a_message(watched: Watched, text: str, message: str) -> None:
    watched.ask(text)
    expect(watched.page.get_by_role("alert")).to_contain_text(message)
    expect(watched.page.locator(ANSWER)).to_have_count(0)
    # The page goes on asking how the model is; what it said of the text stays.
    watched.page.wait_for_timeout(2 * STATUS_SECONDS * SECONDS)
    expect(watched.page.get_by_role("alert")).to_contain_text(message)


def test_markup_emoji_and_other_scripts_are_shown_as_text(watched: Watched) -> None:
    text = "<img src=x onerror=alert(1)><b>bold</b> 🚀 прибыль & more"
    watched.ask(text)
    watched.answered()
    expect(watched.page.locator("#banner blockquote")).to_have_text(text)
    assert watched.page.locator("#banner img, #banner b").count() == 0


def test_other_runs_answer_the_same_headline(watched: Watched) -> None:
    page = watched.page
    watched.ask("Margins held")
    watched.answered()
    page.get_by_label("Also run the matched control").check()
    watched.answered(arms=3)
    page.locator("#compare-seed input").click()
    page.get_by_role("option", name=str(WITHOUT_DENDRITES)).click()
    expect(page.locator("#cards")).to_contain_text("No dendrite in the dendritic run.")
    watched.answered(arms=3)
    page.locator("#compare-dataset input").click()
    page.get_by_role("option", name="50Agree").click()
    expect(page.locator("#verdict")).to_contain_text("50Agree")
    watched.answered(arms=3)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_phone_width_never_scrolls_sideways(chromium: Browser, app_url: str, mode: str) -> None:
    watched = Watched(chromium, app_url, width=390, mode=mode)
    page = watched.page
    watched.ask("x" * 300 + " Ein sehr langes Wort: " + "Donaudampfschifffahrt" * 8)
    watched.answered()
    assert page.evaluate("document.body.classList.contains('dark')") is (mode == "dark")
    for tab in TABS:
        open_tab(page, tab)
        settled(page)
        becomes(page, "document.documentElement.scrollWidth <= innerWidth", True, tab)
        # Cut off is no better than scrolling: only tables and charts may hold more than is seen.
        becomes(page, CUT_OFF, [], tab)
    page.close()
    assert watched.problems == []


def test_theme_button_switches(watched: Watched) -> None:
    colour = "getComputedStyle(document.querySelector('h1')).color"
    before = watched.page.evaluate(colour)
    watched.page.get_by_role("button", name="Light / dark").click()
    watched.page.wait_for_function(f"before => {colour} !== before", arg=before)


def test_headline_asked_while_loading_waits_and_is_answered(
    chromium: Browser, app_artifacts: Path, tmp_path: Path
) -> None:
    loaded = tmp_path / "loaded"
    with running_app(app_artifacts, tmp_path / "app.log", "--loaded-by", str(loaded)) as url:
        watched = Watched(chromium, url)
        expect(watched.page.locator("#status")).to_contain_text("Downloading weights")
        watched.ask("Asked too early")
        expect(watched.page.locator("#banner")).to_contain_text("waits for the model")
        loaded.touch()
        watched.answered()
        expect(watched.page.locator("#status")).to_contain_text("Ready")
        watched.page.close()
        assert watched.problems == []


def test_page_without_runs_comes_up_and_says_so(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with running_app(tmp_path / "empty", tmp_path / "app.log") as url:
        page = chromium.new_page()
        page.goto(url)
        expect(page.locator("#status")).to_contain_text("make train")
        expect(page.locator("#tab-compare")).to_contain_text("It opens by itself")
        page.close()
