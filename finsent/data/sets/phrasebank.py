"""Financial PhraseBank (Malo et al. 2014): find it, check it, parse it, repair it.

The sentences are CC BY-NC-SA 3.0 and are never stored in this project, only read from the user's
copy or from the Hub. Every file is compared with the sha256 of the published one before it is
parsed, so two people who load the same level train on the same bytes.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from finsent.data.records import LABELS, DataError, Record, text_id
from finsent.data.sources import checked, from_hub, named_folder

HUB_REPO = "takala/financial_phrasebank"
HUB_FILE = "data/FinancialPhraseBank-v1.0.zip"
PAGE = f"https://huggingface.co/datasets/{HUB_REPO}"
ZIP_NAME = "FinancialPhraseBank-v1.0.zip"
_AGAIN = f"download {ZIP_NAME} again from {PAGE} and use it as it is"
ZIP_SHA256 = "0e1a06c4900fdae46091d031068601e3773ba067c7cecb5b0da1dcba5ce989a6"
FOLDERS = (".", "financial_phrasebank", "FinancialPhraseBank-v1.0")
"""Where the files may lie below a data folder, in the order they are looked for."""

LEVELS = {
    "allagree": "Sentences_AllAgree.txt",
    "75agree": "Sentences_75Agree.txt",
    "66agree": "Sentences_66Agree.txt",
    "50agree": "Sentences_50Agree.txt",
}
"""Agreement level -> file, strictest first. Each file contains the ones before it."""

FILE_SHA256 = {
    "Sentences_AllAgree.txt": "5fb370b3005b9a2759f708849a691ad2e4d2593d4c995c1afde229398a516594",
    "Sentences_75Agree.txt": "a7ca39fb9dc60aed1c323ee635494aed4acdfc05e0349a9e74367502325303a4",
    "Sentences_66Agree.txt": "725adb1de7d33977b0c2f63c33d5ad60e3c623b916856e18663915dfe47b6981",
    "Sentences_50Agree.txt": "bb1b4df6de05d50b146f87a9d4d024b69f947066445f2384f014c3564c1612c8",
}


# --- finding and checking the files -------------------------------------------------------------


def _read_zip(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            # the archive also holds macOS shadow files, "._<name>"; only the exact name counts
            members = [m for m in archive.namelist() if m.rsplit("/", 1)[-1] == name]
            if len(members) != 1:
                raise DataError(
                    f"{path} holds {len(members)} files named {name}, expected one; "
                    f"download {ZIP_NAME} again from {PAGE}"
                )
            return archive.read(members[0])
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{path} is not a readable zip ({error}); download {ZIP_NAME} again from {PAGE}"
        ) from error


def _read_local(location: Path, name: str) -> tuple[bytes, str]:
    """Content of the file `name` at a folder or zip, and where it was found."""
    if not location.exists():
        raise DataError(
            f"data folder {location} does not exist; point FINSENT_DATA_DIR or --data-dir at a "
            f"folder that holds {name} or {ZIP_NAME} (from {PAGE}), or use --dataset sample"
        )
    if location.is_file():
        return _read_zip(location, name), f"{location}:{name}"
    for folder in FOLDERS:
        path = location / folder / name
        if path.is_file():
            return path.read_bytes(), str(path)
    for folder in FOLDERS:
        path = location / folder / ZIP_NAME
        if path.is_file():
            return _read_zip(path, name), f"{path}:{name}"
    raise DataError(
        f"no {name} and no {ZIP_NAME} in {location} or its folders {', '.join(FOLDERS[1:])}; "
        f"download the zip from {PAGE} into it, or use --dataset sample"
    )


def _download_zip() -> Path:
    """The canonical zip out of the Hub's cache, downloaded the first time."""
    path = from_hub(
        HUB_REPO,
        HUB_FILE,
        f"get {ZIP_NAME} from {PAGE} and set FINSENT_DATA_DIR or --data-dir to it, "
        "or use --dataset sample, which needs no download",
    )
    checked(path.read_bytes(), ZIP_SHA256, str(path), _AGAIN)
    return path


def read_level(level: str, data_dir: Path | None = None) -> tuple[bytes, str]:
    """The published bytes of one agreement level, and a name for where they came from.

    Looks in `data_dir`, else in the environment's FINSENT_DATA_DIR, else on the Hub. A place that
    is named but does not hold the file is an error: the next place is not tried.
    Raises DataError when the file is missing or its sha256 is not the published one.
    """
    name = LEVELS[level]
    content, source = _read_local(named_folder(data_dir) or _download_zip(), name)
    return checked(content, FILE_SHA256[name], source, _AGAIN), source


# --- parsing and repairing ----------------------------------------------------------------------


def _decode(content: bytes, source: str) -> str:
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise DataError(f"{source} is UTF-8 with a byte-order mark or UTF-16; expected latin-1")
    if not content.isascii():
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            pass  # what latin-1 letters look like: they are not valid UTF-8
        else:
            raise DataError(f"{source} has been re-encoded as UTF-8; expected latin-1")
    return content.decode("latin-1")


