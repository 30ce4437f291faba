"""The same command gives the same bytes: twice, with two workers, and after a kill."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.trust.kills import TRAIN, TRAIN_SECONDS, killed, made
from bench.trust.scenario import finsent
from finsent.models.encoder_weights import MINILM, ensure_encoder
from finsent.models.weights import WeightsError
from finsent.training.checkpoints import CHECKPOINT


@pytest.mark.slow
def test_a_real_backbone_trains_to_the_same_bytes(tmp_path: Path) -> None:
    """Tables, weights and every number but times, of a run that one worker makes, killed after its
    first epoch, and of the same run made at once, by one of two workers."""
    try:
        ensure_encoder(MINILM)
    except WeightsError as error:
        pytest.skip(f"MiniLM's weights cannot be had here: {error}")
    torn = [*TRAIN, "0", "--artifacts", str(tmp_path / "torn")]

    def begun() -> bool:
        return any((tmp_path / "torn").rglob(CHECKPOINT))

    assert killed([sys.executable, "-m", "finsent", *torn], TRAIN_SECONDS, begun)
    assert begun(), "nothing was left to go on from"
    assert made(tmp_path / "torn") == {}
    found = []
    for command in (torn, [*TRAIN, "0", "1", "--workers", "2", "--artifacts", tmp_path / "two"]):
        ended = finsent(*command, seconds=TRAIN_SECONDS)
        assert ended.returncode == 0, ended.stderr
        found.append(made(Path(command[-1])))
    resumed, two = found
    assert len(resumed) == 4, "three files of a run, and its metrics"
    assert len(two) == 2 * 4
    assert [name for name in resumed if resumed[name] != two[name]] == []
