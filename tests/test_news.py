"""News of several sources: own splits, nothing given away across parts, balance, noise, scores."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finsent.config import ConfigError, TrainConfig
from finsent.data import noise, registry
from finsent.data.folds import part_examples
from finsent.data.mixture import epoch_rows
from finsent.data.records import LABELS, DataError, Record
from finsent.data.registry import (
    DATASETS,
    Dataset,
    DatasetEntry,
    Split,
    apart,
    load_dataset,
    make_split,
)
from finsent.data.sets import news
from finsent.results.metrics import score, source_scores
from finsent.results.runs import Predictions, read_json
from finsent.results.schema import ArtifactError, check_metrics
from finsent.verification import verify
from tests.artifact_factory import make_artifacts
from tests.data_factory import needs_real_data, no_data_dir, real

__all__ = ["no_data_dir"]

WITHOUT = [f"news-without-{source.name}" for source in news.SOURCES]


def bag(text: str) -> frozenset[str]:
    """Words of a text without addresses and cashtags, by other means than the implementation's."""
    kept = [
        piece
        for piece in text.lower().split()
        if not piece.startswith(("http://", "https://", "www."))
        and not (piece.startswith("$") and piece[1:2].isalpha())
    ]
    return frozenset("".join(c if c.isalpha() else " " for c in " ".join(kept)).split())


