"""The leaderboard: pooled from files, ranked by tested differences, reproducible."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from finsent.results import leaderboard, runs
from finsent.results.comparison import Comparison
from tests.artifact_factory import make_artifacts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifacts(
        tmp_path_factory.mktemp("board") / "artifacts",
        backbones=("tiny-phi", "org/model"),
        datasets=("sample",),
        without_dendrites=(1,),
    )


@pytest.fixture(scope="module")
def board(root: Path) -> dict[str, Any]:
    return leaderboard.build(root)


def test_file_is_what_build_gives(root: Path, board: dict[str, Any]) -> None:
    text = (root / "leaderboard.json").read_text()
    assert text == runs.canonical_json(board)
    assert leaderboard.write(root).read_text() == text


def test_rows_repeat_the_runs(root: Path, board: dict[str, Any]) -> None:
    assert len(board["rows"]) == 18
    for row in board["rows"]:
        run = runs.read_run(root / row["folder"])
        assert row["accuracy"] == pytest.approx(run.metrics["accuracy"], rel=1e-8)
        assert (row["backbone"], row["arm"], row["seed"]) == (run.backbone, run.arm, run.seed)


def test_arm_means_and_deviations(board: dict[str, Any]) -> None:
    for arm in board["arms"]:
        place = ("backbone", "dataset", "arm")
        values = [row["accuracy"] for row in board["rows"] if all(row[k] == arm[k] for k in place)]
        assert arm["mean"]["accuracy"] == pytest.approx(statistics.fmean(values))
        assert arm["sd"]["accuracy"] == pytest.approx(statistics.stdev(values))
        low, high = arm["ci"]["accuracy"]
        assert low < arm["mean"]["accuracy"] < high


def test_comparisons_of_every_pair(board: dict[str, Any]) -> None:
    pairs = [(c["a"], c["b"]) for c in board["comparisons"] if c["backbone"] == "tiny-phi"]
    assert pairs == [("baseline", "matched"), ("baseline", "dendritic"), ("matched", "dendritic")]


def test_run_without_dendrites_is_shown_as_such(board: dict[str, Any]) -> None:
    (row,) = [
        row
        for row in board["rows"]
        if (row["backbone"], row["arm"], row["seed"]) == ("tiny-phi", "dendritic", 1)
    ]
    assert row["dendrites"] == 0
    assert row["growth"]["grown"] is False
    assert row["growth"]["paid_on_validation"] is None
    for arm in board["arms"]:
        assert arm["seeds_without_dendrites"] == ([1] if arm["arm"] == "dendritic" else [])
    for pair in board["comparisons"]:
        assert ("NO DENDRITE" in pair["verdict"]) == (pair["b"] == "dendritic")


def test_growth_facts(root: Path) -> None:
    run = runs.read_run(runs.run_folder(root, "tiny-phi", "sample", "dendritic", 0))
    baseline = runs.read_run(runs.run_folder(root, "tiny-phi", "sample", "baseline", 0))
    facts = leaderboard.growth(run, baseline)
    assert facts is not None
    assert facts["epoch"] == 3
    assert facts["val_nll_before"] == min(line["val_loss"] for line in run.history[:4])
    assert facts["val_nll_after"] == min(line["val_loss"] for line in run.history[4:])
    assert facts["improved_after_growth"] is True
    assert facts["val_nll_baseline"] == baseline.metrics["validation"]["nll"]
    for nll, paid in ((0.0, True), (9.0, False)):
        validation = {**run.metrics["validation"], "nll": nll}
        other = leaderboard.growth(
            replace(run, metrics={**run.metrics, "validation": validation}), baseline
        )
        assert other is not None
        assert other["paid_on_validation"] is paid
    alone = leaderboard.growth(run, None)
    assert alone is not None
    assert alone["paid_on_validation"] is None
    assert leaderboard.growth(baseline, baseline) is None


def comparison(a: str, b: str, outcome: str) -> Comparison:
    nothing = (0.0, 0.0)
    return Comparison(a, b, (0,), 1, 0, nothing, 0, nothing, 1, (), 0, 0, None, None, outcome, "")


def test_tie_groups_compare_with_the_groups_leader() -> None:
    arms = [
        {"arm": name, "mean": {"accuracy": accuracy, "nll": 0.1}}
        for name, accuracy in (("c", 0.90), ("a", 0.95), ("d", 0.85), ("b", 0.94))
    ]
    pairs = [
        comparison("a", "b", "tied"),
        comparison("a", "c", "worse"),
        comparison("a", "d", "worse"),
        comparison("b", "c", "tied"),  # b is in a's group, so this does not lift c
        comparison("c", "d", "tied"),
    ]
    ranked = leaderboard._ranked(
        arms, partial(leaderboard._told_apart, pairs), ("rank", "tie_group")
    )
    assert [(arm["arm"], arm["rank"], arm["tie_group"]) for arm in ranked] == [
        ("a", 1, 1),
        ("b", 1, 1),
        ("c", 3, 2),
        ("d", 3, 2),
    ]


def test_one_seed_has_no_deviation_and_arms_without_common_seeds_no_test(tmp_path: Path) -> None:
    place: dict[str, Any] = {"backbones": ("tiny-phi",), "datasets": ("sample",), "publish": False}
    make_artifacts(tmp_path, arms=("baseline",), seeds=(0,), **place)
    make_artifacts(tmp_path, arms=("dendritic",), seeds=(1,), **place)
    board = leaderboard.build(tmp_path)
    assert board["comparisons"] == []
    assert [arm["sd"]["accuracy"] for arm in board["arms"]] == [None, None]
    assert [arm["rank"] for arm in board["arms"]] == [1, 1]


def test_empty_root(tmp_path: Path) -> None:
    board = leaderboard.build(tmp_path)
    assert (board["rows"], board["arms"], board["comparisons"]) == ([], [], [])


def test_models_are_ranked_beside_each_other(board: dict[str, Any]) -> None:
    """Over all backbones: tiny-phi is made to be worse here than the other one."""
    arms = sorted(board["arms"], key=lambda arm: arm["standing"])
    assert arms[0]["standing"] == arms[0]["standing_group"] == 1
    groups: dict[int, list[dict[str, Any]]] = {}
    for arm in arms:
        groups.setdefault(arm["standing_group"], []).append(arm)
    for members in groups.values():
        assert len({arm["standing"] for arm in members}) == 1
    assert arms[0]["backbone"] == "org/model"
    best = max(arm["mean"]["accuracy"] for arm in arms)
    assert arms[0]["mean"]["accuracy"] == best


def test_p_is_corrected_over_all_comparisons_of_the_same_arms(board: dict[str, Any]) -> None:
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for pair in board["comparisons"]:
        families.setdefault((pair["a"], pair["b"]), []).append(pair)
    assert {len(family) for family in families.values()} == {2}, "one for each backbone"
    for family in families.values():
        low, high = sorted(family, key=lambda pair: pair["p_value"])
        assert low["p_holm"] == pytest.approx(min(1.0, 2 * low["p_value"]))
        assert high["p_holm"] == pytest.approx(max(low["p_holm"], high["p_value"]))
