"""JSON that every reader understands alike; anything else is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

LONGEST_INTEGER = 19
"""Characters of an integer in JSON: more than any count needs, and few enough for a float."""


def strict_json(text: str, *, number: Callable[[str], Any] | None = None) -> Any:
    """Value of a JSON text.

    Args:
        text: The whole document.
        number: Makes a number of its characters; without it there are int and finite float.

    Raises:
        ValueError: It is not JSON, names a key twice, is nested too deep to be read, or holds NaN,
            an infinity or an integer of more than 19 characters.
    """
    try:
        return json.loads(
            text,
            parse_constant=_refuse,
            parse_int=number or _integer,
            parse_float=number or _finite,
            object_pairs_hook=_once,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    except RecursionError as error:
        raise ValueError("nested too deep to be read") from error


def _refuse(constant: str) -> None:
    shown = constant if len(constant) <= 24 else f"{constant[:20]}…"
    raise ValueError(f"holds {shown}, which JSON does not know")


def _integer(digits: str) -> int:
    # Checked before it is converted: Python refuses thousands of digits with another error.
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"holds a number of {len(digits)} digits, {digits[:12]}…")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _refuse(digits)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(k for i, (k, _) in enumerate(pairs) if k in dict(pairs[:i]))
        raise ValueError(f"names {twice!r} twice")
    return found
