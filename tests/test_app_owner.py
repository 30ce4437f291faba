"""The Owner tab in a real browser: who may train, what is kept, where it is pushed."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from bench.screenshots import open_tab
from tests.app_fixtures import OWNER_TOKEN, running_app
from tests.artifact_factory import make_run
from tests.test_app_browser import BROWSER, SECONDS, Watched
from tests.test_app_browser import chromium as chromium

pytestmark = BROWSER
ARMS = ("baseline", "dendritic")


@pytest.fixture
def owned(
    app_artifacts: Path, tiny_environment: None, tmp_path: Path
) -> Iterator[tuple[str, Path]]:
    root = Path(shutil.copytree(app_artifacts, tmp_path / "artifacts"))
    with running_app(root, tmp_path / "log", "--owner") as url:
        yield url, root


def test_the_owner_and_nobody_else_trains_watches_cancels_and_keeps(
    chromium: Browser, owned: tuple[str, Path], tmp_path: Path
) -> None:
    url, root = owned
    watched = Watched(chromium, url)
    page = watched.page
    open_tab(page, "Owner")
    for control in ("#owner-unlock", "#owner-start", "#owner-stop"):
        page.locator(control).click()
        expect(page.get_by_test_id("toast-text").last).to_contain_text(
            "for the owner of the page only"
        )
        page.get_by_test_id("toast-close").last.click()
        expect(page.get_by_test_id("toast-text")).to_have_count(0)
    assert not (root / ".work").exists()
    page.locator("#owner-token input").fill(OWNER_TOKEN)
    page.locator("#owner-unlock").click()
    expect(page.locator("#owner-status")).to_contain_text("Idle.")
    page.locator("#owner-start").click()
    expect(page.locator("#owner-status")).to_contain_text("Running.")
    # Curves grow while it trains, and visitors are answered by the model that was there.
    chart = page.locator("#owner-val-loss")
    chart.locator(".scatterlayer .trace").first.wait_for(timeout=120 * SECONDS)
    expect(page.locator("#owner-val-accuracy .scatterlayer .trace").first).to_be_visible()
    visitor = Watched(chromium, url)
    visitor.ask("profit rose")
    visitor.answered()
    visitor.page.close()
    page.screenshot(path=tmp_path / "owner.png", full_page=True)
    page.locator("#owner-stop").click()
    expect(page.locator("#owner-status")).to_contain_text("Cancelled; nothing was kept.")
    expect(chart).to_be_hidden()
    assert not (root / ".work" / "owner").exists()
    assert not (root / "tiny-phi").exists()
    # As if a training had finished: the same files where it leaves them.
    for arm in ARMS:
        make_run(root, "tiny-phi", "sample", arm)
    page.locator("#owner-unlock").click()
    expect(page.locator("#owner-download")).to_be_enabled()
    with page.expect_download() as taken:
        page.locator("#owner-download").click()
    with zipfile.ZipFile(taken.value.path()) as archive:
        assert "tiny-phi/sample/dendritic/seed-0/metrics.json" in archive.namelist()
    page.locator("#owner-start").click()
    expect(page.get_by_test_id("toast-text").last).to_contain_text("is trained already")
    page.get_by_text("Push to a repository of yours").click()
    page.locator("#owner-repo textarea").fill("someone/else")
    page.locator("#owner-push").click()
    expect(page.get_by_test_id("toast-text").last).to_contain_text("access token")
    # Once more: a field filled while its fold still opens can lose its text on a busy machine.
    page.locator("#owner-repo textarea").fill("someone/else")
    page.locator("#owner-write-token input").fill("a token")
    page.locator("#owner-push").click()
    expect(page.get_by_test_id("toast-text").last).to_contain_text("403 Forbidden")
    page.locator("#owner-repo textarea").fill("me/mine")
    page.get_by_label("Model repository").check()
    page.locator("#owner-push").click()
    expect(page.locator("#owner-pushed")).to_contain_text("Pushed tiny-phi/sample to me/mine.")
    pushed = [json.loads(line) for line in (tmp_path / "hub.jsonl").read_text().splitlines()]
    assert [entry["repo_type"] for entry in pushed] == ["model", "model"]
    page.close()
    assert visitor.problems == []
