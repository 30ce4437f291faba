"""Promises that the repository makes about itself."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from finsent import readme
from finsent.runs import find_runs, read_json
from finsent.verification import verify

START = 32
"""Characters that a sentence is first looked for by."""
ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ROOT / "artifacts"
SOURCES = [*sorted((ROOT / "finsent").rglob("*.py")), ROOT / "app.py", ROOT / "train_models.py"]


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def uses(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for name in imports_of(path))


def test_few_modules_name_the_heavy_libraries() -> None:
    names = {
        package: {p.relative_to(ROOT).as_posix() for p in SOURCES if uses(p, package)}
        for package in ("perforatedai", "peft", "gradio", "bitsandbytes", "openvino", "ray")
    }
    assert names["ray"] == {"finsent/workers.py"}
    assert names["perforatedai"] == {"finsent/dendrites.py"}
    assert names["peft"] == {"finsent/adapters.py"}
    assert names["openvino"] == {"finsent/openvino_engine.py", "finsent/openvino_graph.py"}
    # One packs weights into 4 bits, the other unpacks them.
    assert names["bitsandbytes"] == {"finsent/backbones.py", "finsent/products.py"}
    assert all(n == "app.py" or n.startswith("finsent/ui/") for n in names["gradio"])


def test_results_are_read_without_torch_or_gradio() -> None:
    modules = """
        runs evaluation leaderboard charts board_charts verification figures data agreement
        disagreements exports citations latency readme
        study.summary study.selection study.views study.report study_charts
    """.split()  # noqa: SIM905
    code = "import sys\n" + "".join(f"import finsent.{name}\n" for name in modules)
    code += "print(sorted({'torch', 'gradio', 'transformers', 'peft'} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_serving_needs_neither_peft_nor_perforatedai() -> None:
    code = "import sys, finsent.classifier\nprint({'peft', 'perforatedai'} & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "set()"


def test_requirements_are_what_the_code_imports_and_nothing_else() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {re.split(r"[<>=]", line)[0] for line in lines if line and line[0] != "#"}
    modules = {"scikit-learn": "sklearn"}
    unused = {
        name for name in required if not any(uses(p, modules.get(name, name)) for p in SOURCES)
    }
    # transformers reads GGUF files through gguf; gradio's tables are pandas underneath.
    assert unused <= {"gguf", "pandas"}
    standard = set(sys.stdlib_module_names) | {"finsent"}
    known = {modules.get(name, name) for name in required}
    for path in SOURCES:
        external = {name.split(".")[0] for name in imports_of(path)} - standard
        if path.name in (
            "kernels.py",
            "rotation_kernel.py",
            "dendrite_kernels.py",
            "block_kernels.py",
        ):
            external -= {"triton"}  # comes with PyTorch for CUDA, and only GPUs have a use for it
        assert external <= known, f"{path.name} imports {external - known}"


def test_the_space_gets_the_gradio_that_is_installed() -> None:
    front_matter = (ROOT / "README.md").read_text(encoding="utf-8").split("---")[1]
    settings = dict(re.findall(r"^(\w+): *(.+)$", front_matter, re.MULTILINE))
    assert settings["sdk"] == "gradio"
    assert settings["sdk_version"] == importlib.metadata.version("gradio")
    assert settings["python_version"].strip('"') == "3.12"
    assert settings["app_file"] == "app.py"


def test_the_readme_shows_the_leaderboard() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.with_results(text, read_json(ARTIFACTS / "leaderboard.json")) == text
    with pytest.raises(ValueError, match="needs the lines"):
        readme.with_results("no markers", {"arms": [], "comparisons": []})


def test_the_committed_artifacts_verify_and_are_complete() -> None:
    assert verify(ARTIFACTS) == []
    runs = {(r.dataset, r.arm, r.seed): r for r in find_runs(ARTIFACTS)}
    for dataset in ("allagree", "50agree"):
        for arm in ("baseline", "dendritic", "matched"):
            for seed in (0, 1, 2):
                run = runs[dataset, arm, seed]
                assert run.backbone == "smollm2-135m"
                assert (run.metrics["dendrites"] >= 1) == (arm == "dendritic")
    for dataset in ("fiqa", "twitter", "fomc", "numclaim"):
        for arm in ("baseline", "dendritic", "matched"):
            assert (runs[dataset, arm, 0].metrics["dendrites"] >= 1) == (arm == "dendritic")

    def size(folders: Iterable[Path]) -> int:
        return sum(p.stat().st_size for f in folders for p in f.rglob("*") if p.is_file())

    assert size(ARTIFACTS / "smollm2-135m" / d for d in ("allagree", "50agree")) <= 40e6
    assert size([ARTIFACTS]) <= 64e6  # a clone is what everybody waits for


def test_no_sentence_of_a_data_set_is_in_the_repository(real_data: Path) -> None:
    from finsent.data import DATASETS

    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = [n for n in listed.stdout.split("\0") if n]
    if not names:
        pytest.skip("not a git checkout")
    text = ""
    for name in names:
        path = ROOT / name
        if path.suffix not in (".png", ".safetensors") and path.is_file():
            text += path.read_text(encoding="utf-8")
    # Short ones ("No financial details were disclosed .") are everyone's.
    # Of the others some are searched for: a leak is of many.
    step = {"50agree": 1, "fiqa": 20, "twitter": 60, "fomc": 20, "numclaim": 20}
    records = [r for name, n in step.items() for r in DATASETS[name].loader(real_data)[::n]]
    sentences = [record.text for record in records if len(record.text) > 60]
    forms = {form for s in sentences for form in (s, json.dumps(s)[1:-1])}
    # One pass over the text finds where any may begin; a pass for each would take minutes.
    starts = {form[:START] for form in forms}
    places = (i for i in range(len(text)) if text[i : i + START] in starts)
    assert [text[i : i + 60] for i in places if any(text.startswith(f, i) for f in forms)] == []
