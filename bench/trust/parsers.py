"""Every parser of ours under inputs that hypothesis steers towards lines not reached before."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings, target
from hypothesis import strategies as st

from bench.trust.scenario import Setting, Tally
from finsent.data.records import DataError
from finsent.models.adapter_files import AdapterError, load_adapter
from finsent.results import manifest, runs
from finsent.results.schema import ArtifactError, parse_json
from finsent.serving.tables.reading import open_table
from finsent.serving.tables.rows import TableError
from tests.artifact_factory import LABEL_NAMES, make_run

KNOWN = (AdapterError, ArtifactError, DataError, TableError)
"""Errors that say what is wrong with an input."""


def lines_of(parse: Callable[[], object]) -> tuple[int, Exception | None]:
    """How many different lines of finsent ran, and the error that was none of ours."""
    seen: set[tuple[str, int]] = set()

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if "/finsent/" not in frame.f_code.co_filename:
            return None
        seen.add((frame.f_code.co_filename, frame.f_lineno))
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        parse()
    except KNOWN:
        pass
    except Exception as error:
        return len(seen), error
    finally:
        sys.settrace(before)
    return len(seen), None


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """A valid file with pieces cut out, doubled, overwritten or put in."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        put = draw(st.one_of(st.binary(max_size=12), st.just(bytes(content[start:end]) * 2)))
        content[start:end] = put
    return bytes(content)


def fuzzed(setting: Setting) -> Tally:
    """Any outcome but a value or an error of ours does not hold."""
    tally = Tally()
    folder = make_run(setting.folder, n_test=6)
    manifest.write_manifest(setting.folder)
    path = setting.folder / "fuzzed"
    names = LABEL_NAMES
    parsers: dict[str, tuple[Path, Callable[[Path], object]]] = {
        "JSON": (
            folder / "metrics.json",
            lambda p: parse_json(p.read_bytes().decode("utf-8", "replace"), "it"),
        ),
        "history": (folder / "history.jsonl", runs.read_history),
        "predictions": (folder / "predictions.csv", lambda p: runs.read_predictions(p, names)),
        "manifest": (setting.folder / manifest.MANIFEST, lambda p: manifest._entries(p)),
        "adapter": (folder / manifest.ADAPTER_FILE, load_adapter),
        "tensor shapes": (folder / manifest.ADAPTER_FILE, manifest.read_tensor_shapes),
        "table": (folder / "predictions.csv", lambda p: list(open_table(p).rows())),
    }
    for name, (source, parse) in parsers.items():
        _steered(setting, tally, name, source.read_bytes(), path, parse)
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    )

    @seed(setting.seed)
    @settings(max_examples=setting.count(300), deadline=None, database=None)
    @given(values, st.sampled_from(("config.json", "metrics.json")), st.randoms())
    def replaced(value: object, name: str, draw: Any) -> None:
        whole = (folder / name).read_bytes()
        content = json.loads(whole)
        content[draw.choice(sorted(content))] = value
        (folder / name).write_text(json.dumps(content))
        try:
            lines, error = lines_of(lambda: runs.read_run(folder))
        finally:
            (folder / name).write_bytes(whole)
        target(float(lines))
        tally.check(error is None, f"{name}: {type(error).__name__}: {error}"[:200])

    replaced()
    return tally


def _steered(
    setting: Setting,
    tally: Tally,
    name: str,
    whole: bytes,
    path: Path,
    parse: Callable[[Path], object],
) -> None:
    @seed(setting.seed)
    @settings(
        max_examples=setting.count(300),
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.target],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(whole))
    def tried(content: bytes) -> None:
        path.write_bytes(content)
        lines, error = lines_of(lambda: parse(path))
        target(float(lines))
        tally.check(error is None, f"{name}: {type(error).__name__}: {error}"[:200])

    tried()
