"""The Leaderboard, Training curves, Where they differ and About tabs in a real browser, and the
whole page under axe."""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from bench.screenshots import TABS, open_tab
from finsent.data.registry import local_texts
from finsent.plots.board import COSTS
from finsent.plots.curves import PANELS
from finsent.results.disagreements import CONFIDENTLY_WRONG, DISAGREE, choose, read_cases
from finsent.results.runs import find_runs
from finsent.study.summary import read_summaries
from finsent.study.views import comparisons_of, rows_of
from finsent.ui.tables.board import COLUMNS
from tests.app_fixtures import running_app
from tests.artifact_factory import make_artifacts
from tests.study_factory import make_classical, make_study
from tests.test_app_browser import BROWSER, Watched, becomes, settled
from tests.test_app_browser import chromium as chromium

pytestmark = BROWSER
STICKING_OUT = """
[...document.querySelectorAll('.fs-table, .js-plotly-plot, .fs-cases, .fs-confusion, .block')]
  .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.id || e.className)
"""
GETS_A_SIZE = """
async (chart) => {
  const start = performance.now();
  const box = () => chart.querySelector(".main-svg").getBoundingClientRect();
  while (!(box().width > 300 && box().height > 200)) {
    if (performance.now() - start > 60000) throw new Error(`${box().width} x ${box().height}`);
    await new Promise((resume) => setTimeout(resume, 50));
  }
}
"""
TITLES = {"allagree": "AllAgree", "50agree": "50Agree", "sample": "Sample"}
SIZES = {"allagree": 340, "50agree": 340, "sample": 60}
"""Test sentences a seed."""
WITHOUT_DENDRITES = 2


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evidence") / "artifacts"
    make_study(root)
    make_study(
        root, "lora", datasets=("50agree",), regimes=("r1-all", "r16-all"), recipes=("grown-1",)
    )
    make_classical(root)
    for dataset, size in SIZES.items():
        make_artifacts(
            root,
            backbones=("smollm2-135m",),
            datasets=(dataset,),
            n_test=size,
            without_dendrites=(WITHOUT_DENDRITES,),
            publish=dataset == list(SIZES)[-1],
        )
    return root


@pytest.fixture(scope="module")
def board(artifacts: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifacts / "leaderboard.json").read_text())
    return found


