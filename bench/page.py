"""Time until the page can be used, and time of a tab switch, in a real browser.

    python bench/page.py                                     # starts the app, waits for its model
    python bench/page.py --url http://127.0.0.1:7860         # one that runs

Ready: from the start of navigation until the headline's box and the Compare button are seen and
take input. Cold: a browser that has never seen the page; warm: the same one once more. Shown: from
the click on a tab until its contents have been painted; drawn: until its charts have marks too.
The first time a tab is opened it is built, later it is only shown. All by the page's own clock.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Browser, Page, sync_playwright

from bench.screenshots import (
    CHROMIUM,
    FLAGS,
    TABS,
    WIDTHS,
    open_around,
    own_app,
    panel_of,
    tab_button,
)
from finsent.results.provenance import git_commit
from finsent.results.runs import write_json

READY = """
(() => {
  const usable = (element) => element && element.offsetHeight > 0 && !element.disabled
    && element.checkVisibility({opacityProperty: true});
  const look = () => {
    if (usable(document.querySelector('#headline textarea'))
        && usable(document.querySelector('#compare'))) {
      window.finsentReadyMs = performance.now();
    } else {
      requestAnimationFrame(look);
    }
  };
  look();
})();
"""
SWITCH = """
async (tab, [panel, charts]) => {
  const frame = () => new Promise((resume) => requestAnimationFrame(resume));
  const start = performance.now();
  tab.click();
  while (!((document.querySelector(panel)?.offsetHeight ?? 0) > 0)) { await frame(); }
  await frame();
  const shown = performance.now() - start;
  const drawn = () => [...document.querySelectorAll(charts)].every(
    (chart) => chart.offsetHeight === 0 || chart.querySelector('.main-svg .trace path'));
  while (!drawn() && performance.now() - start < 20000) { await frame(); }
  return [shown, performance.now() - start];
}
"""
CHARTS = ("[id^=chart-]", "[id^=bench-]")


def charts_of(tab: str) -> str:
    """Selector of a tab's charts."""
    return ", ".join(f"{panel_of(tab)} {chart}" for chart in CHARTS)


def ready_ms(page: Page, url: str) -> float:
    """Milliseconds until the page that is opened can be used."""
    page.goto(url, wait_until="commit")
    page.wait_for_function("window.finsentReadyMs", timeout=60_000)
    return float(page.evaluate("window.finsentReadyMs"))


def settle(page: Page) -> None:
    """Waits until the page has asked what its address wants and has been told."""
    page.wait_for_function("window.finsentOpened", timeout=60_000)


def measure(browser: Browser, url: str, width: int, times: int) -> dict[str, Any]:
    """Medians and extremes at one window width."""
    found: dict[str, list[float]] = {"ready_cold_ms": [], "ready_warm_ms": []}
    kinds = ("first_shown_ms", "first_drawn_ms", "again_shown_ms")
    tabs: dict[str, dict[str, list[float]]] = {tab: {kind: [] for kind in kinds} for tab in TABS}
    for _ in range(times):
        context = browser.new_context(viewport={"width": width, "height": 900})
        context.add_init_script(READY)
        page = context.new_page()
        found["ready_cold_ms"].append(ready_ms(page, url))
        settle(page)
        found["ready_warm_ms"].append(ready_ms(page, url))
        settle(page)
        for visit in ("first", "again"):
            for tab in (*TABS[1:], TABS[0]):
                open_around(page, tab)
                shown, drawn = tab_button(page, tab).evaluate(
                    SWITCH, [panel_of(tab), charts_of(tab)]
                )
                if visit == "first":
                    tabs[tab]["first_drawn_ms"].append(drawn)
                tabs[tab][f"{visit}_shown_ms"].append(shown)
        context.close()
    return {
        **{name: spread(values) for name, values in found.items()},
        "tabs": {tab: {k: spread(v) for k, v in kind.items()} for tab, kind in tabs.items()},
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {
        "median": round(statistics.median(values), 1),
        "min": round(min(values), 1),
        "max": round(max(values), 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="address of a running page (default: start the app)")
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--chromium", type=Path, default=CHROMIUM, help="path of the browser")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/page.json")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    with (
        nullcontext(options.url) if options.url else own_app(None) as url,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=str(options.chromium), args=list(FLAGS)
        )
        page = browser.new_page()
        page.goto(url)
        page.locator("#status [data-phase=ready]").wait_for(timeout=120_000)
        page.close()
        widths = {str(width): measure(browser, url, width, options.times) for width in WIDTHS}
        version = browser.version
        browser.close()
    result: dict[str, Any] = {"n": options.times, "load_before": round(load, 2)}
    for width, of_width in widths.items():
        for kind in ("cold", "warm"):
            result[f"ready_{kind}_{width}px_ms"] = of_width[f"ready_{kind}_ms"]["median"]
        result[f"slowest_tab_switch_{width}px_ms"] = max(
            tab["again_shown_ms"]["median"] for tab in of_width["tabs"].values()
        )
    result |= {
        "widths": widths,
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "chromium": version,
            **{name: importlib.metadata.version(name) for name in ("gradio", "plotly")},
        },
        "command": "python bench/page.py",
        "commit": git_commit(ROOT),
    }
    write_json(options.out, result)
    for width, of_width in widths.items():
        print(
            f"{width} px: ready {of_width['ready_cold_ms']} cold, {of_width['ready_warm_ms']} warm"
        )
        for tab, kinds in of_width["tabs"].items():
            print(f"  {tab}: " + ", ".join(f"{k} {v['median']}" for k, v in kinds.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
