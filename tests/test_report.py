"""The generated pages say what the studies' files hold, the same every time."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from finsent.plots.png_figures import FigureError
from finsent.plots.png_style import DPI
from finsent.reports import evidence as evidence_module
from finsent.reports import report, report_figures
from finsent.reports.overview import counts
from finsent.reports.report_values import board_values
from finsent.results.runs import read_json
from finsent.results.schema import ArtifactError
from finsent.study import views
from finsent.study.rows import RESULTS, StudyError, append_runs, read_runs
from finsent.study.selection import (
    CHOSEN,
    SELECTION,
    SELECTION_COLUMNS,
    append_selection,
    grid_sizes,
    variants,
)
from finsent.study.summary import read_summaries, write_summary
from tests.artifact_factory import make_artifacts
from tests.study_factory import make_classical, make_study

ROOT = Path(__file__).resolve().parent.parent
PLACE = ("allagree", "allagree")
APPENDIX = "report_appendix.md"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_artifacts(
        tmp_path_factory.mktemp("report") / "artifacts",
        backbones=("smollm2-135m",),
        datasets=("allagree",),
        seeds=(0, 1),
    )
    make_study(root)
    make_classical(root)
    return root


@pytest.fixture(scope="module")
def out(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = artifacts.parent / "docs"
    report.write_report(artifacts, folder)
    return folder


@pytest.fixture(scope="module")
def summary(artifacts: Path) -> dict[str, Any]:
    return read_summaries(artifacts)["heads"]


def appendix_of(artifacts: Path) -> str:
    return report.pages(evidence_module.Evidence.read(artifacts), artifacts)[APPENDIX]


def section(text: str, heading: str) -> str:
    """From a heading to the next one of its level."""
    level = len(heading.split(" ")[0])
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def cells(text: str, *first: str) -> list[str]:
    """The table line that starts with these cells."""
    found = [line for line in text.splitlines() if line.startswith(f"| {' | '.join(first)} |")]
    assert len(found) == 1, found
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def test_the_same_files_give_the_same_bytes(artifacts: Path, out: Path) -> None:
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    stale = out / "report" / "old_forest_x.png"
    stale.write_bytes(b"")
    report.write_report(artifacts, out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    for page in report.PAGES:
        links = re.findall(r"\]\((?!http)([^)#]+)", (out / page).read_text())
        missing = {link for link in links if not (out / link).exists()}
        # The made-up tree has no figures of its own.
        assert all("figures/" in link for link in missing), missing


def test_the_answer_counts_what_the_comparisons_say(out: Path, summary: dict[str, Any]) -> None:
    text = section((out / APPENDIX).read_text(), "## Study `heads`")
    outcomes = [c["outcome"] for c in summary["comparisons"] if c["a"] == "baseline"]
    assert {"better", "worse", "tied"} <= set(outcomes)
    line = next(line for line in text.splitlines() if line.startswith("- Against `baseline`"))
    assert f"removed errors in {outcomes.count('better')} of {len(outcomes)} settings" in line
    assert f"added errors in {outcomes.count('worse')} (" in line
    assert f"no difference in {outcomes.count('tied')}" in line
    assert "pca-32 with refined-3" in line.split("added errors")[0]
    assert "data-10 with refined-3" in line.split("added errors")[1]
    nowhere = line.split("No recipe removed errors in ")[1]
    assert "full" in nowhere
    assert "pca-32" not in nowhere


def test_winning_against_the_baseline_alone_is_not_winning(summary: dict[str, Any]) -> None:
    comparisons = [dict(c) for c in summary["comparisons"]]
    won = "in 2 of 12 settings (50agree: pca-32 with refined-3 | allagree: pca-32 with "
    assert won in views.answer(comparisons)[0]
    for c in comparisons:
        if c["a"] == "restart" and c["dataset"] == "allagree":
            c["outcome"] = "tied"
    assert "in 1 of 12 settings (50agree: pca-32 with" in views.answer(comparisons)[0]
    lone = [c for c in comparisons if c["regime"] == "full" and c["dataset"] == "50agree"]
    lone = [c for c in lone if c["recipe"] == lone[0]["recipe"]]
    assert "in 0 of 1 setting." in views.answer(lone)[0]
    assert views.answer([]) == []


def test_what_an_answer_takes_stands_beside_the_baselines(artifacts: Path, out: Path) -> None:
    arms = read_json(artifacts / "leaderboard.json")["arms"]
    table = (out / APPENDIX).read_text().split("## Latency of an answer")[1].split("\n## ")[0]
    baselines = {arm["dataset"]: arm["mean"] for arm in arms if arm["arm"] == "baseline"}
    assert baselines
    for arm in arms:
        median = arm["mean"]["latency_ms_p50"]
        ratio = median / baselines[arm["dataset"]]["latency_ms_p50"]
        (line,) = [
            line
            for line in table.splitlines()
            if line.startswith(f"| {arm['dataset']} | {arm['backbone']} | {arm['arm']} |")
        ]
        assert f"| {median:.1f} |" in line
        assert f"| {ratio:.2f} |" in line


def test_every_row_shows_the_numbers_of_the_file(out: Path, summary: dict[str, Any]) -> None:
    text = (out / APPENDIX).read_text()
    for place in views.places(summary):
        part = section(text, f"### {place[0]}")
        for row in views.rows_of(summary, place):
            found = cells(part, row["regime"], row["recipe"], row["arm"])
            assert found[3] == f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_sd']:.2f}"
            assert found[4:7] == [
                f"{100 * row['macro_f1']:.2f}",
                f"{row['nll']:.4f}",
                f"{100 * row['ece']:.2f}",
            ]
            if row["arm"] == "baseline":
                assert found[7] == "–"
            else:
                assert float(found[7]) == pytest.approx(row["errors_removed_pct"], abs=0.051)
            assert found[8] == f"{row['trainable_params']:,.0f}"
            dendritic = row["arm"] == "dendritic"
            assert found[10] == (f"{row['dendrites']:.1f}" if dendritic else "–")


def test_rows_of_the_file_are_those_of_the_runs(artifacts: Path, summary: dict[str, Any]) -> None:
    runs = read_runs(artifacts / "studies" / "heads" / RESULTS)
    row = next(
        r
        for r in views.rows_of(summary, PLACE)
        if (r["regime"], r["recipe"], r["arm"]) == ("full", "refined-3", "dendritic")
    )
    key = ("allagree", "full", "refined-3", "dendritic")
    mine = [r for r in runs if (r.dataset, r.regime, r.recipe, r.arm) == key]
    assert row["dendrites_kept"] == [
        sum(r.dendrites == k for r in mine) for k in range(1 + max(r.dendrites for r in mine))
    ]
    assert row["accuracy_ci"][0] < row["accuracy"] < row["accuracy_ci"][1]
    base = [r.accuracy for r in runs if (r.dataset, r.regime, r.arm) == (*key[:2], "baseline")]
    wrong, wrong_base = (sum(1 - a for a in x) for x in ([r.accuracy for r in mine], base))
    removed = 100 * (wrong_base - wrong) / wrong_base
    assert row["errors_removed_pct"] == pytest.approx(removed, rel=1e-6)


def test_what_is_no_head_stands_apart_and_once(out: Path) -> None:
    text = (out / APPENDIX).read_text()
    assert "tfidf-logistic" not in section(text, "## Study `heads`")
    others = section(text, "## Study `classical`")
    line = cells(section(others, "### Classical classifiers on 50agree"), "full", "tfidf-logistic")
    assert line[2:4] == ["10 x 2", "84.00 ± 0.00"]
    assert text.count("| tfidf-logistic |") == 2, "once for each data set"
    elsewhere = section(text, "## Published elsewhere")
    reference = "| 50agree | ModernBERT + LoRA | stratified 10-fold | 86.88 ± 1.00 | 85.40 |"
    assert elsewhere.count(reference) == 1
    assert "| allagree |" not in elsewhere
    # Other protocols are no context for folds.
    assert "GPT-4" not in text


def test_variants_are_set_against_what_they_differ_from(artifacts: Path, out: Path) -> None:
    found = {(v.dataset, v.regime, v.recipe): v for v in variants(artifacts / "studies" / "heads")}
    tanh = found["allagree", "full", "refined-3, tanh"]
    assert (tanh.base, tanh.nll_change) == ("refined-3", pytest.approx(0.01))
    assert found["allagree", "full", "random-3"].base == "random-1"
    assert found["allagree", "full", "refined-3"].base == "refined-3"
    text = (out / APPENDIX).read_text()
    part = section(text, "## Dendrite settings, compared on validation only: study `heads`")
    line = cells(section(part, "### allagree, full"), "refined-3, tanh")
    assert line == ["refined-3, tanh", "refined-3", "0.2300", "+0.0100", "90.00", "0.00", "1.0"]
    assert set(grid_sizes(artifacts / "studies" / "heads").values()) == {2}


def test_what_ensembles_chose_from_is_listed_best_first(artifacts: Path, tmp_path: Path) -> None:
    root = shutil.copytree(artifacts, tmp_path / "artifacts")
    folder = root / "studies" / "heads"
    (folder / CHOSEN).unlink()
    rows = [
        {
            **dict.fromkeys(SELECTION_COLUMNS, ""),
            **{"dataset": "50agree", "regime": name, "recipe": "whole-last", "runs": "10"},
            **{"validation_accuracy": right, "validation_nll": nll, "learning_rate": "0.0005"},
        }
        for name, right, nll in (("plain", "0.85", "0.3"), ("twice", "0.86", "0.5"))
    ]
    (folder / SELECTION).unlink()
    append_selection(folder / SELECTION, rows)
    page = appendix_of(root)
    part = section(page, "## Fine-tuning settings, compared on validation only: study `heads`")
    assert part.index("| twice | `whole-last` | 86.00 | 0.5000") < part.index("| plain |")
    assert "python train_models.py study heads --select" in page


def test_a_variant_under_other_settings_is_refused(artifacts: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(artifacts / "studies" / "heads", tmp_path / "heads")
    path = folder / "selection.csv"
    path.write_text(
        path.read_text().replace(
            'refined-3, tanh",dendritic,mean-16,0.01', 'refined-3, tanh",dendritic,mean-16,0.5'
        )
    )
    with pytest.raises(StudyError, match="refined-3, tanh .* was not tried under the settings of"):
        variants(folder)


def test_unequal_budgets_are_told(artifacts: Path, tmp_path: Path) -> None:
    root = shutil.copytree(artifacts, tmp_path / "artifacts")
    page = appendix_of(root)
    assert "every arm of a regime takes the same number of optimizer steps" in page
    path = root / "studies" / "heads" / RESULTS
    path.write_text(re.sub(r"(,refined-3,.*),400,", r"\1,450,", path.read_text()))
    write_summary(path.parent)
    page = appendix_of(root)
    assert "all arms of `refined-3` take 12 % more than the baseline" in page


def test_forest_is_filled_where_the_difference_survives(summary: dict[str, Any]) -> None:
    comparisons = views.comparisons_of(summary, PLACE)
    figure = report_figures.forest_figure(comparisons)
    for axes, arm in zip(figure.axes, ("baseline", "restart", "matched"), strict=True):
        mine = [c for c in comparisons if c["a"] == arm]
        marks = [line for line in axes.lines if line.get_marker() not in ("", "None", None)]
        assert len(marks) == len(mine) > 0
        for mark, c in zip(marks, mine, strict=True):
            assert mark.get_xdata()[0] == 100 * c["metrics"]["accuracy"]["mean"]
            assert (mark.get_markerfacecolor() != "white") == (c["outcome"] != "tied")
    # A study of one regime and one recipe has a single line.
    assert len(report_figures.forest_figure(comparisons[:1]).axes) == 1
    with pytest.raises(FigureError, match="no comparison"):
        report_figures.forest_figure([])


def test_the_frontier_is_of_rows_that_none_beats() -> None:
    rows = [
        {"trainable_params": size, "accuracy": accuracy}
        for size, accuracy in ((10, 0.8), (10, 0.7), (20, 0.8), (30, 0.9), (40, 0.85))
    ]
    found = [(row["trainable_params"], row["accuracy"]) for row in views.front(rows)]
    assert found == [(10, 0.8), (30, 0.9)]


def test_regimes_and_recipes_are_in_the_order_of_their_numbers() -> None:
    names = ["pca-32-data-10", "data-5", "pca-8", "data-10", "odd", "full", "pca-64"]
    assert sorted(names, key=views.regime_key) == [
        "full", "pca-64", "pca-8", "data-10", "data-5", "pca-32-data-10", "odd",
    ]  # fmt: skip
    assert sorted(["refined-10", "refined-3", "random-1"], key=views.recipe_key)[-1] == "refined-10"


def test_the_appendix_has_every_comparison_with_its_bounds(
    out: Path, summary: dict[str, Any]
) -> None:
    text = section((out / APPENDIX).read_text(), "## Study `heads`")
    for place in views.places(summary):
        part = section(text, f"### {place[0]}").split("Share of the other arm's errors")[1]
        head, *lines = [line for line in part.splitlines() if line.startswith("|")]
        columns = [name.strip() for name in head.strip("|").split("|")]
        for c in views.comparisons_of(summary, place):
            (line,) = [x for x in lines if x.startswith(f"| {c['regime']} | ") and " (" in x]
            column = columns.index(f"{c['recipe']}, against {c['a']}")
            cell = line.strip("|").split("|")[column].strip()
            assert ("**" in cell) == (c["outcome"] != "tied")
            found = re.fullmatch(r"\**(\S+?)\** \((\S+) to (\S+)\)", cell)
            assert found, cell
            wanted = [c["errors_removed_pct"], *c["errors_removed_ci_pct"]]
            assert [float(x) for x in found.groups()] == pytest.approx(wanted, abs=0.051)


def test_studies_come_in_the_order_of_their_titles(summary: dict[str, Any]) -> None:
    found = dict.fromkeys(("unnamed", "lora", "heads-held-out"), summary)
    assert views.study_names(found) == ["heads-held-out", "lora", "unnamed"]


def test_the_submission_has_the_sections_that_are_asked_for(
    out: Path, summary: dict[str, Any]
) -> None:
    text = (out / "submission.md").read_text()
    for heading in ("Introduction", "Project impact", "Usage instructions", "Results"):
        assert f"\n## {heading}\n" in text
    assert "artifacts/figures/PAI.png)" in text
    line = cells(text, "[`heads`](report_appendix.md#study-heads)")
    for arm, cell in zip(("baseline", "restart", "matched"), line[2:5], strict=True):
        removed = [c["errors_removed_pct"] for c in summary["comparisons"] if c["a"] == arm]
        wanted = [statistics.median(removed), min(removed), max(removed)]
        numbers = re.findall(r"[-+]?\d+\.\d", cell)
        assert [float(x) for x in numbers] == pytest.approx(wanted, abs=0.051)
    tied = sum(c["outcome"] == "tied" for c in summary["comparisons"])
    assert f"{tied} of {len(summary['comparisons'])} comparisons of the studies are ties" in text


@pytest.mark.parametrize("name", ["report.md", "submission.md"])
def test_what_people_read_first_stays_short(name: str) -> None:
    assert len((ROOT / "docs" / name).read_text().splitlines()) <= 130


def shown_in_the_summary(page: str) -> dict[str, list[str]]:
    """By study, the cells after its question."""
    lines = [line for line in section(page, "## The studies").splitlines() if "](" in line]
    found = {line.split("`")[1]: line.strip("| ").split(" | ")[2:] for line in lines}
    assert len(found) == len(lines), "a study has one row"
    return found


def told_by(summary: dict[str, Any]) -> list[str]:
    """What the summary's row of a study has to say, counted anew from its file."""
    comparisons = summary["comparisons"]
    settings: dict[tuple[str, ...], list[str]] = {}
    for c in comparisons:
        key = tuple(c[name] for name in ("dataset", "test_dataset", "regime", "recipe"))
        settings.setdefault(key, []).append(c["outcome"])
    if not settings:
        return ["none", "–", "–", "–"]
    won = sum(outcomes == ["better"] * 3 for outcomes in settings.values())
    bounds = [c["errors_removed_ci_pct"] for c in comparisons if c["a"] == "restart"]
    highest = [high for _, high in bounds]
    losses = [c["metrics"]["nll"] for c in comparisons]
    sure = [loss["mean"] < 0 for loss in losses if loss["p_holm"] < 0.05]
    return [
        str(len(settings)),
        str(won),
        f"{statistics.median(highest):.1f}, {max(highest):.1f}",
        f"{sum(sure)}, {len(sure) - sum(sure)} of {len(losses)}",
    ]


