"""The page in a real browser, over made-up artifacts and a made-up model."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright

from bench.screenshots import CHROMIUM, FLAGS, TABS, open_tab
from finsent.data.sets.examples import HEADLINES
from finsent.ui.build import STATUS_SECONDS
from tests.app_fixtures import WITHOUT_DENDRITES, running_app

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
  .filter(e => e.checkVisibility() && !e.closest('.fs-table, #runs, .js-plotly-plot, .fs-examples'))
  .filter(e => !e.closest('.visually-hidden') && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 120))
"""
ANSWER = "#answer .fs-result:is([data-agree=true], [data-agree=false])"


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

    def answered(self, arms: int = 2, text: str | None = None) -> None:
        """Waits for the answer to what was asked last, or to a text."""
        self.page.wait_for_function(
            "text => document.querySelector('#answer blockquote')?.innerText.trim() === text",
            arg=text or self.page.locator("#headline textarea").input_value().strip(),
        )
        expect(self.page.locator("#answer .fs-legend li")).to_have_count(arms)
        expect(self.page.locator("#answer")).not_to_have_attribute("data-busy", "")


@contextmanager
def held_back(page: Page) -> Iterator[None]:
    """What the page asks of the server meanwhile reaches it only afterwards."""
    held: list[Route] = []
    holding = True

    def hold(route: Route) -> None:
        if holding:
            held.append(route)
        else:
            route.continue_()

    page.route(re.compile("/gradio_api/(queue/join|run/)"), hold)
    yield
    holding = False
    for route in held:
        route.continue_()


@pytest.fixture
def watched(chromium: Browser, app_url: str) -> Iterator[Watched]:
    watched = Watched(chromium, app_url)
    yield watched
    watched.page.close()
    assert watched.problems == []


def test_the_page_opens_with_an_answer_and_says_what_it_stands_for(watched: Watched) -> None:
    page = watched.page
    watched.answered(text=HEADLINES[0].text)
    expect(page.locator("#headline textarea")).to_have_value(HEADLINES[0].text)
    expect(page.locator("#head")).to_contain_text("Short answer:")
    expect(page.locator("#head .fs-forest li")).to_have_count(2)
    expect(page.locator("#answer")).to_contain_text(re.compile(r"agree on \d+\.\d.% of 340"))
    expect(page.locator("#answer")).to_contain_text("Across 340 test texts × 3 runs")
    expect(page.locator("#status")).to_contain_text("SmolLM2-135M on CPU, 2 threads, fp32")


def test_typed_headline_shows_both_predictions(watched: Watched) -> None:
    watched.ask("Operating profit rose to a record")
    watched.answered()
    answer = watched.page.locator("#answer")
    label = answer.locator(".fs-says").get_attribute("data-label")
    expect(answer.locator(".fs-says")).to_contain_text(re.compile(f"Both models say . {label}"))
    for arm in ("baseline", "dendritic"):
        expect(answer.locator(f".fs-bar[data-arm={arm}]")).to_have_count(3)
        expect(answer.locator(f".fs-bar[data-arm={arm}][data-top=true]")).to_have_attribute(
            "data-label", str(label)
        )
    expect(answer).to_contain_text("Same answer; confidence differs by")
    answer.locator("summary", has_text="Details").click()
    expect(answer.get_by_label("Details of the answer")).to_contain_text("temperature")
    # What a visitor opened stays open with the next answer.
    watched.ask("Operating profit rose once more")
    watched.answered()
    expect(answer.get_by_label("Details of the answer")).to_be_visible()


@pytest.mark.parametrize("how", ["Enter", "click"])
def test_what_is_asked_before_the_page_listens_is_answered(
    chromium: Browser, app_url: str, how: str
) -> None:
    page = chromium.new_page()
    page.set_default_timeout(PATIENCE)
    # A page that has not begun to listen yet, held in that state: gradio hears no event before.
    page.add_init_script(
        """for (const kind of ['keydown', 'keypress', 'click']) {
          window.addEventListener(kind, (event) => {
            if (!window.finsentOpened) {
              event.target.addEventListener(
                kind, (late) => late.stopImmediatePropagation(), {capture: true, once: true});
            }
          }, true);
        }"""
    )
    with held_back(page):
        page.goto(app_url)
        box = page.locator("#headline textarea")
        box.fill("Asked too early")
        if how == "Enter":
            box.press("Enter")
        else:
            page.locator("#compare").click()
        assert not page.evaluate("window.finsentOpened")
    expect(page.locator("#answer blockquote")).to_have_text("Asked too early")
    page.close()


def test_disagreement_is_said(watched: Watched) -> None:
    watched.ask("Analysts are split")
    expect(watched.page.locator("#answer .fs-says")).to_contain_text("They disagree: baseline says")


