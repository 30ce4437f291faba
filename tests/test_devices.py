"""GPUs are looked for where there can be one; where there cannot, nobody waits for torch. Threads
share their pools of memory."""

from __future__ import annotations

import ctypes
import ctypes.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finsent.machine import devices
from finsent.machine.memory import ARENAS


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


@pytest.mark.parametrize("limited", [False, True])
def test_threads_share_their_memory_pools(limited: bool) -> None:
    """Read off what glibc says of itself; without the limit it makes a pool for each thread."""
    libc = ctypes.util.find_library("c")
    if libc is None or not hasattr(ctypes.CDLL(libc), "malloc_info"):
        pytest.skip("not glibc")
    code = f"""
import ctypes, threading
from finsent.machine.memory import limit_arenas
if {limited}:
    assert limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
both = threading.Barrier(8)
def take():
    both.wait()
    for _ in range(100):
        libc.malloc(2000)
    both.wait()
threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
out = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    pools = ended.stdout.count("<heap nr=")
    assert (pools <= ARENAS) == limited, ended.stdout[:300]
