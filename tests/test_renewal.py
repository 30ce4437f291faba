"""Runs that finish while the page is being served, in a real browser and through the API."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gradio_client import Client
from playwright.sync_api import Browser, Locator, Page, expect

from bench.screenshots import open_tab
from finsent.results import leaderboard, manifest
from finsent.ui.renewal import fingerprint
from tests.app_fixtures import SEEDS, running_app
from tests.artifact_factory import ARMS, make_run
from tests.test_app_browser import BROWSER, Watched
from tests.test_app_browser import chromium as chromium

pytestmark = BROWSER
NEW = max(SEEDS) + 5


def publish(root: Path) -> None:
    leaderboard.write(root)
    manifest.write_manifest(root)


def offered(page: Page) -> list[str]:
    """Opens the list of seeds."""
    page.locator("#compare-seed input").click()
    page.get_by_role("option").first.wait_for()
    return [text.strip(" ✓\n") for text in page.get_by_role("option").all_inner_texts()]


def test_finished_runs_appear_in_an_app_that_is_running(
    chromium: Browser, app_artifacts: Path, tmp_path: Path
) -> None:
    root = tmp_path / "artifacts"
    root.mkdir()
    with running_app(root, tmp_path / "log", "--cuda") as url:
        follow(chromium, url, root, app_artifacts)


def chosen_backbone(page: Page) -> Locator:
    return page.locator("#compare-backbone input")


def follow(chromium: Browser, url: str, root: Path, app_artifacts: Path) -> None:
    page = chromium.new_page()
    page.goto(url)
    expect(page.locator("#tab-compare")).to_contain_text("Nothing trained yet")
    # The first runs: an empty page shows them by itself, and the model that was missing is loaded.
    made = root.with_name("made")
    shutil.copytree(app_artifacts, made)
    made.replace(root)
    expect(page.locator("#headline textarea")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("Ready")
    expect(page.locator("#status")).to_contain_text("SmolLM2-135M on")
    page.close()
    before = Watched(chromium, url)
    expect(before.page.locator("#status")).to_contain_text("Ready")
    client = Client(url, verbose=False)
    assert client.predict("allagree", api_name="/leaderboard")["arms"][0]["seeds"] == list(SEEDS)
    # Another seed.
    for arm in ARMS:
        make_run(root, "smollm2-135m", "allagree", arm, NEW, 340)
    publish(root)
    after = Watched(chromium, url)
    assert offered(after.page) == [*map(str, SEEDS), str(NEW)]
    after.page.get_by_role("option", name=str(NEW), exact=True).click()
    after.ask("profit rose")
    after.answered()
    for tab, place in (
        ("Training curves", "#growth"),
        ("Board", "#verdicts"),
        ("About", "#about"),
    ):
        open_tab(after.page, tab)
        expect(after.page.locator(place)).to_contain_text(
            f"run {NEW}:" if tab == "Board" else str(NEW)
        )
    open_tab(after.page, "Where they differ")
    after.page.locator("#evidence-seed input").click()
    expect(after.page.get_by_role("option", name=str(NEW), exact=True)).to_be_visible()
    assert client.predict("allagree", api_name="/leaderboard")["arms"][0]["seeds"][-1] == NEW
    # Who had the page open before goes on with what it shows.
    before.ask("profit rose")
    before.answered()
    before.page.get_by_label("Include a same-size model without dendrites").check()
    before.answered(arms=3)
    assert offered(before.page) == [*map(str, SEEDS)]
    # A run that is damaged is left out, and the page says so.
    path = root / "smollm2-135m" / "allagree" / "baseline" / f"seed-{NEW}" / "metrics.json"
    whole = path.read_text()
    path.write_text(json.dumps({**json.loads(whole), "accuracy": "high"}))
    damaged = Watched(chromium, url)
    place = f"smollm2-135m/allagree/baseline/seed-{NEW}"
    expect(damaged.page.locator("#status")).to_contain_text(f"Left out for damage: {place}")
    open_tab(damaged.page, "Board")
    expect(damaged.page.locator("#left-out")).to_contain_text(
        f"{place}/metrics.json: 'accuracy' is"
    )
    open_tab(damaged.page, "One headline")
    damaged.ask("profit rose")
    damaged.answered()
    assert str(NEW) in offered(damaged.page)
    path.write_text(whole)
    mended = Watched(chromium, url)
    expect(mended.page.locator("#status")).to_contain_text("Ready")
    expect(mended.page.locator("#status")).not_to_contain_text("Left out")
    # Runs of the better default: who comes now gets it, who was there keeps what was chosen.
    for arm in ARMS:
        make_run(root, "phi-2", "allagree", arm, 0, 340)
    publish(root)
    large = Watched(chromium, url)
    expect(large.page.locator("#status")).to_contain_text("Phi-2 on")
    expect(chosen_backbone(large.page)).to_have_value("Phi-2")
    large.ask("profit rose")
    large.answered()
    assert client.predict("profit rose", api_name="/compare")["backbone"] == "phi-2"
    before.ask("profit fell")
    expect(before.page.locator("#answer blockquote")).to_have_text("profit fell")
    expect(chosen_backbone(before.page)).to_have_value("SmolLM2-135M")
    for visitor in (before, after, damaged, mended, large):
        visitor.page.close()
        assert visitor.problems == []


def test_what_a_catalog_is_read_from_is_watched(tmp_path: Path) -> None:
    seen = [fingerprint(tmp_path)]
    folder = make_run(tmp_path)
    seen.append(fingerprint(tmp_path))
    publish(tmp_path)
    seen.append(fingerprint(tmp_path))
    (folder / "validation.csv").unlink()
    seen.append(fingerprint(tmp_path))
    assert len(set(seen)) == 4
    assert fingerprint(tmp_path) == seen[-1]
