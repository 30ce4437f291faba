"""The pinned versions against the advisories that are kept in tests/advisories.json."""

from __future__ import annotations

import json

import pytest

from tests.advisories import KEPT, affects, pins

STORED = json.loads(KEPT.read_text(encoding="utf-8"))


def test_no_pinned_version_has_an_advisory_that_is_kept() -> None:
    pinned = pins()
    assert len(pinned) > 100
    assert [
        (name, pinned[name], advisory["id"])
        for name, advisories in STORED["advisories"].items()
        for advisory in advisories
        if name in pinned and affects(advisory, pinned[name])
    ] == []


@pytest.mark.parametrize(
    ("package", "version"), [("urllib3", "1.26.4"), ("gradio", "4.0.0"), ("pillow", "9.0.0")]
)
def test_an_old_version_has_one(package: str, version: str) -> None:
    assert any(affects(advisory, version) for advisory in STORED["advisories"][package])


def test_ranges_are_read_as_published() -> None:
    events = [{"introduced": "1.0"}, {"fixed": "1.5"}, {"introduced": "2.0"}]
    advisory = {"ranges": [events], "versions": ["0.1"]}
    versions = ("0.1", "0.9", "1.0", "1.4", "1.5", "1.9", "2.0", "3")
    assert [v for v in versions if affects(advisory, v)] == ["0.1", "1.0", "1.4", "2.0", "3"]
