"""What Results, Evidence and About say, without a browser."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from finsent.behaviour.results import results_path
from finsent.config import ARMS
from finsent.results import catalog as state
from finsent.results.leaderboard import arms_csv
from finsent.results.runs import write_json
from finsent.ui.parts import markup
from finsent.ui.tables import board as board_table
from finsent.ui.tables import matrix, published, verdicts
from finsent.ui.tables.board import PER_RUN
from finsent.ui.tables.filters import Filters
from finsent.ui.tabs import about, behaviour, curves, differ


@pytest.fixture(scope="module")
def catalog(app_artifacts: Path) -> state.Catalog:
    return state.Catalog.read(app_artifacts)


@pytest.fixture(scope="module")
def board(catalog: state.Catalog) -> dict[str, Any]:
    assert catalog.leaderboard is not None
    return dict(catalog.leaderboard)


ALLAGREE = Filters("allagree")


def arms_in(html: str) -> list[str]:
    return [name.lower() for name in re.findall(r"</svg>(\w+)</span>", html)]


def test_a_board_of_another_version_is_left_out(tmp_path: Path) -> None:
    board: dict[str, Any] = {key: [] for key in ("rows", "comparisons", "references")}
    board["arms"] = [{"arm": "baseline"}]
    (tmp_path / "leaderboard.json").write_text(json.dumps(board))
    found = state.Catalog.read(tmp_path)
    assert found.leaderboard is None
    (damage,) = found.damaged
    assert re.search(r"lack by_agreement.*train_models.py leaderboard", damage.reason)


# ------------------------------------------------------------------------------------- leaderboard


def test_tied_arms_share_a_rank_on_screen(board: dict[str, Any]) -> None:
    tied = {**board, "arms": [{**arm, "standing": 1, "standing_group": 1} for arm in board["arms"]]}
    assert board_table.board_html(tied, ALLAGREE).count("1, shared") == len(ARMS)
    apart = [{**arm, "standing": n, "standing_group": n} for n, arm in enumerate(board["arms"], 1)]
    assert ", shared" not in board_table.board_html({**board, "arms": apart}, ALLAGREE)


def test_filters_search_and_protocol_choose_rows(board: dict[str, Any]) -> None:
    def shown(filters: Filters, level: str = "arm") -> list[str]:
        return arms_in(board_table.board_html(board, filters, level=level))

    assert sorted(shown(ALLAGREE)) == sorted(ARMS)
    assert shown(Filters("allagree", arms=("matched",))) == ["matched"]
    assert shown(Filters("allagree", search="DENDR smollm")) == ["dendritic"]
    assert len(shown(ALLAGREE, PER_RUN)) == 9
    assert len(shown(Filters("allagree", search="run 1"), PER_RUN)) == 3
    for empty in (
        Filters("75agree"),
        Filters("allagree", protocol="80/20"),
        Filters("allagree", backbone="phi-2"),
        Filters("allagree", search="nothing like it"),
    ):
        assert "Nothing of this project here." in board_table.board_html(board, empty)


@pytest.mark.parametrize("column", board_table.COLUMNS, ids=lambda column: column.key)
def test_every_column_can_be_shown_and_sorted_by(board: dict[str, Any], column: Any) -> None:
    runs = board_table.entries(board, PER_RUN)
    values = [column.value(e) for e in board_table.arranged(runs, column.key)]
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=column.highest_first)
    assert values == known + [None] * (len(values) - len(known)), "what is missing comes last"
    worst = [column.value(e) for e in board_table.arranged(runs, column.key, reverse=True)]
    assert worst == values[::-1]
    html = board_table.board_html(board, ALLAGREE, sort=column.key, columns=[column.key])
    assert f"Sort by {column.title}, sorted, best first" in html
    others = [c for c in board_table.COLUMNS if c is not column]
    assert not [c.title for c in others if f'data-send="{c.key}"' in html]


def test_what_was_not_recorded_is_said_and_sorts_last(board: dict[str, Any]) -> None:
    first, *rest = (arm for arm in board["arms"] if arm["dataset"] == "allagree")
    gap = {**first, "mean": {**first["mean"], "peak_memory_mb": None}}
    some = {**board, "arms": [gap, *rest]}
    html = board_table.board_html(some, ALLAGREE, sort="peak_memory_mb", columns=["peak_memory_mb"])
    assert arms_in(html)[-1] == gap["arm"]
    assert html.count("not recorded") == 1


def test_run_without_dendrites_is_flagged(board: dict[str, Any]) -> None:
    assert "none kept: run 2" in board_table.board_html(board, ALLAGREE)


def test_the_matrix_holds_every_model_on_every_data_set(board: dict[str, Any]) -> None:
    html = matrix.matrix_html(board)
    for arm in board["arms"]:
        assert markup.percent(arm["mean"]["accuracy"]) in html
        assert (
            f'<span class="fs-line fs-quiet">{markup.percent_interval(arm["ci"]["accuracy"])}'
            in html
        )
        assert f"loss {arm['mean']['nll']:.3f}" in html
    assert html.count("<tr") == 1 + len({(arm["backbone"], arm["arm"]) for arm in board["arms"]})
    for dataset in {arm["dataset"] for arm in board["arms"]}:
        ordered = matrix.matrix_html(board, dataset)
        best = max(
            (arm for arm in board["arms"] if arm["dataset"] == dataset),
            key=lambda arm: arm["mean"]["accuracy"],
        )
        first = ordered.split("<tbody>")[1].split("</tr>")[0]
        assert markup.percent(best["mean"]["accuracy"]) in first


def test_an_accuracy_bought_with_a_higher_loss_is_not_called_best(board: dict[str, Any]) -> None:
    first, *rest = (
        {**arm, "standing_group": 1, "standing": 1}
        for arm in board["arms"]
        if arm["dataset"] == "allagree"
    )
    assert matrix.best(first, [first, *rest])
    lossy = {**first, "mean": {**first["mean"], "nll": 9.0}}
    assert not matrix.best(lossy, [lossy, *rest])
    assert not matrix.best({**first, "standing_group": 2}, [first, *rest])


def test_who_may_have_seen_the_test_is_not_best_and_keeps_nobody_from_it(
    board: dict[str, Any],
) -> None:
    first, *rest = (arm for arm in board["arms"] if arm["dataset"] == "allagree")
    seen = {**first, "standing_group": 1, "may_have_seen_test": True}
    told = {**first, "standing_group": 1, "tested": "self-reported"}
    fair = [{**arm, "standing_group": 2} for arm in rest]
    assert not matrix.best(seen, [seen, told, *fair])
    assert not matrix.best(told, [seen, told, *fair])
    assert any(matrix.best(arm, [seen, told, *fair]) for arm in fair)


def test_a_gain_carries_what_weakens_it(board: dict[str, Any]) -> None:
    pairs = [dict(pair) for pair in board["comparisons"] if pair["dataset"] == "allagree"]
    for pair in pairs:
        pair["seeds_without_dendrites"] = []
    gain = next(pair for pair in pairs if (pair["a"], pair["b"]) == matrix.PAIR)
    gain |= {"outcome": "better", "p_holm": 0.2, "seeds": [0]}
    control = next(pair for pair in pairs if (pair["a"], pair["b"]) == ("matched", "dendritic"))
    control["outcome"] = "tied"
    arms = [{**arm, "mean": dict(arm["mean"])} for arm in board["arms"]]
    for arm in arms:
        if (arm["dataset"], arm["arm"]) == ("allagree", "dendritic"):
            arm["mean"]["nll"] = 9.0
    found = matrix.badge({**board, "arms": arms, "comparisons": pairs}, gain)
    assert found["word"] == "Better"
    assert found["weak"] == [
        "one training run",
        "only if tested alone",
        "no better than a same-size model without dendrites",
        "its loss is higher",
    ]
    sure = {**gain, "p_holm": 0.001, "seeds": [0, 1]}
    control["outcome"] = "better"
    assert matrix.badge({**board, "comparisons": [sure, control]}, sure)["weak"] == []
    alone = {**board, "comparisons": [sure]}
    assert matrix.badge(alone, sure)["weak"] == ["no control was run"]


def test_the_table_of_effects_agrees_with_the_short_answer(board: dict[str, Any]) -> None:
    (pair,) = (
        pair
        for pair in board["comparisons"]
        if (pair["dataset"], pair["a"], pair["b"]) == ("allagree", *matrix.PAIR)
    )

    def page(*found: dict[str, Any]) -> str:
        pairs = [{**pair, **one} for one in found]
        return " ".join(matrix.effects_html({**board, "comparisons": pairs}).split())

    tied = {"outcome": "tied", "p_holm": 0.9}
    sure = {"outcome": "better", "p_holm": 0.001}
    alone = {"outcome": "better", "p_holm": 0.2}
    assert "leaves a difference in 0 of them.</p>" in page(tied, tied)
    assert "leaves a difference in 1 of them. “only if tested alone” marks" in page(sure, alone)


def test_the_matrix_turns_its_order(board: dict[str, Any]) -> None:
    def models(html: str) -> list[str]:
        return re.findall(r'<th scope="row">(.*?)</th>', html)

    for dataset in ("allagree", ""):
        assert matrix.asked_order(dataset) == (dataset, False)
        assert matrix.asked_order(f"-{dataset}") == (dataset, True)
        down, up = (matrix.matrix_html(board, dataset, reverse=turned) for turned in (False, True))
        assert models(up) == models(down)[::-1]
        # The heading that is sorted by asks for the other way round.
        assert f'data-send="-{dataset}"' in down
        assert f'data-send="{dataset}"' in up
    # A model that was not tested on a data set is neither its best nor its worst.
    fewer = [
        arm for arm in board["arms"] if (arm["dataset"], arm["arm"]) != ("allagree", "matched")
    ]
    for turned in (False, True):
        html = matrix.matrix_html({**board, "arms": fewer}, "allagree", reverse=turned)
        assert "Matched" in models(html)[-1]


def test_what_a_test_excludes_is_said(board: dict[str, Any]) -> None:
    (pair,) = (
        pair
        for pair in board["comparisons"]
        if (pair["dataset"], pair["a"], pair["b"]) == ("allagree", *matrix.PAIR)
    )

    def page(bounds: list[float]) -> str:
        changed = {**pair, "errors_removed_ci_pct": bounds}
        return matrix.effects_html({**board, "comparisons": [changed]})

    assert ">no<" in page([-3.0, 15.9])
    assert ">still possible<" in page([-3.0, 16.0])
    none = {**pair, "errors_removed_pct": None, "errors_removed_ci_pct": None}
    assert "makes no error" in matrix.effects_html({**board, "comparisons": [none]})
    # The only pair there is answers alike: no end has a length to draw it by.
    alike = {**none, "accuracy_delta_points": 0.0, "accuracy_ci_points": [0.0, 0.0]}
    assert "makes no error" in matrix.effects_html({**board, "comparisons": [alike]})


def test_models_of_others_stand_in_the_tables(board: dict[str, Any]) -> None:
    """Ten models on seven data sets, some of which only others were tested on."""
    first = next(arm for arm in board["arms"] if arm["arm"] == "baseline")
    others = [
        {
            **first,
            "backbone": f"someone/model-{n}",
            "arm": "external",
            "dataset": dataset,
            "form": "zero-shot",
            "may_have_seen_test": n == 1,
            "tested": "self-reported" if n == 2 else "here",
            "mean": {**first["mean"], "trainable_params": None, "latency_ms_p50": None},
        }
        for n in range(10)
        for dataset in ("allagree", "50agree", "fiqa", "twitter", "news", "fomc", "numclaim")
    ]
    wide = {**board, "arms": [*board["arms"], *others]}
    html = matrix.matrix_html(wide)
    assert html.count("<tr") == 1 + 3 + 10
    assert "someone/model-9" in html
    assert "may have seen these sentences" in html
    assert "self-reported" in html
    assert "zero-shot" in html
    shown = board_table.board_html(wide, Filters("news", arms=tuple(board_table.arms_on(wide))))
    assert shown.count("someone/model-") == 10


def test_verdicts_name_interval_test_and_remaining_errors(board: dict[str, Any]) -> None:
    html = verdicts.verdicts_html(board, ALLAGREE)
    pairs = [pair for pair in board["comparisons"] if pair["dataset"] == "allagree"]
    assert html.count("<h3>") == len(pairs) == 3
    for pair in pairs:
        assert markup.escape(markup.sentence(pair["verdict"])) in html
        assert f"{abs(pair['errors_removed_pct']):.1f}&#8239;%" in html
        assert f"({pair['errors_a']} to {pair['errors_b']} of {pair['n']:,} answers" in html
        low, high = pair["errors_removed_ci_pct"]
        assert low <= pair["errors_removed_pct"] <= high
    assert "Dendritic against baseline" in html.split("</h3>")[0]
    assert verdicts.verdicts_html(board, Filters("allagree", arms=("baseline",))) == ""
    none = {**pairs[0], "errors_removed_pct": None, "errors_removed_ci_pct": None}
    assert "makes no error" in verdicts.verdicts_html({**board, "comparisons": [none]}, ALLAGREE)


def test_references_stand_apart_with_their_protocol(board: dict[str, Any]) -> None:
    html = published.references_html(board, Filters("50agree"))
    shown = [r for r in board["references"] if r["dataset"] == "50agree"]
    assert shown
    for reference in shown:
        assert markup.escape(reference["model"]) in html
        assert markup.escape(reference["protocol"]) in html
    assert "GPT-4" not in html, "a row of AllAgree"
    assert "no weights published" not in html
    assert "Apache-2.0 (ModernBERT)" in html
    only = published.references_html(board, Filters("allagree", protocol="80/20"))
    assert "RoBERTa-base" in only
    assert "FinBERT" not in only


def test_csv_holds_the_boards_numbers(board: dict[str, Any]) -> None:
    arms = [arm for arm in board["arms"] if arm["dataset"] == "allagree"]
    lines = list(csv.DictReader(io.StringIO(arms_csv(arms))))
    assert [line["arm"] for line in lines] == [arm["arm"] for arm in arms]
    for line, arm in zip(lines, arms, strict=True):
        assert float(line["accuracy"]) == arm["mean"]["accuracy"]
        assert float(line["accuracy_sd"]) == arm["sd"]["accuracy"]
        assert [float(line["macro_f1_low"]), float(line["macro_f1_high"])] == arm["ci"]["macro_f1"]
        assert line["seeds"] == "0 1 2"
        assert int(line["rank"]) == arm["rank"]
    runs = [e for e in board_table.entries(board, PER_RUN) if ALLAGREE.own(e)]
    per_run = list(csv.DictReader(io.StringIO(arms_csv(runs))))
    assert [line["accuracy_sd"] for line in per_run] == [""] * 9


# ------------------------------------------------------------------------------------------ differ


def cases(catalog: state.Catalog, dataset: str = "allagree") -> list[Any]:
    return differ.read_cases(catalog.of("smollm2-135m", dataset))


def test_ids_stand_for_sentences_that_are_not_here(
    catalog: state.Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FINSENT_DATA_DIR", raising=False)
    differ.texts_of.cache_clear()
    found = differ.choose(cases(catalog), differ.DISAGREE)
    html = differ.cases_html(found, 1020, 3, differ.DISAGREE, "allagree")
    assert html.count("<li ") == 3
    assert all(case.id in html for case in found[:3])
    assert differ._box("allagree")["open"] is False
    assert differ._box("sample")["open"] is True
    assert "FINSENT_DATA_DIR" not in html, "who visits a page cannot set it"
    assert "Ask the models again" not in html
    assert f"Show {differ.PAGE} more" in html
    with pytest.raises(Exception, match="not part of the page"):
        differ.case_of(differ.case_key(found[0]), "allagree")


def test_sentences_are_escaped(catalog: state.Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    found = differ.choose(cases(catalog), differ.CONFIDENTLY_WRONG)
    text = '<script>alert("x")</script>'
    monkeypatch.setattr(differ, "texts_of", lambda dataset: ({c.id: text for c in found}, ""))
    html = differ.cases_html(found, 1020, 1, differ.CONFIDENTLY_WRONG, "allagree")
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert differ.case_of(differ.case_key(found[0]), "allagree") == (found[0].seed, text)
    for forged in ("0|unknown", "x|" + found[0].id, "nonsense"):
        with pytest.raises(Exception, match="no sentence"):
            differ.case_of(forged, "allagree")


def test_a_broken_copy_of_the_data_is_said(
    catalog: state.Catalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FINSENT_DATA_DIR", str(tmp_path / "gone"))
    differ.texts_of.cache_clear()
    texts, hint = differ.texts_of("allagree")
    differ.texts_of.cache_clear()
    assert texts is None
    assert "does not exist" in hint


def test_scores_on_screen_are_the_boards(board: dict[str, Any]) -> None:
    arms = [arm for arm in board["arms"] if arm["dataset"] == "50agree"]
    names = ("negative", "neutral", "positive")
    confusion, classes, bands = (
        differ.scores_html(arms, names, part) for part in ("confusions", "classes", "bands")
    )
    for arm in arms:
        for row in arm["confusion"]:
            for cell in row:
                assert f">{cell:,}<span>{markup.percent(cell / sum(row))}" in confusion
        for entry in arm["per_class"].values():
            assert markup.percent(entry["precision"]) in classes
            assert f"{entry['support']:,}" in classes
        for entry in arm["by_agreement"]:
            assert f"{markup.percent(entry['accuracy'])} " in bands
            assert markup.percent_interval(entry["ci"]["macro_f1"]) in bands
    without = [{**arm, "by_agreement": []} for arm in arms]
    assert "does not say" in differ.scores_html(without, names, "bands")


def test_a_chosen_run_is_shown_alone(catalog: state.Catalog, board: dict[str, Any]) -> None:
    tab = differ.DifferTab(catalog, None)
    confusions, *_ = tab._scores("smollm2-135m", "allagree", 1)
    run = catalog.run("smollm2-135m", "allagree", "dendritic", 1)
    for row in run.metrics["confusion"]:
        for cell in row:
            assert f">{cell:,}<span>{markup.percent(cell / sum(row))}" in confusions


# --------------------------------------------------------------------------------------- behaviour


def passing(arm: str, failed: dict[str, list[int]]) -> behaviour.Tested:
    suite = behaviour.load_suite()
    capabilities = {
        name: {
            "kind": cases[0].kind,
            "n": len(cases),
            "passed": len(cases) - len(failed.get(name, [])),
            "failed": failed.get(name, []),
        }
        for name, cases in suite.capabilities.items()
    }
    return behaviour.Tested(
        "smollm2-135m", "allagree", {"arm": arm, "seed": 0, "capabilities": capabilities}
    )


def test_the_hardest_kind_of_news_comes_first_and_its_cases_are_shown() -> None:
    suite = behaviour.load_suite()
    name = "sales up"
    cases = suite.capabilities[name]
    runs = [passing("baseline", {name: [0, 1]}), passing("dendritic", {name: [1]})]
    rates = behaviour.rates_html(runs, name)
    kinds = re.findall(r'data-send="([^"]+)"', rates)
    assert kinds[0] == name
    assert len(kinds) == len(suite.capabilities)
    assert f"{len(cases) - 2} of {len(cases)}" in rates
    page = behaviour.failures_html(runs, name)
    for place in (0, 1):
        assert markup.escape(cases[place].texts[0]) in page
    assert page.count("✗ fails") == 3
    assert page.count("✓ passes") == 1
    assert "Every model passes" in behaviour.failures_html(runs, "sales down")


def test_results_of_another_suite_are_said_and_not_shown(
    catalog: state.Catalog, tmp_path: Path
) -> None:
    assert behaviour.tested_runs(catalog) == ([], [])
    path = results_path(catalog.root, "smollm2-135m", "allagree")
    path.parent.mkdir()
    run = passing("baseline", {"sales up": [0]}).result
    other = passing("dendritic", {"sales up": [2]}).result
    try:
        write_json(path, {"suite_sha256": "0" * 64, "cases": 1, "runs": [run]})
        found, (problem,) = behaviour.tested_runs(catalog)
        assert found == []
        assert "another version of the suite" in problem
        path.write_text("{")
        assert "smollm2-135m-allagree.json" in behaviour.tested_runs(catalog)[1][0]
        suite = behaviour.load_suite()
        write_json(path, {"suite_sha256": suite.sha256, "cases": 1, "runs": [run, other]})
        page = behaviour.differing_html(catalog, "smollm2-135m", "allagree")
        for place in (0, 2):
            assert markup.escape(suite.capabilities["sales up"][place].texts[0]) in page
        assert behaviour.differing_html(catalog, "smollm2-135m", "50agree") == ""
    finally:
        path.unlink()
        path.parent.rmdir()


# ------------------------------------------------------------------------------------ curves, about


def test_growth_is_told_from_the_board(catalog: state.Catalog, board: dict[str, Any]) -> None:
    runs = catalog.of("smollm2-135m", "allagree")
    html = curves.growth_html(runs, board)
    for row in board["rows"]:
        if row["dataset"] == "allagree" and row["growth"] and row["growth"]["grown"]:
            assert f"{row['growth']['val_nll_before']:.4f}" in html
            assert f"{row['growth']['val_nll_baseline']:.4f}" in html
    assert "no dendrite kept" in html
    assert "Newer than the board." in curves.growth_html(runs, {"rows": []})


def test_about_holds_commands_hashes_versions_and_limits(catalog: state.Catalog) -> None:
    html = about.about_html(catalog)
    for run in catalog.runs:
        assert markup.escape(run.config["command"], quote=False) in html
        assert run.config["split_sha256"][:12] in html
    manifest = (catalog.root / "SHA256SUMS").read_text()
    assert all(line.split()[0] in html for line in manifest.splitlines())
    for fact in (
        "CC BY-NC-SA 3.0",
        "No Phi-2 weights",
        "3 training runs with 340 test sentences",
        "python train_models.py leaderboard",
        "@software{finsent",
        "perforatedai",
    ):
        assert fact in html
    (catalog.root / "SHA256SUMS").unlink()
    try:
        assert "SHA256SUMS: missing" in about.about_html(catalog)
    finally:
        (catalog.root / "SHA256SUMS").write_text(manifest)
