"""GPUs are looked for where there can be one; where there cannot, nobody waits for torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from finsent.machine import devices


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch was asked; it says that there is a GPU."""
    questions: list[str] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not questions.append("available"))
    return questions


def test_without_a_driver_torch_is_not_asked(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "null").touch()
    assert not devices.cuda_available(tmp_path)
    assert asked == []


@pytest.mark.parametrize("name", ["nvidia0", "nvidiactl", "kfd", "dxg", "nvgpu"])
def test_with_a_driver_torch_decides(asked: list[str], tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert devices.cuda_available(tmp_path)
    assert asked == ["available"]


def test_elsewhere_and_on_zero_gpu_torch_decides(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "zero_gpu", lambda: True)
    assert devices.cuda_available(tmp_path)
    monkeypatch.setattr(devices, "zero_gpu", lambda: False)
    monkeypatch.setattr(sys, "platform", "win32")
    assert devices.cuda_available(tmp_path)
    assert asked == ["available"] * 2


def test_gpus_are_counted_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    for there, count in ((True, 3), (False, 0)):
        monkeypatch.setattr(devices, "cuda_available", lambda there=there: there)
        assert devices.gpu_count() == count
