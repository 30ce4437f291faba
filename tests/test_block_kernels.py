"""Kernels of a block in training, interpreted on the CPU, against PyTorch."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from finsent.kernels import attention
from finsent.kernels.attention import attend, silu_gate
from tests.test_fused_training import relative

pytest.importorskip("triton", reason="triton is not there for this kind of machine")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before torch is imported", allow_module_level=True)

from finsent.kernels import attention_kernels

ROUNDED = 2e-3
"""Of fp16: the interpreter knows no products in bf16, which has the same tiles and casts."""


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the kernels compute; the names of those that did."""
    found: list[str] = []

    def counted(name: str) -> None:
        plain = getattr(attention_kernels, name)

        def call(*arguments: object) -> Tensor:
            found.append(name)
            return plain(*arguments)

        monkeypatch.setattr(attention_kernels, name, call)

    for name in ("attend", "attend_gradient", "gate", "gate_gradient"):
        counted(name)
    monkeypatch.setattr(attention, "uses_kernels", lambda x: x.dtype == torch.float16)
    return found


def angles(length: int, size: int) -> tuple[Tensor, Tensor]:
    turn = torch.arange(length)[:, None] * torch.rand(size // 2).repeat(2)
    return turn.cos(), turn.sin()


@pytest.mark.parametrize(
    ("batch", "length", "heads", "kv_heads", "size"),
    [(3, 21, 6, 2, 16), (1, 1, 2, 2, 32), (2, 16, 3, 1, 64), (1, 65, 2, 1, 16), (1, 128, 1, 1, 16)],
)
def test_attention_is_pytorchs(
    launched: list[str], batch: int, length: int, heads: int, kv_heads: int, size: int
) -> None:
    torch.manual_seed(0)
    joined = torch.randn(batch, length, (heads + 2 * kv_heads) * size)
    weights = torch.randn(batch, length, heads * size)
    about = (*angles(length, size), heads, kv_heads)
    found = []
    for dtype in (torch.float32, torch.float16):
        given = joined.to(dtype, copy=True).requires_grad_()
        outputs = attend(given * 1.0, *about)
        outputs.backward(weights.to(dtype))
        found.append((outputs.detach().float(), given.grad.float()))
    assert launched == ["attend", "attend_gradient"]
    for exact, rounded in zip(*found, strict=True):
        assert exact.norm() > 0.1
        assert relative(rounded, exact) < ROUNDED


def test_what_the_attention_kernels_do_not_know_is_left_to_pytorch(launched: list[str]) -> None:
    for length, size in ((129, 16), (4, 24)):
        attend(torch.zeros(1, length, 3 * size, dtype=torch.float16), *angles(length, size), 1, 1)
    assert launched == []


@pytest.mark.parametrize("shape", [(5, 3, 20), (7, 4096)])
def test_a_gate_is_pytorchs(launched: list[str], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    joined = torch.randn(shape) * 3
    weights = torch.randn(*shape[:-1], shape[-1] // 2)
    found = []
    for dtype in (torch.float64, torch.float16):
        given = joined.to(dtype, copy=True).requires_grad_()
        outputs = silu_gate(given)
        outputs.backward(weights.to(dtype))
        found.append((outputs.detach().double(), given.grad.double()))
    assert launched == ["gate", "gate_gradient"]
    for exact, rounded in zip(*found, strict=True):
        assert relative(rounded, exact) < ROUNDED
