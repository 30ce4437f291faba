"""A fair benchmark of dendritic optimization on financial sentiment, and the models it made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finsent.classifier import Classifier

__all__ = ["Classifier"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loaded when asked for: reading results needs no tokenizer and no model.
    if name == "Classifier":
        from finsent.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
