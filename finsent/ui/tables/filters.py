"""What a visitor asked the Leaderboard tab to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finsent.config import ARMS
from finsent.results.catalog import backbone_title

Board = Mapping[str, Any]
"""leaderboard.json."""
Entry = Mapping[str, Any]
"""An arm, a run, a comparison or a published result of the board."""

ALL = ""
"""The value of a filter that lets everything through."""


@dataclass(frozen=True)
class Filters:
    """What the visitor asked to see."""

    dataset: str
    protocol: str = ALL
    backbone: str = ALL
    arms: tuple[str, ...] = ARMS
    search: str = ""

    def own(self, entry: Entry) -> bool:
        """Whether an arm or run of this project is wanted."""
        return (
            entry["dataset"] == self.dataset
            and self.protocol in (ALL, entry["protocol"])
            and self.backbone in (ALL, entry["backbone"])
            and entry["arm"] in self.arms
            and self._found(
                entry["backbone"],
                backbone_title(entry["backbone"]),
                entry["arm"],
                entry["protocol"],
                *(f"run {seed}" for seed in entry["seeds"]),
            )
        )

    def published(self, reference: Entry) -> bool:
        """Whether a published result is wanted."""
        return (
            reference["dataset"] == self.dataset
            and self.protocol in (ALL, reference["split"])
            and self._found(
                reference["model"],
                reference["protocol"],
                reference["split"],
                reference["source"],
                reference["note"] or "",
            )
        )

    def pair(self, comparison: Entry) -> bool:
        """Whether a comparison of two arms is wanted."""
        return (
            comparison["dataset"] == self.dataset
            and self.backbone in (ALL, comparison["backbone"])
            and {comparison["a"], comparison["b"]} <= set(self.arms)
        )

    def _found(self, *texts: str) -> bool:
        everything = " ".join(texts).casefold()
        words = everything.split()
        # A bare number is a run or a size, not a part of 70/15/15.
        return all(
            word in (words if word.isdecimal() else everything)
            for word in self.search.casefold().split()
        )
