"""Long texts in windows of whole sentences: nothing lost, nothing too long, weighted by tokens."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finsent.classifier import Classifier
from finsent.commands.cli import main
from finsent.config import LoraConfig, TrainConfig
from finsent.models.tokenization import InputError
from finsent.serving import comparer
from finsent.serving.comparer import Comparer
from finsent.serving.windows import sentence_spans, window_spans
from finsent.training import child_main, run

MAX_LENGTH = 24
LONG = (
    "Sales rose. The U.S. unit did not: its orders fell by 3.5 percent in a weak market (see "
    "below). Costs were flat!\n\nThe board “will not resign.” It meets in May?  Then it decides"
)
CUE = "\nThe number is"


def cut(text: str, limit: int) -> list[str]:
    spans = window_spans(text, lambda part: len(part.split()) <= limit)
    return [text[start:end] for start, end in spans]


def test_sentences_end_where_they_end() -> None:
    assert [LONG[start:end] for start, end in sentence_spans(f"{LONG} ")] == [
        "Sales rose.",
        "The U.S.",
        "unit did not: its orders fell by 3.5 percent in a weak market (see below).",
        "Costs were flat!",
        "The board “will not resign.”",
        "It meets in May?",
        "Then it decides",
    ]
    assert sentence_spans(" \n\n ") == []
    assert sentence_spans("一。二！") == [(0, 2), (2, 4)]


def test_windows_take_as_many_whole_sentences_as_fit() -> None:
    assert cut("A b. C d. E f g.", 9) == ["A b. C d. E f g."]
    assert cut("A b. C d. E f g. H.", 4) == ["A b. C d.", "E f g. H."]
    assert cut("A b.  C d e f g h i. J.", 3) == ["A b.", "C d e", "f g h", "i. J."]


def test_a_word_that_does_not_fit_is_cut_between_characters() -> None:
    def fits(text: str) -> bool:
        return len(text) <= 10

    spans = window_spans("Up. " + "x" * 25 + " y.", fits)
    assert [end - start for start, end in spans] == [3, 10, 10, 8]
    # What no window can hold is passed over one character at a time rather than for ever.
    assert len(window_spans("abc", lambda text: False)) == 3


@settings(deadline=None, max_examples=150)
@given(st.text(alphabet="ab. \n!é。”", max_size=300), st.integers(1, 12))
def test_nothing_is_lost_and_every_window_fits(text: str, limit: int) -> None:
    def fits(part: str) -> bool:
        return len(part.replace(" ", "")) <= limit

    spans = window_spans(text, fits)
    if fits(text):
        assert spans == [(0, len(text))]
        return
    assert "".join("".join(text[start:end] for start, end in spans).split()) == "".join(
        text.split()
    )
    assert all(fits(text[start:end]) for start, end in spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_a_long_text_without_an_end_is_read_once_not_once_a_window() -> None:
    read = 0

    def fits(text: str) -> bool:
        nonlocal read
        read += len(text)
        return len(text) <= 500

    text = "word " * 40_000
    assert len(window_spans(text, fits)) == 400
    assert read < 40 * len(text)


# ------------------------------------------------------------------------------------------- model


@pytest.fixture(scope="module")
def folder(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that reads few tokens, one of them always the cue's."""
    root = tmp_path_factory.mktemp("windows") / "artifacts"
    config = TrainConfig(
        backbone="tiny-phi",
        dataset="sample",
        epochs=1,
        learning_rate=2e-2,
        lora=LoraConfig(r=2),
        autocast=False,
        max_length=MAX_LENGTH,
        prompt_suffix=CUE,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINSENT_CACHE_DIR", str(tiny_cache))
        run.run_job(child_main.Job(config, root, root.parent / "shared", "cpu", "test", None))
    return root / "tiny-phi" / "sample"


@pytest.fixture
def model(folder: Path, tiny_environment: None) -> Comparer:
    return Comparer.from_artifacts(folder, 0, ("baseline",))


def test_a_short_text_is_answered_as_ever(model: Comparer) -> None:
    texts = ["Sales rose.", "Net profit fell to EUR 3 mn."]
    assert [len(model.windows(text)) for text in texts] == [1, 1]
    found = model.predict_document_proba(texts, "baseline")
    np.testing.assert_array_equal(found, model.predict_proba(texts, "baseline"))
    assert model.predict_document_proba([], "baseline").shape == (0, 3)


def test_a_long_text_is_the_mean_of_its_windows_by_tokens(model: Comparer) -> None:
    windows = model.windows(LONG)
    assert len(windows) > 2
    parts = [window.text for window in windows]
    assert "".join("".join(parts).split()) == "".join(LONG.split())
    for window in windows:
        assert LONG[window.start :].startswith(window.text)
        result = model.compare(window.text)
        assert not result.truncated
        assert 0 < window.n_tokens < result.n_tokens <= MAX_LENGTH  # the cue's are not counted
    each = model.predict_proba(parts, "baseline")
    weights = [window.n_tokens for window in windows]
    found = model.predict_document_proba(["Sales rose.", LONG, "Costs fell."], "baseline")
    np.testing.assert_allclose(found[1], np.average(each, axis=0, weights=weights), atol=1e-6)
    short = model.predict_proba(["Sales rose.", "Costs fell."], "baseline")
    np.testing.assert_allclose(found[[0, 2]], short, atol=1e-6)
    assert np.abs(found[1] - model.predict_proba([LONG], "baseline")[0]).max() > 1e-3


def test_bad_texts_are_refused_by_position(model: Comparer) -> None:
    with pytest.raises(InputError, match="position 1 is empty"):
        model.predict_document_proba(["up", " "], "baseline")
    with pytest.raises(InputError, match="list of texts"):
        model.predict_document_proba("up", "baseline")


def test_the_command_scores_long_texts_whole(
    folder: Path, tmp_path: Path, tiny_environment: None
) -> None:
    source = tmp_path / "in.csv"
    with source.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["text"], ["Sales rose."], [LONG]])
    common = ["score", str(source), "--column", "text", "--runs", str(folder), "--arm", "baseline"]
    rows, cut = {}, {}
    for long in ("truncate", "windows"):
        out = tmp_path / f"{long}.csv"
        assert main([*common, "--out", str(out), "--long", long]) == 0
        with out.open(encoding="utf-8", newline="") as stream:
            written = list(csv.reader(stream))[1:]
        rows[long] = [[float(p) for p in row[2:-1]] for row in written]
        cut[long] = [row[-1] for row in written]
    assert cut == {"truncate": ["no", "yes"], "windows": ["no", "no"]}
    model = Classifier.from_artifacts(folder, "baseline", 0)
    np.testing.assert_allclose(
        rows["truncate"], model.predict_proba(["Sales rose.", LONG]), atol=1e-5
    )
    np.testing.assert_allclose(
        rows["windows"], model.predict_document_proba(["Sales rose.", LONG]), atol=1e-5
    )
    assert rows["truncate"][0] == pytest.approx(rows["windows"][0], abs=1e-5)
    assert rows["truncate"][1] != pytest.approx(rows["windows"][1], abs=1e-3)


def test_few_windows_are_in_memory_at_a_time(
    model: Comparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.predict_document_proba([LONG, LONG, "Up."], "baseline")
    sizes = []
    ask = model.predict_proba

    def counting(texts: list[str], arm: str) -> np.ndarray:
        sizes.append(len(texts))
        return ask(texts, arm)

    monkeypatch.setattr(model, "predict_proba", counting)
    monkeypatch.setattr(comparer, "WINDOWS_AT_ONCE", 2)
    found = model.predict_document_proba([LONG, LONG, "Up."], "baseline")
    assert len(sizes) > 2
    assert max(sizes) == 2
    np.testing.assert_allclose(found, expected, atol=1e-6)
