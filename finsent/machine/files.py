"""Files that are there whole or not at all, and their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder that finsent is imported from: a checkout, or site-packages where it is installed.

`finsent.machine.places` says which."""


def search_path(environment: Mapping[str, str]) -> str:
    """PYTHONPATH of a child process that is to import the finsent that is running here."""
    return os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))


@contextlib.contextmanager
def published(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes the place of `path` when the block ends.

    Readers see the old file or the new, never half; the new one is gone when the block fails.

    Several processes may publish the same file at once: the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        # mkstemp makes files private to the user; results are meant to be read by others.
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Publishes a file that is on the disk for good when this returns."""
    with published(path) as partial, partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
