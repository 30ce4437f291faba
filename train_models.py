"""The offline trainer: make checkpoints and metrics, check them, draw their figures.

python train_models.py [train] --backbone smollm2-135m --dataset allagree --seeds 0 1 2
python train_models.py verify
python train_models.py latency
python train_models.py figures
python train_models.py study heads --select
python train_models.py study heads
python train_models.py replicate --backbone smollm2-135m
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from finsent.commands import cli

COMMANDS = (
    "train", "verify", "latency", "leaderboard", "figures", "calibrate", "study", "replicate",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command, `train` where none is named; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help", "--version")):
        given.insert(0, "train")
    return cli.main(given, program="train_models.py", commands=COMMANDS, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
