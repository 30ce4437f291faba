"""FiQA, Twitter, FOMC and numerical claims: files, labels, merging, and the published facts."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections import Counter
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import huggingface_hub
import numpy as np
import pytest
from openpyxl import Workbook

from finsent.data.records import DataError, Row, clean, merge, repair_encoding
from finsent.data.registry import DATASETS, Dataset, Example, load_dataset, make_split
from finsent.data.sets import fiqa, fomc, numclaim, tweets
from finsent.data.splits import join_kin
from finsent.machine import hub
from finsent.reports import datasheet

MODULES = {"fiqa": fiqa, "twitter": tweets, "fomc": fomc, "numclaim": numclaim}
REAL = os.environ.get("FINSENT_DATA_DIR")


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINSENT_DATA_DIR", raising=False)


def real_examples(name: str) -> list[Example]:
    return list(real(name).examples)


def real(name: str) -> Dataset:
    if not REAL:
        pytest.skip("FINSENT_DATA_DIR is not set: no real data here")
    return load_dataset(name, Path(REAL))


def labels_of(dataset: Dataset) -> dict[str, str]:
    return {example.text: dataset.label_names[example.label] for example in dataset.examples}


def workbook(header: tuple[str, ...], *rows: tuple[object, ...]) -> bytes:
    book = Workbook()
    for row in (header, *rows):
        book.active.append(row)
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def headlines(*sentences: tuple[str, tuple[str, ...]]) -> bytes:
    entries = {
        str(number): {"sentence": text, "info": [{"sentiment_score": score} for score in scores]}
        for number, (text, scores) in enumerate(sentences)
    }
    return json.dumps(entries).encode()


FOMC_HEADER = ("index", "sentence", "year", "label", "orig_index")
FILES: dict[str, dict[str, bytes]] = {
    "fiqa": dict(
        zip(
            fiqa.FILES.sha256,
            (
                headlines(("Bank up, rival down", ("0.514", "-0.657", "0.508")), ("Up", ("0.4",))),
                headlines(("Flat http://x.co/y", ("0.1",)), ("Flat", ("-0.05",))),
                headlines(("Slightly good", ("0.3", "-0.08"))),
                headlines(("Bad for \u00c2\u00a330m", ("-0.11",))),
            ),
            strict=True,
        )
    ),
    "twitter": {
        "sent_train.csv": b'text,label\nMaker cut https://t.co/a,0\n"Up, again",1\nhttps://t.co/z,2\n'
        b"Odd,1\n",
        "sent_valid.csv": b"text,label\nMaker cut https://t.co/b,0\nFirm &amp; Co meets,2\nOdd,0\n",
    },
    "fomc": dict(
        zip(
            fomc.FILES.sha256,
            (
                workbook(
                    FOMC_HEADER,
                    (1, "Rates must rise", 2001, 1, 7),
                    (2, "Cuts are due", 2001, 0, 9),
                ),
                workbook(FOMC_HEADER, (3, "but not yet", 2001, 2, 7)),
            ),
            strict=True,
        )
    ),
    "numclaim": {
        name: workbook(header, *[tuple(row[column] for column in header) for row in rows])
        for name, header, rows in (
            (
                "gold_arpts_numclaim-train-5768.xlsx",
                ("label", "text"),
                [{"label": 1, "text": "we expect 5 %"}],
            ),
            (
                "gold_arpts_numclaim-test-5768.xlsx",
                ("label", "text"),
                [{"label": 0, "text": "sales were 5"}],
            ),
            (
                "gold_ec_numclaim-train-5768.xlsx",
                ("text", "label"),
                [{"label": 0, "text": "sales  were 5"}],
            ),
            (
                "gold_ec_numclaim-test-5768.xlsx",
                ("text", "label"),
                [{"label": 1, "text": "it will be 9"}],
            ),
        )
    },
}
EXPECTED = {
    "fiqa": {"Up": "positive", "Flat": "neutral", "Slightly good": "positive"}
    | {"Bad for £30m": "negative"},
    "twitter": {"Maker cut": "negative", "Up, again": "positive", "Firm & Co meets": "neutral"},
    "fomc": {"Rates must rise": "hawkish", "Cuts are due": "dovish", "but not yet": "neutral"},
    "numclaim": {"we expect 5 %": "in-claim", "sales were 5": "out-of-claim"}
    | {"it will be 9": "in-claim"},
}
BELOW = {
    "fiqa": "fiqa/data",
    "twitter": "twitter_fin_news",
    "fomc": "fomc-hawkish-dovish/training_data/test-and-training/training_data",
    "numclaim": "fin_num_claim/train",
}


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that FILES are what was published."""
    for name, module in MODULES.items():
        sums = {file: hashlib.sha256(content).hexdigest() for file, content in FILES[name].items()}
        monkeypatch.setattr(module, "FILES", dataclasses.replace(module.FILES, sha256=sums))


