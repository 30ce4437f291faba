"""What the page may cost a visitor: time, jumps, reach. In a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from bench.page import READY, ready_ms, settle
from bench.screenshots import TABS, open_tab
from finsent.machine.timing import load_per_core
from tests.app_fixtures import app_artifacts as app_artifacts
from tests.app_fixtures import app_url as app_url
from tests.test_app_browser import ANSWER, BROWSER, PATIENCE, settled
from tests.test_app_browser import chromium as chromium

pytestmark = BROWSER
WARM_MS = 1500
"""Until the box of a page that the browser knows takes input."""
BUSY = 2.0
"""Tasks for each core from which on a time says nothing of the page."""
MOST_SHIFT = 0.05
"""Cumulative layout shift, as browsers count it."""
FINGER_PX = 44
TRIES = 5
SHIFTS = """
window.finsentShifts = [];
new PerformanceObserver((list) => {
  for (const shift of list.getEntries()) {
    if (!shift.hadRecentInput) {
      window.finsentShifts.push([shift.value,
        shift.sources.map((s) => s.node?.id || s.node?.className || s.node?.nodeName)]);
    }
  }
}).observe({type: 'layout-shift', buffered: true});
"""
SMALL = """
(px) => [...document.querySelectorAll('button, summary, input, select')]
  .filter((e) => e.checkVisibility() && e.getClientRects().length)
  // A box to tick is pressed by its label, a drop-down by its frame, a slider by its thumb.
  .map((e) => [e, e.matches('input') ? e.closest('label') ?? e.closest('.wrap') ?? e : e])
  .filter(([e, pressed]) => pressed.getBoundingClientRect().height < px - 0.5)
  .filter(([e]) => e.type !== 'range' && e.type !== 'file')
  .map(([e]) => e.outerHTML.slice(0, 140))
"""
SIZES = [(390, 844), (1440, 900)]


def opened(browser: Browser, url: str, size: tuple[int, int], script: str = "") -> Page:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.set_default_timeout(PATIENCE)
    if script:
        page.add_init_script(script)
    page.goto(url)
    page.locator(ANSWER).wait_for()
    settle(page)
    return page


@pytest.mark.parametrize("size", SIZES)
def test_the_answer_and_its_chart_stand_above_the_fold(
    chromium: Browser, app_url: str, size: tuple[int, int]
) -> None:
    page = opened(chromium, app_url, size)
    bottom = page.locator("#answer .fs-merged").evaluate("e => e.getBoundingClientRect().bottom")
    assert bottom <= size[1]
    page.close()


@pytest.mark.parametrize("size", SIZES)
def test_nothing_jumps_while_the_page_opens_and_answers(
    chromium: Browser, app_url: str, size: tuple[int, int]
) -> None:
    page = opened(chromium, app_url, size, SHIFTS)
    page.wait_for_timeout(1000)
    page.locator("#headline textarea").fill("Profit rose")
    page.locator("#headline textarea").press("Enter")
    expect(page.locator("#answer .fs-says")).to_contain_text("positive")
    page.wait_for_timeout(1000)
    shifts = page.evaluate("window.finsentShifts")
    assert sum(value for value, _ in shifts) <= MOST_SHIFT, shifts
    page.close()


def test_a_page_that_the_browser_knows_takes_input_soon(chromium: Browser, app_url: str) -> None:
    context = chromium.new_context()
    context.add_init_script(READY)
    page = context.new_page()
    ready_ms(page, app_url)
    times = []
    for _ in range(TRIES):
        settle(page)
        times.append(ready_ms(page, app_url))
    context.close()
    # The quickest: a machine that is busy elsewhere only ever makes it slower.
    busy = load_per_core()
    if min(times) > WARM_MS and busy is not None and busy > BUSY:
        pytest.skip(f"{busy:.1f} tasks wait for each core: no time of an idle machine")
    assert min(times) <= WARM_MS, times


def test_fingers_find_every_control_of_a_phone(chromium: Browser, app_url: str) -> None:
    page = opened(chromium, app_url, SIZES[0])
    for tab in TABS:
        open_tab(page, tab)
        settled(page)
        assert page.evaluate(SMALL, FINGER_PX) == [], tab
    page.close()
