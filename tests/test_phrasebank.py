"""Financial PhraseBank: parsing, repair, checks, where its files are looked for."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import huggingface_hub
import pytest

from finsent.data.records import LABELS, DataError
from finsent.data.registry import (
    load_dataset,
)
from finsent.data.sets import phrasebank
from finsent.data.sets.phrasebank import (
    FILE_SHA256,
    ZIP_NAME,
    merge_duplicates,
    parse_phrasebank,
    read_level,
    repair_mojibake,
)
from finsent.machine import hub
from tests.data_factory import (
    no_data_dir,
)

__all__ = ["no_data_dir"]
"""The fixture is used by every test of this module."""

# --- parsing ------------------------------------------------------------------------------------


def test_parse_reads_latin_1_with_any_line_end() -> None:
    content = "Profit rose at Åse & Co@positive\r\nNo change , \x85 said@neutral\nLoss@negative"
    assert parse_phrasebank(content.encode("latin-1"), "f.txt") == [
        ("Profit rose at Åse & Co", "positive"),
        ("No change , \x85 said", "neutral"),
        ("Loss", "negative"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Good news@positive\nBad news@bearish\n", r"line 2: unknown label 'bearish'; expected"),
        (b"Good news@positive\n\nBad news@negative\n", r"line 2: empty line"),
        (b"Good news@positive\nBad news\n", r"line 2: no '@' in 'Bad news'"),
        (b"  @positive\n", r"line 1: empty sentence in '  @positive'"),
        ("\ufeffGood news@positive\n".encode(), r"byte-order mark"),
        ("Good news@positive\n".encode("utf-16"), r"UTF-16"),
        ("Good news@positive\n".encode("utf-16-le"), r"UTF-16"),
        ("Good news in Åbo@positive\n".encode(), r"re-encoded as UTF-8; expected latin-1"),
    ],
)
def test_parse_errors_name_source_line_and_value(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=r"^folder/f\.txt.*" + message):
        parse_phrasebank(content, "folder/f.txt")


@pytest.mark.parametrize(
    ("damaged", "repaired"),
    [
        ("K+ñrk+ñl+ñ", "Kärkälä"),
        ("B+Ârje from +àre", "Börje from Åre"),
        ("Sm+Ñby", "Småby"),
        ("+äHT+äRI", "ÄHTÄRI"),
        ("Caf+® Bogot+í", "Café Bogotá"),
        ("Sim+úo", "Simão"),
        ("+£lar", "Ülar"),
        ("M++ller", "Müller"),
        ("-® 2020", "© 2020"),
        ("Brand -« X", "Brand ® X"),
        ("5 -Ál", "5 µl"),
        ("555-á100", "555\u00a0100"),
        ("the firm+óEUR TM s", "the firm\u2019 s"),
        ("loss of +ó  x201a -¼ 3 million", "loss of € 3 million"),
    ],
)
def test_mojibake_is_undone(damaged: str, repaired: str) -> None:
    assert repair_mojibake(damaged) == repaired


@pytest.mark.parametrize(
    "text",
    [
        "call +358 9 555 or 555-1234",
        "A+B Group, Alder + Wren, +1.2 and -3.5 ( +0.6 )",
        "C++ developers, plan B +1",
        "Café Zoë, naïve São Paulo, 20 °C",
        "lost for good: +é 5 , +ó ? and +â rvi",
        "AA++ rated",
    ],
)
def test_repair_leaves_everything_else_alone(text: str) -> None:
    assert repair_mojibake(text) == text


def test_a_mangled_name_gives_the_same_id_as_the_name_itself() -> None:
    ids = {
        merge_duplicates([(phrasebank.clean(t), "neutral")], stricter=list)[0].id
        for t in ("Oy K+ñrki  grew .", "Oy Kärki grew . ")
    }
    assert len(ids) == 1
    digest = hashlib.sha256("Oy Kärki grew .".encode()).hexdigest()
    assert ids == {"fpb-" + digest[:12]}


def test_exact_duplicates_are_merged_in_order_of_first_occurrence() -> None:
    rows = [("b", "positive"), ("a", "neutral"), ("b", "positive")]
    merged = merge_duplicates(rows, stricter=list)
    assert [(r.text, r.label) for r in merged] == [("b", "positive"), ("a", "neutral")]


def test_conflicting_copies_take_the_label_more_annotators_agreed_on() -> None:
    rows = [("a", "neutral"), ("a", "positive"), ("b", "negative"), ("b", "positive")]
    strictest = [("other", "negative")]
    middle = [("a", "positive"), ("b", "negative"), ("b", "positive")]
    merged = merge_duplicates(rows, stricter=lambda: [strictest, middle])
    # "a" is settled by the middle level; "b" is contradictory there too, hence neutral
    assert [(r.text, r.label) for r in merged] == [("a", "positive"), ("b", "neutral")]
    assert merge_duplicates(rows[::-1], stricter=lambda: [strictest, middle])[1].label == "positive"


# --- sources ------------------------------------------------------------------------------------

FILES = {
    "Sentences_AllAgree.txt": b"Orders grew@positive\r\nThe fair is in M\xe4rz@neutral\r\n",
    "Sentences_75Agree.txt": b"Orders grew@positive\r\nThe fair is in M\xe4rz@neutral\r\n"
    b"Sales fell@negative\r\n",
    "Sentences_66Agree.txt": b"Sales fell@negative\r\n",
    "Sentences_50Agree.txt": b"Orders grew@neutral\r\nSales fell@negative\r\n"
    b"Orders  grew@positive\r\n",
}


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that FILES are what was published."""
    for name, content in FILES.items():
        monkeypatch.setitem(FILE_SHA256, name, hashlib.sha256(content).hexdigest())


