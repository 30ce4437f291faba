"""ZeroGPU: a GPU that a Space borrows for the seconds of one call. Everywhere else, nothing.

The package `spaces` is part of the Space's image there and needed nowhere else.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def zero_gpu() -> bool:
    """Whether this is a ZeroGPU Space."""
    asked = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
    return asked and importlib.util.find_spec("spaces") is not None


def prepare() -> None:
    """Call before torch is imported: `spaces` stands between torch and CUDA there."""
    if zero_gpu():
        importlib.import_module("spaces")


def on_gpu(function: F, *, seconds: Callable[..., int]) -> F:
    """`function`, run with a GPU that is lent for at most `seconds(*its arguments)`. Elsewhere,
    itself.

    It runs in a forked process: arguments and result must pickle. That process may be used again
    for a later call or not, so what the function keeps may be lost, and may also be found again.
    """
    if not zero_gpu():
        return function
    decorated: F = importlib.import_module("spaces").GPU(duration=seconds)(function)
    return decorated
