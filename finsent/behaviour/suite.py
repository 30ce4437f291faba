"""The cases of the behaviour suite, made from the package's cases.toml.

In the manner of CheckList (Ribeiro et al. 2020, arXiv:2005.04118): minimal cases that have a right
label, changes of a text that must not change its label, and pairs of texts of which the second has
to score higher. Nothing is random, and no case is ever trained on.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

Kind = Literal["label", "invariance", "direction"]
CASES_FILE = "cases.toml"


@dataclass(frozen=True)
class Case:
    """One thing to get right."""

    capability: str
    kind: Kind
    texts: tuple[str, ...]
    """A text that has a label; or a text and the same one changed; or a lower and a higher one."""
    expect: tuple[str, ...] = ()
    """Labels that are right, of kind "label"."""
    notice_counts: bool = False
    """Whether saying that the text is not what the model was made for is right as well."""


@dataclass(frozen=True)
class Suite:
    """All cases, those of a capability side by side."""

    cases: tuple[Case, ...]
    sha256: str
    """Of the file they were made from: results of different suites do not compare."""

    @property
    def capabilities(self) -> Mapping[str, tuple[Case, ...]]:
        """Cases by capability, in the order of the file."""
        found: dict[str, list[Case]] = {}
        for case in self.cases:
            found.setdefault(case.capability, []).append(case)
        return MappingProxyType({name: tuple(cases) for name, cases in found.items()})


class _Slots:
    """Fills templates; every use of a slot takes the next of its values."""

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self._values = values
        self._used = dict.fromkeys(values, 0)

    def fill(self, template: str) -> str:
        """The template with values in its slots; each kind of slot has one value in a text."""
        chosen = {}
        for slot in re.findall(r"\{(\w+)\}", template):
            if slot not in chosen:
                chosen[slot] = self._values[slot][self._used[slot] % len(self._values[slot])]
                self._used[slot] += 1
        return template.format(**chosen)


@cache
def load_suite() -> Suite:
    """The suite that ships with the package."""
    content = resources.files("finsent.behaviour").joinpath(CASES_FILE).read_bytes()
    data = tomllib.loads(content.decode())
    cases = [*_label_cases(data), *_invariance_cases(data), *_direction_cases(data)]
    return Suite(tuple(cases), hashlib.sha256(content).hexdigest())


def _label_cases(data: Mapping[str, Any]) -> list[Case]:
    slots = _Slots(data["slots"])
    return [
        Case(
            entry["name"],
            "label",
            (slots.fill(template),),
            tuple(entry["expect"]),
            entry.get("notice_counts", False),
        )
        for entry in data["capability"]
        for template in entry["texts"]
    ]


def _invariance_cases(data: Mapping[str, Any]) -> list[Case]:
    """Every change of the first text of every capability that it can be made in."""
    firsts = [e["texts"][0] for e in data["capability"] if not e.get("notice_counts", False)]
    slots = data["slots"]
    values = {name: found[0] for name, found in slots.items()}
    others = {"company": ("c", slots["c"][1:]), "number": ("n", slots["n"][1:])}
    cases = []
    for entry in data["invariance"]:
        for place, template in enumerate(firsts):
            text = template.format(**values)
            if entry["change"] in others:
                slot, other = others[entry["change"]]
                changed = template.format(**{**values, slot: other[place % len(other)]})
            else:
                changed = CHANGES[entry["change"]](text)
            if changed != text:
                cases.append(Case(entry["name"], "invariance", (text, changed)))
    return cases


def _direction_cases(data: Mapping[str, Any]) -> list[Case]:
    slots = data["slots"]
    cases = []
    for entry in data["direction"]:
        for place, pair in enumerate(entry["pairs"]):
            values = {name: found[place % len(found)] for name, found in slots.items()}
            lower, higher = (text.format(**values) for text in pair)
            cases.append(Case(entry["name"], "direction", (lower, higher)))
    return cases


CHANGES: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "upper": str.upper,
        "lower": str.lower,
        "title": lambda text: " ".join(word[:1].upper() + word[1:] for word in text.split(" ")),
        "cashtag": lambda text: f"$TRNF - {text}",
        "address": lambda text: f"{text} https://example.org/a1b2c3",
        "source": lambda text: f"{text} - Harbour Newswire",
        "quotes": lambda text: f"\u201c{text}\u201d",
        "stop": lambda text: f"{text}.",
        "hashtags": lambda text: f"{text} #stocks #markets",
        "date": lambda text: f"14 May: {text}",
    }
)
"""Name -> what it makes of a text; none of them changes what is said."""
