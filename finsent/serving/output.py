"""A file of answers that is written beside the one it becomes, and a record of how it was made.

`out.csv` is there when it is whole. Until then its rows are in `out.csv.part`. The record,
`out.csv.finsent.jsonl`, says what makes the rows and, after every block, how far input and output
were and the checksums of both. From it a later run knows that the files are finsent's, that nobody
changed them, and that it would go on as they were begun; else it refuses and leaves everything as
it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

PART = ".part"
RECORD = ".finsent.jsonl"
FORMAT = "finsent score 1"
NOT_CSV = (".xlsx", ".xls", ".parquet", ".jsonl", ".ndjson", ".gz", ".zip")


class ScoringError(ValueError):
    """An input that cannot be scored, or an output that cannot be written or resumed."""


@dataclass
class Tally:
    """Rows of each kind so far."""

    empty: int = 0
    """With an empty text."""
    truncated: int = 0
    """Whose text was cut."""
    confusion: dict[str, int] = field(default_factory=dict)
    """"<label in the input>/<label found>" -> rows."""
    unlabelled: int = 0
    """With a text, but without one of the model's labels in the label column."""


@dataclass(frozen=True)
class OutputStep:
    """How far a file is."""

    read: int = 0
    """Rows of the input."""
    read_sha256: str = hashlib.sha256().hexdigest()
    """Of the cells of these rows."""
    rows: int = 0
    """Rows of the output."""
    size: int = 0
    """Bytes of the output."""
    sha256: str = hashlib.sha256().hexdigest()
    """Of these bytes."""
    engine: str | None = None
    """What computed the answers; None before the first one."""
    tally: Tally = field(default_factory=Tally)
    finished: bool = False

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> OutputStep:
        """A line of a record. Raises ValueError, TypeError or KeyError for anything else."""
        found = cls(**{**line, "tally": Tally(**line["tally"])})
        for value in (found.read, found.rows, found.size):
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{value!r} is no number of rows or bytes")
        return found


