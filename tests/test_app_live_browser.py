"""What is computed while the page is open, in a real browser: every control, chart and error."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from bench.screenshots import open_tab
from finsent.results.calibration import calibration_of, set_in_words
from finsent.results.runs import Run, read_run
from finsent.serving.attribution import attribute
from finsent.serving.many_texts import CHUNK
from finsent.ui.parts.markup import signed
from tests.app_fixtures import (
    SLOW,
    WITHOUT_VALIDATION,
    FakeComparer,
    running_app,
)
from tests.app_fixtures import app_artifacts as app_artifacts
from tests.app_fixtures import app_url as app_url
from tests.test_app_browser import ANSWER, BROWSER, Watched
from tests.test_app_browser import chromium as chromium
from tests.test_app_browser import watched as watched

pytestmark = BROWSER
ARMS = ("baseline", "dendritic")
NAMES = ("negative", "neutral", "positive")


def run_of(root: Path, arm: str, seed: int = 0) -> Run:
    return read_run(root / "smollm2-135m" / "allagree" / arm / f"seed-{seed}")


def raw_of(root: Path, text: str, arm: str, seed: int = 0) -> tuple[float, ...]:
    """What the made-up model answers."""
    model = FakeComparer(root / "smollm2-135m" / "allagree", seed, ARMS)
    return tuple(model.predict_proba([text], arm)[0])


def card(page: Page, arm: str) -> Locator:
    return page.locator("#cards").get_by_role("region", name=arm.capitalize(), exact=True)


def bars(region: Locator) -> list[str]:
    return [
        re.sub(r"\s", "", region.locator(f".fs-bar[data-label={name}] b").inner_text())
        for name in NAMES
    ]


def percents(values: tuple[float, ...]) -> list[str]:
    return [f"{100 * value:.1f}%" for value in values]


def drawn(chart: Locator, traces: str) -> None:
    """A chart with marks in it and some room on the page."""
    chart.locator(traces).first.wait_for()
    box = chart.locator(".main-svg").first.bounding_box()
    assert box is not None
    assert box["width"] > 250
    assert box["height"] > 60


# ----------------------------------------------------------------------------------------- Compare


def test_answers_are_calibrated_and_sets_come_with_their_coverage(
    watched: Watched, app_artifacts: Path
) -> None:
    text = "The board met on Tuesday"
    watched.ask(text)
    watched.answered()
    for arm in ARMS:
        calibration = calibration_of(run_of(app_artifacts, arm))
        assert calibration is not None
        raw = raw_of(app_artifacts, text, arm)
        shown = tuple(calibration.calibrate(raw))
        region = card(watched.page, arm)
        assert bars(region) == percents(shown)
        words = set_in_words([NAMES[i] for i in calibration.label_set(shown)], len(NAMES))
        expect(region.locator(".fs-set b")).to_have_text(words)
        expect(region.locator(".fs-set")).to_contain_text(
            re.compile(rf"{100 * calibration.coverage_measured:.1f}\s*% of 340 test sentences")
        )
        region.get_by_text("Raw probabilities").click()
        expect(region.locator(".fs-raw")).to_contain_text(
            re.compile(
                r", ".join(rf"{n} {100 * p:.1f}\s*%" for n, p in zip(NAMES, raw, strict=True))
            )
        )
        expect(region.locator(".fs-raw")).to_contain_text(f"{calibration.temperature:.2f}")
    expect(watched.page.locator("#cards")).to_contain_text("Bars show calibrated probabilities")
    expect(watched.page.locator("#banner")).to_contain_text("no queue")


def test_runs_without_validation_predictions_say_so(watched: Watched, app_artifacts: Path) -> None:
    page = watched.page
    page.locator("#compare-seed input").click()
    page.get_by_role("option", name=str(WITHOUT_VALIDATION)).click()
    expect(page.locator("#cards")).to_contain_text("kept no validation predictions")
    watched.ask("The board met on Tuesday")
    watched.answered()
    for arm in ARMS:
        raw = raw_of(app_artifacts, "The board met on Tuesday", arm, WITHOUT_VALIDATION)
        assert bars(card(page, arm)) == percents(raw)
    expect(page.locator(".fs-set")).to_have_count(0)


def effects_of(root: Path, text: str, arm: str) -> dict[str, float]:
    model = FakeComparer(root / "smollm2-135m" / "allagree", 0, ARMS)
    calibration = calibration_of(run_of(root, arm))
    assert calibration is not None
    calibrate = calibration.calibrate
    found = attribute(text, lambda texts: calibrate(model.predict_proba(texts, arm)))
    return {word.word: word.effect for word in found.words}


def test_words_are_marked_without_colour_and_listed(watched: Watched, app_artifacts: Path) -> None:
    page = watched.page
    text = "profit <b>rose</b> & the split widened"
    watched.ask(text)
    watched.answered()
    page.locator("#explain").click()
    sections = page.locator(".fs-words-arm")
    expect(sections).to_have_count(2)
    assert page.locator("#words b").count() == 0
    for arm, section in zip(ARMS, sections.all(), strict=True):
        effects = effects_of(app_artifacts, text, arm)
        assert section.locator(".fs-word").count() >= 1
        word = section.locator(".fs-word").first
        assert re.fullmatch(
            r"[+−][\d.]+ points (for|against) \w+", word.get_attribute("title") or ""
        )
        assert word.evaluate("e => getComputedStyle(e).textDecorationLine") == "underline"
        section.get_by_text("As a table").click()
        rows = section.locator("tbody tr")
        expect(rows).to_have_count(6)
        expect(section.locator("tbody th", has_text="<b>rose</b>")).to_be_visible()
        for word, effect in effects.items():
            row = section.locator("tbody tr", has=page.get_by_text(word, exact=True))
            expect(row).to_contain_text(signed(100 * effect))
    watched.ask("profit")
    expect(page.locator("#words")).not_to_contain_text("As a table")
    page.locator("#explain").click()
    expect(page.locator("#words").get_by_role("alert")).to_contain_text(
        "one word cannot be left out"
    )


def test_a_link_opens_what_was_shared(chromium: Browser, app_url: str) -> None:
    first = Watched(chromium, app_url)
    text = "profit & loss = 100 % 🚀"
    first.page.get_by_label("Also run the matched control").check()
    # Another choice of runs empties the cards; on a slow machine only after a quick answer.
    expect(first.page.locator("#cards .fs-cards")).to_have_attribute("data-cards", "3")
    first.ask(text)
    first.answered(arms=3)
    shown = [bars(card(first.page, arm)) for arm in ARMS]
    first.page.wait_for_function("location.search.includes('text=')")
    open_tab(first.page, "Speed")
    first.page.wait_for_function("location.search.includes('tab=latency')")
    address = first.page.url
    query = parse_qs(urlsplit(address).query)
    assert query["text"] == [text]
    first.page.close()
    second = chromium.new_page()
    second.goto(address)
    expect(second.get_by_role("tab", name="Speed")).to_have_attribute("aria-selected", "true")
    open_tab(second, "One headline")
    expect(second.locator(ANSWER)).to_have_count(3)
    assert [bars(card(second, arm)) for arm in ARMS] == shown
    expect(second.locator("#banner blockquote")).to_have_text(text)
    second.close()
    assert first.problems == []


@pytest.mark.parametrize(
    ("query", "seed"),
    [
        ("seed=2&dataset=50agree&tab=batch", "2"),
        ("seed=99&tab=%3Cscript%3E&backbone=../../etc&dataset=x", "0"),
        ("seed=-1&tab=", "0"),
    ],
)
def test_only_what_exists_is_believed_of_a_link(
    chromium: Browser, app_url: str, query: str, seed: str
) -> None:
    page = chromium.new_page()
    page.goto(f"{app_url}?text={quote('<img src=x onerror=alert(1)>')}&{query}")
    page.locator("#tabs [role=tab]").first.wait_for()
    open_tab(page, "One headline")
    expect(page.locator(ANSWER)).to_have_count(2)
    expect(page.locator("#compare-seed input")).to_have_value(seed)
    assert page.locator("#banner img").count() == 0
    page.close()


def test_the_link_is_copied(watched: Watched) -> None:
    watched.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    watched.ask("profit rose")
    watched.answered()
    watched.page.locator("#share").click()
    expect(watched.page.locator("#share")).to_have_text("Link copied")
    copied = watched.page.evaluate("navigator.clipboard.readText()")
    assert parse_qs(urlsplit(copied).query)["text"] == ["profit rose"]


def test_without_a_model_recorded_answers_are_shown_as_recorded(
    chromium: Browser, app_artifacts: Path, tmp_path: Path
) -> None:
    with running_app(app_artifacts, tmp_path / "log", "--fail") as url:
        watched = Watched(chromium, url)
        page = watched.page
        expect(page.locator("#status")).to_contain_text("weights cannot be had here")
        watched.ask("profit rose")
        expect(page.locator("#banner").get_by_role("alert")).to_contain_text("Recorded")
        expect(page.locator(f"#cards {ANSWER}")).to_have_count(0)
        page.get_by_text("Recorded answers to held-out sentences").click()
        predictions = {arm: run_of(app_artifacts, arm).read_predictions() for arm in ARMS}
        wanted = predictions["baseline"].ids[7]
        page.locator("#recorded-id input").fill(wanted)
        page.get_by_role("option", name=wanted).click()
        answer = page.locator("#recorded-answer")
        expect(answer).to_contain_text(f"Recorded, not computed now. Sentence {wanted}")
        expect(answer).to_contain_text(f"true label {predictions['baseline'].labels[7]}")
        for arm in ARMS:
            calibration = calibration_of(run_of(app_artifacts, arm))
            assert calibration is not None
            shown = calibration.calibrate(predictions[arm].probabilities[7])
            region = answer.get_by_role("region", name=arm.capitalize(), exact=True)
            assert bars(region) == percents(tuple(shown))
            expect(region).to_contain_text("recorded: CPU, 2 threads, fp32, 2025-01-01")
        page.close()


# ------------------------------------------------------------------------------------------- Batch


def start_batch(page: Page, lines: str) -> None:
    open_tab(page, "Many headlines")
    page.locator("#batch-lines textarea").fill(lines)
    page.locator("#batch-start").click()


def test_pasted_lines_are_scored_drawn_and_downloaded_at_once(
    watched: Watched, app_artifacts: Path
) -> None:
    page = watched.page
    start_batch(page, "profit rose\n\nanalysts split\n=1+1\n" + "x" * 2001)
    expect(page.locator("#batch-status")).to_contain_text("3 texts scored on CPU, 2 threads, fp32")
    expect(page.locator("#batch-status")).to_contain_text("The arms differ on 1 of them")
    expect(page.locator("#batch-status")).to_contain_text("row 5: 2,001 characters are too many")
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
            column = 3 + 2 * ARMS.index(arm)
            cell = shown.locator(f"[data-testid='cell-{rows.index(row)}-{column}']")
            expect(cell).to_contain_text(re.compile(says))
    labels = [row["baseline_label"] for row in rows[:3]]
    heights = page.locator("#batch-chart .barlayer .trace").first.locator(".point text")
    assert [int(t) for t in heights.all_text_contents()] == [labels.count(name) for name in NAMES]


def test_a_csv_file_is_read_by_the_column_picked(watched: Watched, tmp_path: Path) -> None:
    page = watched.page
    path = tmp_path / "news.csv"
    path.write_text("id;headline;body\n1;profit rose;analysts split\n2;;x\n", encoding="utf-8")
    open_tab(page, "Many headlines")
    page.locator("#batch-file input[type=file]").set_input_files(path)
    expect(page.locator("#batch-status")).to_contain_text("2 rows, 3 columns")
    expect(page.locator("#batch-column input")).to_have_value("headline")
    page.locator("#batch-start").click()
    expect(page.locator("#batch-status")).to_contain_text("1 text scored")
    expect(page.locator("#batch-status")).to_contain_text("row 3: the cell is empty")
    page.locator("#batch-column input").click()
    page.get_by_role("option", name="body").click()
    page.get_by_label("Include a same-size model without dendrites").first.check()
    page.locator("#batch-start").click()
    expect(page.locator("#batch-status")).to_contain_text("2 texts scored")
    expect(page.locator("#batch-results")).to_contain_text("Matched")
    page.locator("#batch-seed input").click()
    page.get_by_role("option", name=str(WITHOUT_VALIDATION)).click()
    page.locator("#batch-start").click()
    expect(page.locator("#batch-status")).to_contain_text("Probabilities are raw")


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
    expect(watched.page.locator("#batch-status")).to_contain_text(reason)
    watched.page.locator("#batch-start").click()
    expect(watched.page.get_by_test_id("toast-text").first).to_contain_text(reason)
    expect(watched.page.locator("#batch-start")).to_be_enabled()


def test_nothing_to_score_and_a_broken_model_are_said(watched: Watched) -> None:
    page = watched.page
    start_batch(page, " \n")
    expect(page.get_by_test_id("toast-text").first).to_contain_text("nothing to score")
    start_batch(page, "this one is broken")
    expect(page.get_by_test_id("toast-text").filter(has_text="the model broke")).to_be_visible()
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
    expect(other.page.locator("#banner")).to_contain_text("meanwhile")
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


# ----------------------------------------------------------------------------------------- Latency


def test_a_benchmark_runs_as_its_controls_say(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Speed")
    tab = page.locator("#tab-latency")
    tab.get_by_label("Include a same-size model without dendrites").check()
    page.locator("#latency-lengths").get_by_label("16").uncheck()
    page.locator("#latency-lengths").get_by_label("8", exact=True).check()
    page.locator("#latency-sizes").get_by_label("8").uncheck()
    page.locator("#latency-repeats input[type=number]").fill("10")
    page.locator("#latency-repeats input[type=number]").press("Tab")
    page.locator("#latency-start").click()
    rows = page.locator("#latency-numbers tbody tr")
    expect(rows).to_have_count(6)
    for row in rows.all():
        cells = row.locator("td").all_inner_texts()
        assert cells[0] in ("1 × 8 words", "1 × 32 words")
        assert cells[1] == "10"
        assert 0 < float(cells[2]) <= float(cells[3])
    expect(page.locator("#latency-numbers")).to_contain_text("on CPU, 2 threads, fp32")
    expect(page.locator("#latency-numbers p", has_text="95 % interval")).to_have_count(2)
    drawn(page.locator("#latency-chart"), ".boxlayer .trace path.box")
    expect(page.locator("#latency-chart .boxlayer .trace")).to_have_count(3)
    page.locator("#latency-lengths").get_by_label("8", exact=True).uncheck()
    page.locator("#latency-lengths").get_by_label("32").uncheck()
    page.locator("#latency-start").click()
    expect(page.get_by_test_id("toast-text").first).to_contain_text("tick at least one length")
    expect(page.locator("#latency-start")).to_be_enabled()


def test_a_benchmark_can_be_cancelled(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Speed")
    page.locator("#latency-seed input").click()
    page.get_by_role("option", name=str(SLOW)).click()
    page.locator("#latency-repeats input[type=number]").fill("50")
    page.locator("#latency-repeats input[type=number]").press("Tab")
    page.locator("#latency-start").click()
    page.locator("#latency-status progress").wait_for()
    page.locator("#latency-stop").click()
    expect(page.locator("#latency-status")).to_contain_text("Cancelled.")
    expect(page.locator("#latency-start")).to_be_enabled()
    expect(page.locator("#latency-numbers table")).to_have_count(0)