def test_the_summary_has_a_row_for_each_study_that_says_what_its_file_holds() -> None:
    shown = shown_in_the_summary((ROOT / "docs" / "report.md").read_text())
    files = {
        path.parent.name: read_json(path)
        for path in (ROOT / "artifacts" / "studies").glob("*/summary.json")
    }
    with_rows = {name: file for name, file in files.items() if file["rows"]}
    assert {name: line[1:] for name, line in shown.items()} == {
        name: told_by(file) for name, file in with_rows.items()
    }
    for name, file in with_rows.items():
        assert shown[name][0].removesuffix(" so far") == f"{file['runs']:,}"


def test_the_summary_follows_the_files(artifacts: Path, tmp_path: Path) -> None:
    root = shutil.copytree(artifacts, tmp_path / "artifacts")
    make_study(root, "lora", datasets=("allagree",))
    evidence = evidence_module.Evidence.read(root)
    page = report.pages(evidence, root)["report.md"]
    shown = shown_in_the_summary(page)
    assert list(shown) == ["heads", "lora", "classical"]
    assert {name: line[1:] for name, line in shown.items()} == {
        name: told_by(dict(summary)) for name, summary in evidence.summaries.items()
    }
    assert [line[2] for line in shown.values()] == ["2", "1", "–"]
    # Settings of two studies are two settings, whatever they are called.
    assert "**In part: dendrites beat all three controls in 3 of 18 settings.**" in page
    for c in evidence.summaries["lora"]["comparisons"]:
        c["outcome"] = "tied"
    page = report.pages(evidence, root)["report.md"]
    assert [line[2] for line in shown_in_the_summary(page).values()] == ["2", "0", "–"]
    assert "in 2 of 18 settings.**" in page


