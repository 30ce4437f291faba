"""Evidence and About in a real browser, and the whole page under axe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from bench.screenshots import TABS, open_tab
from finsent.data.registry import local_texts
from finsent.plots.curves import FIRST_PANELS, PANELS
from finsent.results.disagreements import CONFIDENTLY_WRONG, DISAGREE, choose, read_cases
from finsent.results.runs import find_runs
from finsent.ui.tables.board import COLUMNS
from finsent.ui.tabs.differ import PAGE
from tests.evidence_fixtures import artifacts as artifacts
from tests.evidence_fixtures import board as board
from tests.evidence_fixtures import data_of, drawn, pick
from tests.evidence_fixtures import url as url
from tests.evidence_fixtures import watched as watched
from tests.test_app_browser import BROWSER, Watched, becomes, settled
from tests.test_app_browser import chromium as chromium

pytestmark = BROWSER
STICKING_OUT = """
[...document.querySelectorAll('.fs-table, .js-plotly-plot, .fs-cases, .fs-confusion, .block')]
  .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.id || e.className)
"""


# ------------------------------------------------------------------------------------------- curves

CURVES = "#chart-curves"


def traces(page: Page) -> dict[str, list[dict[str, Any]]]:
    """Of the training curves: name -> the trace of every chart, from the top."""
    found: dict[str, list[dict[str, Any]]] = {}
    for trace in data_of(page.locator(CURVES)):
        found.setdefault(trace["name"], []).append(trace)
    return found


def waits_for(page: Page, script: str) -> None:
    """Waits until something holds of the Plotly figure, which is called `plot`."""
    page.wait_for_function(
        f"() => {{ const plot = document.querySelector('{CURVES} .js-plotly-plot'); "
        f"return plot?.data && ({script}); }}"
    )


def test_curves_open_on_mean_and_band_and_follow_their_controls(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Training curves")
    drawn(page.locator(CURVES))
    assert len(traces(page)["Baseline, lowest to highest run"]) == 3
    expect(page.locator("#curves-note")).to_contain_text("lowest to highest run")
    page.get_by_label("Difference from baseline").check()
    waits_for(page, "!plot.data.some(trace => trace.name === 'Baseline')")
    assert len(traces(page)["Dendritic"]) == 3
    page.get_by_label("Every run").check()
    waits_for(page, "plot.data.some(trace => trace.name === 'Baseline, run 2')")
    page.locator("#curves-more .label-wrap").click()
    page.get_by_label("Training time").check()
    waits_for(page, "plot.layout.xaxis.title.text.startsWith('Training time')")
    page.get_by_label("Log scale").check()
    waits_for(page, "plot.layout.yaxis.type === 'log'")
    page.locator("#curves-panels").get_by_label("Learning rate").check()
    waits_for(page, "plot.layout.yaxis4")
    pick(page, "evidence-seed", "1")
    waits_for(page, "plot.data.every(trace => !trace.name.includes('run 2'))")
    page.locator("#growth summary").click()
    expect(page.locator("#growth tbody tr")).to_have_count(1)
    for panel in ("Validation loss", "accuracy", "macro-F1", "Learning rate"):
        page.locator("#curves-panels").get_by_label(panel).uncheck()
    expect(page.locator("#curves-note")).to_contain_text("choose at least one")


def test_curves_hold_the_numbers_of_the_history(watched: Watched, artifacts: Path) -> None:
    page = watched.page
    open_tab(page, "Training curves")
    page.get_by_label("Every run").check()
    waits_for(page, "plot.data.some(trace => trace.name === 'Baseline, run 2')")
    found = traces(page)
    panels = [panel for panel in PANELS if panel.key in FIRST_PANELS]
    for run in find_runs(artifacts):
        if run.dataset == "allagree":
            lines = found[f"{run.arm.capitalize()}, run {run.seed}"]
            for panel, line in zip(panels, lines, strict=True):
                assert line["y"] == [row[panel.column] for row in run.history]


def test_a_click_in_the_legend_and_a_drag_change_all_charts(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Training curves")
    drawn(page.locator(CURVES))
    settled(page)
    page.locator(f"{CURVES} .legendtoggle").first.click()
    # Plotly waits whether it becomes a double click.
    waits_for(
        page,
        "['y', 'y2', 'y3'].every(axis => plot.data.some(t => (t.yaxis ?? 'y') === axis "
        "&& t.visible === 'legendonly'))",
    )
    area = page.locator(f"{CURVES} .nsewdrag").nth(1)
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.4, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, y, steps=5)
    page.mouse.up()
    waits_for(page, "plot.layout.xaxis.range[0] > 2")


def test_another_run_is_laid_over(watched: Watched, artifacts: Path) -> None:
    page = watched.page
    open_tab(page, "Training curves")
    page.locator("#curves-more .label-wrap").click()
    page.locator("#curves-beside input").fill("50Agree, matched, run 1")
    page.get_by_role("option", name="50Agree, matched, run 1").click()
    waits_for(page, "plot.data.some(trace => trace.name === 'Matched, overlaid')")
    (run,) = [
        run
        for run in find_runs(artifacts)
        if (run.dataset, run.arm, run.seed) == ("50agree", "matched", 1)
    ]
    shown = traces(page)["Matched, overlaid"][1]
    assert shown["y"] == [line["val_accuracy"] for line in run.history]


# ------------------------------------------------------------------------------------------- differ


def shown_cases(page: Page) -> list[tuple[str, int]]:
    found: list[list[str]] = page.locator(".fs-cases > li").evaluate_all(
        "items => items.map(item => [item.dataset.id, item.dataset.seed])"
    )
    return [(name, int(seed)) for name, seed in found]


def test_cases_are_the_saved_predictions_biggest_first(watched: Watched, artifacts: Path) -> None:
    page = watched.page
    open_tab(page, "Where they differ")
    cases = read_cases(run for run in find_runs(artifacts) if run.dataset == "50agree")
    pick(page, "evidence-dataset", "50Agree")
    page.locator("#differ-box .label-wrap", has_text="Sentences hidden by licence").click()

    def expect_cases(found: list[Any], count: int = PAGE) -> None:
        expect(page.locator(".fs-found b")).to_have_text(f"{len(found)}")
        expected = [(case.id, case.seed) for case in found[:count]]
        expect(page.locator(".fs-cases > li")).to_have_count(len(expected))
        page.wait_for_function(
            "first => document.querySelector('.fs-cases > li')?.dataset.id === first",
            arg=expected[0][0],
        )
        assert shown_cases(page) == expected

    everything = choose(cases, DISAGREE)
    expect_cases(everything)
    page.locator("#differ-cases .fs-more").click()
    expect_cases(everything, 2 * PAGE)
    pick(page, "evidence-seed", "1")
    expect_cases(choose(cases, DISAGREE, seed=1))
    pick(page, "evidence-seed", "All")
    pick(page, "differ-class", "positive")
    expect_cases(choose(cases, DISAGREE, label="positive"))
    pick(page, "differ-class", "All")
    pick(page, "differ-level", "66 to 75 %")
    expect_cases(choose(cases, DISAGREE, level="66agree"))
    pick(page, "differ-level", "All")
    page.get_by_label("Confidently wrong").check()
    expect_cases(choose(cases, CONFIDENTLY_WRONG))
    first = choose(cases, CONFIDENTLY_WRONG)[0]
    item = page.locator(".fs-cases > li").first
    for arm, row in first.probabilities.items():
        expect(item).to_contain_text(arm.capitalize())
        expect(item).to_contain_text(f"{100 * max(row):.1f}")
    page.get_by_label("They disagree").check()
    for arm in ("Matched", "Dendritic"):
        page.locator("#differ-arms").get_by_label(arm).uncheck()
    expect(page.locator("#differ-cases")).to_contain_text("Tick at least two")


def test_scores_below_are_the_boards(watched: Watched, board: dict[str, Any]) -> None:
    page = watched.page
    open_tab(page, "Where they differ")
    pick(page, "evidence-dataset", "50Agree")
    chart = page.locator("#chart-reliability")
    drawn(chart)
    drawn(page.locator("#chart-selective"))
    page.locator("#differ-scores .label-wrap").click()
    expect(page.locator("#by-agreement tbody tr")).to_have_count(12)
    lines = {trace["name"]: trace for trace in data_of(chart)}
    for arm in (arm for arm in board["arms"] if arm["dataset"] == "50agree"):
        title = arm["arm"].capitalize()
        assert lines[title]["y"] == [entry["accuracy"] for entry in arm["reliability"]]
        table = page.locator(".fs-confusion", has=page.get_by_text(title, exact=True))
        cells = [re.split(r"\s", text)[0] for text in table.locator("tbody td").all_inner_texts()]
        assert cells == [str(cell) for row in arm["confusion"] for cell in row]
        for name, entry in arm["per_class"].items():
            row = page.locator("#per-class tbody tr", has_text=name).filter(has_text=title)
            expect(row).to_contain_text(f"{100 * entry['f1']:.1f}")
    assert chart.locator(".barlayer .point path").count() > 3


def test_rerun_live_asks_the_same_runs(watched: Watched) -> None:
    page = watched.page
    texts = local_texts("sample")
    assert texts is not None
    open_tab(page, "Where they differ")
    pick(page, "evidence-dataset", "Sample")
    live = page.locator(".fs-live")
    expect(live.first).to_be_visible()
    shown = shown_cases(page)
    position = next(index for index, (_, seed) in enumerate(shown) if seed > 0)
    # The second click changes no drop-down: it must ask by itself.
    seed = shown[position][1]
    second = next(i for i, (name, s) in enumerate(shown) if s == seed and i != position)
    for index in (position, second):
        open_tab(page, "Where they differ")
        live.nth(index).focus()
        page.keyboard.press("Enter")
        text = texts[shown[index][0]]
        expect(page.locator("#headline textarea")).to_have_value(text)
        expect(page.locator("#tab-compare")).to_be_visible()
        expect(page.locator("#answer blockquote")).to_have_text(text)
        expect(page.locator("#compare-dataset input")).to_have_value("Sample")
        expect(page.locator("#compare-seed input")).to_have_value(str(seed))


# -------------------------------------------------------------------------------------- whole page


def test_about_names_licences_commands_hashes_and_citation(
    watched: Watched, artifacts: Path
) -> None:
    open_tab(watched.page, "About")
    about = watched.page.locator("#about")
    for fact in ("CC BY-NC-SA 3.0", "Apache-2.0", "MIT", "No Phi-2 weights", "perforatedai"):
        expect(about).to_contain_text(fact)
    (first, *_) = find_runs(artifacts)
    expect(about).to_contain_text(first.config["command"])
    about.locator("summary", has_text="Hashes").click()
    digest, name = (artifacts / "SHA256SUMS").read_text().splitlines()[0].split()
    expect(about.get_by_label("SHA256SUMS")).to_contain_text(f"{digest}  {name}")
    about.locator("summary", has_text="BibTeX").click()
    expect(about.get_by_label("BibTeX")).to_contain_text("@software{finsent")


def test_a_tab_opened_before_is_shown_without_asking_the_server(watched: Watched) -> None:
    """What keeps switching below 200 ms; bench/page.py measures it."""
    page = watched.page
    for tab in TABS[1:]:
        open_tab(page, tab)
        settled(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for tab in TABS:
        open_tab(page, tab)
        settled(page)
    # On a busy machine gradio asks for the page itself, to see whether the server still lives.
    assert [address for address in asked if "/gradio_api/" in address] == []


def test_no_width_scrolls_sideways(watched: Watched) -> None:
    page = watched.page
    for tab in TABS:
        page.set_viewport_size({"width": 1440, "height": 900})
        settled(page)
        open_tab(page, tab)
        for width in (1440, 1024, 768, 560, 390):
            page.set_viewport_size({"width": width, "height": 900})
            becomes(page, f"document.documentElement.scrollWidth <= {width}", True, (tab, width))
            # Nor may a box stick out and be cut: wide tables scroll inside theirs.
            becomes(page, STICKING_OUT, [], (tab, width))


def test_axe_finds_nothing_serious(chromium: Browser, url: str) -> None:
    watched = Watched(chromium, url)
    page = watched.page
    watched.ask("Operating profit rose")
    watched.answered()
    # Only colours differ between the two.
    for mode, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        if mode == "dark":
            page.get_by_role("button", name="Light / dark").click()
            becomes(page, "document.body.classList.contains('dark')", True, mode)
        for tab in TABS:
            open_tab(page, tab)
            settled(page)
            for details in page.locator("details:visible").all():
                details.evaluate("element => { element.open = true; }")
            options = {"resultTypes": ["violations"], **rules}
            found = Axe().run(page, options=options).response["violations"]
            serious = [
                (mode, tab, v["id"], [node["html"][:120] for node in v["nodes"][:3]])
                for v in found
                if v["impact"] in ("serious", "critical")
            ]
            assert serious == []
    page.close()
    assert watched.problems == []


def test_every_control_of_the_evidence_is_reached_by_keyboard(watched: Watched) -> None:
    page = watched.page
    for tab, wanted in (
        ("Board", {"board-matrix", "board-dataset", "board-filters", "export-csv"}),
        ("Training curves", {"curves-show", "curves-smoothing", "curves-more"}),
        ("Studies", {"study-list"}),
        ("Where they differ", {"differ-kind", "differ-arms", "differ-box"}),
    ):
        open_tab(page, tab)
        reached: set[str] = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached |= set(
                page.evaluate(
                    "() => { const ids = []; for (let e = document.activeElement; e; "
                    "e = e.parentElement) ids.push(e.id); return ids; }"
                )
            )
            if wanted <= reached:
                break
        assert wanted <= reached, tab


def test_every_column_has_a_heading_on_screen(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Board")
    page.locator("#board-filters .label-wrap").click()
    for column in COLUMNS:
        page.locator("#board-columns").get_by_label(column.title, exact=True).check()
    for column in COLUMNS:
        expect(page.locator(f"#board-table button[data-send={column.key}]")).to_be_visible()
