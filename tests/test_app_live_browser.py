"""What is computed while the page is open, in a real browser: every control, chart and error."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from bench.screenshots import open_tab
from finsent.results.calibration import calibration_of, set_in_words
from finsent.results.runs import Run, read_run
from finsent.serving.attribution import attribute
from finsent.ui.parts.markup import signed
from tests.app_fixtures import (
    SLOW,
    WITHOUT_VALIDATION,
    FakeComparer,
    running_app,
)
from tests.entrant_factory import make_classifier
from tests.test_app_browser import ANSWER, BROWSER, SECONDS, Watched
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


def bars(page: Page, arm: str) -> list[str]:
    """Percentages of one model's bars, by label."""
    return [
        re.sub(
            r"\s", "", page.locator(f"#answer [data-arm={arm}][data-label={name}] b").inner_text()
        )
        for name in NAMES
    ]


def bars_of_card(region: Locator) -> list[str]:
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
    page = watched.page
    page.locator("#answer summary", has_text="Details").click()
    details = page.get_by_label("Details of the answer")
    for place, arm in enumerate(ARMS):
        calibration = calibration_of(run_of(app_artifacts, arm))
        assert calibration is not None
        raw = raw_of(app_artifacts, text, arm)
        shown = tuple(calibration.calibrate(raw))
        assert bars(page, arm) == percents(shown)
        held = [NAMES[i] for i in calibration.label_set(shown)]
        facts = {
            "Labels that cannot be ruled out": set_in_words(held, 3),
            "How often": f"{100 * calibration.coverage_measured:.1f}\u202f% of 340 test texts",
            "before calibration": ", ".join(
                f"{n} {100 * p:.1f}\u202f%" for n, p in zip(NAMES, raw, strict=True)
            ),
            "How far confidence is toned down": f"{calibration.temperature:.2f}",
        }
        for name, value in facts.items():
            row = details.locator("tbody tr", has_text=name)
            expect(row.locator("td").nth(place)).to_contain_text(value)
    expect(page.locator("#answer")).to_contain_text("The chart shows calibrated probabilities")
    expect(page.locator("#answer")).not_to_contain_text("waited")


def test_runs_without_validation_predictions_say_so(watched: Watched, app_artifacts: Path) -> None:
    page = watched.page
    page.locator("#compare-seed input").click()
    page.get_by_role("option", name=str(WITHOUT_VALIDATION)).click()
    expect(page.locator("#answer")).to_contain_text("kept no validation predictions")
    watched.ask("The board met on Tuesday")
    watched.answered()
    for arm in ARMS:
        raw = raw_of(app_artifacts, "The board met on Tuesday", arm, WITHOUT_VALIDATION)
        assert bars(page, arm) == percents(raw)
    expect(page.locator("#answer")).not_to_contain_text("Labels that cannot be ruled out")


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
        section.get_by_text("Show as table").click()
        rows = section.locator("tbody tr")
        expect(rows).to_have_count(6)
        expect(section.locator("tbody th", has_text="<b>rose</b>")).to_be_visible()
        for word, effect in effects.items():
            row = section.locator("tbody tr", has=page.get_by_text(word, exact=True))
            expect(row).to_contain_text(signed(100 * effect))
    watched.ask("profit")
    expect(page.locator("#words")).not_to_contain_text("Show as table")
    page.locator("#explain").click()
    expect(page.locator("#words").get_by_role("alert")).to_contain_text(
        "one word cannot be left out"
    )


def test_a_link_opens_what_was_shared(chromium: Browser, app_url: str) -> None:
    first = Watched(chromium, app_url)
    text = "profit & loss = 100 % 🚀"
    first.page.get_by_label("Include a same-size model without dendrites").check()
    expect(first.page.locator("#answer .fs-legend li")).to_have_count(3)
    first.ask(text)
    first.answered(arms=3)
    shown = [bars(first.page, arm) for arm in ARMS]
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
    expect(second.locator("#answer blockquote")).to_have_text(text)
    expect(second.locator("#answer .fs-legend li")).to_have_count(3)
    assert [bars(second, arm) for arm in ARMS] == shown
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
    expect(page.locator("#answer blockquote")).to_have_text("<img src=x onerror=alert(1)>")
    expect(page.locator("#answer .fs-legend li")).to_have_count(2)
    expect(page.locator("#compare-seed input")).to_have_value(seed)
    assert page.locator("#answer img").count() == 0
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
        expect(page.locator("#answer").get_by_role("alert")).to_contain_text("Recorded")
        expect(page.locator(ANSWER)).to_have_count(0)
        page.get_by_text("Recorded answers to held-out sentences").click()
        predictions = {arm: run_of(app_artifacts, arm).read_predictions() for arm in ARMS}
        wanted = predictions["baseline"].ids[7]
        page.locator("#recorded-id input").fill(wanted)
        page.get_by_role("option", name=wanted).click()
        answer = page.locator("#recorded-answer")
        expect(answer).to_contain_text(f"Recorded, not computed now. Sentence with the id {wanted}")
        expect(answer).to_contain_text(f"true label {predictions['baseline'].labels[7]}")
        for arm in ARMS:
            calibration = calibration_of(run_of(app_artifacts, arm))
            assert calibration is not None
            shown = calibration.calibrate(predictions[arm].probabilities[7])
            region = answer.get_by_role("region", name=arm.capitalize(), exact=True)
            assert bars_of_card(region) == percents(tuple(shown))
            expect(region).to_contain_text("recorded: CPU, 2 threads, fp32, 2025-01-01")
        page.close()


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
        assert cells[-1] == "10"
        assert 0 < float(cells[1]) <= float(cells[3])
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


# --------------------------------------------------------------------------- a model from elsewhere


def test_a_model_is_added_on_the_page_and_its_bars_stand_beside_ours(
    watched: Watched, tmp_path: Path
) -> None:
    folder, page = make_classifier("bert", tmp_path / "my-bert"), watched.page
    watched.ask("Operating profit fell and the plant was closed")
    watched.answered()
    expect(page.locator("#guest-include")).to_have_count(0)
    page.locator("#guest-section").get_by_role("button", name="Add another model").click()
    page.locator("#guest-model input, #guest-model textarea").fill("nowhere")
    page.locator("#guest-add").click()
    expect(page.locator("#guest-said")).to_contain_text("There is no folder nowhere")
    page.locator("#guest-model input, #guest-model textarea").fill(str(folder))
    page.locator("#guest-add").click()
    expect(page.locator("#guest-said")).to_contain_text(
        "my-bert answers beside ours now", timeout=60 * SECONDS
    )
    watched.answered(arms=3)
    expect(page.locator("#answer .fs-bar[data-arm=external]")).to_have_count(3)
    expect(page.locator("#answer .fs-legend")).to_contain_text("Other model my-bert")
    expect(page.locator("#answer")).to_contain_text(re.compile(r"The other model: [\d.]+.ms"))
    page.locator("#guest-include input").uncheck()
    watched.answered(arms=2)
    page.locator("#guest-remove").click()
    expect(page.locator("#guest-said")).to_contain_text("Only the models of this page answer")
    expect(page.locator("#guest-include")).to_have_count(0)