def test_the_leaderboard_is_told_whichever_arm_comes_first(artifacts: Path) -> None:
    evidence = evidence_module.Evidence.read(artifacts)
    names = {"backbone": "smollm2-135m", "dataset": "allagree", "verdict": "so it is"}
    pairs = [
        {**names, "a": "dendritic", "b": "restart", "outcome": "worse"},
        {**names, "a": "dendritic", "b": "restart", "outcome": "better"},
        {**names, "a": "baseline", "b": "matched", "outcome": "better"},
    ]
    found = board_values({**evidence.board, "comparisons": pairs})
    assert (found["compared"], found["better"], found["worse"]) == (2, pairs[:1], 1)
    assert len(found["verdicts"]) == 2


def test_counts_of_nothing_are_zero(summary: dict[str, Any]) -> None:
    nothing = counts()
    assert (nothing["settings"], nothing["tests"], nothing["won"]) == (0, 0, 0)
    assert nothing["against"]["restart"]["bounds"] == {}
    lone = [c for c in summary["comparisons"] if c["a"] != "matched"]
    assert counts(lone)["won"] == 0, "two controls are not three"


def test_the_summary_figure_draws_every_setting_under_the_finding(
    artifacts: Path, summary: dict[str, Any]
) -> None:
    figure = report_figures.summary_figure(read_summaries(artifacts))
    assert list(figure.get_size_inches() * DPI) == [1600, 900]
    assert figure.texts[0].get_text() == "Dendrites beat all three controls in 2 of 12 settings"
    assert [x.get_text() for x in figure.axes[0].get_yticklabels()] == [views.study_title("heads")]
    for axes, arm in zip(figure.axes, ("baseline", "restart", "matched"), strict=True):
        mine = [c for c in summary["comparisons"] if c["a"] == arm]
        zero, *marks = axes.lines
        assert list(zero.get_xdata()) == [0, 0]
        *settings, bar, middle = marks
        tests = [c["metrics"]["accuracy"] for c in mine]
        assert [m.get_xdata()[0] for m in settings] == [100 * test["mean"] for test in tests]
        filled = [m.get_markerfacecolor() != "white" for m in settings]
        assert filled == [c["outcome"] != "tied" for c in mine]
        ends = [100 * statistics.median(test[end] for test in tests) for end in ("low", "high")]
        assert list(bar.get_xdata()) == ends
        assert middle.get_xdata()[0] == 100 * statistics.median(test["mean"] for test in tests)
    with pytest.raises(FigureError, match="no comparison"):
        report_figures.summary_figure({"heads": {**summary, "comparisons": []}})


