"""SHA256SUMS: which files the artifacts consist of, and their checksums."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from finsent.machine.files import write_bytes_atomically
from finsent.results.runs import WORK_FOLDER
from finsent.results.schema import RESTORE, ArtifactError, read_text

MANIFEST = "SHA256SUMS"


def read_tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file.

    Raises ArtifactError when the file is missing, cut short or has bytes to spare.
    """
    try:
        with safe_open(path, framework="np") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); {RESTORE}") from error
    except SafetensorError as error:
        raise ArtifactError(
            f"{path}: no safetensors file, or damaged ({error}); {RESTORE}"
        ) from error


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_below(root: Path) -> list[str]:
    """POSIX paths, relative to root and sorted, without the manifest and unfinished work."""
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in paths
        if path.as_posix() != MANIFEST and path.parts[0] != WORK_FOLDER
    )


def manifest_text(root: Path | str) -> str:
    """The manifest that describes the tree as it is now, in the format of `sha256sum`.

    Raises ArtifactError for a file name that holds a line break or backslash, which that format
    would need to escape.
    """
    root = Path(root)
    lines = []
    for name in files_below(root):
        if any(character in name for character in "\n\r\\"):
            raise ArtifactError(f"{root}: file name {name!r} cannot be listed; rename the file")
        lines.append(f"{sha256_file(root / name)}  {name}\n")
    return "".join(lines)


def write_manifest(root: Path | str) -> Path:
    """Writes root/SHA256SUMS; `sha256sum -c SHA256SUMS` inside root checks it. Call it last."""
    path = Path(root) / MANIFEST
    write_bytes_atomically(path, manifest_text(root).encode())
    return path


def read_manifest(root: Path | str) -> dict[str, str]:
    """Path -> SHA-256 as the manifest states it.

    Raises ArtifactError when it is missing or a line is not `<64 hex digits>  <path>`.
    """
    path = Path(root) / MANIFEST
    entries: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if match is None:
            raise ArtifactError(f"{path}, line {number}: not `<sha256>  <path>`; {RESTORE}")
        entries[match[2]] = match[1]
    return entries