class Output:
    """The file to be written, with its record. Use as a context manager: it locks the record."""

    def __init__(self, target: Path, about: Mapping[str, Any], head: bytes) -> None:
        """about: what decides the rows, by name; head: the header line."""
        try:
            self.target = target.resolve()
        except (RuntimeError, OSError) as error:
            # Which of them a loop is depends on Python's version.
            raise ScoringError(f"{target}: a link that leads to itself; name another") from error
        self.part = self.target.with_name(self.target.name + PART)
        self.record = self.target.with_name(self.target.name + RECORD)
        self._shown, self._about, self._head = target, dict(about), head
        self.steps: list[OutputStep] = []
        self._whole = False
        self._offsets: list[int] = []

    def __enter__(self) -> Output:
        """Looks at what is there and changes nothing that is not finsent's.

        Raises ScoringError where something is in the way or was made otherwise.
        """
        if not self.target.parent.is_dir():
            raise ScoringError(f"there is no folder {self._shown.parent} to write into")
        if self.target.suffix.lower() in NOT_CSV:
            raise ScoringError(f"{self._shown}: the output is a CSV file; name it .csv")
        if self.target.exists() and not self.target.is_file():
            raise ScoringError(f"{self._shown} is no file that could be replaced; name another")
        for path in (self.target, self.part):
            if path.exists() and path.stat().st_size and not self.record.exists():
                raise ScoringError(
                    f"{self.beside(path)} is there, and there is no {self.record.name} that says "
                    "that finsent made it; it is left alone. Name another output file"
                )
        self._stream: IO[bytes] = self.record.open("a+b")
        try:
            self._take()
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self.steps and self.there is None:
            self.record.unlink(missing_ok=True)
        self._stream.close()

    @property
    def begun(self) -> OutputStep:
        """Where a run goes on, as the record has it; the start where there is nothing yet."""
        return self.steps[-1] if self.steps else OutputStep()

    @property
    def finished(self) -> bool:
        """Whether the file is whole, as far as the input went then."""
        return self.begun.finished and self._whole and not self.part.exists()

    @property
    def there(self) -> Path | None:
        """The file with the rows so far, if there is one."""
        found = (p for p in (self.part, self.target) if p.exists() and p.stat().st_size)
        return next(found, None)

    def check_engine(self, engine: str) -> None:
        """Raises ScoringError where another engine made the rows before."""
        before = self.begun.engine
        if before is not None and before != engine:
            raise ScoringError(self._other(f"engine {before} there, {engine} now"))

    @contextlib.contextmanager
    def appending(self) -> Iterator[Appender]:
        """What takes further rows; they are there for good after each block."""
        begun = self.begun
        if begun.size and not self.part.exists():
            shutil.copyfile(self.target, self.part)
        with self.part.open("a+b") as stream:
            stream.truncate(begun.size)
            stream.seek(0)
            digest = hashlib.sha256()
            for chunk in iter(lambda: stream.read(1 << 20), b""):
                digest.update(chunk)
            appender = Appender(stream, digest, begun.size)
            if not begun.size:
                appender.write(self._head)
            yield appender

    def note(self, step: OutputStep) -> None:
        """Adds a step to the record."""
        self.steps.append(step)
        self._append(asdict(step))

    def publish(self) -> None:
        """Puts the whole file in its place."""
        self.part.replace(self.target)

    def _take(self) -> None:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ScoringError(f"another command is writing {self._shown}") from error
        lines = self._read_record()
        there = self.there
        if there is None:
            # Whoever removed the file wants it made anew.
            self._stream.truncate(0)
            self._append({"format": FORMAT, "made_by": self._about})
            return
        if not lines:
            raise ScoringError(
                f"{self.record} does not say how {self.beside(there)} was made; it is left alone. "
                "Name another output file"
            )
        before = lines[0]["made_by"]
        differing = [
            f"{name.replace('_', ' ')} {_said(before.get(name))} there, "
            f"{_said(self._about.get(name))} now"
            for name in {**before, **self._about}
            if before.get(name) != self._about.get(name)
        ]
        if differing:
            raise ScoringError(self._other("; ".join(differing)))
        self.steps = [OutputStep.from_json(line) for line in lines[1:]]
        self._check_bytes(there)
        if there == self.part and self.target.exists() and self.target.stat().st_size:
            _, whole = self._matching(self.target)
            if not whole:
                raise ScoringError(
                    f"{self._shown} was changed after it was written; it is left alone. Name "
                    "another output file"
                )

    def _read_record(self) -> list[dict[str, Any]]:
        """Its whole lines; one that was cut off is removed."""
        self._stream.seek(0)
        content = self._stream.read()
        lines: list[dict[str, Any]] = []
        at = 0
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            try:
                found = json.loads(line)
                if not lines and (
                    found["format"] != FORMAT or not isinstance(found["made_by"], dict)
                ):
                    raise ValueError("another format")
                if lines:
                    OutputStep.from_json(found)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ScoringError(
                    f"{self.record} is no record of finsent; it is left alone. Name another output "
                    "file"
                ) from error
            lines.append(found)
            at += len(line)
            self._offsets.append(at)
        if content and not lines and not content.startswith(b'{"format"'):
            raise ScoringError(
                f"{self.record} is no record of finsent; it is left alone. Name another output file"
            )
        self._stream.truncate(at)
        return lines

    def _check_bytes(self, there: Path) -> None:
        """Goes back to the last step that the file has reached; ScoringError where it differs."""
        size = there.stat().st_size
        last = self.steps[-1] if self.steps else OutputStep()
        reached, whole = self._matching(there)
        kept = [step for step in self.steps if step.size <= size]
        if len(kept) > reached:
            before = kept[reached - 1].rows if reached else 0
            self._changed(there, before + 1, kept[reached].rows)
        if size > last.size and last.finished:
            self._changed(there, last.rows + 1, None)
        if not kept:
            with there.open("rb") as stream:
                head = stream.read(len(self._head))
            if not self._head.startswith(head):
                self._changed(there, 1, None)
        self.steps, self._whole = kept, whole
        self._stream.truncate(self._offsets[len(kept)])

    def _matching(self, path: Path) -> tuple[int, bool]:
        """How many steps, from the first on, the file has as they were written; and whether it
        ends with the last of them."""
        digest, at, matching = hashlib.sha256(), 0, 0
        size = path.stat().st_size
        with path.open("rb") as stream:
            for step in self.steps:
                if step.size > size:
                    break
                digest.update(stream.read(step.size - at))
                at = step.size
                if digest.hexdigest() != step.sha256:
                    break
                matching += 1
        return matching, at == size

    def _changed(self, there: Path, first: int, last: int | None) -> None:
        rows = f"row {first} on" if last is None else f"rows {first} to {last}"
        raise ScoringError(
            f"{self.beside(there)} was changed after it was written ({rows} below the header are "
            "others now); it is left alone. Remove it to begin anew, or name another output file"
        )

    def _append(self, value: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def beside(self, path: Path) -> Path:
        """A file beside the output, as the output was named."""
        return self._shown.with_name(path.name)

    def _other(self, what: str) -> str:
        there = self.part if self.part.exists() else self.target
        return (
            f"{self.beside(there)} was begun otherwise: {what}. Use the same settings, remove it "
            "to begin anew, or name another output file"
        )


class Appender:
    """Writes bytes and knows the checksum of all that is in the file."""

    def __init__(self, stream: IO[bytes], digest: Any, size: int) -> None:
        self._stream, self._digest, self.size = stream, digest, size

    @property
    def sha256(self) -> str:
        """Of the file as it is."""
        found: str = self._digest.hexdigest()
        return found

    def write(self, content: bytes) -> None:
        """Puts bytes on the disk for good."""
        self._stream.write(content)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._digest.update(content)
        self.size += len(content)


def _said(value: object) -> str:
    if isinstance(value, str) and len(value) == 64 and value.isalnum():
        return value[:12]  # a checksum
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "(" + ", ".join(map(str, value)) + ")"
    return "none" if value is None else str(value)
