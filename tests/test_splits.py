"""Twins, and splits that never divide them."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from finsent.data import splits
from finsent.data.records import DataError, Record
from finsent.data.registry import (
    Dataset,
    load_dataset,
    make_split,
)
from tests.data_factory import (
    SEEDS,
    entry,
    needs_real_data,
    no_data_dir,
    real,
    twin_laden,
    twin_pairs,
)

__all__ = ["no_data_dir"]
"""The fixture is used by every test of this module."""

# --- twins --------------------------------------------------------------------------------------


def test_twins_differ_in_figures_case_and_punctuation_only() -> None:
    groups = splits.twin_groups(
        [
            "Net sales of Ansa rose to EUR 5.2 mn in 2019 .",
            "A wholly different sentence about harbour cranes and barges",
            "net sales of Ansa rose, to EUR 78 mn (in 2021)",
        ]
    )
    assert groups.tolist() == [0, 1, 0]


def test_exactly_four_fifths_is_a_twin_and_less_is_not() -> None:
    eight = "ash birch cedar elm fir hazel oak pine"
    assert len(set(splits.twin_groups([eight + " rowan", eight + " yew"]))) == 1  # 8 of 10
    seven = eight.removesuffix(" pine")
    assert len(set(splits.twin_groups([seven + " rowan", seven + " yew"]))) == 2  # 7 of 9


def test_short_sentences_are_not_twins() -> None:
    four, five = "sales rose in June", "sales rose again in June"
    assert len(set(splits.twin_groups([four, four + " 2"]))) == 2
    assert len(set(splits.twin_groups([five, five + " 2"]))) == 1


def test_a_twin_of_a_twin_is_in_the_group() -> None:
    words = [f"word{chr(97 + i)}" for i in range(14)]
    chain = [" ".join(words[start : start + 10]) for start in range(5)]
    assert len(twin_pairs([chain[0], chain[4]])) == 0
    assert set(splits.twin_groups(chain)) == {0}


def test_texts_without_words_stand_alone() -> None:
    assert splits.twin_groups(["12 %", "3.4", "12 %"]).tolist() == [0, 1, 2]


@settings(deadline=None, max_examples=30)
@given(
    texts=st.lists(
        st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=9).map(" ".join), min_size=1
    ),
    chunk=st.integers(1, 7),
)
def test_groups_are_the_components_of_the_brute_force_pairs(texts: list[str], chunk: int) -> None:
    expected = list(range(len(texts)))
    pairs = twin_pairs(texts)
    for _ in texts:  # spread the smallest number along the links until nothing moves
        for i, j in pairs:
            expected[i] = expected[j] = min(expected[i], expected[j])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "CHUNK", chunk)
        groups = splits.twin_groups(texts).tolist()
    first = {group: groups.index(group) for group in groups}
    assert [first[group] for group in groups] == expected
    assert list(dict.fromkeys(groups)) == list(range(len(set(groups))))


# --- splits -------------------------------------------------------------------------------------


def assert_no_twin_straddles(dataset: Dataset, pairs: set[tuple[int, int]], seed: int) -> None:
    split = make_split(dataset, seed)
    parts = (split.train, split.validation, split.test)
    side = {index: part for part, indices in enumerate(parts) for index in indices}
    assert sorted(itertools.chain(*parts)) == list(range(len(dataset.examples)))
    assert [pair for pair in pairs if side[pair[0]] != side[pair[1]]] == []


TWIN_LADEN = twin_laden()
TWIN_LADEN_PAIRS = twin_pairs([e.text for e in TWIN_LADEN.examples])


def test_the_synthetic_data_is_hard_enough() -> None:
    assert len(TWIN_LADEN_PAIRS) > 100
    disagreeing = [
        (i, j)
        for i, j in TWIN_LADEN_PAIRS
        if TWIN_LADEN.examples[i].label != TWIN_LADEN.examples[j].label
    ]
    assert len(disagreeing) > 10


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_no_twin_pair_straddles_a_split_of_synthetic_data(seed: int) -> None:
    assert_no_twin_straddles(TWIN_LADEN, TWIN_LADEN_PAIRS, seed)


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_no_twin_pair_straddles_a_split_of_the_sample(seed: int) -> None:
    dataset = load_dataset("sample")
    assert_no_twin_straddles(dataset, twin_pairs([e.text for e in dataset.examples]), seed)


@needs_real_data
@pytest.mark.parametrize(("level", "examples"), [("allagree", 4), ("50agree", 2)])
def test_no_twin_pair_straddles_a_split_of_phrasebank(level: str, examples: int) -> None:
    dataset = real(level)
    pairs = twin_pairs([e.text for e in dataset.examples])
    assert len(pairs) > 200

    @settings(deadline=None, max_examples=examples)
    @given(seed=SEEDS)
    def holds(seed: int) -> None:
        assert_no_twin_straddles(dataset, pairs, seed)

    holds()


def assert_balanced(dataset: Dataset, seed: int, tolerance: float) -> None:
    split = make_split(dataset, seed)
    labels = np.array([e.label for e in dataset.examples])
    shares = np.bincount(labels, minlength=3) / len(labels)
    for part, share in ((split.train, 0.70), (split.validation, 0.15), (split.test, 0.15)):
        assert list(part) == sorted(part)
        assert abs(len(part) / len(labels) - share) < 0.01
        part_shares = np.bincount(labels[list(part)], minlength=3) / len(part)
        assert np.abs(part_shares - shares).max() < tolerance


@pytest.mark.parametrize("seed", range(3))
def test_parts_are_70_15_15_and_keep_the_class_shares(seed: int) -> None:
    # a small part holds 42 sentences: three of them are 0.07
    assert_balanced(load_dataset("sample"), seed, tolerance=0.075)


@needs_real_data
@pytest.mark.parametrize("level", ["allagree", "50agree"])
def test_parts_of_phrasebank_are_balanced(level: str) -> None:
    assert_balanced(real(level), seed=0, tolerance=0.006)


def test_a_split_is_determined_by_its_seed() -> None:
    dataset = load_dataset("sample")
    assert make_split(dataset, 1) == make_split(load_dataset("sample"), 1)
    assert make_split(dataset, 1).fingerprint != make_split(dataset, 2).fingerprint
    assert set(make_split(dataset, 1).test) != set(make_split(dataset, 2).test)


def test_the_fingerprint_is_over_the_ordered_ids_of_the_parts() -> None:
    dataset = load_dataset("sample")
    split = make_split(dataset, 0)
    lines = "".join(
        f"{part}\t{dataset.examples[i].id}\n"
        for part in ("train", "validation", "test")
        for i in getattr(split, part)
    )
    assert split.fingerprint == hashlib.sha256(lines.encode()).hexdigest()


def distinct_words(n: int) -> list[str]:
    return ["".join(letters) for letters in itertools.islice(itertools.permutations("abcdef"), n)]


def test_a_class_that_is_too_small_cannot_be_split() -> None:
    labels = ["positive"] * 30 + ["neutral"] * 30 + ["negative"] * 19
    records = [
        Record(str(i), word, label)
        for i, (word, label) in enumerate(zip(distinct_words(79), labels, strict=True))
    ]
    dataset = load_dataset("mine", registry=entry(records))
    with pytest.raises(DataError, match=r"19 examples of class 'negative'.* at least 20"):
        make_split(dataset, 0)


def test_a_class_of_nothing_but_twins_cannot_be_split() -> None:
    records = [Record(f"n{i}", f"the mill will close in {i} days", "negative") for i in range(25)]
    for i, word in enumerate(distinct_words(60)):
        records.append(Record(f"o{i}", word, ("positive", "neutral")[i % 2]))
    dataset = load_dataset("mine", registry=entry(records))
    with pytest.raises(DataError, match=r"part got no example of class 'negative'.*too few groups"):
        make_split(dataset, 0)


@pytest.mark.parametrize(("n", "folds", "classes", "group"), [(3000, 20, 3, 3), (400, 9, 2, 1)])
def test_folds_are_dealt_as_scikit_learn_deals_them(
    n: int, folds: int, classes: int, group: int
) -> None:
    """Most groups are of one text, so that nearly every choice is between equals."""
    draw = np.random.default_rng(n)
    labels = draw.choice(classes, n, p=draw.dirichlet(np.full(classes, 5)))
    groups = draw.integers(n, size=n) // group
    for seed in range(3):
        theirs = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        ours = splits.fold_dealer(folds, seed)
        for one, other in zip(
            ours.split(labels, labels, groups), theirs.split(labels, labels, groups), strict=True
        ):
            assert np.array_equal(one[0], other[0])
            assert np.array_equal(one[1], other[1])
