"""Charts and words of the Studies tab show what the summaries hold, and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finsent.plots.style import ARM_STYLES, ChartError
from finsent.results.catalog import Catalog
from finsent.results.schema import ArtifactError
from finsent.study import charts, views
from finsent.study.summary import read_summaries
from finsent.ui.renewal import fingerprint, read_catalog
from finsent.ui.tabs import studies
from tests.study_factory import RECIPES, REGIMES, make_classical, make_study

PLACE = ("allagree", "allagree")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("studies")
    make_study(root)
    make_classical(root)
    return root


@pytest.fixture(scope="module")
def catalog(root: Path) -> Catalog:
    return read_catalog(root)


@pytest.fixture(scope="module")
def comparisons(catalog: Catalog) -> list[views.Entry]:
    return views.comparisons_of(catalog.studies["heads"], PLACE)


@pytest.fixture(scope="module")
def rows(catalog: Catalog) -> list[views.Entry]:
    return views.rows_of(catalog.studies["heads"], PLACE)


def test_the_forest_draws_every_comparison_with_its_interval(
    comparisons: list[views.Entry],
) -> None:
    figure = charts.forest_figure(comparisons)
    seen: set[float] = set()
    for trace in figure.data:
        arm = trace.name.removeprefix("minus ")
        found = [c["metrics"]["accuracy"] for c in comparisons if c["a"] == arm]
        assert list(trace.x) == [100 * test["mean"] for test in found]
        ends = zip(trace.error_x.array, trace.error_x.arrayminus, found, strict=True)
        for above, below, test in ends:
            assert above == pytest.approx(100 * (test["high"] - test["mean"]))
            assert below == pytest.approx(100 * (test["mean"] - test["low"]))
        sure = [test["p_holm"] < 0.05 for test in found]
        assert any(sure)
        assert [not symbol.endswith("-open") for symbol in trace.marker.symbol] == sure
        assert set(trace.marker.color) <= set(ARM_STYLES[arm].colour)
        assert not seen & set(trace.y), "two intervals on one line"
        seen |= set(trace.y)
    named = [note.text for note in figure.layout.annotations]
    assert named == [f"<b>{regime}</b> {recipe}" for regime in REGIMES for recipe in RECIPES]
    assert not seen & {note.y for note in figure.layout.annotations}
    with pytest.raises(ChartError, match="No comparison"):
        charts.forest_figure([])


def test_the_frontier_draws_every_arm_and_the_classifiers_it_has_room_for(
    catalog: Catalog, rows: list[views.Entry]
) -> None:
    others = views.classical_rows(catalog.studies, "heads", PLACE)
    figure = charts.frontier_figure(rows, [*others, {**others[0], "trainable_params": 0}])
    traces = {trace.name: trace for trace in figure.data}
    for arm in ("baseline", "restart", "matched", "dendritic"):
        mine = [row for row in rows if row["arm"] == arm]
        trace = traces[ARM_STYLES[arm].title]
        assert list(trace.x) == [row["trainable_params"] for row in mine]
        assert list(trace.y) == [row["accuracy"] for row in mine]
        for row, above in zip(mine, trace.error_y.array, strict=True):
            assert above == pytest.approx(row["accuracy_ci"][1] - row["accuracy"])
    # The majority is far below the axis, and a rule has no place on a logarithmic one.
    assert traces["Classical"].text == ("tfidf-logistic",)
    front = traces["Pareto front"]
    assert list(front.y) == sorted(front.y)
    assert list(front.x) == sorted(front.x)
    with pytest.raises(ChartError, match="No row"):
        charts.frontier_figure([])


def test_charts_have_no_background_of_their_own(
    comparisons: list[views.Entry], rows: list[views.Entry]
) -> None:
    for figure in (charts.forest_figure(comparisons), charts.frontier_figure(rows)):
        layout = json.loads(figure.to_json())["layout"]
        assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"


def test_less_data_is_no_cheaper_model(rows: list[views.Entry]) -> None:
    assert {row["regime"] for row in views.whole_data(rows)} == {"full", "pca-32"}


def test_choices_that_do_not_exist_become_the_first_that_do(catalog: Catalog) -> None:
    found = studies.Studies(catalog.studies)
    assert found.names == ["heads"]
    assert found.nearest("", "", "", "") == studies.Shown("heads", *PLACE, studies.ALL)
    shown = found.nearest("heads", "50agree", "allagree", "no such")
    assert shown == studies.Shown("heads", "50agree", "50agree", "full")
    assert len(found.rows(shown)) == 1 + 3 * len(RECIPES)
    assert len(found.rows(replace(shown, regime=studies.ALL))) == len(REGIMES) * 7
    # Where nothing is compared, the one row that the answer quotes is shown.
    alone = studies.Studies({"heads": {**catalog.studies["heads"], "comparisons": []}})
    assert alone.nearest("heads", *PLACE, "no such").regime == studies.ALL
    assert alone.nearest("heads", *PLACE, "full").regime == "full"


def test_a_study_is_a_question_with_a_short_answer(catalog: Catalog) -> None:
    found = studies.Studies(catalog.studies)
    page = studies.list_html(found, "heads")
    assert views.question("heads") in page
    assert page.count("<circle") == len(found.summaries["heads"]["comparisons"])
    assert page.count("fs-sure") == sum(
        c["outcome"] != "tied" for c in found.summaries["heads"]["comparisons"]
    )
    won = views.short_answer(found.summaries["heads"], str.upper)
    assert "dendrites beat every control in 2 of 12 settings" in won
    tied = [{**c, "outcome": "tied"} for c in found.summaries["heads"]["comparisons"]]
    summary = {**found.summaries["heads"], "comparisons": tied}
    assert re.fullmatch(
        r"No difference found in 12 settings; in half of them, by the 95 % interval, dendrites "
        r"make at most .* fewer errors\.",
        views.short_answer(summary, str.upper),
    )
    lost = [{**tied[0], "outcome": "worse"}, *tied[1:]]
    said = views.short_answer({**summary, "comparisons": lost}, str.upper)
    assert "beat no control in 12 settings, and are worse than a control in 1." in said
    alone = views.short_answer({**summary, "comparisons": []}, str.upper)
    assert re.fullmatch(r"Accuracy .* % on 50AGREE, .* % on ALLAGREE\.", alone)


def test_every_study_has_a_question_of_its_own() -> None:
    assert set(views.TITLES) <= set(views.QUESTIONS)
    assert len(set(views.QUESTIONS.values())) == len(views.QUESTIONS)


def test_verdicts_keep_their_corrected_p_and_ties_are_folded(
    comparisons: list[views.Entry],
) -> None:
    page = studies.verdicts_html(comparisons)
    shown, ties = page.split("<details")
    sure = [c for c in comparisons if c["outcome"] != "tied"]
    assert shown.count("<li") == len(sure) > 0
    assert ties.count("<li>") == len(comparisons) - len(sure) > 0
    assert "p &lt; 0.0001 after correction" in shown
    assert "Nothing to compare" in studies.answer_html([])


def test_without_dendrites_validation_chooses_what_is_quoted(rows: list[views.Entry]) -> None:
    one = {**rows[0], "accuracy": 0.9, "validation_accuracy": 0.8, "validation_nll": 0.3}
    two = {**one, "arm": "ensemble", "accuracy": 0.7, "validation_accuracy": 0.9}
    tie = {**two, "recipe": "later", "accuracy": 0.75, "validation_nll": 0.2}
    other = {**one, "test_dataset": "fiqa"}
    first, second = views.chosen([one, two, tie, other])
    assert "`ensemble` with `later` in `full`; it has 75.00 % accuracy" in first
    assert "a single run" not in first, "none with that recipe is among the rows"
    assert "trained on" in second
    assert "tested on fiqa" in second
    alone = {**one, "recipe": "later", "accuracy": 0.71, "macro_f1": 0.69, "regime": "pca-32"}
    again = {**alone, "accuracy": 0.73, "validation_accuracy": 0.7}
    (said,) = views.chosen([tie, alone, again])
    assert "; a single run of them: 71.00 to 73.00 % accuracy, 69.00 % macro-F1" in said
    assert "<code>later</code>" in studies.answer_html([], [one, two, tie])


def test_what_a_file_says_is_escaped(rows: list[views.Entry]) -> None:
    evil = [{**rows[0], "recipe": "<img src=x>", "regime": "<b>", "arm": "<i>"}]
    page = studies.rows_html(evil, "caption")
    assert not any(mark in page for mark in ("<img", "<b>\u003c", "<i>"))


def test_each_study_gets_the_context_of_its_protocol(tmp_path: Path, catalog: Catalog) -> None:
    place = ("50agree", "50agree")
    page = studies.context_html(catalog.studies, "heads", place)
    assert "tfidf-logistic" in page
    assert "ModernBERT + LoRA" in page
    assert "ProsusAI" not in page
    make_study(tmp_path, "finbert-split", datasets=("50agree",), regimes=("default",), folds=1)
    make_classical(tmp_path)
    alone = read_catalog(tmp_path).studies
    page = studies.context_html(alone, "finbert-split", place)
    assert "tfidf-logistic" not in page, "classical ones were tested on other sentences"
    assert "ModernBERT" not in page
    assert "ProsusAI" in page


def test_a_damaged_study_is_named_and_a_new_one_is_noticed(tmp_path: Path) -> None:
    assert read_catalog(tmp_path).studies == {}
    before = fingerprint(tmp_path)
    folder = make_study(tmp_path, datasets=("allagree",), regimes=("full",))
    assert fingerprint(tmp_path) != before
    path = folder / "summary.json"
    path.write_text(path.read_text()[:-20])
    found = read_catalog(tmp_path)
    assert found.studies == {}
    (damage,) = found.damaged
    assert damage.place == "studies/heads/summary.json"
    assert "not JSON" in damage.reason
    with pytest.raises(ArtifactError, match="heads/summary.json"):
        read_summaries(tmp_path)


def test_a_study_without_dendrites_still_shows_its_rows(tmp_path: Path) -> None:
    folder = make_study(tmp_path, datasets=("allagree",), regimes=("full",))
    path = folder / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text())
    summary["rows"] = [row for row in summary["rows"] if row["arm"] == "baseline"]
    summary["comparisons"] = []
    path.write_text(json.dumps(summary))
    found = studies.Studies(read_catalog(tmp_path).studies)
    said, verdicts, _, forest, _, frontier, table, _ = studies.contents(
        found, found.nearest("", "", "", "")
    )
    assert "Nothing to compare" in said
    assert (verdicts, forest) == ("", None)
    assert frontier is not None
    assert table.count("<tr") == 2


def test_heads_tested_elsewhere_have_a_place_of_their_own(tmp_path: Path) -> None:
    folder = make_study(tmp_path, datasets=("allagree",), regimes=("full",))
    path = folder / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text())
    for kind in ("rows", "comparisons"):
        summary[kind] += [{**entry, "test_dataset": "fiqa"} for entry in summary[kind]]
    path.write_text(json.dumps(summary))
    found = studies.Studies(read_catalog(tmp_path).studies)
    assert found.tested("heads", "allagree") == ["allagree", "fiqa"]
    shown = found.nearest("heads", "allagree", "fiqa", "full")
    assert {row["test_dataset"] for row in found.rows(shown)} == {"fiqa"}
    assert len(found.rows(shown)) == 7
    *_, table, _ = studies.contents(found, shown)
    assert ", tested on " in table
    said = views.answer(found.comparisons(shown))[1]
    assert "removed errors in 0 of 2 settings and showed no difference in 2" in said


def test_a_study_of_depths_is_drawn_by_blocks_and_says_what_they_save(tmp_path: Path) -> None:
    regimes = ("minilm-l6-depth-6", "minilm-l6-depth-5")
    make_study(tmp_path, "shrink", datasets=("allagree",), regimes=regimes, recipes=("sigmoid-1",))
    catalog = read_catalog(tmp_path)
    found = studies.Studies(catalog.studies, catalog.root)
    shown = found.nearest("shrink", "allagree", "allagree", regimes[0])
    said, *_, frontier, _, _ = studies.contents(found, shown)
    assert re.search(r"Dendrites save (no block|1 of 6 blocks) of ", said)
    assert "runs kept a dendrite" in said
    assert frontier.layout.xaxis.title.text == "blocks kept"
    rows = found.rows(replace(shown, regime=""))
    assert len(frontier.data) == len({row["arm"] for row in rows})
    for trace in frontier.data:
        arm = next(name for name, style in ARM_STYLES.items() if style.title == trace.name)
        assert {round(y, 6) for y in trace.y} == {
            round(row["accuracy"], 6) for row in rows if row["arm"] == arm
        }
    with pytest.raises(ChartError, match="varies the number of blocks"):
        charts.depth_figure([{**row, "regime": "full"} for row in rows])
