"""What a scenario is: something that is tried many times, and holds or does not each time."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "artifacts/minilm-l6/news"
"""The model that the page and the command start with."""
COMMAND_SECONDS = 300


@dataclass
class Tally:
    """How often it was tried, and what did not hold."""

    tried: int = 0
    failures: list[str] = field(default_factory=list)

    def check(self, held: bool, what: str) -> None:
        """One try."""
        self.tried += 1
        if not held:
            self.failures.append(what)


@dataclass(frozen=True)
class Setting:
    """What all scenarios share."""

    folder: Path
    """Empty, for this scenario alone."""
    seed: int
    scale: float
    """Of every number of tries; 1 is what docs/trust.md was made with."""
    users_seconds: float = 600.0
    """For how long the users ask."""

    def count(self, tries: int) -> int:
        """So many tries under this scale, at least 2."""
        return max(2, round(tries * self.scale))

    @property
    def random(self) -> random.Random:
        """The same draws for the same seed."""
        return random.Random(self.seed)


@dataclass(frozen=True)
class Scenario:
    """One line of the table."""

    title: str
    held_if: str
    run: Callable[[Setting], Tally]


def finsent(
    *arguments: object, seconds: float = COMMAND_SECONDS
) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "finsent", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )


def is_told(ended: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command that failed said why in a line instead of a traceback."""
    return (
        ended.returncode in (1, 2) and "Traceback" not in ended.stderr and "error" in ended.stderr
    )