def close_pairs(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs with Jaccard >= 0.8 and five shared words. Two such sets share one of the rarest fifth
    of the larger one's words, so only texts that meet there are compared."""
    bags = [bag(text) for text in texts]
    frequency = Counter(word for words in bags for word in words)
    at_word: defaultdict[str, list[int]] = defaultdict(list)
    for i, words in enumerate(bags):
        rare = sorted(words, key=lambda w: (frequency[w], w))[: len(words) // 5 + 1]
        met = {j for word in rare for j in at_word[word]}
        for j in met:
            shared = len(words & bags[j])
            if shared >= 5 and 5 * shared >= 4 * len(words | bags[j]):
                yield j, i
        for word in rare:
            at_word[word].append(i)


@cache
def pairs_of_news() -> list[tuple[int, int]]:
    """Near-duplicates and exact ones of the real news."""
    texts = [example.text for example in real("news").examples]
    pairs = list(close_pairs(texts))
    same: defaultdict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        words = [w for w in text.lower().split() if not w.startswith(("$", "http"))]
        if words:
            same[" ".join(words)].append(i)
    return pairs + [(a, b) for rows in same.values() for a, b in pairwise(rows)]


def small_news() -> dict[str, DatasetEntry]:
    """A registry whose `news` has two invented sources; the second repeats some of the first."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(900)]

    def sentence() -> str:
        return " ".join(rng.choice(words, 9, replace=False))

    records = [
        Record(f"fpb-{i}", sentence(), LABELS[i % 3], source="phrasebank") for i in range(240)
    ]
    said = [f"$ABC {records[i].text} https://t.co/x{i}" for i in range(0, 240, 4)]
    said += [sentence() for _ in range(60)]
    records += [
        Record(f"tfn-{i}", text, LABELS[i % 3], source="twitter") for i, text in enumerate(said)
    ]
    made = replace(DATASETS["news"], loader=lambda data_dir: records)
    left = replace(made, name="news-without-twitter", left_out="twitter")
    return {"news": made, "news-without-twitter": left}


def assert_apart(dataset: Dataset, split: Split, pairs: Sequence[tuple[int, int]]) -> None:
    part = {i: p for p in ("train", "validation", "test") for i in getattr(split, p)}
    straddling = [(a, b) for a, b in pairs if a in part and b in part and part[a] != part[b]]
    examples = dataset.examples
    assert [(examples[a].id, examples[b].id) for a, b in straddling] == []


# --- splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_copies_in_another_source_are_in_one_part_only(seed: int) -> None:
    dataset = load_dataset("news", registry=small_news())
    pairs = list(close_pairs([example.text for example in dataset.examples]))
    assert len(pairs) == 60
    assert all(dataset.examples[a].source != dataset.examples[b].source for a, b in pairs)
    split = make_split(dataset, seed)
    assert_apart(dataset, split, pairs)
    dropped = len(dataset.examples) - sum(map(len, (split.train, split.validation, split.test)))
    assert 0 < dropped < 60


def test_the_part_read_first_loses_the_copy() -> None:
    groups = np.array([0, 0, 1, 1, 2, 2, 3])
    train, validation = apart(groups, np.array([0, 2, 4, 6]), np.array([1, 3]), np.array([5, 1]))
    assert (train.tolist(), validation.tolist()) == ([6], [3])


def test_the_left_out_source_is_tested_on_without_its_own_test_part() -> None:
    entries = small_news()
    whole = make_split(load_dataset("news", registry=entries), 0)
    dataset = load_dataset("news-without-twitter", registry=entries)
    split = make_split(dataset, 0)
    of = [example.source for example in dataset.examples]
    assert {of[i] for i in split.train + split.validation} == {"phrasebank"}
    assert {of[i] for i in split.test} == {"twitter"}
    assert not set(split.test) & set(whole.test)
    # Nor may the others hold what its test part says, which a later choice is tested on.
    kept = {i for i in whole.test if of[i] == "twitter"}
    pairs = list(close_pairs([example.text for example in dataset.examples]))
    trained = set(split.train + split.validation)
    assert not [(a, b) for a, b in pairs if a in trained and b in kept]


def test_folds_refuse_a_data_set_that_is_tested_on_one_source() -> None:
    dataset = load_dataset("news-without-twitter", registry=small_news())
    with pytest.raises(DataError, match="is tested on twitter; folds are of all sources"):
        part_examples(dataset, "fold-0", 0)


DEALT: dict[tuple[bytes, bytes, int], Any] = {}


@pytest.fixture
def dealt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dealing 11,000 tweets takes seconds; the same question is answered once for all tests."""
    deal = registry.grouped_parts

    def remembered(labels: np.ndarray, groups: np.ndarray, seed: int) -> Any:
        key = (labels.tobytes(), groups.tobytes(), seed)
        if key not in DEALT:
            DEALT[key] = deal(labels, groups, seed)
        return DEALT[key]

    monkeypatch.setattr(registry, "grouped_parts", remembered)


@needs_real_data
@pytest.mark.usefixtures("dealt_once")
def test_no_near_duplicate_straddles_parts_of_the_real_news() -> None:
    dataset, seed = real("news"), 0
    pairs = pairs_of_news()
    assert len(pairs) > 500
    split = make_split(dataset, seed)
    assert_apart(dataset, split, pairs)
    # Every source has the test part of its own data set, so that scores compare.
    for source in news.SOURCES:
        own = real(source.dataset)
        alone = {own.examples[i].id for i in make_split(own, seed).test}
        here = {dataset.examples[i].id for i in split.test}
        assert {i for i in here if news.source_of(i) == source.name} == alone
    read = len(split.train) + len(split.validation) + len(split.test)
    assert len(dataset.examples) - 60 < read < len(dataset.examples)


@needs_real_data
@pytest.mark.usefixtures("dealt_once")
@pytest.mark.parametrize("name", WITHOUT)
def test_leaving_a_source_out_gives_nothing_of_it_away(name: str) -> None:
    dataset = real(name)
    split = make_split(dataset, 0)
    of = [example.source for example in dataset.examples]
    assert {of[i] for i in split.test} == {dataset.left_out}
    assert dataset.left_out not in {of[i] for i in split.train + split.validation}
    assert_apart(dataset, split, pairs_of_news())


def test_every_source_is_a_data_set_of_its_own_with_the_same_labels() -> None:
    for source in news.SOURCES:
        assert DATASETS[source.dataset].label_names == DATASETS["news"].label_names
        assert news.source_of(f"{source.prefix}-0123") == source.name
    assert len({source.prefix for source in news.SOURCES}) == len(news.SOURCES)
    with pytest.raises(DataError, match="'headline-3' is of no source; ids start with fpb-"):
        news.source_of("headline-3")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("$TARN - Tarnfield beats", "Tarnfield Beats https://t.co/abc", True),
        ("Tarnfield’s plan", "Tarnfield's plan", True),
        ("Shares -8%", "Shares +8%", False),
        ("EPS 1.2", "EPS 12", False),
        ("Costs of $5 bn", "Costs of $6 bn", False),
    ],
)
def test_copies_have_the_same_words_and_numbers(one: str, other: str, same: bool) -> None:
    assert (news.wording(one) == news.wording(other)) == same


# --- balance and noise --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("balance", "times"),
    [("natural", (1, 1)), ("repeat-1", (1, 1)), ("repeat-2", (1, 2)), ("repeat-9", (1, 4))],
)
def test_smaller_sources_are_repeated_whole(balance: str, times: tuple[int, int]) -> None:
    dataset = load_dataset("news", registry=small_news())
    large = [i for i, e in enumerate(dataset.examples) if e.source == "phrasebank"][:43]
    small = [i for i, e in enumerate(dataset.examples) if e.source == "twitter"][:10]
    counts = Counter(epoch_rows(dataset, [*large, *small], balance, "keep"))
    assert counts == {**dict.fromkeys(large, times[0]), **dict.fromkeys(small, times[1])}


def test_one_source_reads_every_sentence_once() -> None:
    dataset = load_dataset("sample")
    assert epoch_rows(dataset, range(50), "repeat-4", "keep") == tuple(range(50))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("balance", "repeat-0"), ("balance", "equal"), ("balance", "repeat-"), ("noise", "some")],
)
def test_rules_that_do_not_exist_are_refused(setting: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting} must be .*{value!r}"):
        TrainConfig(**{setting: value})  # type: ignore[arg-type]


