"""The same command gives the same bytes: twice, with two workers, and after a kill."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from bench.trust.kills import killed, made
from bench.trust.scenario import finsent
from finsent.models.encoder_weights import MINILM, ensure_encoder
from finsent.models.weights import WeightsError

TRAIN = (
    *("train", "--backbone", "minilm-l6", "--dataset", "sample", "--device", "cpu"),
    *("--epochs", "2", "--grow-by", "0", "--seeds", "0", "1", "--arms", "dendritic"),
)
SECONDS = 900


@pytest.mark.slow
def test_a_real_backbone_trains_to_the_same_bytes(tmp_path: Path) -> None:
    """Tables, weights and every number but times."""
    try:
        ensure_encoder(MINILM)
    except WeightsError as error:
        pytest.skip(f"MiniLM's weights cannot be had here: {error}")
    started = time.monotonic()
    once = finsent(*TRAIN, "--artifacts", tmp_path / "once", seconds=SECONDS)
    took = time.monotonic() - started
    assert once.returncode == 0, once.stderr
    expected = made(tmp_path / "once")
    assert len(expected) == 2 * 4, "two runs with three files and their metrics each"
    torn = [*TRAIN, "--artifacts", str(tmp_path / "torn")]
    killed([sys.executable, "-m", "finsent", *torn], 0.7 * took)
    for name, command in (
        ("two workers", (*TRAIN, "--workers", "2", "--artifacts", tmp_path / "two")),
        ("after a kill", torn),
    ):
        ended = finsent(*command, seconds=SECONDS)
        assert ended.returncode == 0, ended.stderr
        found = made(Path(command[-1]))
        assert found.keys() == expected.keys()
        assert [key for key in expected if found[key] != expected[key]] == [], name