def test_without_a_study_it_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_classical(tmp_path)
    assert report.main(["--artifacts", str(tmp_path), "--out", str(tmp_path / "docs")]) == 1
    assert "python train_models.py study heads --select" in capsys.readouterr().err
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("rows"), "no list of rows; make it again with `python train_models.py"),
        (lambda s: s["rows"][0].pop("accuracy_ci"), "rows lack accuracy_ci; make it again"),
        (lambda s: s["comparisons"][0].pop("verdict"), "comparisons lack verdict; make it again"),
        (lambda s: s["comparisons"][0]["metrics"].pop("nll"), "comparisons lack one of"),
    ],
)
def test_a_damaged_summary_is_named(
    artifacts: Path, tmp_path: Path, change: Any, message: str
) -> None:
    folder = shutil.copytree(artifacts / "studies" / "heads", tmp_path / "studies" / "heads")
    summary = json.loads((folder / "summary.json").read_text())
    change(summary)
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ArtifactError, match=f"heads/summary.json: {message}"):
        read_summaries(tmp_path)


def test_the_committed_pages_are_what_the_artifacts_give() -> None:
    committed = ROOT / "artifacts"
    if not views.study_names(read_summaries(committed)):
        pytest.skip("no finished study is committed yet")
    docs = ROOT / "docs"
    evidence = evidence_module.Evidence.read(committed)
    written = report.pages(evidence, docs)
    assert {name: (docs / name).read_text() for name in report.PAGES} == written
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", "".join(written.values()))
    assert [link for link in links if not (docs / link).is_file()] == []


def test_a_row_without_the_baselines_folds_removes_nothing(tmp_path: Path) -> None:
    folder = make_study(tmp_path, datasets=("allagree",), regimes=("full",))
    path = folder / RESULTS
    runs = [r for r in read_runs(path) if not (r.arm == "restart" and r.fold == 0)]
    runs = [r for r in runs if r.arm != "dendritic"]
    path.unlink()
    append_runs(path, runs)
    write_summary(folder)
    rows = read_summaries(tmp_path)["heads"]["rows"]
    assert {r["arm"]: r["errors_removed_pct"] is None for r in rows} == {
        "baseline": True, "restart": True, "matched": False,
    }  # fmt: skip
