"""Published files: where they are looked for, and whether they are what was published."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finsent.data.records import DataError, Row
from finsent.machine import hub


def named_folder(data_dir: Path | None) -> Path | None:
    """`data_dir`, else what the environment's FINSENT_DATA_DIR names, else None."""
    if data_dir is None and os.environ.get("FINSENT_DATA_DIR"):
        return Path(os.environ["FINSENT_DATA_DIR"])
    return None if data_dir is None else Path(data_dir)


def checked(content: bytes, expected: str, source: str, advice: str) -> bytes:
    """`content` when its sha256 is `expected`; else DataError, ending with `advice`."""
    got = hashlib.sha256(content).hexdigest()
    if got != expected:
        raise DataError(
            f"{source} is not the published file: sha256 is {got}, expected {expected}. An editor, "
            f"a conversion to UTF-8 or changed line ends may have altered it; {advice}"
        )
    return content


def from_hub(repo: str, name: str, advice: str) -> Path:
    """File `name` of a Hub data set, in the Hub's cache; downloaded the first time.

    Raises DataError, ending with `advice`.
    """
    from huggingface_hub import hf_hub_download

    try:
        hub.require(repo, name, "dataset")
        return Path(hf_hub_download(repo, name, repo_type="dataset"))
    except Exception as error:  # the Hub client's transport, and so its errors, vary by release
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"cannot download {name} of {repo} from the Hub ({type(error).__name__}: {reason}); "
            f"{advice}"
        ) from error


@dataclass(frozen=True)
class Published:
    """The files of one data set."""

    page: str
    """Where people find them."""
    sha256: Mapping[str, str]
    """File name -> checksum of its content."""
    folders: tuple[str, ...]
    """Where a file may lie below a data folder, in the order they are looked for."""
    hub_repo: str | None = None
    """The Hub data set that has the files at its root, if one has."""
    plain_text: bool = False
    """Line ends do not count: they are read as LF and the checksum is that of the LF content."""
    aliases: Sequence[tuple[str, str]] = ()
    """(ending, other ending): a file may also be there under its name with the other ending."""

    def read(self, name: str, data_dir: Path | None = None) -> tuple[bytes, str]:
        """Content of the file `name`, and where it came from.

        Looks in `data_dir`, else in the environment's FINSENT_DATA_DIR, else on the Hub where the
        data set is there. A place that is named but does not hold the file is an error: the next
        place is not tried. Raises DataError, also when the sha256 is not the published one.
        """
        folder = named_folder(data_dir)
        if folder is not None:
            path = self._find(name, folder)
        elif self.hub_repo is not None:
            path = from_hub(
                self.hub_repo,
                name,
                f"get {name} from {self.page} and set FINSENT_DATA_DIR or --data-dir to its folder",
            )
        else:
            raise DataError(
                f"{name} is not on the Hub: download it from {self.page} and set "
                "FINSENT_DATA_DIR or --data-dir to its folder"
            )
        content = path.read_bytes()
        if self.plain_text:
            content = content.replace(b"\r\n", b"\n")
        again = f"download {name} again from {self.page} and use it as it is"
        return checked(content, self.sha256[name], str(path), again), str(path)

    def rows(
        self, parse: Callable[[bytes, str], Iterable[Row]], data_dir: Path | None = None
    ) -> Iterator[Row]:
        """What `parse` makes of every file, given its content and where it came from.

        Raises DataError as `read` and `parse` do.
        """
        for name in self.sha256:
            yield from parse(*self.read(name, data_dir))

    def _find(self, name: str, folder: Path) -> Path:
        if not folder.is_dir():
            raise DataError(
                f"data folder {folder} {'is a file' if folder.exists() else 'does not exist'}; "
                f"point FINSENT_DATA_DIR or --data-dir at a folder that holds {name} (from "
                f"{self.page})"
            )
        names = [name, *(name.removesuffix(end) + new for end, new in self.aliases)]
        for below in self.folders:
            for candidate in names:
                if (folder / below / candidate).is_file():
                    return folder / below / candidate
        tops = dict.fromkeys(below.split("/")[0] for below in self.folders if below != ".")
        raise DataError(
            f"no {name} in {folder} or where it would lie in {', '.join(tops)} there; download it "
            f"from {self.page} into {folder}"
        )


def read_workbook(
    content: bytes, columns: Sequence[str], source: str
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(place, cells of `columns`) of every row below the header of the first sheet.

    The place, "file, row 3", is for messages. Raises DataError when the file is no workbook or
    lacks a column.
    """
    # Only two data sets need it, and the app reads data-set names without it.
    from openpyxl import load_workbook

    try:
        book = load_workbook(io.BytesIO(content), read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{source} is not a readable .xlsx file ({error})") from error
    rows = book.worksheets[0].iter_rows(values_only=True)
    header = next(rows, ())
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{source} has no column {', '.join(missing)}; its header is {header}")
    places = [header.index(column) for column in columns]
    for number, row in enumerate(rows, start=2):
        yield f"{source}, row {number}", tuple(row[place] for place in places)