def write(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in FILES[name].items():
        (folder / file).write_bytes(content)
    return folder


# --- files --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("name", MODULES)
def test_the_files_are_found_and_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / BELOW[name], name)
    assert labels_of(load_dataset(name, tmp_path)) == EXPECTED[name]
    monkeypatch.setenv("FINSENT_DATA_DIR", str(write(tmp_path / "flat", name)))
    assert labels_of(load_dataset(name)) == EXPECTED[name]


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("name", ["fiqa", "twitter"])
def test_line_ends_of_text_files_do_not_count(name: str, tmp_path: Path) -> None:
    for path in write(tmp_path, name).iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        if name == "twitter":
            path.rename(path.with_suffix(".crlf.csv"))
    assert labels_of(load_dataset(name, tmp_path)) == EXPECTED[name]


@pytest.mark.parametrize("name", MODULES)
def test_an_altered_or_missing_file_says_what_to_do(name: str, tmp_path: Path) -> None:
    file = next(iter(FILES[name]))
    page = DATASETS[name].url
    with pytest.raises(DataError, match=rf"no {file} in .*; download it from {page} into"):
        load_dataset(name, tmp_path)
    with pytest.raises(DataError, match=rf"nowhere does not exist; .* holds {file} \(from {page}"):
        load_dataset(name, tmp_path / "nowhere")
    write(tmp_path, name)
    with pytest.raises(DataError, match=rf"{file} is not the published file: .*download {file}"):
        load_dataset(name, tmp_path)
    with pytest.raises(DataError, match=rf"{file} is a file; point FINSENT_DATA_DIR"):
        load_dataset(name, tmp_path / file)


@pytest.mark.parametrize("name", ["fiqa", "fomc", "numclaim"])
def test_what_the_hub_lacks_is_not_looked_for_there(name: str) -> None:
    with pytest.raises(DataError, match=r"is not on the Hub: download it from https://github"):
        load_dataset(name)


@pytest.mark.usefixtures("published")
def test_without_a_folder_the_tweets_come_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "twitter")
    asked = []

    def download(repo: str, name: str, *, repo_type: str) -> str:
        asked.append((repo, name, repo_type))
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "require", lambda *asked: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert labels_of(load_dataset("twitter")) == EXPECTED["twitter"]
    repo = "zeroshot/twitter-financial-news-sentiment"
    assert asked == [(repo, "sent_train.csv", "dataset"), (repo, "sent_valid.csv", "dataset")]

    def unreachable(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route\nand a long explanation")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(DataError, match=r"ConnectionError: no route\); get sent_train.csv from"):
        load_dataset("twitter")


@pytest.mark.parametrize(
    ("module", "content", "fault"),
    [
        (fiqa, b"[", "file is not JSON"),
        (fiqa, headlines(("Up", ("much",))), "file, entry 0: no sentence with scores"),
        (fiqa, headlines(("Up", ("1.5",))), "file, entry 0: .*'1.5'"),
        (fiqa, headlines(("Up", ())), "file, entry 0: no sentence with scores"),
        (tweets, b"label,text\n", r"the columns are \['label', 'text'\]"),
        (tweets, b"text,label\nup,1\nup,bullish\n", r"file, line 3: \['up', 'bullish'\]"),
        (fomc, b"PK", "file is not a readable .xlsx"),
        (fomc, workbook(("sentence", "label"), ("Up", 1)), "no column year, orig_index"),
        (fomc, workbook(FOMC_HEADER, (1, "Up", 2001, 3, 7)), r"file, row 2: 'Up' with label 3"),
        (numclaim, workbook(("text", "label"), (None, 1)), r"file, row 2: None with label 1"),
    ],
)
def test_a_bad_row_is_named(module: ModuleType, content: bytes, fault: str) -> None:
    (parse,) = (getattr(module, name) for name in vars(module) if name.startswith("parse_"))
    with pytest.raises(DataError, match=fault):
        list(parse(content, "file"))


# --- rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "label"),
    [
        ("0.1", "neutral"),
        ("-0.1", "neutral"),
        ("0.101", "positive"),
        ("-0.101", "negative"),
        ("0.3 -0.1", "neutral"),
        ("0.31 -0.1", "positive"),
        ("0.9 -0.101", None),
        ("-0.4 0.05 -0.2", "negative"),
    ],
)
def test_scores_are_averaged_and_cut(scores: str, label: str | None) -> None:
    assert fiqa.sentence_label([Decimal(score) for score in scores.split()]) == label