def parse_phrasebank(content: bytes, source: str) -> list[tuple[str, str]]:
    """(sentence, label) of every line `sentence@label`; sentences exactly as they are in the file.

    Raises DataError naming source, 1-based line and value for a wrong encoding, an empty line, a
    missing `@`, an empty sentence or a label that is not one of LABELS.
    """
    rows = []
    # str.splitlines would also cut at \x85 and \x1c, which are characters here
    lines = re.split(r"\r\n|\n|\r", _decode(content, source))
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        where = f"{source}, line {number}"
        if not line.strip():
            raise DataError(f"{where}: empty line; expected sentence@label")
        text, separator, label = line.rpartition("@")
        if not separator:
            raise DataError(f"{where}: no '@' in {line[:60]!r}; expected sentence@label")
        if label not in LABELS:
            raise DataError(f"{where}: unknown label {label!r}; expected one of {LABELS}")
        if not text.strip():
            raise DataError(f"{where}: empty sentence in {line!r}; expected sentence@label")
        rows.append((text, label))
    return rows


def _undo_cp850(match: re.Match[str]) -> str:
    lead, shown = match.groups()
    # These two box-drawing characters were flattened to look-alikes as well.
    flattened = {"¦": b"\xb4", "+": b"\xbc"}
    second = flattened.get(shown) or shown.encode("cp850")
    return ({"+": b"\xc3", "-": b"\xc2"}[lead] + second).decode("utf-8")


def repair_mojibake(text: str) -> str:
    """Undo the damage the published files carry.

    Some sentences were UTF-8, read as code page 850, and then flattened to latin-1: the lead byte
    C3 (a box corner) became `+`, C2 became `-`, and the second byte shows as its CP850 letter, so
    an ä is the two characters `+ñ`. The repair is that path backwards: lead byte, the letter's
    CP850 byte, decoded as UTF-8. It touches `+` and `-` only before a non-ASCII letter (and `++`
    inside a word, an ü), so phone numbers, "K+S" and signed figures stay as they are.

    A few typographic signs went through the damage twice and left fixed remains: the apostrophe
    before s, and the euro sign. In four sentences of 50Agree such signs lost bytes for good; they
    keep their remains.
    """
    text = re.sub(r"\+ó(?:EUR TM)?(?= ?s\b)", "\u2019", text)
    text = re.sub(r"\+ó\s+x201a\s+-¼", "\u20ac", text)
    # +ó, +é and +â decode to the first byte of a twice-damaged sign whose rest is gone
    text = re.sub(r"([+-])((?![óéâ])[\x80-\xff])", _undo_cp850, text)
    return re.sub(r"(?<=[^\W\d_])(\+)(\+)(?=[^\W\d_])", _undo_cp850, text)


def clean(text: str) -> str:
    """Repaired text with every run of white space made one space."""
    return " ".join(repair_mojibake(text).split())


# --- one level, merged --------------------------------------------------------------------------

Rows = Sequence[tuple[str, str]]


def record_id(text: str) -> str:
    """Id of a cleaned sentence, the same at every level."""
    return text_id("fpb", text)


def merge_duplicates(rows: Rows, stricter: Callable[[], Sequence[Rows]]) -> list[Record]:
    """One record per distinct sentence, in order of first occurrence. Texts must be clean.

    Copies that carry different labels are settled by agreement: `stricter()` gives the rows of the
    stricter levels, strictest first, and the first level that knows the sentence under exactly one
    label decides, because more annotators stood behind that copy. If none does, the sentence is
    neutral: readers who split evenly between directions give an investor none.
    """
    labels: dict[str, set[str]] = {}
    for text, label in rows:
        labels.setdefault(text, set()).add(label)
    if any(len(found) > 1 for found in labels.values()):
        levels = stricter()
        for text in [text for text, found in labels.items() if len(found) > 1]:
            votes = ({label for other, label in level if other == text} for level in levels)
            labels[text] = next((vote for vote in votes if len(vote) == 1), {"neutral"})
    return [Record(record_id(text), text, label) for text, (label,) in labels.items()]


def load_phrasebank(level: str, data_dir: Path | None = None) -> list[Record]:
    """The sentences of one agreement level: checked, repaired, exact duplicates merged.

    `level` is a key of LEVELS. Ids hash the cleaned sentence, so a sentence has the same id at
    every level. Raises DataError as `read_level` and `parse_phrasebank` do.
    """

    def rows(name: str) -> Rows:
        content, source = read_level(name, data_dir)
        return [(clean(text), label) for text, label in parse_phrasebank(content, source)]

    order = list(LEVELS)
    return merge_duplicates(
        rows(level), stricter=lambda: [rows(name) for name in order[: order.index(level)]]
    )
