"""The board and the studies in a real browser: numbers, columns, charts, downloads."""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from bench.screenshots import open_tab
from finsent.plots.board import COSTS
from finsent.study.summary import read_summaries
from finsent.study.views import comparisons_of, rows_of
from tests.evidence_fixtures import TITLES, data_of, drawn, pick
from tests.evidence_fixtures import artifacts as artifacts
from tests.evidence_fixtures import board as board
from tests.evidence_fixtures import url as url
from tests.evidence_fixtures import watched as watched
from tests.test_app_browser import BROWSER, Watched
from tests.test_app_browser import chromium as chromium

pytestmark = BROWSER


# ------------------------------------------------------------------------------------- leaderboard


def test_the_board_shows_the_numbers_of_the_file(watched: Watched, board: dict[str, Any]) -> None:
    page = watched.page
    open_tab(page, "Board")
    for dataset, title in TITLES.items():
        pick(page, "board-dataset", title)
        expect(page.locator("#board-table caption")).to_contain_text(title)
        arms = [arm for arm in board["arms"] if arm["dataset"] == dataset]
        rows = page.locator("#board-table tbody tr")
        expect(rows).to_have_count(len(arms))
        for row, arm in zip(rows.all(), arms, strict=True):
            low, high = arm["ci"]["accuracy"]
            for text in (
                f"{100 * arm['mean']['accuracy']:.2f}",
                f"{100 * low:.1f} to {100 * high:.1f}",
                f"{100 * arm['mean']['macro_f1']:.2f}",
                f"{arm['mean']['nll']:.4f}",
                f"{arm['mean']['trainable_params']:,.0f}",
            ):
                expect(row).to_contain_text(text)
        for pair in (c for c in board["comparisons"] if c["dataset"] == dataset):
            points = f"{abs(pair['accuracy_delta_points']):.1f} points"
            expect(page.locator("#verdicts")).to_contain_text(points)
            errors = f"({pair['errors_a']} to {pair['errors_b']} of"
            expect(page.locator("#verdicts")).to_contain_text(errors)


def test_every_run_shows_the_numbers_of_its_files(watched: Watched, artifacts: Path) -> None:
    page = watched.page
    open_tab(page, "Board")
    page.locator("#board-filters .label-wrap").click()
    page.get_by_label("Every run").check()
    for dataset, title in TITLES.items():
        pick(page, "board-dataset", title)
        expect(page.locator("#board-table caption")).to_contain_text(f"{title}: every run")
        rows = page.locator("#board-table tbody tr")
        shown = {
            (
                row.locator("th").inner_text().strip().lower(),
                row.locator("td").first.inner_text(),
            ): row.inner_text()
            for row in rows.all()
        }
        files = sorted(artifacts.glob(f"*/{dataset}/*/seed-*/metrics.json"))
        assert len(shown) == len(files) == 9
        for path in files:
            arm, seed = path.parts[-3:-1]
            metrics = json.loads(path.read_text())
            text = shown[arm, seed.removeprefix("seed-")]
            assert f"{100 * metrics['accuracy']:.2f}" in text
            assert f"{metrics['nll']:.4f}" in text
            assert f"{metrics['trainable_params']:,}" in text


