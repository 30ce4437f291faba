"""SHA256SUMS: which files the artifacts consist of, and whether a run is what it says it is."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from finsent.config import SCALES
from finsent.machine.files import sha256_file, write_bytes_atomically
from finsent.results.runs import RUN_FILES, VALIDATION_FILE, WORK_FOLDER, Run
from finsent.results.schema import RESTORE, ArtifactError, read_text

MANIFEST = "SHA256SUMS"
ADAPTER_FILE = "adapter.safetensors"
ADAPTER_SHA256 = "sha256"
"""Key of config.json's `adapter`: the checksum of the weights that the run made. Runs made before
it was written do without."""

_DENDRITE = re.compile(r"(?P<module>.+)\.dendrites\.(?P<index>\d+)\.weight")


# ------------------------------------------------------------------------ adapters


def read_tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file, all of whose values are finite.

    Raises ArtifactError when the file is missing, cut short, has bytes to spare or holds a value
    that is no number.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with safe_open(path, framework="np") as stored:
            for name in stored.keys():  # noqa: SIM118
                tensor = stored.get_tensor(name)
                if tensor.dtype.kind not in "fi":
                    raise ArtifactError(f"{path}: {name} holds {tensor.dtype}; {RESTORE}")
                if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                    raise ArtifactError(
                        f"{path}: {name} holds values that are not finite; {RESTORE}"
                    )
                shapes[name] = tensor.shape
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); {RESTORE}") from error
    except (SafetensorError, TypeError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        # numpy knows fewer kinds of numbers than the format does.
        raise ArtifactError(
            f"{path}: no safetensors file, or damaged ({error}); {RESTORE}"
        ) from error
    return shapes


def count_parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Elements of all tensors but the scales of int8 ones, which follow from them.

    Everything else that an adapter file holds was trained.
    """
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(SCALES))


def count_dendrites(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Dendrites of the map that has most, from the names `<map>.dendrites.<i>.weight`."""
    per_module = Counter(
        match["module"] for name in shapes if (match := _DENDRITE.fullmatch(name)) is not None
    )
    return max(per_module.values(), default=0)


def check_adapter(run: Run) -> None:
    """Compares a run's weights with what the run says of them.

    Raises:
        ArtifactError: One is not finite, there are more or fewer than metrics.json says, they do
            not have the shapes that the settings give, or are not those that config.json names.
    """
    path = run.folder / ADAPTER_FILE
    shapes = read_tensor_shapes(path)
    for name, held in (
        ("trainable_params", count_parameters(shapes)),
        ("dendrites", count_dendrites(shapes)),
    ):
        if held != run.metrics[name]:
            raise ArtifactError(
                f"{path}: holds {held} {name}, metrics.json says {run.metrics[name]}; {RESTORE}"
            )
    problem = _shape_problem(run, shapes)
    if problem is not None:
        raise ArtifactError(f"{path}: {problem}; {RESTORE}")
    expected = run.config["adapter"].get(ADAPTER_SHA256)
    if expected is not None and sha256_file(path) != expected:
        raise ArtifactError(
            f"{path}: not the weights of this run, whose checksum its config.json states; {RESTORE}"
        )


def _shape_problem(run: Run, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What cannot be: a head of other classes, maps of another rank, pairs that do not fit."""
    classes = len(run.label_names)
    lora = run.config["config"].get("lora")
    rank = lora.get("r") if isinstance(lora, dict) and run.arm != "matched" else None
    for name, shape in shapes.items():
        if name.endswith(SCALES):
            continue
        if name.startswith("score.") and name.endswith("weight") and shape[0] != classes:
            return f"{name} is {shape}, but the run has {classes} classes"
        before, found, _ = name.partition(".lora_A.")
        if not found:
            continue
        if len(shape) != 2 or (rank is not None and shape[0] != rank):
            return f"{name} is {shape}, but the run's rank is {rank}"
        other = shapes.get(f"{before}.lora_B.weight")
        if other is None or len(other) != 2 or other[1] != shape[0]:
            return f"{name} is {shape}, and its lora_B is {other}: the two do not fit"
    return None


# ------------------------------------------------------------------------ checksums


@dataclass(frozen=True)
class Checksums:
    """What a manifest states, as far as it can be read."""

    entries: Mapping[str, str] = field(default_factory=dict)
    """Path below the root -> SHA-256."""
    problem: str | None = None
    """What is wrong with the manifest itself."""


def checksums_of(root: Path) -> Checksums:
    """The manifest's entries without lines that are none; empty where nothing is published yet."""
    if not (root / MANIFEST).is_file():
        return Checksums()
    try:
        return Checksums(read_manifest(root))
    except ArtifactError as error:
        return Checksums(_entries(root / MANIFEST, skip=True), str(error))


def check_run(run: Run, sums: Checksums) -> None:
    """Compares a run with the manifest, and its weights with what it says of them.

    A run that is not in the manifest has been made since that was written: its tables are read
    instead. Takes some milliseconds.

    Raises:
        ArtifactError: A file is not the one that was published, or the weights do not fit.
    """
    root = run.folder.parents[3]
    files = [run.folder / name for name in (*RUN_FILES, VALIDATION_FILE)]
    published = [is_published(path, root, sums) for path in files]
    check_adapter(run)
    if not all(published):
        run.read_predictions()
        run.read_validation()


def is_published(path: Path, root: Path, sums: Checksums) -> bool:
    """Whether the manifest vouches for a file, which may be one that need not be there.

    False for one that is not listed, as it was made since. Raises ArtifactError for one that is not
    what was listed, and for one of which a damaged manifest says nothing.
    """
    expected = sums.entries.get(path.relative_to(root).as_posix())
    if not path.is_file():
        if expected is not None:
            raise ArtifactError(f"{path}: listed in {MANIFEST} but missing; {RESTORE}")
        return True
    if expected is None:
        if sums.problem is not None:
            raise ArtifactError(f"{path}: has no checksum to compare with: {sums.problem}")
        return False
    if sha256_file(path) != expected:
        raise ArtifactError(
            f"{path}: bytes differ from {MANIFEST}; {RESTORE}. Where it was just made, "
            "`finsent leaderboard` writes the checksums again"
        )
    return True


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
    would need to escape, or bytes that are no UTF-8.
    """
    root = Path(root)
    lines = []
    for name in files_below(root):
        if any(character in "\n\r\\" or "\ud800" <= character <= "\udfff" for character in name):
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
    return _entries(Path(root) / MANIFEST)


def _entries(path: Path, *, skip: bool = False) -> dict[str, str]:
    try:
        text = read_text(path)
    except ArtifactError:
        if skip:
            return {}
        raise
    entries: dict[str, str] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if match is not None:
            entries[match[2]] = match[1]
        elif not skip:
            raise ArtifactError(f"{path}, line {number}: not `<sha256>  <path>`; {RESTORE}")
    return entries