@pytest.fixture(scope="module")
def url(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        # As on a machine without the data; sentences of `sample` ship with the package.
        patch.delenv("FINSENT_DATA_DIR", raising=False)
        with running_app(artifacts, tmp_path_factory.mktemp("log") / "app.log") as address:
            yield address


@pytest.fixture
def watched(chromium: Browser, url: str) -> Iterator[Watched]:
    watched = Watched(chromium, url)
    watched.page.on(
        "console",
        lambda message: (
            watched.problems.append(f"console: {message.text}") if message.type == "error" else None
        ),
    )
    yield watched
    watched.page.close()
    assert watched.problems == []


def pick(page: Page, elem_id: str, option: str) -> None:
    page.locator(f"#{elem_id} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def drawn(chart: Locator) -> None:
    """A Plotly chart with ink in it and a size on the page."""
    # Attached, not visible: a level line has no height, which counts as invisible.
    chart.locator(".scatterlayer .trace path").first.wait_for(state="attached")
    expect(chart.locator(".main-svg").first).to_be_visible()
    # Drawn anew, it is another element, and gets its size a moment after its ink.
    chart.evaluate(GETS_A_SIZE)


def data_of(chart: Locator) -> list[dict[str, Any]]:
    """The traces that Plotly holds: name, x, y."""
    found: list[dict[str, Any]] = chart.locator(".js-plotly-plot").evaluate(
        "plot => plot.data.map(t => ({name: t.name, x: [...plot.calcdata ? t.x._inputArray ?? t.x "
        ": t.x], y: [...t.y._inputArray ?? t.y]}))"
    )
    return found


# ------------------------------------------------------------------------------------- leaderboard


def test_the_board_shows_the_numbers_of_the_file(watched: Watched, board: dict[str, Any]) -> None:
    page = watched.page
    open_tab(page, "Leaderboard")
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
    open_tab(page, "Leaderboard")
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
    open_tab(page, "Leaderboard")
    rows = page.locator("#board-table tbody tr")
    page.get_by_label("Every run").check()
    expect(rows).to_have_count(9)
    page.locator("#board-search input").fill("seed 1")
    expect(rows).to_have_count(3)
    page.locator("#board-search input").fill("")
    expect(rows).to_have_count(9)
    page.locator("#board-arms").get_by_label("Matched").uncheck()
    expect(rows).to_have_count(6)
    page.locator("#board-columns-box .label-wrap").click()
    page.locator("#board-columns").get_by_label("ECE").check()
    head = page.locator("#board-table thead")
    expect(head).to_contain_text("ECE")
    page.locator("#board-columns").get_by_label("NLL").uncheck()
    expect(head).not_to_contain_text("NLL")

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
    pick(page, "board-sort", "ECE")
    expect(head).to_contain_text("ECE▴")
    pick(page, "board-protocol", "80/20")
    expect(page.locator("#board-table")).to_contain_text("Nothing of this project here.")
    expect(page.locator("#references")).to_contain_text("RoBERTa-base")
    expect(page.locator("#references")).not_to_contain_text("TF-IDF")
    expect(page.locator("#pareto-note")).to_contain_text("No chart.")
    pick(page, "board-protocol", "70/15/15, grouped (here)")
    expect(rows).to_have_count(6)


def test_cost_chart_follows_its_controls(watched: Watched, board: dict[str, Any]) -> None:
    page = watched.page
    open_tab(page, "Leaderboard")
    chart = page.locator("#chart-pareto")
    arms = {arm["arm"]: arm for arm in board["arms"] if arm["dataset"] == "50agree"}
    pick(page, "board-dataset", "50Agree")
    for cost in COSTS:
        page.get_by_label(cost.title).check()
        expect(chart.locator(".xtitle")).to_have_text(cost.axis)
        wanted = {
            f"smollm2-135m, {name}": ([arm["mean"][cost.key]], [arm["mean"]["macro_f1"]])
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
    page.locator("#board-arms").get_by_label("Dendritic").uncheck()
    expect(page.locator("#pareto-legend")).not_to_contain_text("Dendritic")


def test_downloads_come_on_the_first_click(
    watched: Watched, artifacts: Path, board: dict[str, Any]
) -> None:
    page = watched.page
    open_tab(page, "Leaderboard")

    def file(elem_id: str) -> str:
        with page.expect_download() as download:
            page.locator(f"#{elem_id}").click()
        path = download.value.path()
        return Path(path).read_text()

    assert file("export-json") == (artifacts / "leaderboard.json").read_text()
    assert "@article{malo2014good" in file("export-bib")
    pick(page, "board-dataset", "50Agree")
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
                expect(shown.filter(has_text=f"over {c['a']}")).to_contain_text(said)
    pick(page, "study-regime", "All")
    expect(page.locator("#study-rows tbody tr")).to_have_count(len(rows_of(summary, place)))
    expect(page.locator("#study-context")).to_contain_text("tfidf-logistic")
    expect(page.locator("#study-context")).to_contain_text("ModernBERT + LoRA")
    expect(page.locator("#study-rows")).not_to_contain_text("tfidf-logistic")


def test_another_study_brings_its_own_data_sets_and_regimes(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Studies")
    expect(page.locator("#study-dataset input")).to_have_value("AllAgree")
    expect(page.locator("#study-regime input")).to_have_value("full")
    pick(page, "study-name", "LoRA adapters, dendrites as PerforatedAI grows them")
    expect(page.locator("#study-dataset input")).to_have_value("50Agree")
    expect(page.locator("#study-tested input")).to_have_value("50Agree")
    expect(page.locator("#study-regime input")).to_have_value("r1-all")
    expect(page.locator("#study-rows caption")).to_have_text("Study lora: 50Agree")
    expect(page.locator("#study-answer")).to_contain_text("in 0 of 2 settings")
    drawn(page.locator("#chart-study-frontier"))


# ------------------------------------------------------------------------------------------- curves


def test_every_curve_is_drawn_and_follows_its_controls(watched: Watched) -> None:
    page = watched.page
    open_tab(page, "Training curves")
    for panel in PANELS:
        drawn(page.locator(f"#chart-{panel.key}"))
    lines = page.locator("#chart-accuracy .scatterlayer .trace")
    expect(lines).to_have_count(3 * 3 + 3 + 1)  # seeds, means, stars
    page.get_by_label("Mean only").check()
    expect(lines).to_have_count(4)
    page.get_by_label("Band").check()
    expect(lines).to_have_count(7)
    expect(page.locator("#curves-legend")).to_contain_text("lowest to highest seed")
    page.locator("#curves-arms").get_by_label("Matched").uncheck()
    expect(lines).to_have_count(5)
    expect(page.locator("#curves-legend")).not_to_contain_text("Matched")
    expect(page.locator("#growth")).to_contain_text("no dendrite kept")
    title = page.locator("#chart-loss .xtitle")
    expect(title).to_have_text("epoch, counted from 0")
    page.get_by_label("Training time").check()
    expect(title).to_contain_text("training time")
    page.get_by_label("Log scale").check()
    page.wait_for_function(
        "() => document.querySelector('#chart-loss .js-plotly-plot').layout.yaxis.type === 'log'"
    )
    for arm in ("Baseline", "Dendritic"):
        page.locator("#curves-arms").get_by_label(arm).uncheck()
    expect(page.locator("#curves-legend")).to_contain_text("Tick at least one arm")


def test_curves_hold_the_numbers_of_the_history(watched: Watched, artifacts: Path) -> None:
    page = watched.page
    open_tab(page, "Training curves")
    drawn(page.locator("#chart-macro_f1"))
    for panel in PANELS:
        lines = {trace["name"]: trace for trace in data_of(page.locator(f"#chart-{panel.key}"))}
        for run in find_runs(artifacts):
            if run.dataset == "allagree":
                shown = lines[f"{run.arm.capitalize()}, seed {run.seed}"]
                assert shown["y"] == [line[panel.column] for line in run.history]


def test_two_runs_overlaid(watched: Watched, artifacts: Path) -> None:
    page = watched.page
    open_tab(page, "Training curves")
    page.get_by_label("Two runs, overlaid").check()
    expect(page.locator("#curves-arms")).to_be_hidden()
    expect(page.locator("#curves-legend")).to_contain_text("B: SmolLM2-135M, AllAgree, dendritic")
    page.locator("#curves-b input").fill("50Agree, matched, seed 1")
    page.get_by_role("option", name="50Agree, matched, seed 1").click()
    expect(page.locator("#curves-legend")).to_contain_text("B: SmolLM2-135M, 50Agree, matched")
    lines = {trace["name"]: trace for trace in data_of(page.locator("#chart-accuracy"))}
    (run,) = [
        run
        for run in find_runs(artifacts)
        if (run.dataset, run.arm, run.seed) == ("50agree", "matched", 1)
    ]
    assert lines["B, seed 1"]["y"] == [line["val_accuracy"] for line in run.history]
    assert set(lines) == {"A, seed 0", "B, seed 1"}


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
    pick(page, "differ-dataset", "50Agree")
    expect(page.locator("#differ-cases")).to_contain_text("Ids only.")

    def expect_cases(found: list[Any], count: int = 10) -> None:
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
    page.locator(".fs-more").click()
    expect_cases(everything, 20)
    pick(page, "differ-seed", "1")
    expect_cases(choose(cases, DISAGREE, seed=1))
    pick(page, "differ-seed", "All")
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
    page.get_by_label("The arms disagree").check()
    for arm in ("Matched", "Dendritic"):
        page.locator("#differ-arms").get_by_label(arm).uncheck()
    expect(page.locator("#differ-cases")).to_contain_text("Tick at least two arms")


def test_scores_below_are_the_boards(watched: Watched, board: dict[str, Any]) -> None:
    page = watched.page
    open_tab(page, "Where they differ")
    pick(page, "differ-dataset", "50Agree")
    chart = page.locator("#chart-reliability")
    drawn(chart)
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
    pick(page, "differ-dataset", "Sample")
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
        expect(page.locator("#banner blockquote")).to_have_text(text)
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
    about.locator("summary", has_text="SHA256SUMS").click()
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
        ("Leaderboard", {"board-dataset", "board-search", "board-sort", "export-csv"}),
        ("Training curves", {"curves-mode", "curves-x", "curves-log", "curves-seeds"}),
        ("Studies", {"study-name", "study-dataset", "study-tested", "study-regime", "study-rows"}),
        ("Where they differ", {"differ-dataset", "differ-kind", "differ-arms", "differ-cases"}),
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
    open_tab(page, "Leaderboard")
    page.locator("#board-columns-box .label-wrap").click()
    for column in COLUMNS:
        page.locator("#board-columns").get_by_label(column.title, exact=True).check()
    for column in COLUMNS:
        expect(page.locator(f"#board-table button[data-send={column.key}]")).to_be_visible()