NOISY = [
    ("Tarnfield names a new chair", "neutral", None),
    ("$TARN - Quaylor halves its loss", "positive", "contradiction"),
    ("Quaylor halves its loss", "negative", "contradiction"),
    ("Quaylor halves its loss of 3 mn", "positive", None),
    ("$TARN $QUAY #stocks up 3", "positive", "tickers"),
    ("Hedrow is a soft buy. Subscribe to our pages for more:", "positive", "spam"),
    ("Hedrow signs 40,000 subscribers", "positive", None),
    ("Corvane (CRV) investor slides. Read more:", "neutral", "spam"),
]


def noisy_set() -> Dataset:
    records = [Record(str(i), text, label) for i, (text, label, _) in enumerate(NOISY)]
    made = DatasetEntry("mine", "Mine", lambda data_dir: records, LABELS, "CC0", "me", "")
    return load_dataset("mine", registry={"mine": made})


def test_every_kind_of_noise_is_found_and_dropped_from_training_on_request() -> None:
    dataset = noisy_set()
    found = noise.noisy(dataset)
    assert found == {str(i): kind for i, (_, _, kind) in enumerate(NOISY) if kind}
    assert set(found.values()) == set(noise.KINDS)
    rows = range(len(NOISY))
    assert epoch_rows(dataset, rows, "natural", "keep") == tuple(rows)
    assert epoch_rows(dataset, rows, "natural", "drop") == (0, 3, 6)


def test_the_noise_command_prints_counts_and_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(noise, "load_dataset", lambda name, data_dir: noisy_set())
    assert noise.main(["--kind", "tickers"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("tickers: 1 rows; one word at most")
    assert "mine, positive: 1" in said
    assert "$TARN $QUAY #stocks up 3" in said
    assert "spam" not in said
    monkeypatch.undo()
    assert noise.main(["--data-dir", str(tmp_path)]) == 1
    assert "error: no Sentences_50Agree.txt" in capsys.readouterr().err


# --- scores per source --------------------------------------------------------------------------


def some_predictions() -> Predictions:
    return Predictions(
        ids=("tfn-1", "fpb-1", "tfn-2", "fpb-2"),
        labels=("positive", "neutral", "negative", "negative"),
        probabilities=((0.1, 0.2, 0.7), (0.2, 0.5, 0.3), (0.2, 0.2, 0.6), (0.8, 0.1, 0.1)),
        label_names=LABELS,
    )


def test_scores_are_of_every_source_alone() -> None:
    found = source_scores("news", some_predictions())
    assert found is not None
    assert list(found) == ["twitter", "phrasebank"]
    assert found["phrasebank"]["accuracy"] == 1.0
    alone = score([2, 0], [(0.1, 0.2, 0.7), (0.2, 0.2, 0.6)], LABELS)
    expected = {name: alone[name] for name in ("accuracy", "macro_f1", "nll", "ece")}
    assert found["twitter"] == {**expected, "n": 2}
    assert json.loads(json.dumps(found)) == found
    assert source_scores("allagree", some_predictions()) is None


def test_metrics_with_damaged_scores_per_source_are_refused() -> None:
    folder = next((Path(__file__).parent.parent / "artifacts").glob("*/*/baseline/seed-0"))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["per_source"] = source_scores("news", some_predictions())
    names = list(metrics["per_class"])
    check_metrics(metrics, Path("metrics.json"), names)
    del metrics["per_source"]["twitter"]["ece"]
    with pytest.raises(ArtifactError, match=r"per_source\.twitter: key 'ece' is missing"):
        check_metrics(metrics, Path("metrics.json"), names)


def test_scores_per_source_are_verified_and_on_the_board(tmp_path: Path) -> None:
    root = make_artifacts(tmp_path, backbones=("tiny-phi",), datasets=("news",), seeds=(0, 1))
    assert verify(root) == []
    board = read_json(root / "leaderboard.json")
    names = [source.name for source in news.SOURCES]
    for arm in board["arms"]:
        assert sorted(arm["per_source"]) == sorted(names)
        assert sum(entry["n"] for entry in arm["per_source"].values()) == arm["n_test"]
        rows = [row for row in board["rows"] if row["arm"] == arm["arm"]]
        for name, entry in arm["per_source"].items():
            found = [row["per_source"][name]["accuracy"] for row in rows]
            assert entry["mean"]["accuracy"] == pytest.approx(np.mean(found))
            assert entry["sd"]["accuracy"] == pytest.approx(np.std(found, ddof=1))
    path = root / "tiny-phi" / "news" / "baseline" / "seed-0" / "metrics.json"
    stored = read_json(path)
    stored["per_source"]["fiqa"]["accuracy"] = 0.5
    path.write_text(json.dumps(stored), encoding="utf-8")
    said = [line for line in verify(root) if "per_source." in line]
    assert len(said) == 1
    assert "per_source.fiqa.accuracy is 0.5, predictions.csv gives" in said[0]
    del stored["per_source"]
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert any("per_source is None, predictions.csv gives" in line for line in verify(root))
