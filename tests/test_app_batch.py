"""Many headlines, and what must not be lost or mixed, in a real browser."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from bench.screenshots import open_tab
from finsent.results.calibration import calibration_of
from finsent.serving.many_texts import CHUNK
from finsent.ui.tables.scored import PAGE
from tests.app_fixtures import WITHOUT_VALIDATION, running_app
from tests.test_app_browser import BROWSER, Watched, held_back
from tests.test_app_browser import chromium as chromium
from tests.test_app_browser import watched as watched
from tests.test_app_live_browser import ARMS, NAMES, drawn, raw_of, run_of

pytestmark = BROWSER


def start_batch(page: Page, lines: str) -> None:
    open_tab(page, "Many headlines")
    page.locator("#batch-lines textarea").fill(lines)
    page.locator("#batch-start").click()


def test_pasted_lines_are_scored_drawn_and_downloaded_at_once(
    watched: Watched, app_artifacts: Path
) -> None:
    page = watched.page
    start_batch(page, "profit rose\n\nanalysts split\n=1+1\n" + "x" * 2001)
    expect(page.locator("#batch-summary")).to_contain_text(
        "3 texts scored of the pasted texts, on CPU, 2 threads, fp32"
    )
    expect(page.locator("#batch-summary")).to_contain_text("The models differ on 1 of them")
    expect(page.locator("#batch-summary")).to_contain_text("row 5: 2,001 characters are too many")
    drawn(page.locator("#batch-chart"), ".barlayer .point path")
    with page.expect_download() as taken:
        page.locator("#batch-download").click()
    content = Path(taken.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert [row["row"] for row in rows] == ["1", "3", "4", "5"]
    assert rows[2]["text"] == "'=1+1"
    shown = page.locator("#batch-results")
    for row, text in zip(rows[:3], ("profit rose", "analysts split", "=1+1"), strict=True):
        for arm in ARMS:
            calibration = calibration_of(run_of(app_artifacts, arm))
            assert calibration is not None
            expected = calibration.calibrate(raw_of(app_artifacts, text, arm))
            for name, p in zip(NAMES, expected, strict=True):
                assert float(row[f"{arm}_{name}_calibrated"]) == pytest.approx(p, abs=1e-6)
            says = rf"{row[f'{arm}_label']} {100 * max(expected):.1f}\s*%"
            line = shown.locator("tbody tr").nth(rows.index(row))
            expect(line.locator("th")).to_have_text(row["row"])
            expect(line.locator("td").nth(1 + ARMS.index(arm))).to_contain_text(re.compile(says))
    expect(shown.locator("tbody tr").nth(3)).to_contain_text("2,001 characters are too many")
    page.locator("#batch-filter").get_by_label("Only where they differ").check()
    expect(shown.locator("tbody tr")).to_have_count(1)
    expect(shown).to_contain_text("analysts split")
    labels = [row["baseline_label"] for row in rows[:3]]
    heights = page.locator("#batch-chart .barlayer .trace").first.locator(".point text")
    assert [int(t) for t in heights.all_text_contents()] == [labels.count(name) for name in NAMES]


def test_a_csv_file_is_read_by_the_column_picked(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    path = tmp_path / "news.csv"
    path.write_text("id;headline;body\n1;profit rose;analysts split\n2;;x\n", encoding="utf-8")
    open_tab(page, "Many headlines")
    page.locator("#batch-file input[type=file]").set_input_files(path)
    expect(page.locator("#batch-found")).to_contain_text("2 rows, 3 columns")
    expect(page.locator("#batch-column input")).to_have_value("headline")
    page.locator("#batch-start").click()
    expect(page.locator("#batch-status")).to_contain_text("1 text scored")
    expect(page.locator("#batch-summary")).to_contain_text("row 3: the cell is empty")
    page.locator("#batch-column input").click()
    page.get_by_role("option", name="body").click()
    page.locator("#batch-which button").first.click()
    page.locator("#batch-matched input").check()
    page.locator("#batch-start").click()
    expect(page.locator("#batch-status")).to_contain_text("2 texts scored")
    expect(page.locator("#batch-results")).to_contain_text("Matched")
    page.locator("#batch-seed input").click()
    page.get_by_role("option", name=str(WITHOUT_VALIDATION)).click()
    page.locator("#batch-start").click()
    expect(page.locator("#batch-summary")).to_contain_text("Probabilities are raw")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"id,text\n1,a\n2,b,c\n", "row 3: 3 cells, the header has 2"),
        (b"id,text\n1,G\xe4vle\n", "line 2: byte 0xe4 is not UTF-8"),
        (b"text\n", "the header is the only row"),
    ],
)
def test_a_malformed_file_gives_row_and_reason(
    watched: Watched, tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    open_tab(watched.page, "Many headlines")
    watched.page.locator("#batch-file input[type=file]").set_input_files(path)
    expect(watched.page.locator("#batch-found")).to_contain_text(reason, ignore_case=True)
    watched.page.locator("#batch-start").click()
    expect(watched.page.locator("#batch-status")).to_contain_text("Nothing was scored")
    expect(watched.page.locator("#batch-status")).to_contain_text(reason, ignore_case=True)
    expect(watched.page.locator("#batch-start")).to_be_enabled()


@pytest.mark.parametrize("told", ["#batch-found", "#batch-status"])
def test_another_encoding_is_one_click_from_the_message_that_offers_it(
    watched: Watched, tmp_path: Path, told: str
) -> None:
    page = watched.page
    path = tmp_path / "old.csv"
    path.write_bytes("id,text\n1,Gävle profit rose\n2,I fed the cat and the dog\n".encode("cp1252"))
    open_tab(page, "Many headlines")
    page.locator("#batch-file input[type=file]").set_input_files(path)
    expect(page.locator("#batch-found")).to_contain_text("the line reads '1,Gävle profit rose'")
    if told == "#batch-status":
        page.locator("#batch-start").click()
    page.locator(told).get_by_role("button", name="Read it as Windows-1252 and score").click()
    expect(page.locator("#batch-summary")).to_contain_text("2 texts scored of the file")
    expect(page.locator("#batch-results")).to_contain_text("Gävle profit rose")
    expect(page.locator("#batch-encoding input")).to_have_value("Windows-1252")
    # A text that the models were not made for is warned of in its row.
    expect(page.locator("#batch-summary")).to_contain_text("1 carries a warning")
    page.locator("#batch-filter").get_by_label("Only with a warning").check()
    expect(page.locator("#batch-results tbody tr")).to_have_count(1)
    expect(page.locator("#batch-results")).to_contain_text("Nothing here is about a company")


def test_a_separator_that_nobody_expects_can_be_named(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    path = tmp_path / "odd.csv"
    path.write_text("id~headline\n1~profit rose, sales fell\n2~no change\n", encoding="utf-8")
    open_tab(page, "Many headlines")
    expect(page.locator("#batch-separator")).to_be_hidden()
    page.locator("#batch-file input[type=file]").set_input_files(path)
    expect(page.locator("#batch-found")).to_contain_text("2 rows, 1 column")
    separator = page.locator("#batch-separator input")
    separator.fill("~")
    separator.press("Enter")
    expect(page.locator("#batch-found")).to_contain_text("2 rows, 2 columns")
    expect(page.locator("#batch-column input")).to_have_value("headline")
    page.locator("#batch-start").click()
    expect(page.locator("#batch-status")).to_contain_text("2 texts scored")
    path.write_text("id,headline\n1,profit rose\n", encoding="utf-8")
    page.locator("#batch-file button[aria-label='Clear']").click()
    page.locator("#batch-file input[type=file]").set_input_files(path)
    expect(page.locator("#batch-found")).to_contain_text("1 row, 2 columns")
    expect(page.locator("#batch-separator")).to_be_hidden()


def put(page: Page, path: Path) -> None:
    """Brings a file in the place of the one before."""
    before = page.locator("#batch-file button[aria-label='Clear']")
    if before.count():
        before.click()
        expect(page.locator("#batch-column")).to_be_hidden()
    page.locator("#batch-file input[type=file]").set_input_files(path)


BROKEN = {"broken.jsonl": b'{"text": "up"}\n{"text"\n', "old.csv": b"id,text\n1,G\xe4vle\n"}


def test_after_another_file_nothing_is_left_of_the_one_before(
    watched: Watched, tmp_path: Path
) -> None:
    page = watched.page
    for name, content in BROKEN.items():
        (tmp_path / name).write_bytes(content)
    plain = tmp_path / "plain.csv"
    plain.write_text("id,headline\n1,profit rose\n2,split\n", encoding="utf-8")
    open_tab(page, "Many headlines")
    status, outdated = page.locator("#batch-status"), page.locator("#batch-outdated")
    for name in BROKEN:
        page.locator("#batch-sample").click()
        expect(page.locator("#batch-labels input")).to_have_value("label")
        page.locator("#batch-start").click()
        expect(page.locator("#batch-summary")).to_contain_text("278 texts scored")
        expect(outdated).to_be_empty()
        page.locator("#batch-filter").get_by_label("Only wrong").check()
        put(page, tmp_path / name)
        expect(outdated).to_contain_text("These results are older")
        expect(page.locator("#batch-found")).to_contain_text("This file cannot be read")
        page.locator("#batch-start").click()
        expect(status).to_contain_text("Nothing was scored. Line 2")
        expect(page.locator("#batch-summary")).not_to_contain_text("scored")
        expect(page.locator("#batch-results tbody tr")).to_have_count(0)
        put(page, plain)
        expect(page.locator("#batch-found")).to_contain_text("2 rows, 2 columns")
        expect(status).not_to_contain_text("Nothing was scored")
        page.locator("#batch-start").click()
        expect(page.locator("#batch-summary")).to_contain_text("2 texts scored of the file")
        expect(page.locator("#batch-results tbody tr")).to_have_count(2)
    # What was changed and changed back is what was scored.
    page.locator("#batch-lines textarea").fill("profit rose")
    expect(outdated).to_contain_text("These results are older")
    page.locator("#batch-lines textarea").fill("")
    page.locator("#batch-source").wait_for(state="hidden")
    expect(page.locator(".toast-body")).to_have_count(0)


def test_what_was_scored_before_a_cancel_is_taken_away(watched: Watched) -> None:
    page = watched.page
    start_batch(page, "\n".join(f"slow headline {i}" for i in range(600)))
    page.wait_for_function("document.querySelector('#batch-status progress')?.value > 0")
    page.locator("#batch-stop").click()
    expect(page.locator("#batch-status")).to_contain_text("what was scored is below")
    expect(page.locator("#batch-summary")).to_contain_text("of 600 rows are here")
    page.wait_for_timeout(1500)
    with page.expect_download() as taken:
        page.locator("#batch-download").click()
    content = Path(taken.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert rows
    assert len(rows) % CHUNK == 0
    assert all(row["dendritic_label"] in NAMES for row in rows)


def test_answers_are_seen_in_a_narrow_window_and_progress_beside_the_button(
    chromium: Browser, app_url: str
) -> None:
    narrow = Watched(chromium, app_url, width=390)
    page = narrow.page
    start_batch(page, "slow headline\n" * 200 + "a long text " * 20)
    expect(page.locator("#batch-status progress")).to_be_in_viewport()
    expect(page.locator("#batch-summary")).to_contain_text("201 texts scored")
    row = page.locator("#batch-results tbody tr").first
    for cell in row.locator("td").all():
        box = cell.bounding_box()
        assert box is not None
        assert 0 <= box["x"] < box["x"] + box["width"] <= 390
    for name in ("Baseline", "Dendritic"):
        expect(row.locator("td .fs-of", has_text=name)).to_be_visible()
    page.close()


def test_nothing_to_score_and_a_broken_model_are_said(watched: Watched) -> None:
    page = watched.page
    start_batch(page, " \n")
    expect(page.locator("#batch-status")).to_contain_text("There is nothing to score")
    expect(page.locator("#batch-status button")).to_have_count(0)
    start_batch(page, "this one is broken")
    expect(page.locator("#batch-status")).to_contain_text("Stopped. the model broke")
    expect(page.locator("#batch-start")).to_be_enabled()
    expect(page.locator("#batch-lines textarea")).to_have_value("this one is broken")


def test_a_long_batch_shows_progress_blocks_nobody_and_can_be_cancelled(
    watched: Watched, chromium: Browser, app_url: str
) -> None:
    page = watched.page
    start_batch(page, "\n".join(f"slow headline {i}" for i in range(1500)))
    bar = page.locator("#batch-status progress")
    expect(bar).to_have_attribute("max", "1500")
    page.wait_for_function("document.querySelector('#batch-status progress')?.value > 0")
    done = int(bar.get_attribute("value") or 0)
    assert done % CHUNK == 0
    other = Watched(chromium, app_url)
    other.ask("profit rose meanwhile")
    other.answered()
    expect(other.page.locator("#answer blockquote")).to_contain_text("meanwhile")
    other.page.close()
    expect(page.locator("#batch-start")).to_be_disabled()
    page.locator("#batch-stop").click()
    expect(page.locator("#batch-status")).to_contain_text("Cancelled.")
    expect(page.locator("#batch-start")).to_be_enabled()
    page.wait_for_timeout(1500)
    expect(page.locator("#batch-status")).to_contain_text("Cancelled.")
    page.locator("#batch-lines textarea").fill("profit rose")
    page.locator("#batch-start").click()
    expect(page.locator("#batch-status")).to_contain_text("1 text scored")
    assert other.problems == []


def test_sample_headlines_come_with_labels_and_are_leafed_through(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Many headlines")
    page.locator("#batch-sample").click()
    expect(page.locator("#batch-found")).to_contain_text("278 rows, 3 columns")
    expect(page.locator("#batch-column input")).to_have_value("text")
    expect(page.locator("#batch-labels input")).to_have_value("label")
    page.locator("#batch-start").click()
    expect(page.locator("#batch-summary")).to_contain_text("278 texts scored of the file")
    expect(page.locator("#batch-accuracy")).to_contain_text("right (")
    expect(page.locator("#batch-accuracy .fs-batch-verdict")).to_contain_text("278 ")
    expect(page.locator("#batch-accuracy .fs-confusion")).to_have_count(2)
    shown = page.locator("#batch-results tbody tr")
    expect(shown).to_have_count(PAGE)
    expect(shown.first.locator("th")).to_have_text("2")  # the header is the file's first row
    page.locator("#batch-later").click()
    expect(shown.first.locator("th")).to_have_text(str(2 + PAGE))
    page.locator("#batch-filter").get_by_label("Only wrong").check()
    expect(shown.first).to_contain_text("wrong")
    # What is typed beside a file is not left out without a word.
    page.locator("#batch-lines textarea").fill("profit rose")
    expect(page.locator("#batch-source")).to_contain_text("Which should be scored?")
    page.locator("#batch-start").click()
    expect(page.locator("#batch-summary")).to_contain_text("1 text scored of the pasted texts")
    page.locator("#batch-source").get_by_label("The file").check()
    page.locator("#batch-start").click()
    expect(page.locator("#batch-summary")).to_contain_text("278 texts scored of the file")


def test_a_reload_while_a_batch_runs_is_asked_about_and_loses_no_text(
    watched: Watched, chromium: Browser, app_url: str
) -> None:
    page = chromium.new_page()
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.goto(app_url)
    text = "\n".join(f"slow headline {i}" for i in range(400))
    start_batch(page, text)
    page.wait_for_function("document.querySelector('#batch-status progress')?.value > 0")
    # A second batch at the same time gets its own rows.
    start_batch(watched.page, "profit rose\nsplit")
    expect(watched.page.locator("#batch-status")).to_contain_text("2 texts scored")
    expect(watched.page.locator("#batch-results tbody tr")).to_have_count(2)
    page.reload()
    assert asked == ["beforeunload"]
    open_tab(page, "Many headlines")
    expect(page.locator("#batch-lines textarea")).to_have_value(text)
    page.close()


def test_back_and_forward_go_through_the_tabs(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Board")
    open_tab(page, "Studies")
    page.go_back()
    page.go_back()
    expect(page.locator("#tab-leaderboard")).to_be_visible()
    page.go_forward()
    page.go_forward()
    expect(page.locator("#tab-studies")).to_be_visible()
    page.get_by_role("tab", name="Studies").focus()
    page.keyboard.press("Home")
    expect(page.locator("#tab-curves")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-differ")).to_be_visible()


CLICK_AT_ONCE = """
(ids) => {
  for (const id of ids) document.querySelector(`[role=tab][data-tab-id="${id}"]`).click();
}
"""


def test_who_clicks_faster_than_the_page_draws_goes_back_step_by_step(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Studies")
    open_tab(page, "About")
    page.evaluate(CLICK_AT_ONCE, ["results", "evidence", "curves", "try", "batch"])
    expect(page.locator("#tab-batch")).to_be_visible()
    for place in ("compare", "curves", "studies", "leaderboard", "about", "studies", "curves"):
        page.go_back()
        expect(page.locator(f"#tab-{place}")).to_be_visible()
        assert f"tab={place}" in page.url
    page.go_back()
    expect(page.locator("#tab-compare")).to_be_visible()


def test_a_tab_opened_while_the_page_still_reads_its_link_stays_open(
    chromium: Browser, app_url: str
) -> None:
    page = chromium.new_page()
    with held_back(page):
        page.goto(f"{app_url}?tab=latency")
        page.get_by_role("tab", name="About", exact=True).click()
        expect(page.locator("#tab-about")).to_be_visible()
    page.wait_for_function("window.finsentOpened")
    page.wait_for_timeout(300)
    expect(page.locator("#tab-about")).to_be_visible()
    assert "tab=about" in page.url
    page.close()


def test_a_lost_connection_is_said_and_the_text_stays(
    chromium: Browser, app_artifacts: Path, tmp_path: Path
) -> None:
    with running_app(app_artifacts, tmp_path / "log") as url:
        page = chromium.new_page()
        page.goto(url)
        page.wait_for_function("document.querySelector('#answer [data-agree=true]')")
        # The opening answer is there before the rest of the page has come from the server.
        page.wait_for_function("window.finsentOpened")
    page.locator("#headline textarea").fill("Asked in vain")
    page.locator("#headline textarea").press("Enter")
    # gradio's words where it has noticed first, else the page's own.
    expect(page.get_by_text(re.compile("onnection to the server")).first).to_be_visible()
    expect(page.locator("#headline textarea")).to_have_value("Asked in vain")
    expect(page.locator("#answer")).not_to_have_attribute("data-busy", "")
    page.close()
