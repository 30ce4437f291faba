"""Screenshots of every tab, light and dark, wide and narrow.

    python bench/screenshots.py screenshots/                                   # starts the app
    python bench/screenshots.py screenshots/ --url http://127.0.0.1:7860       # one that runs

Also prints, for each picture, whether the page is wider than its window and how long the tab took
to appear, and fails when anything was asked of another host or an error reached the console.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Browser, Locator, Page, sync_playwright

from finsent.ui.parts import places

PLACES = {
    title: (tab.title, place)
    for name, tab in places.TABS.items()
    if name != "owner"
    for place, title in (tab.sections or {name: tab.title}).items()
}
"""Title of a section, or of a tab without any -> title of its tab, and id."""
TABS = tuple(PLACES)
START_SECONDS = 120
MODES = ("light", "dark")
WIDTHS = (1440, 390)
HEADLINE = "Sales climbed 8 %, yet higher freight costs wiped out the gain in margin."
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

TRIES = 3
OPEN_AND_TIME = """
async (tab, selector) => {
  const start = performance.now();
  tab.click();
  const shown = () => (document.querySelector(selector)?.offsetHeight ?? 0) > 0;
  while (!shown() && performance.now() - start < 10000) {
    await new Promise((resume) => setTimeout(resume, 1));
  }
  return (performance.now() - start) / 1000;
}
"""


def photograph(
    browser: Browser, url: str, folder: Path, mode: str, width: int, headline: str
) -> list[str]:
    """Takes a picture of each tab. Returns the problems seen."""
    problems: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900})
    host = urlsplit(url).netloc

    def watch(address: str) -> None:
        if urlsplit(address).scheme.startswith("http") and urlsplit(address).netloc != host:
            problems.append(f"asked {address}")

    page.on("request", lambda request: watch(request.url))
    page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
    page.on(
        "console",
        lambda message: (
            problems.append(f"console: {message.text}") if message.type == "error" else None
        ),
    )
    page.goto(f"{url}?__theme={mode}")
    tab_button(page, "Try").wait_for()
    page.wait_for_function("window.finsentOpened", timeout=120_000)
    page.locator("#headline textarea").fill(headline)
    page.locator("#headline textarea").press("Enter")
    # The question repeated above the answer is hidden in a narrow window.
    answered = page.locator("#answer:not([data-busy])", has_text=headline)
    answered.locator(".fs-bar").first.wait_for(timeout=120_000)
    for tab in TABS:
        seconds = open_tab(page, tab)
        page.wait_for_timeout(700)
        name = f"{tab.lower().replace(' ', '-')}-{mode}-{width}.png"
        page.screenshot(path=folder / name, full_page=True)
        excess = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        print(f"{name}: {1000 * seconds:.0f} ms to show, {max(excess, 0)} px too wide")
        if excess > 0:
            problems.append(f"{name}: the page is {excess} px wider than its window")
    page.close()
    return problems


def open_tab(page: Page, name: str) -> float:
    """Opens a tab or a section of one, by its title.

    Returns seconds from the click until its contents have a place on the page, by the page's clock.
    """
    open_around(page, name)
    panel = page.locator(panel_of(name))
    for _ in range(TRIES):
        seconds = tab_button(page, name).evaluate(OPEN_AND_TIME, panel_of(name))
        if panel.is_visible():
            return float(seconds)
        # A bar that was being laid out anew lets a click fall beside its button.
    raise SystemExit(f"the tab {name!r} did not open in {TRIES} tries")


def open_around(page: Page, name: str) -> None:
    """Opens the tab that a section is in."""
    around, _ = PLACES.get(name, (name, ""))
    if around != name:
        page.get_by_role("tab", name=around, exact=True).click()


def tab_button(page: Page, name: str) -> Locator:
    """What opens a tab or a section, which has to be in sight."""
    return page.get_by_role("tab", name=name, exact=True)


def panel_of(name: str) -> str:
    """Selector of the contents of a tab or a section."""
    _, place = PLACES.get(name, ("", name.lower()))
    return f"#tab-{place}"


@contextmanager
def own_app(artifacts: Path | None) -> Iterator[str]:
    """The app as a subprocess on a free port; yields its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "app.py"), "--port", str(port)]
    if artifacts is not None:
        command += ["--artifacts", str(artifacts)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(url, timeout=2).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the app did not come up; see its output above") from None
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--url", help="address of a running page (default: start the app)")
    parser.add_argument("--artifacts", type=Path, help="folder of runs for the app started here")
    parser.add_argument("--headline", default=HEADLINE, help="text to compare first")
    parser.add_argument("--chromium", type=Path, default=CHROMIUM, help="path of the browser")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    page = nullcontext(options.url) if options.url else own_app(options.artifacts)
    with page as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(options.chromium), args=list(FLAGS)
        )
        for mode in MODES:
            for width in WIDTHS:
                problems += photograph(browser, url, options.folder, mode, width, options.headline)
        browser.close()
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