def test_columns_search_filters_and_sorting(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Board")
    rows = page.locator("#board-table tbody tr")
    page.locator("#board-filters .label-wrap").click()
    page.get_by_label("Every run").check()
    expect(rows).to_have_count(9)
    page.locator("#board-search input").fill("run 1")
    expect(rows).to_have_count(3)
    page.locator("#board-search input").fill("")
    expect(rows).to_have_count(9)
    page.locator("#board-arms").get_by_label("Matched").uncheck()
    expect(rows).to_have_count(6)
    page.locator("#board-columns").get_by_label("Calibration error").check()
    head = page.locator("#board-table thead")
    expect(head).to_contain_text("ECE")
    page.locator("#board-columns").get_by_label("Loss").uncheck()
    expect(head).not_to_contain_text("Loss")

    def column(position: int) -> list[float]:
        cells = page.locator(f"#board-table tbody tr td:nth-of-type({position})").all_inner_texts()
        return [float(re.findall(r"[\d.]+", cell)[0]) for cell in cells]

    page.locator("#board-table button[data-send=accuracy]").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#board-sort input")).to_have_value("Accuracy")
    expect(head.get_by_role("button", name="Sort by Accuracy, sorted, best first")).to_be_focused()
    assert column(2) == sorted(column(2), reverse=True)
    page.keyboard.press("Enter")
    expect(page.get_by_role("checkbox", name="Worst first")).to_be_checked()
    expect(head).to_contain_text("Accuracy▴")
    assert column(2) == sorted(column(2))
    pick(page, "board-sort", "Calibration error (ECE)")
    expect(head).to_contain_text("Calibration error (ECE)▴")
    pick(page, "board-protocol", "80/20")
    expect(page.locator("#board-table")).to_contain_text("Nothing of this project here.")
    expect(page.locator("#references")).to_contain_text("RoBERTa-base")
    expect(page.locator("#references")).not_to_contain_text("TF-IDF")
    expect(page.locator("#pareto-note")).to_contain_text("No chart.")
    pick(page, "board-protocol", "70/15/15, grouped (here)")
    expect(rows).to_have_count(6)


def test_cost_chart_follows_its_controls(watched: Watched, board: dict[str, Any]) -> None:
    page = watched.page
    open_tab(page, "Board")
    chart = page.locator("#chart-pareto")
    arms = {arm["arm"]: arm for arm in board["arms"] if arm["dataset"] == "50agree"}
    pick(page, "board-dataset", "50Agree")
    for cost in COSTS:
        page.get_by_label(cost.title).check()
        expect(chart.locator(".xtitle")).to_have_text(cost.axis)
        wanted = {
            f"SmolLM2-135M, {name}": ([arm["mean"][cost.key]], [arm["mean"]["macro_f1"]])
            for name, arm in arms.items()
        }
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:  # until then it shows the data set before
            drawn(chart)
            points = {t["name"]: (t["x"], t["y"]) for t in data_of(chart)}
            if {name: points.get(name) for name in wanted} == wanted:
                break
            page.wait_for_timeout(50)
        assert {name: points.get(name) for name in wanted} == wanted
    expect(page.locator("#pareto-note")).to_contain_text("Pareto frontier")
    page.locator("#board-filters .label-wrap").click()
    page.locator("#board-arms").get_by_label("Dendritic").uncheck()
    expect(page.locator("#pareto-legend")).not_to_contain_text("Dendritic")


def test_downloads_come_on_the_first_click(
    watched: Watched, artifacts: Path, board: dict[str, Any]
) -> None:
    page = watched.page
    open_tab(page, "Board")

    def file(elem_id: str) -> str:
        with page.expect_download() as download:
            page.locator(f"#{elem_id}").click()
        path = download.value.path()
        return Path(path).read_text()

    assert file("export-json") == (artifacts / "leaderboard.json").read_text()
    assert "@article{malo2014good" in file("export-bib")
    pick(page, "board-dataset", "50Agree")
    page.locator("#board-filters .label-wrap").click()
    page.locator("#board-arms").get_by_label("Baseline").uncheck()
    expect(page.locator("#board-table tbody tr")).to_have_count(2)
    expect(page.locator("#board-table caption")).to_contain_text("50Agree")
    arms = [a for a in board["arms"] if a["dataset"] == "50agree" and a["arm"] != "baseline"]
    deadline = time.monotonic() + 20
    while True:  # the file of the new rows is made after the table
        lines = list(csv.DictReader(file("export-csv").splitlines()))
        if [line["arm"] for line in lines] == [arm["arm"] for arm in arms]:
            break
        assert time.monotonic() < deadline, lines
    assert {line["dataset"] for line in lines} == {"50agree"}
    assert [float(line["macro_f1"]) for line in lines] == [a["mean"]["macro_f1"] for a in arms]


# ------------------------------------------------------------------------------------------ studies


def test_a_study_shows_the_numbers_of_its_file(watched: Watched, artifacts: Path) -> None:
    page = watched.page
    open_tab(page, "Studies")
    page.locator("#study-list button[data-send=heads]").click()
    summary = read_summaries(artifacts)["heads"]
    for dataset, title in (("allagree", "AllAgree"), ("50agree", "50Agree")):
        place = (dataset, dataset)
        pick(page, "study-dataset", title)
        for regime in ("pca-32", "data-10"):
            pick(page, "study-regime", regime)
            rows = [row for row in rows_of(summary, place) if row["regime"] == regime]
            compared = [c for c in comparisons_of(summary, place) if c["regime"] == regime]
            caption = page.locator("#study-rows caption")
            expect(caption).to_have_text(f"Study heads: {title}")
            lines = page.locator("#study-rows tbody tr")
            expect(lines).to_have_count(len(rows))
            for line, row in zip(lines.all(), rows, strict=True):
                low, high = row["accuracy_ci"]
                for text in (
                    row["recipe"],
                    row["arm"].capitalize(),
                    f"{100 * row['accuracy']:.2f}",
                    f"{100 * low:.1f} to {100 * high:.1f}",
                    f"{row['nll']:.4f}",
                    f"{row['trainable_params']:,.0f}",
                ):
                    expect(line).to_contain_text(text)
            drawn(page.locator("#chart-study-frontier"))
            marks = {
                trace["name"]: trace["x"] for trace in data_of(page.locator("#chart-study-forest"))
            }
            for arm in ("baseline", "restart", "matched"):
                means = [100 * c["metrics"]["accuracy"]["mean"] for c in compared if c["a"] == arm]
                assert marks[f"minus {arm}"] == pytest.approx(means)
            for c in compared:
                p_value = c["metrics"]["accuracy"]["p_holm"]
                shown = page.locator("#study-verdicts li", has_text=f"{regime}, {c['recipe']}")
                said = f"{p_value:.2g}" if p_value >= 0.0001 else "< 0.0001"
                expect(shown.filter(has_text=f"{c['a']}: its accuracy")).to_contain_text(said)
    pick(page, "study-regime", "All")
    expect(page.locator("#study-rows tbody tr")).to_have_count(len(rows_of(summary, place)))
    expect(page.locator("#study-context")).to_contain_text("tfidf-logistic")
    expect(page.locator("#study-context")).to_contain_text("ModernBERT + LoRA")
    expect(page.locator("#study-rows")).not_to_contain_text("tfidf-logistic")


def test_a_study_is_a_row_until_its_details_are_asked_for(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Studies")
    rows = page.locator(".fs-studies > li")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text(
        "10 folds (ways to split into training and test), on AllAgree, 50Agree"
    )
    expect(page.locator("#study-details")).to_be_hidden()
    page.locator("#study-list button[data-send=heads]").click()
    expect(page.locator("#study-dataset input")).to_have_value("AllAgree")
    expect(page.locator("#study-regime input")).to_have_value("full")
    page.locator("#study-list button[data-send=lora]").click()
    expect(page.locator("#study-dataset input")).to_have_value("50Agree")
    expect(page.locator("#study-tested input")).to_have_value("50Agree")
    expect(page.locator("#study-regime input")).to_have_value("r1-all")
    expect(page.locator("#study-rows caption")).to_have_text("Study lora: 50Agree")
    expect(page.locator("#study-answer")).to_contain_text("in 0 of 2 settings")
    drawn(page.locator("#chart-study-frontier"))


# ----------------------------------------------------------------------------------------- matrix


def test_the_matrix_sorts_by_a_click_on_a_data_set(watched: Watched, board: dict[str, Any]) -> None:
    page = watched.page
    open_tab(page, "Board")
    heading = page.locator("#board-matrix thead th", has_text="50Agree").get_by_role("button")
    # Beside the word: the whole cell is the button.
    heading.locator("xpath=..").click(position={"x": 4, "y": 4})
    expect(heading).to_have_attribute("aria-label", "Sort by 50Agree, sorted, best first")
    best = max(
        (arm for arm in board["arms"] if arm["dataset"] == "50agree"),
        key=lambda arm: arm["mean"]["accuracy"],
    )
    first = page.locator("#board-matrix tbody tr").first
    expect(first).to_contain_text(best["arm"].capitalize())
    expect(first).to_contain_text(f"{100 * best['mean']['accuracy']:.1f}")
    heading.click()
    expect(heading).to_have_attribute("aria-label", "Sort by 50Agree, sorted, worst first")
    expect(page.locator("#board-matrix tbody tr").last).to_contain_text(best["arm"].capitalize())
    for pair in board["comparisons"]:
        if (pair["a"], pair["b"]) == ("baseline", "dendritic"):
            row = page.locator("#board-effects tbody tr", has_text=TITLES[pair["dataset"]])
            expect(row).to_contain_text(f"{abs(pair['errors_removed_pct']):.1f}")
