"""The About tab: what was done, with what, under which terms, and what it does not show."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any

import gradio as gr

from finsent.data.registry import DATASETS
from finsent.growth.settings import LIBRARY_VERSION, growth_settings
from finsent.machine.files import sha256_file
from finsent.results.catalog import (
    LARGE_BACKBONE,
    Catalog,
    backbone_title,
    dataset_order,
    dataset_title,
)
from finsent.results.manifest import MANIFEST, read_manifest
from finsent.results.references import PUBLISHED_GAIN_PCT, bibtex, citations
from finsent.results.runs import Run, slug
from finsent.results.schema import ArtifactError
from finsent.results.text import NONE
from finsent.ui.parts.markup import html

_LICENCES = (
    ("SmolLM2-135M-Instruct", "Apache-2.0", "a small base model"),
    ("MiniLM-L6, MPNet-base", "Apache-2.0", "base models"),
    ("Phi-2", "MIT", "the large base model, downloaded from its publisher where it is used"),
    ("This project's code", "Apache-2.0", "trainer, evaluation and this page"),
    (
        "The adapters in artifacts/",
        "for non-commercial use",
        "trained on Financial PhraseBank, whose terms they follow",
    ),
)
_SETTINGS = {
    "epochs": "Epochs",
    "batch_size": "Batch",
    "learning_rate": "Learning rate",
    "weight_decay": "Weight decay",
    "warmup_fraction": "Warm-up",
    "pooling": "Head reads",
    "depth": "Blocks used",
    "precision": "Weights",
    "max_length": "Tokens",
}
_PACKAGES = ("gradio", "torch", "transformers", "plotly", "scikit-learn")
"""Whose versions on this machine stand beside those of the runs."""


def about_html(catalog: Catalog) -> str:
    """The whole tab."""
    problem, listed = "", {}
    try:
        listed = dict(read_manifest(catalog.root))
    except ArtifactError as error:
        problem = str(error)
    return html(
        "about",
        claimed=PUBLISHED_GAIN_PCT,
        measured=_measured(catalog),
        phi_2=any(slug(run.backbone) == LARGE_BACKBONE for run in catalog.runs),
        licences=_licences(catalog),
        library=LIBRARY_VERSION,
        growth=[(s.name or NONE, s.meaning, s.ours, s.library) for s in growth_settings()],
        setting_titles=list(_SETTINGS.values()),
        settings=_settings(catalog),
        commands=_commands(catalog.runs),
        versions=_versions(catalog.runs),
        problem=problem,
        listed=listed,
        manifest_sha256="" if problem else sha256_file(catalog.root / MANIFEST),
        hashes=[_hashes(run, catalog, listed) for run in catalog.runs],
        cited=citations(bibtex()),
        bibtex=bibtex(),
    )


def _licences(catalog: Catalog) -> list[tuple[str, str, str]]:
    phrasebank = DATASETS["allagree"]
    used = (DATASETS[name] for name in catalog.all_datasets() if name in DATASETS)
    sources = {"Financial PhraseBank v1.0 (Malo et al. 2014)": phrasebank} | {
        entry.title: entry for entry in used if not entry.ships and entry.url != phrasebank.url
    }
    found = [
        (
            title,
            entry.licence,
            "training and test sentences, which are not part of this page: "
            f"{entry.files} from {entry.url}",
        )
        for title, entry in sources.items()
    ]
    return [*found, *_LICENCES]


def _measured(catalog: Catalog) -> list[str]:
    """Limits that follow from the runs that are here."""
    items = []
    for backbone, dataset in _places(catalog.runs):
        runs = catalog.of(backbone, dataset)
        number = len(catalog.seeds(backbone, dataset))
        sizes = sorted({run.metrics["n_test"] for run in runs})
        size = " to ".join(str(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
        items.append(
            f"{backbone_title(backbone)} on {dataset_title(dataset)}: {number} training "
            f"run{'s' * (number > 1)} with {size} test sentences each. One sentence is "
            f"{100 / sizes[-1]:.2f} points of one run's accuracy."
        )
    devices = list(dict.fromkeys(_device(run) for run in catalog.runs))
    if len(devices) > 1:
        items.append(
            f"The runs were trained on different devices ({'; '.join(devices)}): training times "
            "and memory are not comparable between those."
        )
    return items


def _places(runs: Iterable[Run]) -> list[tuple[str, str]]:
    found = dict.fromkeys((slug(run.backbone), run.dataset) for run in runs)
    return sorted(found, key=lambda place: (place[0], dataset_order(place[1])))


def _settings(catalog: Catalog) -> list[list[str]]:
    rows = []
    for backbone, dataset in _places(catalog.runs):
        configs = [run.config["config"] for run in catalog.of(backbone, dataset)]
        rows.append(
            [
                backbone_title(backbone),
                dataset_title(dataset),
                *(_joined(_setting(config.get(key)) for config in configs) for key in _SETTINGS),
                _joined(_lora(config.get("lora", {})) for config in configs),
            ]
        )
    return rows


def _setting(value: Any) -> str:
    return "all" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _lora(lora: Mapping[str, Any]) -> str:
    layers = lora.get("last_layers")
    where = "all blocks" if layers is None else f"last {layers} blocks"
    modules = ", ".join(lora.get("target_modules", ()))
    return f"r {lora.get('r')}, alpha {_setting(lora.get('alpha'))}, {modules}, {where}"


def _commands(runs: Iterable[Run]) -> list[tuple[str, ...]]:
    by_command: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        commit = (run.config["git_commit"] or "not recorded")[:10]
        by_command.setdefault((_command(run), _device(run), commit), []).append(run)
    return [
        (command, _made(made), device, commit, _joined(r.config["finished_at"][:10] for r in made))
        for (command, device, commit), made in by_command.items()
    ]


def _made(runs: list[Run]) -> str:
    """`SmolLM2-135M, AllAgree: baseline, dendritic; run 0, 1, 2`, for each data set."""
    lines = []
    for backbone, dataset in _places(runs):
        here = [r for r in runs if (slug(r.backbone), r.dataset) == (backbone, dataset)]
        seeds = _joined(str(seed) for seed in sorted({run.seed for run in here}))
        arms = _joined(run.arm for run in here)
        lines.append(f"{backbone_title(backbone)}, {dataset_title(dataset)}: {arms}; run {seeds}")
    return " | ".join(lines)


def _versions(runs: Iterable[Run]) -> list[tuple[str, str, str]]:
    seen: dict[str, dict[str, int]] = {package: {} for package in _PACKAGES}
    for run in runs:
        for package, version in run.config["versions"].items():
            counts = seen.setdefault(package, {})
            counts[str(version)] = counts.get(str(version), 0) + 1
    return [
        (
            package,
            ", ".join(
                version if len(counts) == 1 else f"{version} ({number} runs)"
                for version, number in counts.items()
            )
            or NONE,
            _installed(package),
        )
        for package, counts in sorted(seen.items())
    ]


def _installed(package: str) -> str:
    if package == "python":
        return platform.python_version()
    try:
        return version_of(package)
    except PackageNotFoundError:
        return "not installed"


def _hashes(run: Run, catalog: Catalog, listed: Mapping[str, str]) -> list[str]:
    folder = run.folder.relative_to(catalog.root).as_posix()
    digests = [
        listed.get(f"{folder}/{name}") for name in ("adapter.safetensors", "predictions.csv")
    ]
    digests += [run.config[f"{what}_sha256"] for what in ("dataset", "split", "backbone")]
    return [folder, *(NONE if digest is None else digest[:12] for digest in digests)]


def _joined(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _device(run: Run) -> str:
    device: Any = run.config["device"]
    return _joined(map(str, device.values())) if isinstance(device, dict) else str(device)


def _command(run: Run) -> str:
    command: Any = run.config["command"]
    return " ".join(map(str, command)) if isinstance(command, list) else str(command)


def add_about_tab(catalog: Catalog) -> None:
    """Draws the tab inside the current gr.Tab."""
    gr.HTML(about_html(catalog), elem_id="about")