def test_copies_take_the_commonest_label_and_a_tie_is_left_out() -> None:
    rows = [Row("a", "x", "1"), Row("b", "x"), Row("a", "y", "2"), Row("b", "y"), Row("a", "x")]
    (record,) = merge("p", rows)
    assert (record.text, record.label, record.kin) == ("a", "x", ("1", "2"))
    assert record.id == "p-" + hashlib.sha256(b"a").hexdigest()[:12]


@pytest.mark.parametrize(
    ("damaged", "repaired"),
    [
        ("driving \u00c2\u00a3180m", "driving £180m"),
        ("sustain\u00e2\u20ac\u201duntil", "sustain\u2014until"),
        ("\u00e2\u20ac\u0153so\u00e2\u20ac\u009d", "\u201cso\u201d"),
        ("D\u00c3\u0192\u00c2\u00b6rse", "D\u00f6rse"),
        ("it\u2019s \u2014\u201cfine\u201d, €5, D\u00f6rse \u00bd", None),
    ],
)
def test_text_read_with_the_wrong_encoding_is_repaired(damaged: str, repaired: str | None) -> None:
    assert repair_encoding(damaged) == (repaired or damaged)


def test_cleaning_removes_addresses_and_reads_entities() -> None:
    assert clean(" A &amp; B\xa0up  https://t.co/x1 now\nhttp://y.co ") == "A & B up now"


def test_kin_share_a_group_also_through_others() -> None:
    groups = np.array([0, 1, 1, 2, 3, 4])
    kin = [("a",), (), ("b",), ("a", "b"), (), ("c",)]
    assert join_kin(groups, kin).tolist() == [0, 0, 0, 0, 1, 2]
    assert join_kin(groups, [()] * 6).tolist() == groups.tolist()


# --- the real data ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "tag"),
    [
        (fomc, "lab-manual-split-combine-{}-{}"),
        (numclaim, "gold_arpts_numclaim-{}-{}"),
        (numclaim, "gold_ec_numclaim-{}-{}"),
    ],
)
def test_the_published_seeds_divide_the_same_rows(
    module: ModuleType, tag: str, real_data: Path
) -> None:
    (parse,) = (getattr(module, name) for name in vars(module) if name.startswith("parse_"))
    rows = []
    for seed in (5768, 78516, 944601):
        names = [f"{tag.format(part, seed)}.xlsx" for part in ("train", "test")]
        found = [next(real_data.rglob(name)) for name in names]
        rows.append(Counter(row for path in found for row in parse(path.read_bytes(), str(path))))
    assert rows[0] == rows[1] == rows[2]


def test_real_sentences_are_clean_and_labelled_as_published() -> None:
    for name in ("fiqa", "fomc", "numclaim"):
        examples = real_examples(name)
        assert len({example.text for example in examples}) == len(examples)
        assert not [e.text for e in examples if "http" in e.text or "Â£" in e.text]
    counts = Counter(label for label in labels_of(real("fomc")).values())
    assert counts["neutral"] > counts["dovish"] > counts["hawkish"]


def test_real_pieces_of_one_sentence_stay_together(real_data: Path) -> None:
    dataset = real("fomc")
    group = {example.id: example.group for example in dataset.examples}
    shared: dict[str, set[int]] = {}
    for record in fomc.load_fomc(real_data):
        for value in record.kin:
            shared.setdefault(value, set()).add(group[record.id])
    assert all(len(groups) == 1 for groups in shared.values())
    split = make_split(dataset, 0)
    sides = [{dataset.examples[i].group for i in part} for part in (split.train, split.test)]
    assert not sides[0] & sides[1]


def test_the_document_shows_the_data(real_data: Path) -> None:
    document = (Path(__file__).resolve().parent.parent / "docs" / "data.md").read_text("utf-8")
    rows = [datasheet.row_values(name, real_data) for name in datasheet.listed()]
    for block in datasheet.datasheet_markdown(rows).strip().split("\n\n"):
        assert block in document


def test_the_document_states_the_rules() -> None:
    document = (Path(__file__).resolve().parent.parent / "docs" / "data.md").read_text("utf-8")
    _, rules = datasheet.datasheet_markdown([]).strip().split("\n\n")
    assert rules in document


def test_the_datasheet_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert datasheet.main(["--data-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: no Sentences_AllAgree.txt")
