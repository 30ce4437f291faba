"""The table of settings beside PerforatedAI's defaults, held to the library and to the grower."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finsent.config import DendriteConfig, latest_growth
from finsent.growth.grower import DendriteGrower
from finsent.growth.settings import LIBRARY_DEFAULTS, LIBRARY_VERSION, growth_settings, passed
from finsent.machine.files import ROOT
from finsent.results.leaderboard import growth_epochs
from finsent.results.runs import find_runs

READ = """
import json, sys
from perforatedai import globals_perforatedai as library
print(json.dumps({name: getattr(library.pc, "_" + name) for name in json.loads(sys.argv[1])},
                 default=lambda value: value.__name__))
"""
"""Prints settings of a process that has set none; functions by their names. `_name` is what the
library's setters write and getters read; it has no getter for improvement_threshold that works."""


def as_read(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def test_the_librarys_column_is_the_installed_librarys(tmp_path: Path) -> None:
    assert importlib.metadata.version("perforatedai") == LIBRARY_VERSION
    said = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(list(LIBRARY_DEFAULTS))],
        check=True,
        capture_output=True,
        text=True,
        # The library reads and writes settings in the working directory.
        cwd=tmp_path,
    ).stdout
    found = {name: as_read(value) for name, value in json.loads(said.splitlines()[-1]).items()}
    assert found == dict(LIBRARY_DEFAULTS)


@pytest.mark.parametrize(
    "config", [DendriteConfig(), DendriteConfig(activation="sigmoid", patience=7, init_scale=0.05)]
)
def test_our_column_is_what_the_grower_passes(config: DendriteConfig, tmp_path: Path) -> None:
    with DendriteGrower({"map": nn.Linear(4, 3)}, config, torch.device("cpu"), tmp_path):
        from perforatedai import globals_perforatedai as library

        found = {name: as_read(getattr(library.pc, f"_{name}")) for name in LIBRARY_DEFAULTS}
    function = found.pop("pai_forward_function").__name__
    assert {**found, "pai_forward_function": function} == passed(config)


def test_the_table_says_where_this_project_differs() -> None:
    differing = {line.name for line in growth_settings() if line.name and line.ours != line.library}
    same = {"max_dendrite_tries", "perforated_backpropagation"}
    assert differing == set(LIBRARY_DEFAULTS) - same
    by_name = {line.name: (line.ours, line.library) for line in growth_settings()}
    assert by_name["n_epochs_to_switch"] == ("2", "10")
    assert by_name["max_dendrites"] == ("1", "100")
    assert by_name["find_best_lr"] == ("off", "on")
    assert by_name["pai_forward_function"] == ("relu", "sigmoid")
    assert by_name["candidate_weight_initialization_multiplier"] == ("0.1", "0.01")
    assert by_name["improvement_threshold"] == ("0", "0.001, 0.0001, 0")


def test_every_committed_dendritic_run_grew_at_half_of_its_epochs() -> None:
    grown = {
        run.folder.relative_to(ROOT).as_posix(): (growth_epochs(run.history), len(run.history))
        for run in find_runs(ROOT / "artifacts")
        if run.arm == "dendritic"
    }
    assert grown
    for epochs, length in grown.values():
        assert epochs == [latest_growth(length)], "patience never ran out before"
    for page in ("report.md", "submission.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert f"All {len(grown)} dendritic runs on the leaderboard grew" in text


def test_the_generated_pages_name_the_settings_and_the_mode() -> None:
    table = (ROOT / "docs/report_appendix.md").read_text(encoding="utf-8")
    for line in growth_settings():
        assert f"| {line.meaning} | {line.ours} | {line.library} |" in table
    for page in ("report.md", "submission.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for said in ("perforatedbp", "2506.00356", "report_appendix.md#settings-beside-the-"):
            assert said in text


def test_no_page_calls_the_settings_the_librarys() -> None:
    # LOG.md quotes what was said once.
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    sources = sorted((ROOT / "finsent").rglob("*.py"))
    for path in (*pages, *sources):
        text = path.read_text(encoding="utf-8")
        for wrong in ("PerforatedAI's own rule", "as PerforatedAI grows them"):
            assert wrong not in text, path
