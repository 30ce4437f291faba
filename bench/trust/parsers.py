"""Every parser of ours under inputs that hypothesis steers towards lines not reached before."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings, target
from hypothesis import strategies as st

from bench.trust.scenario import ROOT, Setting, Tally
from finsent.entrants.labels import EntrantError, parse_labels
from finsent.entrants.submitting import read_rows
from finsent.models.adapter_files import AdapterError, load_adapter
from finsent.results import manifest, runs
from finsent.results.disagreements import found_file, read_found
from finsent.results.external.runs import FOLDS, read_folds
from finsent.results.schema import ArtifactError, parse_json
from finsent.results.unseen.files import TRANSFERS, read_transfers
from finsent.serving.output import Output, OutputStep, ScoringError
from finsent.serving.tables.reading import open_table
from finsent.serving.tables.rows import Reading, TableError
from finsent.study.rows import StudyError, read_runs
from finsent.study.selection import read_selection
from finsent.training.checkpoints import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from tests.artifact_factory import LABEL_NAMES, make_run
from tests.ugly_files import UGLY, saved

KNOWN = (
    AdapterError,
    ArtifactError,
    CheckpointError,
    EntrantError,
    ScoringError,
    StudyError,
    TableError,
)
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


Parser = Callable[[Path], object]


def parsers(setting: Setting) -> dict[str, tuple[Path, Parser]]:
    """Every parser of ours, with a valid file that inputs are made from."""
    folder = make_run(setting.folder / "runs", n_test=6)
    manifest.write_manifest(setting.folder / "runs")
    names = LABEL_NAMES
    kept = ROOT / "artifacts"
    study = saved(setting.folder, "study.csv", _beginning(kept / "studies/heads/results.csv"))
    selection = saved(
        setting.folder, "chosen.csv", _beginning(kept / "studies/heads/selection.csv")
    )
    folds = kept / "external/lexicon-vader/allagree/seed-0/folds.csv"
    checkpoint = setting.folder / "checkpoint"
    save_checkpoint(checkpoint, Checkpoint("it", {"history": []}, {"model": {"w": torch.ones(2)}}))
    record = _record(setting.folder)
    tables = {
        f"table, {name}": (UGLY[name](setting.folder).path, _table)
        for name in ("utf-8", "utf-16", "gzip", "json lines", "workbook", "parquet", "backslashes")
    }
    return {
        "JSON": (
            folder / "metrics.json",
            lambda p: parse_json(p.read_bytes().decode("utf-8", "replace"), "it"),
        ),
        "history": (folder / "history.jsonl", runs.read_history),
        "predictions": (folder / "predictions.csv", lambda p: runs.read_predictions(p, names)),
        "manifest": (setting.folder / "runs" / manifest.MANIFEST, lambda p: manifest._entries(p)),
        "adapter": (folder / manifest.ADAPTER_FILE, load_adapter),
        "tensor shapes": (folder / manifest.ADAPTER_FILE, manifest.read_tensor_shapes),
        "checkpoint": (checkpoint, lambda p: load_checkpoint(p, torch.device("cpu"), "it")),
        "folds": (folds, lambda p: read_folds(_named(p, FOLDS))),
        "sources left out": (
            kept / "minilm-l6/news" / TRANSFERS,
            lambda p: read_transfers(_named(p, TRANSFERS)),
        ),
        "disagreements": (
            found_file(kept, "minilm-l6", "news"),
            lambda p: read_found(_named(p, "disagreements/a-b.json").parent, "a", "b", 0),
        ),
        "study": (study, read_runs),
        "selection": (selection, read_selection),
        "submission": (folder / "predictions.csv", read_rows),
        "labels": (
            saved(setting.folder, "labels", "negative=LABEL_0,neutral=LABEL_1"),
            lambda p: parse_labels(p.read_bytes().decode("utf-8", "replace")),
        ),
        "record of an output": (record, _resumed),
        **tables,
    }


def _beginning(path: Path) -> bytes:
    return b"".join(path.read_bytes().splitlines(keepends=True)[:4])


def _named(path: Path, name: str) -> Path:
    """The folder in which the same content has another name."""
    target = path.parent / "named" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())
    return target.parent


def _table(path: Path) -> object:
    return list(open_table(path, Reading(header=None)).rows())


def _record(folder: Path) -> Path:
    """What a command that was stopped leaves, in a folder of its own."""
    target = folder / "scored" / "out.csv"
    target.parent.mkdir()
    with Output(target, {"model": "it"}, b"a\n") as output, output.appending() as appender:
        appender.write(b"1\n")
        output.note(OutputStep(1, "0" * 64, 1, appender.size, appender.sha256, "torch"))
    return output.record


def _resumed(path: Path) -> object:
    there = path.parent / "resumed"
    there.mkdir(exist_ok=True)
    (there / "out.csv.part").write_bytes(b"a\n1\n")
    (there / "out.csv.finsent.jsonl").write_bytes(path.read_bytes())
    with Output(there / "out.csv", {"model": "it"}, b"a\n") as output:
        return output.begun


def fuzzed(setting: Setting) -> Tally:
    """Any outcome but a value or an error of ours does not hold."""
    tally = Tally()
    path = setting.folder / "fuzzed"
    found = parsers(setting)
    folder = found["history"][0].parent
    for name, (source, parse) in found.items():
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
