"""What shallower encoders cost, and the page of the published comparison, from made-up rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from finsent.commands import cli
from finsent.config import STUDY_ARMS
from finsent.reports.replication import FIGURE, effects_of, write_page
from finsent.study.cycles.depths import depth_points, saving_sentence, savings
from finsent.study.cycles.findings import findings, progress
from finsent.study.cycles.plans import AUTHORS, DEPTHS
from finsent.study.rows import RESULTS, StudyError, StudyRun, append_runs


def row(regime: str, arm: str, fold: int, accuracy: float, recipe: str = "sigmoid-1") -> StudyRun:
    return StudyRun(
        backbone="minilm-l6",
        dataset="allagree",
        regime=regime,
        recipe=recipe,
        arm=arm,
        fold=fold,
        seed=0,
        accuracy=accuracy,
        macro_f1=accuracy,
        nll=0.2,
        ece=0.02,
        trainable_params=1000,
        dendrites=int(arm == "dendritic"),
        optimizer_steps=10,
        train_seconds=1.0,
        test_dataset="allagree",
        n_train=1800,
        n_test=225,
        best_epoch=1,
        validation_nll=0.2,
        validation_accuracy=0.9,
    )


def shrunk(loss: dict[tuple[str, int], float]) -> Iterator[StudyRun]:
    """Ten folds of four arms at all depths; `loss` is what an arm loses at depths 2, 4 and 6, and
    at an odd depth it loses as much as at the even one below."""
    for arm in STUDY_ARMS:
        for depth in DEPTHS["minilm-l6"]:
            for fold in range(10):
                lost = loss.get((arm, max(2, depth - depth % 2)), 0.0)
                accuracy = 0.95 + 0.001 * (fold % 3) - lost + 0.0001 * (fold % 2) * depth
                yield row(f"minilm-l6-depth-{depth}", arm, fold, accuracy)


def test_blocks_are_saved_where_the_dendritic_arm_alone_stays_within_the_margin() -> None:
    others = {(arm, depth): 0.02 for arm in STUDY_ARMS for depth in (2, 4)}
    loss = {**others, ("dendritic", 4): 0.001}
    (saving,) = savings(depth_points(shrunk(loss)))
    assert saving.least == {"baseline": 6, "dendritic": 4, "restart": 6, "matched": 6}
    assert saving.blocks == 2
    assert saving_sentence(saving).startswith("Dendrites save 2 of 6 blocks of MiniLM-L6")


def test_what_the_restart_saves_as_well_is_not_the_dendrites() -> None:
    loss = {(arm, 2): 0.02 for arm in STUDY_ARMS} | {("baseline", 4): 0.02, ("matched", 4): 0.02}
    (saving,) = savings(depth_points(shrunk(loss)))
    assert (saving.least["dendritic"], saving.least["restart"]) == (4, 4)
    assert saving_sentence(saving).startswith("Dendrites save no block")
    worse = {("dendritic", depth): 0.02 for depth in (2, 4, 6)}
    (saving,) = savings(depth_points(shrunk(loss | worse)))
    assert saving.least["dendritic"] is None
    assert "dendritic more than 6" in saving_sentence(saving)


def test_few_folds_say_nothing() -> None:
    one = [run for run in shrunk({}) if run.fold == 0]
    (saving,) = savings(depth_points(one))
    assert saving.blocks is None
    assert "too few runs" in saving_sentence(saving)
    cut_off = [run for run in shrunk({}) if run.fold < 4 or not run.regime.endswith("-2")]
    (saving,) = savings(depth_points(cut_off))
    assert saving.blocks is None
    assert "3 (10 folds), 2 (4 folds), 1 (10 folds)." in saving_sentence(saving)
    shallow = [run for run in shrunk({}) if not run.regime.endswith("-6")]
    (saving,) = savings(depth_points(shallow))
    assert saving.blocks is None  # without the full depth there is nothing to compare with


def replicated() -> list[StudyRun]:
    accuracies = {
        ("published-plain", "baseline"): 0.73,
        ("published-perforated", "baseline"): 0.77,
        ("two-epochs", "baseline"): 0.78,
        ("fair", "baseline"): 0.95,
        ("fair", "restart"): 0.951,
        ("fair", "matched"): 0.95,
        ("fair", "dendritic"): 0.951,
    }
    return [
        row(regime, arm, fold, accuracy + 0.01 * (fold % 3) + 0.002 * ((fold + len(arm)) % 2))
        for (regime, arm), accuracy in accuracies.items()
        for fold in range(10)
    ]


def test_the_page_says_how_much_is_the_extra_epoch_and_how_much_the_dendrites(
    tmp_path: Path,
) -> None:
    rows = replicated()
    append_runs(tmp_path / RESULTS, rows)
    page, answer = write_page(tmp_path, "minilm-l6")
    assert "scores +4.00 (" in answer
    assert "one more epoch alone gives +5.00" in answer
    assert "no difference is shown" in answer
    text = page.read_text(encoding="utf-8")
    assert '| published "perforated" arm | 2 | 8e-06 |' in text
    assert (tmp_path / FIGURE).read_bytes().startswith(b"\x89PNG")
    assert len(effects_of(rows)) == 6
    with pytest.raises(StudyError, match="no two folds of two arms"):
        write_page(tmp_path / "empty", "minilm-l6")


def test_the_command_writes_page_summary_and_checksums_of_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "studies" / "replicate-minilm-l6"
    append_runs(folder / RESULTS, replicated())
    command = ["replicate", "--backbone", "minilm-l6", "--page-only", "--device", "cpu"]
    assert cli.main([*command, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "one more epoch alone gives +5.00" in said
    assert (folder / "summary.json").is_file()
    assert f"studies/replicate-minilm-l6/{RESULTS}" in (tmp_path / "SHA256SUMS").read_text()
    assert cli.main([*command, "--out", str(tmp_path), "--folds", "11"]) == 2
    assert "has no fold 11" in capsys.readouterr().err


def test_the_sentences_of_a_study_are_made_from_its_rows(tmp_path: Path) -> None:
    rows = [
        replace(row(regime, arm, fold, level + 0.001 * (fold % 3)), backbone=backbone)
        for regime, arm, level, backbone in (
            ("minilm-l6-full", "dendritic", 0.95, "minilm-l6"),
            ("mpnet-base-full", "baseline", 0.98, "mpnet-base"),
        )
        for fold in range(10)
    ]
    append_runs(tmp_path / "authors" / RESULTS, rows)
    kept, sentence = findings("authors", tmp_path / "authors")
    assert "`minilm-l6-full`, `sigmoid-1`: 10 of 10 runs kept a dendrite" in kept
    parts = {(p.regime, p.dataset): p for p in progress(AUTHORS, tmp_path / "authors")}
    assert parts["minilm-l6-full", "allagree"].made == 10
    assert parts["minilm-l6-full", "allagree"].planned == 20
    assert parts["minilm-l6-swept", "50agree"].made == 0
    assert "scores -3.00 points" in sentence
    assert sentence.endswith("it does not reach it.")
    taught = [
        replace(
            row("minilm-l6", "baseline", fold, level + 0.001 * (fold % 2), recipe=recipe),
            dataset="50agree",
        )
        for recipe, level in (("hard", 0.97), ("soft", 0.985), ("teacher", 0.99))
        for fold in range(10)
    ]
    append_runs(tmp_path / "committee" / RESULTS, taught)
    (sentence,) = findings("committee", tmp_path / "committee")
    assert "scores 98.55 %, +1.50 points" in sentence
    assert "Wanted were 98 %, reached." in sentence
    assert findings("lora", tmp_path) == []
    assert findings("shrink", tmp_path / "shrink") == []