def test_who_guesses_first_sees_the_answer_after_the_guess(watched: Watched) -> None:
    page = watched.page
    page.get_by_label("Guess first").check()
    watched.ask("profit rose in the north")
    page.wait_for_function("document.querySelector('#answer .fs-guess button')")
    expect(page.locator("#answer .fs-merged")).to_be_hidden()
    page.locator("#answer [data-guess=negative]").click()
    expect(page.locator("#answer")).to_contain_text("You say negative; the models do not.")
    expect(page.locator("#answer .fs-merged")).to_be_visible()
    watched.ask("profit rose in the south")
    page.wait_for_function("document.querySelector('#answer .fs-guess:not([hidden]) button')")
    heights = page.locator("#answer [data-guess]").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().height)"
    )
    assert len(set(heights)) == 1
    # Who unticks the box is not left without an answer.
    page.get_by_label("Guess first").uncheck()
    expect(page.locator("#answer .fs-merged")).to_be_visible()
    expect(page.locator("#answer .fs-guess")).to_be_hidden()


def test_an_article_is_answered_as_a_whole_and_by_passage(watched: Watched) -> None:
    watched.ask("Profit rose in all of the regions again. " * 60)
    watched.answered(text=("Profit rose in all of the regions again. " * 60).strip())
    expect(watched.page.locator("#answer")).to_contain_text("read in 5 passages")
    expect(watched.page.locator("#answer .fs-passages tbody tr")).to_have_count(5)


def test_the_old_answer_is_dimmed_and_never_comes_back(watched: Watched) -> None:
    page = watched.page
    watched.answered(text=HEADLINES[0].text)
    page.evaluate(
        """() => {
          window.seen = [];
          const note = () => {
            const answer = document.getElementById('answer');
            window.seen.push([answer.hasAttribute('data-busy'),
              answer.querySelector('blockquote')?.innerText.trim()]);
            requestAnimationFrame(note);
          };
          note();
        }"""
    )
    for text in ("First of several", "Second of several", "Third of several"):
        watched.ask(text)
    watched.answered(text="Third of several")
    seen = page.evaluate("window.seen")
    texts = [text for _, text in seen]
    order = list(dict.fromkeys(texts))
    assert order[0] == HEADLINES[0].text
    assert order[-1] == "Third of several"
    assert [texts.index(text) for text in order] == sorted(texts.index(text) for text in order)
    assert all(texts[texts.index(text) :].count(text) for text in order)
    assert [True, HEADLINES[0].text] in seen, "the old answer was not dimmed"


def test_the_old_answer_stays_dimmed_as_long_as_an_article_takes(watched: Watched) -> None:
    page = watched.page
    watched.answered(text=HEADLINES[0].text)
    article = "Profit was slow to rise in any of the regions. " * 400
    watched.ask(article)
    expect(page.locator("#answer")).to_have_attribute("data-busy", "")
    seen = page.evaluate(
        """old => new Promise((done) => {
          const seen = [];
          const look = () => {
            const answer = document.getElementById('answer');
            const text = answer.querySelector('blockquote').innerText.trim();
            if (text !== old) { done(seen); return; }
            seen.push(answer.hasAttribute('data-busy'));
            requestAnimationFrame(look);
          };
          look();
        })""",
        HEADLINES[0].text,
    )
    assert len(seen) > 10
    assert all(seen), "dimmed only for a moment"
    watched.answered(text=article.strip())


def test_examples_and_the_button_answer(watched: Watched) -> None:
    page = watched.page
    page.get_by_role("button", name=HEADLINES[1].kind).click()
    expect(page.locator("#headline textarea")).to_have_value(HEADLINES[1].text)
    watched.answered(text=HEADLINES[1].text)
    page.locator("#headline textarea").fill("Another one")
    page.locator("#compare").click()
    watched.answered(text="Another one")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "type a headline"), ("   ", "type a headline"), ("x" * 30_000, "at most 20,000")],
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
    expect(watched.page.locator("#answer blockquote")).to_have_text(text)
    assert watched.page.locator("#answer blockquote *, #answer img").count() == 0


def test_other_runs_answer_the_same_headline(watched: Watched) -> None:
    page = watched.page
    watched.ask("Margins held")
    watched.answered()
    page.get_by_label("Include a same-size model without dendrites").check()
    watched.answered(arms=3)
    page.locator("#compare-seed input").click()
    page.get_by_role("option", name=str(WITHOUT_DENDRITES)).click()
    expect(page.locator("#answer")).to_contain_text("No dendrite in the dendritic run.")
    watched.answered(arms=3)
    page.locator("#compare-dataset input").click()
    page.get_by_role("option", name="50Agree").click()
    expect(page.locator("#answer")).to_contain_text("runs (50Agree)")
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
        # Cut off is no better than scrolling: only tables, charts and the row of
        # examples, which slides under a finger, may hold more than is seen.
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
        expect(watched.page.locator("#answer")).to_contain_text("as soon as the model is loaded")
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
