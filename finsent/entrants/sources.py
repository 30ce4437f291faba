"""Where a model from elsewhere comes from: a folder, or the Hub. Checked before it is loaded.

Only safetensors and ONNX files are read and no code of a repository runs: weights in pickle could
do anything to the machine that loads them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from finsent.entrants.labels import EntrantError
from finsent.machine.files import sha256_file
from finsent.machine.memory import available_bytes
from finsent.models.weights import folder_sha256

CLASSIFIER, ADAPTER, ONNX, GENERATIVE = (
    "sequence classification",
    "LoRA adapter (PEFT)",
    "ONNX",
    "zero-shot",
)
"""The forms of models that can be asked; what was trained by finsent's own commands has others."""

UNKNOWN = "unknown"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROOM = 1.3
"""Memory that a model takes while it is loaded and asked, as a multiple of its fp32 weights."""

_READ = ("*.json", "*.txt", "*.model", "*.safetensors", "README.md")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")


@dataclass(frozen=True)
class Source:
    """A model's files on this machine."""

    folder: Path
    name: str
    """The Hub id, or the folder's own name: a path of this machine is nobody's business."""
    form: str
    revision: str
    """The Hub's commit, or `sha256:` of the weights."""
    licence: str
    url: str | None


def local_source(folder: Path, *, generative: bool = False, largest: int | None = None) -> Source:
    """A model folder. EntrantError when it holds none that can be read safely, or that is larger
    than `largest` bytes in fp32."""
    files = [*folder.glob("*"), *folder.glob("onnx/*")]
    names = [path.relative_to(folder).as_posix() for path in files if path.is_file()]
    form = form_of(names, str(folder), generative=generative)
    _check_size(folder, largest)
    readme = folder / "README.md"
    return Source(
        folder,
        folder.resolve().name,
        form,
        f"sha256:{_weights_sha256(folder)}",
        _licence_in(readme.read_text(encoding="utf-8", errors="replace"))
        if readme.is_file()
        else UNKNOWN,
        None,
    )


def find_source(
    model: str,
    revision: str | None = None,
    *,
    generative: bool = False,
    largest: int | None = None,
) -> Source:
    """A model by its folder or Hub id; the Hub's is downloaded the first time.

    Args:
        model: A folder, or `owner/name` on the Hub.
        revision: Branch, tag or commit there; None: main.
        generative: Whether it is asked to continue texts, not to classify them.
        largest: Bytes that its weights may have in fp32; None: as many as fit into memory.

    Raises:
        EntrantError: No such folder or repository, it may not be read, it has no weights in
            safetensors or ONNX, or they are too large for this machine.
    """
    if Path(model).is_dir():
        if revision is not None:
            raise EntrantError(f"{model} is a folder, which has no --revision; leave it out")
        return local_source(Path(model), generative=generative, largest=largest)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        raise EntrantError(
            f"there is no folder {model}, and a model on the Hub is named owner/name; give one of "
            "both"
        )
    return _from_hub(model, revision, generative, largest)


