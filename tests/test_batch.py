"""Many texts: where they come from, that rows keep their place, what the download holds."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from finsent.plots.live import distribution_figure
from finsent.results.calibration import Calibration
from finsent.results.comparison import mcnemar_p_value
from finsent.serving import many_texts
from finsent.serving.many_texts import MAX_ROWS, Item, Scored
from finsent.serving.tables.rows import Reading, TableError
from finsent.ui.parts.headline import text_problem
from finsent.ui.parts.markup import signed
from finsent.ui.tables.scored import Results, accuracy_html

LABELS = ("negative", "neutral", "positive")
CALIBRATION = Calibration(2.0, 0.3, 0.9, 0.91, 1.2, 0.02, 0.4, 0.3, 100, 100)


def scorer(texts: Sequence[str]) -> tuple[dict[str, np.ndarray], list[bool]]:
    """The baseline reads the number at the end; the dendritic arm says negative on 7."""
    base = np.eye(3)[[int(text[-1]) % 3 for text in texts]] * 0.9 + 0.1 / 3
    other = base.copy()
    for i, text in enumerate(texts):
        if text.endswith("7"):
            other[i] = [0.8, 0.1, 0.1]
    return {"baseline": base, "dendritic": other}, [text.endswith("3") for text in texts]


def test_pasted_lines_keep_their_numbers() -> None:
    items = many_texts.pasted(" one \n\n\tthree\n" + "x" * 2001, text_problem)
    assert [(i.number, i.text[:5]) for i in items] == [(1, "one"), (3, "three"), (4, "xxxxx")]
    assert [i.problem is None for i in items] == [True, True, False]
    with pytest.raises(TableError, match="nothing to score"):
        many_texts.pasted(" \n\n", text_problem)
    with pytest.raises(TableError, match=f"line {MAX_ROWS + 2}: at most 10,000"):
        many_texts.pasted("\n" + "a\n" * (MAX_ROWS + 1), text_problem)


@pytest.mark.parametrize(
    ("header", "column"),
    [("id,Headline,text", "text"), ("id,Headline,note", "Headline"), ("a,b,c", "b")],
)
def test_the_column_with_the_texts_is_found(tmp_path: Path, header: str, column: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"{header}\n1,a long sentence about profit,short\n2,,x\n")
    upload = many_texts.read_upload(path, Reading())
    named = many_texts.uploaded(upload, column, text_problem)
    assert many_texts.uploaded(upload, None, text_problem) == named
    assert [item.number for item in named] == [2, 3]


def test_empty_cells_stay_with_their_reason(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("text,n\nprofit,1\n,2\n")
    upload = many_texts.read_upload(path, Reading())
    good, bad = many_texts.uploaded(upload, "text", text_problem)
    assert good.problem is None
    assert (bad.number, bad.problem is None) == (3, False)


def made(n: int) -> list[Item]:
    return [Item(i + 1, f"text {i}", "too odd" if i == 40 else None) for i in range(n)]


def test_scores_come_chunk_by_chunk_and_every_row_keeps_its_place() -> None:
    items = made(100)
    chunks = list(many_texts.score(items, scorer, LABELS, dict.fromkeys(("baseline", "dendritic"))))
    assert [len(chunk) for chunk in chunks] == [32, 32, 32, 4]
    scored = [row for chunk in chunks for row in chunk]
    assert [row.item for row in scored] == items
    assert scored[40].answers == ()
    cut = [row.item.text for row in scored if row.truncated]
    assert cut == [f"text {i}" for i in range(3, 100, 10)]
    for row in scored[:40] + scored[41:]:
        base, other = row.answers
        assert base.label == LABELS[int(row.item.text[-1]) % 3]
        assert row.differ is (row.item.text.endswith("7") and base.label != "negative")
        assert (base.arm, other.arm) == ("baseline", "dendritic")
    counts = many_texts.label_counts(scored)
    assert sum(counts["baseline"].values()) == sum(counts["dendritic"].values()) == 99
    figure = distribution_figure(counts)
    for trace, arm in zip(figure.data, counts, strict=True):
        assert dict(zip(trace.x, trace.y, strict=True)) == counts[arm]


def test_nothing_is_asked_when_no_text_is_good() -> None:
    def never(texts: Sequence[str]) -> tuple[dict[str, np.ndarray], list[bool]]:
        raise AssertionError("asked")

    (chunk,) = many_texts.score([Item(1, "", "empty")], never, LABELS, {})
    assert chunk == [Scored(Item(1, "", "empty"), ())]
    assert many_texts.label_counts(chunk) == {}


@pytest.mark.parametrize("calibration", [CALIBRATION, None])
def test_the_download_says_what_was_shown(calibration: Calibration | None) -> None:
    items = [Item(2, "=1+1 text 7", None), Item(3, "x", "too long")]
    calibrations = dict.fromkeys(("baseline", "dendritic"), calibration)
    scored = [r for c in many_texts.score(items, scorer, LABELS, calibrations) for r in c]
    content = many_texts.results_csv(scored, ("baseline", "dendritic"), LABELS).decode("utf-8-sig")
    first, second = csv.DictReader(io.StringIO(content, newline=""))
    kind = "raw" if calibration is None else "calibrated"
    assert first["text"] == "'=1+1 text 7"
    assert (first["row"], first["arms_differ"]) == ("2", "yes")
    assert first["baseline_label"] == "neutral"
    answer = scored[0].answers[0]
    for name, p in zip(LABELS, answer.shown, strict=True):
        assert float(first[f"baseline_{name}_{kind}"]) == pytest.approx(p, abs=1e-6)
    held = answer.label_set
    assert first["baseline_set_90"] == ("" if held is None else " or ".join(held) or "none")
    assert (second["problem"], second["baseline_label"]) == ("too long", "")


def test_labels_of_the_file_are_kept_and_compared_with(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("text,label\ntext 0,negative\ntext 1,Positive\ntext 7,mixed\n,neutral\n")
    upload = many_texts.read_upload(path, Reading())
    items = many_texts.uploaded(upload, None, text_problem, many_texts.find_labels(upload.table))
    (scored,) = many_texts.score(items, scorer, LABELS, dict.fromkeys(("baseline", "dendritic")))
    assert many_texts.agreement(scored, LABELS) == {"baseline": (1, 2), "dendritic": (1, 2)}
    content = many_texts.results_csv(scored, ("baseline", "dendritic"), LABELS).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert [row["label"] for row in rows] == ["negative", "Positive", "mixed", "neutral"]
    assert [row["truncated"] for row in rows] == ["no", "no", "no", ""]
    assert many_texts.agreement(scored[2:], LABELS) == {}


def test_other_columns_of_the_file_are_kept_under_names_that_are_free(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("id,headline,row,label\n0017,text 0,=2,negative\n0018,text 7,b,\n")
    upload = many_texts.read_upload(path, Reading())
    items = many_texts.uploaded(upload, "headline", text_problem, "label")
    (scored,) = many_texts.score(items, scorer, LABELS, dict.fromkeys(("baseline", "dendritic")))
    content = many_texts.results_csv(scored, ("baseline", "dendritic"), LABELS).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert list(rows[0])[:6] == ["row", "text", "label", "id", "input_row", "problem"]
    assert [(row["row"], row["id"], row["input_row"]) for row in rows] == [
        ("2", "0017", "'=2"),
        ("3", "0018", "b"),
    ]


def labelled(n: int) -> list[Scored]:
    """Of ten texts the dendritic arm has one wrong that the baseline has right: text 7."""
    items = [Item(i + 1, f"text {i}", None, LABELS[i % 10 % 3]) for i in range(n)]
    chunks = many_texts.score(items, scorer, LABELS, dict.fromkeys(("baseline", "dendritic")))
    return [row for chunk in chunks for row in chunk]


def test_the_models_are_compared_by_the_paired_test_of_the_board() -> None:
    (found,) = many_texts.comparisons(labelled(100), LABELS)
    assert (found.a, found.b, found.n, found.outcome) == ("baseline", "dendritic", 100, "worse")
    assert found.accuracy_delta_points == pytest.approx(-10)
    assert found.p_value == pytest.approx(mcnemar_p_value(10, 0))
    html = accuracy_html(Results(tuple(labelled(100)), LABELS), "")
    assert "<b>Baseline is better on these texts.</b>" in html
    low, high = found.accuracy_ci_points
    assert f"95\u202f% interval {signed(low)} to {signed(high)}" in html
    assert "<b>No measurable difference.</b> Over 20 labelled texts" in accuracy_html(
        Results(tuple(labelled(20)), LABELS), ""
    )
    # Where both are right on the same texts there is nothing to draw an interval from.
    same = accuracy_html(Results(tuple(labelled(5)), LABELS), "")
    assert "right and wrong on the same 5 texts" in same
    assert "interval" not in same
    assert many_texts.comparisons([], LABELS) == []


def test_several_comparisons_on_the_same_texts_are_corrected_for_their_number() -> None:
    """Six texts to none are p = 0.03 alone, and twice that beside a second comparison."""
    arms = ("baseline", "dendritic", "matched")

    def three(texts: Sequence[str]) -> tuple[dict[str, np.ndarray], list[bool]]:
        found, cut = scorer(texts)
        return found | {"matched": found["baseline"]}, cut

    items = [Item(i + 1, f"text {i}", None, LABELS[i % 10 % 3]) for i in range(60)]
    chunks = many_texts.score(items, three, LABELS, dict.fromkeys(arms))
    rows = tuple(row for chunk in chunks for row in chunk)
    found = many_texts.comparisons(rows, LABELS)
    assert [pair.p_value for pair in found] == pytest.approx([2 * mcnemar_p_value(6, 0)] * 2)
    assert [pair.outcome for pair in found] == ["tied", "tied"]
    assert many_texts.comparisons(labelled(60), LABELS)[0].outcome == "worse"
    html = accuracy_html(Results(rows, LABELS), "")
    assert html.count("McNemar’s exact test, corrected for 2 comparisons: p = 0.06") == 2