def write_files(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def write_zip(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / ZIP_NAME, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"FinancialPhraseBank-v1.0/{name}", content)
            archive.writestr(f"__MACOSX/FinancialPhraseBank-v1.0/._{name}", b"shadow")
    return folder / ZIP_NAME


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("below", [".", "financial_phrasebank", "FinancialPhraseBank-v1.0"])
@pytest.mark.parametrize("write", [write_files, write_zip])
def test_every_layout_gives_the_same_data(tmp_path: Path, below: str, write: object) -> None:
    assert callable(write)
    written = write(tmp_path / below)
    expected = [("Orders grew", 2), ("The fair is in März", 1)]
    for place in {tmp_path, written}:
        dataset = load_dataset("allagree", place)
        assert [(e.text, e.label) for e in dataset.examples] == expected
    assert len({e.group for e in dataset.examples}) == 2


@pytest.mark.usefixtures("published")
def test_the_conflict_rule_reads_the_stricter_levels(tmp_path: Path) -> None:
    dataset = load_dataset("50agree", write_files(tmp_path))
    labels = {e.text: LABELS[e.label] for e in dataset.examples}
    assert labels == {"Orders grew": "positive", "Sales fell": "negative"}


@pytest.mark.usefixtures("published")
def test_the_environment_names_the_folder_and_the_argument_beats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINSENT_DATA_DIR", str(write_files(tmp_path / "env")))
    assert read_level("allagree")[1].startswith(str(tmp_path / "env"))
    argument = write_files(tmp_path / "argument")
    assert read_level("allagree", argument)[1].startswith(str(argument))


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    path = write_files(tmp_path) / "Sentences_AllAgree.txt"
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataError) as caught:
        load_dataset("allagree", tmp_path)
    message = str(caught.value)
    for part in (str(path), got, FILE_SHA256[path.name], "download"):
        assert part in message


def test_a_folder_that_does_not_exist_is_an_error_not_a_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; point FINSENT_DATA_DIR"):
        read_level("allagree", tmp_path / "nowhere")


def test_a_folder_without_the_file_is_an_error_not_a_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no Sentences_75Agree\.txt and no .*zip in .*download"):
        read_level("75agree", tmp_path)


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / ZIP_NAME).write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"v1\.0\.zip is not a readable zip .*download"):
        read_level("allagree", tmp_path)


def test_a_zip_without_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match=r"other\.zip holds 0 files named Sentences_AllAgree\.txt"):
        read_level("allagree", path)


@pytest.mark.usefixtures("published")
def test_without_a_folder_the_canonical_zip_comes_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path)
    asked = []

    def download(repo: str, name: str, *, repo_type: str) -> str:
        asked.append((repo, name, repo_type))
        return str(path)

    monkeypatch.setattr(hub, "require", lambda *asked: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(phrasebank, "ZIP_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(load_dataset("allagree").examples) == 2
    assert asked == [
        ("takala/financial_phrasebank", "data/FinancialPhraseBank-v1.0.zip", "dataset")
    ]
    monkeypatch.setattr(phrasebank, "ZIP_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"zip is not the published file: .*expected 0{64}"):
        load_dataset("allagree")


def test_an_unreachable_hub_says_what_to_do_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route to host\nand a long explanation")

    monkeypatch.setattr(hub, "require", lambda *asked: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(DataError) as caught:
        load_dataset("allagree")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "ConnectionError: no route to host",
        "FINSENT_DATA_DIR",
        "--data-dir",
        "--dataset sample",
        "https://huggingface.co/datasets/takala/financial_phrasebank",
    ):
        assert part in message