def _from_hub(model: str, revision: str | None, generative: bool, largest: int | None) -> Source:
    from huggingface_hub import HfApi, snapshot_download

    try:
        info: Any = HfApi().model_info(model, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        form = form_of(list(sizes), model, generative=generative)
        wanted = _READ if form != ONNX else ("*.json", "*.txt", "*.model", "*.onnx*", "README.md")
        _check_fits(
            sum(n for f, n in sizes.items() if f.endswith((".safetensors", ".onnx"))),
            model,
            largest,
        )
        folder = Path(snapshot_download(model, revision=info.sha, allow_patterns=list(wanted)))
    except EntrantError:
        raise
    except Exception as error:  # the Hub client's transport, and so its errors, vary by release
        raise EntrantError(_why_not_from_hub(model, revision, error)) from error
    _check_size(folder, largest)
    licence = getattr(info.card_data, "license", None) or UNKNOWN
    return Source(folder, model, form, info.sha, str(licence), f"https://huggingface.co/{model}")


def _why_not_from_hub(model: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{model} is gated: accept its terms at https://huggingface.co/{model}, run `hf auth "
            "login` and start again"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the Hub has no model {model}, or you may not see it; check the name, or run `hf auth "
            "login` if it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{model} has no revision {revision}; name a branch, tag or commit of it"
    reason = (str(error).splitlines() or [""])[0]
    return (
        f"cannot get {model} from the Hub ({type(error).__name__}: {reason}); check the network, "
        "or download it elsewhere and name its folder"
    )


def form_of(names: Sequence[str], where: str, *, generative: bool = False) -> str:
    """The form of a model with files of these names. EntrantError when none can be read safely."""
    safe = [name for name in names if name.endswith(".safetensors")]
    pickled = [
        name
        for name in names
        if name.endswith(_PICKLED) and name.rsplit("/", 1)[-1] not in _NOT_WEIGHTS
    ]
    if ADAPTER_CONFIG in names and not generative:
        if ADAPTER_WEIGHTS in names:
            return ADAPTER
    elif "config.json" in names and safe:
        return GENERATIVE if generative else CLASSIFIER
    elif any(name.endswith(".onnx") for name in names) and not generative:
        return ONNX
    if pickled:
        raise EntrantError(
            f"{where} has its weights in {pickled[0]} only, a format that can run code while it is "
            "read; convert it to safetensors (https://huggingface.co/spaces/safetensors/convert) "
            "and give that revision or folder"
        )
    raise EntrantError(
        f"{where} holds no model: expected config.json with *.safetensors, {ADAPTER_CONFIG} with "
        f"{ADAPTER_WEIGHTS}, or a file *.onnx"
    )


def onnx_file(folder: Path) -> Path:
    """The ONNX file of a folder: model.onnx if there are several. EntrantError if none is."""
    found = sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])
    named = [path for path in found if path.name == "model.onnx"] or found
    if len(named) != 1:
        raise EntrantError(
            f"{folder} holds {len(found)} ONNX files, none or several of them model.onnx; keep one"
        )
    return named[0]


def parameters_in(folder: Path) -> int:
    """How many numbers a folder's safetensors files hold. EntrantError for a damaged file."""
    files = folder.glob("*.safetensors")
    return sum(math.prod(shape) for path in files for shape in tensor_shapes(path).values())


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes in a safetensors file, whatever the precision. EntrantError for a damaged file."""
    try:
        with safe_open(path, framework="np") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise EntrantError(f"{path} is damaged ({error}); download the model again") from error


def read_settings(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON object of a model folder. EntrantError when it is missing or none."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EntrantError(
            f"{folder / name} cannot be read ({error}); download it again"
        ) from error
    if not isinstance(found, dict):
        raise EntrantError(f"{folder / name} is no JSON object; download it again")
    return found


def _check_size(folder: Path, largest: int | None) -> None:
    count = parameters_in(folder)
    onnx = sum(path.stat().st_size for path in folder.rglob("*.onnx*"))
    _check_fits(max(4 * count, onnx), str(folder), largest)


def _check_fits(size: int, where: str, largest: int | None) -> None:
    if largest is not None and size > largest:
        raise EntrantError(
            f"{where} is too large to answer live: its weights take {size / 1e9:.2g} GB, and at "
            f"most {largest / 1e9:.2g} GB may; take a smaller one, or test it by finsent evaluate"
        )
    free = available_bytes()
    if ROOM * size > free:
        raise EntrantError(
            f"{where} is too large for this machine: it takes about {ROOM * size / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free; use a machine with more memory, or a smaller model"
        )


def _weights_sha256(folder: Path) -> str:
    if any(folder.glob("*.safetensors")):
        return folder_sha256(folder)
    return sha256_file(onnx_file(folder))


def _licence_in(card: str) -> str:
    """The licence that a model card's front matter states."""
    parts = card.split("---")
    found = re.search(r"^license:\s*(\S+)\s*$", parts[1], re.MULTILINE) if len(parts) > 2 else None
    return found[1].strip("\"'") if found else UNKNOWN
