"""Cases from saved predictions: found, ordered, filtered; and the list of agreement levels."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from finsent.data import agreement, registry
from finsent.results.catalog import Catalog
from finsent.results.disagreements import (
    CONFIDENT,
    CONFIDENTLY_WRONG,
    DISAGREE,
    Case,
    Found,
    choose,
    read_cases,
)
from finsent.results.runs import find_runs
from finsent.results.schema import ArtifactError
from finsent.ui.tabs import compare
from tests.artifact_factory import make_artifacts

NAMES = ("negative", "neutral", "positive")


def case(name: str, a: tuple[float, ...], b: tuple[float, ...], **other: object) -> Case:
    values: dict[str, object] = {"seed": 0, "label": "negative", "level": "allagree", **other}
    return Case(id=name, label_names=NAMES, probabilities={"baseline": a, "dendritic": b}, **values)  # type: ignore[arg-type]


CASES = [
    case("same", (0.8, 0.1, 0.1), (0.7, 0.2, 0.1)),
    case("small", (0.5, 0.4, 0.1), (0.4, 0.5, 0.1)),
    case("large", (0.9, 0.1, 0.0), (0.05, 0.95, 0.0), seed=1, level="50agree"),
    case("wrong", (0.0, 0.97, 0.03), (0.0, 0.96, 0.04)),
    case("edge", (0.1, CONFIDENT, 0.0), (0.9, 0.1, 0.0), label="positive"),
]


def names(found: list[Case]) -> list[str]:
    return [one.id for one in found]


def test_disagreements_come_largest_first() -> None:
    assert names(choose(CASES, DISAGREE)) == ["large", "edge", "small"]
    assert choose(CASES, DISAGREE)[0].disagreement == pytest.approx(0.85)


def test_confident_errors_come_most_confident_first() -> None:
    found = choose(CASES, CONFIDENTLY_WRONG)
    assert names(found) == ["wrong", "large", "edge"]
    assert [one.wrong_confidence for one in found] == [0.97, 0.95, 0.9]
    assert CASES[0].wrong_confidence == 0.0


def test_filters_combine() -> None:
    assert names(choose(CASES, DISAGREE, seed=0)) == ["edge", "small"]
    assert names(choose(CASES, DISAGREE, seed=0, label="positive")) == ["edge"]
    assert names(choose(CASES, DISAGREE, level="50agree")) == ["large"]
    assert choose(CASES, DISAGREE, label="neutral") == []
    with pytest.raises(ValueError, match="none of"):
        choose(CASES, "everything")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_artifacts(
        tmp_path, backbones=("tiny-phi",), datasets=("50agree",), seeds=(0, 1), publish=False
    )


def test_cases_are_the_saved_predictions(root: Path) -> None:
    runs = find_runs(root)
    cases = read_cases(runs)
    assert len(cases) == sum(run.metrics["n_test"] for run in runs) // 3
    for run in runs:
        read = run.read_predictions()
        of_run = {one.id: one for one in cases if one.seed == run.seed}
        for example, label, row in zip(read.ids, read.labels, read.probabilities, strict=True):
            assert of_run[example].label == label
            assert of_run[example].probabilities[run.arm] == row
            assert of_run[example].level in agreement.BANDS


def test_a_seed_without_all_arms_is_left_out(root: Path) -> None:
    runs = [run for run in find_runs(root) if (run.arm, run.seed) != ("matched", 1)]
    assert {one.seed for one in read_cases(runs)} == {0}
    assert {one.seed for one in read_cases([r for r in runs if r.arm != "matched"])} == {0, 1}


def test_arms_tested_on_different_examples_are_an_error(root: Path) -> None:
    path = root / "tiny-phi/50agree/dendritic/seed-0/predictions.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[2:]))
    with pytest.raises(ArtifactError, match="do not share test example"):
        read_cases(find_runs(root))


def test_agreement_levels_follow_from_the_data(real_data: Path) -> None:
    path = Path(agreement.__file__).with_name(agreement.AGREEMENT_FILE)
    assert path.read_text() == agreement.agreement_csv(real_data)
    levels = agreement.agreement_levels()
    for level, members in (("allagree", {"allagree"}), ("50agree", set(agreement.BANDS))):
        records = registry.DATASETS[level].loader(real_data)
        assert {levels[record.id] for record in records} == members


def test_texts_are_shown_only_where_a_copy_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FINSENT_DATA_DIR", raising=False)
    assert registry.local_texts("allagree") is None
    assert registry.local_texts("unheard-of") is None
    sample = registry.local_texts("sample")
    assert sample is not None
    assert len(sample) == len(registry.load_dataset("sample").examples)
    monkeypatch.setenv("FINSENT_DATA_DIR", str(tmp_path))
    with pytest.raises(registry.DataError, match="no Sentences_AllAgree"):
        registry.local_texts("allagree")


def test_texts_of_the_real_copy(real_data: Path) -> None:
    texts = registry.local_texts("50agree")
    assert texts is not None
    assert len(texts) == len(agreement.agreement_levels())


def test_the_share_of_annotators_follows_the_level_of_a_sentence() -> None:
    by_level: dict[str, list[str]] = {}
    for name, level in agreement.agreement_levels().items():
        by_level.setdefault(level, []).append(name)
    examples = tuple(
        registry.Example(by_level[level][label], "text", label, 0, "50agree", 0)
        for level in agreement.BANDS
        for label in range(3)
    )
    shares = agreement.agreed_shares(registry.Dataset("50agree", NAMES, examples, ""))
    for example, row in zip(examples, shares, strict=True):
        middle = agreement.MIDDLE[agreement.agreement_levels()[example.id]]
        assert row[example.label] == middle
        assert sum(row) == pytest.approx(1)
        # Who calls a sentence positive and is outvoted called it neutral, never negative.
        if example.label != 1:
            assert row[2 - example.label] == 0
        else:
            assert row[0] == row[2]
    assert agreement.MIDDLE.keys() == agreement.BANDS.keys()


def test_shares_of_annotators_are_known_of_phrasebank_alone() -> None:
    with pytest.raises(registry.DataError, match="sample: how many annotators agreed on sample-"):
        agreement.agreed_shares(registry.load_dataset("sample"))


def test_headlines_come_in_turn_simple_ones_first_and_none_twice() -> None:
    texts = (
        "Ostrell shuts a plant, then beats estimates, as expected",
        "Ostrell narrows its loss",
        "Ostrell posts orders but halves its dividend",
        "Ostrell loses an order",
    )
    found = Found(100, 4, texts)
    orders = [found.in_turn(random.Random(seed)) for seed in range(20)]
    for order in orders:
        assert sorted(order) == sorted(texts)
        assert set(order[:2]) == {texts[1], texts[3]}
        assert order[2:] == [texts[2], texts[0]]
    assert len({order[0] for order in orders}) == 2


def test_a_visitor_sees_all_headlines_before_one_comes_again(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    catalog = Catalog.read(root)
    assert compare.none_found_html(catalog, catalog.select(catalog.backbones()[0])) == ""
    texts = tuple(f"Ostrell headline {n}" for n in range(5))
    there = {"backbone": catalog.backbones()[0]}
    monkeypatch.setattr(
        compare,
        "_found",
        lambda _, wanted: Found(9, 5, texts) if wanted.backbone == there["backbone"] else None,
    )
    answers = compare._Answers(catalog, None, None)  # type: ignore[arg-type]
    asked = (there["backbone"], catalog.datasets(there["backbone"])[0], 0)
    now, waiting, seen = "typed", {}, []
    for _ in range(10):
        now, waiting = answers.disagreement(now, waiting, *asked)
        seen.append(now)
    assert set(seen[:5]) == set(texts)
    assert all(a != b for a, b in itertools.pairwise(seen))
    # Where nobody searched it is said for which models somebody did.
    other = replace(catalog.select(there["backbone"]), backbone="mpnet-base")
    assert "have been searched for" in compare.none_found_html(catalog, other)
