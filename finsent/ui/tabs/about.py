"""The About tab: what was done, with what, under which terms, and what it does not show."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any

import gradio as gr

from finsent.data.registry import DATASETS
from finsent.growth.settings import LIBRARY_VERSION, growth_settings
from finsent.results.catalog import (
    LARGE_BACKBONE,
    Catalog,
    backbone_title,
    dataset_description,
    dataset_order,
    dataset_title,
)
from finsent.results.manifest import MANIFEST, read_manifest, sha256_file
from finsent.results.references import bibtex, citations
from finsent.results.runs import Run, slug
from finsent.results.schema import ArtifactError
from finsent.ui.parts.markup import table

_QUESTION = """
<section><h2>The question</h2>
<p>Do dendrites, added by PerforatedAI’s open package and trained by gradient descent, improve a
LoRA-tuned language model on financial sentiment: by how much, in which regime, at what cost? “No
gain here” is a valid answer and is shown as such.</p>
<p>Perforated Backpropagation, for which up to 16&#8239;% more accuracy is
<a href="https://arxiv.org/abs/2506.00356" rel="noreferrer">published</a>, takes the licensed
package perforatedbp and is not tested here. Nor are the library’s defaults: dendrites grow early.
</p>
{settings}</section>
"""

_PROTOCOL = """
<section><h2>The protocol</h2>
<ul>
<li><b>Arms.</b> <i>Baseline</i> trains LoRA adapters and a classification head on a frozen language
model. <i>Dendritic</i> does the same and grows dendrites while training. <i>Matched</i> grows none
but has as many trainable parameters as the dendritic run ended with, so that “more parameters” can
be told from “dendrites”.</li>
<li><b>Held equal.</b> Data, split, shuffling, seed, optimizer, schedule rules, number of optimizer
steps and the rule that selects the state to keep. Until its first dendrite a dendritic run is the
baseline run, step for step. Growing also returns to the best state so far, starts the optimizer
afresh and lowers the learning rate: part of the treatment, not told apart from the dendrites.</li>
<li><b>Split.</b> 70/15/15, stratified and grouped: sentences that differ only in their numbers stay
on one side, or the test set would be half known.</li>
<li><b>Selection.</b> The state with the lowest validation loss; the test set is read once, at the
end. A dendritic run is judged by its best state <i>with</i> dendrites, and the best state before
growth is recorded beside it.</li>
<li><b>Statistics.</b> Several seeds; 95&#8239;% bootstrap intervals over test sentences; a paired
test between arms on the same sentences, clustered over seeds. Where it finds no difference, the
arms share a rank.</li>
<li><b>Model time.</b> Measured here, call by call, from token ids to probabilities of one arm: no
queue, no network. The arms run in random order.</li>
</ul></section>
"""

_LIMITS = """
<section><h2>Limits</h2>
<ul>
<li>{phi_2}</li>
{measured}
<li>One domain and small backbones: a larger model, other ranks, little data or a narrow head may
answer otherwise.</li>
<li>Financial PhraseBank holds English news sentences of one period, many about Nordic companies.
Headlines from elsewhere, other languages and social media are out of its range.</li>
<li>Labels say how a retail investor may read a sentence. They are not a forecast, and nothing here
is investment advice.</li>
<li>Sentences longer than the models' window are cut, and the page says so.</li>
</ul></section>
"""

_WITHOUT_PHI_2 = (
    "No Phi-2 weights were trained here: artifacts/ holds no adapter for that model. Making one "
    "takes its weights and a GPU (<code>python train_models.py --backbone phi-2</code>). Every "
    "number on this page is that of another backbone, named beside it."
)
_WITH_PHI_2 = "The Phi-2 adapters were trained by whoever runs this page; the commands are below."

_LICENCES = (
    (
        "Financial PhraseBank v1.0 (Malo et al. 2014)",
        "CC BY-NC-SA 3.0",
        "training and test sentences; none is part of this page, results carry ids only",
    ),
    ("SmolLM2-135M-Instruct", "Apache-2.0", "the embedded backbone"),
    ("Phi-2", "MIT", "the large backbone, downloaded from its publisher where it is used"),
    ("This project's code", "Apache-2.0", "trainer, evaluation and this page"),
    (
        "The adapters in artifacts/",
        "for non-commercial use",
        "trained on Financial PhraseBank, whose terms they follow",
    ),
)

_DERIVED = (
    (
        "leaderboard.json",
        "python train_models.py leaderboard",
        "means, intervals, tests, tie groups",
    ),
    ("figures/*.png", "python train_models.py figures", "the charts of the README"),
    ("latency_ms_* in metrics.json", "python train_models.py latency", "arms timed side by side"),
    ("SHA256SUMS", "written by each of the above", "checksum of every file"),
    (
        "finsent/data/agreement.csv",
        "python -m finsent.data.agreement",
        "agreement band of each sentence id, from the data",
    ),
)

_CHECKS = (
    ("python train_models.py verify", "recompute every published number from the predictions"),
    ("cd artifacts && sha256sum -c SHA256SUMS", "compare every file with its checksum"),
    ("make test", "lint, types and every test"),
    ("make app", "this page, on this machine"),
    ("make train", "all three arms, one seed, on a CPU"),
)

_SETTINGS = (
    ("epochs", "Epochs"),
    ("batch_size", "Batch"),
    ("learning_rate", "Learning rate"),
    ("weight_decay", "Weight decay"),
    ("warmup_fraction", "Warm-up"),
    ("pooling", "Head reads"),
    ("depth", "Blocks used"),
    ("precision", "Weights"),
    ("max_length", "Tokens"),
)
_PACKAGES = ("gradio", "torch", "transformers", "plotly", "scikit-learn")
"""Whose versions on this machine stand beside those of the runs."""


def about_html(catalog: Catalog) -> str:
    """The whole tab."""
    return (
        f'<div class="fs-prose">{_QUESTION.format(settings=_growth_settings())}{_PROTOCOL}'
        f"<section><h2>Settings of the runs here</h2>{_settings(catalog)}</section>"
        f"{_limits(catalog)}"
        f"<section><h2>Licences</h2>{_licences(catalog)}</section>"
        f"<section><h2>Reproduce</h2>{_reproduce(catalog)}</section>"
        f"<section><h2>Versions</h2>{_versions(catalog.runs)}</section>"
        f"<section><h2>Hashes</h2>{_hashes(catalog)}</section>"
        f"<section><h2>Cite</h2>{_citations()}</section></div>"
    )


def _growth_settings() -> str:
    """The settings of growth beside the library's defaults."""
    return table(
        ["Setting of the library", "What it is", "Here", "Library’s default"],
        [
            [
                f"<code>{escape(line.name)}</code>" if line.name else "–",
                *(escape(said) for said in (line.meaning, line.ours, line.library)),
            ]
            for line in growth_settings()
        ],
        caption=f"Early growth, as used here, and the defaults of perforatedai {LIBRARY_VERSION}",
    )


def _licences(catalog: Catalog) -> str:
    first, *rest = _LICENCES
    used = (DATASETS[name] for name in catalog.all_datasets() if name in DATASETS)
    others = [
        (entry.title, entry.licence, "training and test sentences; none is part of this page")
        for entry in used
        if not entry.ships and entry.url != DATASETS["allagree"].url
    ]
    return table(
        ["What", "Licence", "Where it is used"],
        [[escape(cell) for cell in row] for row in (first, *others, *rest)],
        caption="Licences of data, weights and code",
    )


def _limits(catalog: Catalog) -> str:
    phi_2 = any(slug(run.backbone) == LARGE_BACKBONE for run in catalog.runs)
    text = _LIMITS.replace("{phi_2}", _WITH_PHI_2 if phi_2 else _WITHOUT_PHI_2)
    return text.replace("{measured}", "".join(f"<li>{item}</li>" for item in _measured(catalog)))


def _measured(catalog: Catalog) -> list[str]:
    """Limits that follow from the runs that are here."""
    items = []
    for backbone, dataset in _places(catalog.runs):
        runs = catalog.of(backbone, dataset)
        seeds = len(catalog.seeds(backbone, dataset))
        sizes = sorted({run.metrics["n_test"] for run in runs})
        size = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        items.append(
            f"{escape(backbone_title(backbone))} on {escape(dataset_title(dataset))}: "
            f"{seeds} {'seed' if seeds == 1 else 'seeds'} with {size} test sentences each. One "
            f"sentence is {100 / sizes[-1]:.2f} points of one seed's accuracy."
        )
    devices = list(dict.fromkeys(_device(run) for run in catalog.runs))
    if len(devices) > 1:
        items.append(
            f"The runs were trained on different devices ({escape('; '.join(devices))}): training "
            "times and memory are not comparable between those."
        )
    return items


def _places(runs: Iterable[Run]) -> list[tuple[str, str]]:
    found = dict.fromkeys((slug(run.backbone), run.dataset) for run in runs)
    return sorted(found, key=lambda place: (place[0], dataset_order(place[1])))


def _settings(catalog: Catalog) -> str:
    if not catalog.runs:
        return "<p>No finished run yet.</p>"
    rows = []
    for backbone, dataset in _places(catalog.runs):
        settings = [run.config["config"] for run in catalog.of(backbone, dataset)]
        lora = _joined(_lora(config.get("lora", {})) for config in settings)
        rows.append(
            [
                escape(backbone_title(backbone)),
                f"{escape(dataset_title(dataset))} "
                f'<span class="fs-note">{escape(dataset_description(dataset))}</span>',
                *(
                    _joined(_setting(config.get(key)) for config in settings)
                    for key, _ in _SETTINGS
                ),
                lora,
            ]
        )
    return table(
        ["Backbone", "Data set", *(title for _, title in _SETTINGS), "LoRA"],
        rows,
        caption="Settings shared by all arms, from each run's config.json",
        css_class="fs-wide fs-dense",
    )


def _setting(value: Any) -> str:
    return "all" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _lora(lora: Mapping[str, Any]) -> str:
    layers = lora.get("last_layers")
    where = "all blocks" if layers is None else f"last {layers} blocks"
    modules = ", ".join(lora.get("target_modules", ()))
    return f"r {lora.get('r')}, alpha {_setting(lora.get('alpha'))}, {modules}, {where}"


def _reproduce(catalog: Catalog) -> str:
    return (
        _run_commands(catalog.runs)
        + table(
            ["File", "Command", "Holds"],
            [[escape(a), _code(b), escape(c)] for a, b, c in _DERIVED],
            caption="What is made from the runs",
        )
        + table(
            ["To check", "What it does"],
            [[_code(command), escape(what)] for command, what in _CHECKS],
            caption="Commands that check and show",
        )
    )


def _run_commands(runs: Sequence[Run]) -> str:
    if not runs:
        return "<p>No finished run yet.</p>"
    by_command: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        commit = (run.config["git_commit"] or "not recorded")[:10]
        by_command.setdefault((_command(run), _device(run), commit), []).append(run)
    rows = [
        [
            _code(command),
            "".join(f'<span class="fs-line">{escape(line)}</span>' for line in _made(made)),
            escape(device),
            _code(commit),
            _joined(run.config["finished_at"][:10] for run in made),
        ]
        for (command, device, commit), made in by_command.items()
    ]
    return table(
        ["Command", "Made", "Device", "Commit", "Finished"],
        rows,
        caption="Exact commands that made the runs, from each run's config.json",
        css_class="fs-wide fs-dense",
    )


def _made(runs: Sequence[Run]) -> list[str]:
    """`SmolLM2-135M, AllAgree: baseline, dendritic; seeds 0, 1, 2`, a line a data set."""
    lines = []
    for backbone, dataset in _places(runs):
        of_place = [r for r in runs if (slug(r.backbone), r.dataset) == (backbone, dataset)]
        arms = ", ".join(dict.fromkeys(run.arm for run in of_place))
        seeds = ", ".join(map(str, sorted({run.seed for run in of_place})))
        lines.append(f"{backbone_title(backbone)}, {dataset_title(dataset)}: {arms}; seed {seeds}")
    return lines


def _versions(runs: Sequence[Run]) -> str:
    seen: dict[str, dict[str, int]] = {}
    for run in runs:
        for package, version in run.config["versions"].items():
            counts = seen.setdefault(package, {})
            counts[str(version)] = counts.get(str(version), 0) + 1
    for package in _PACKAGES:
        seen.setdefault(package, {})
    rows = []
    for package, counts in sorted(seen.items()):
        made = ", ".join(
            version if len(counts) == 1 else f"{version} ({number} runs)"
            for version, number in counts.items()
        )
        rows.append([escape(package), escape(made or "–"), escape(_installed(package))])
    return table(
        ["Package", "The runs", "This page"],
        rows,
        caption="Versions recorded with the runs, and those on this machine",
        css_class="fs-dense fs-narrow",
    )


def _installed(package: str) -> str:
    if package == "python":
        return platform.python_version()
    try:
        return version_of(package)
    except PackageNotFoundError:
        return "not installed"


def _hashes(catalog: Catalog) -> str:
    try:
        listed = read_manifest(catalog.root)
    except ArtifactError as error:
        return f"<p>{escape(str(error))}</p>"
    rows = []
    for run in catalog.runs:
        folder = run.folder.relative_to(catalog.root).as_posix()
        rows.append(
            [
                f"<code>{escape(folder)}</code>",
                *(
                    _short(listed.get(f"{folder}/{name}"))
                    for name in ("adapter.safetensors", "predictions.csv")
                ),
                *(
                    _short(run.config[key])
                    for key in ("dataset_sha256", "split_sha256", "backbone_sha256")
                ),
            ]
        )
    lines = "\n".join(f"{digest}  {name}" for name, digest in listed.items())
    return (
        table(
            ["Run", "Adapter", "Predictions", "Data", "Split", "Backbone"],
            rows,
            caption="First twelve digits of SHA-256: files, and what the run was trained on",
            css_class="fs-wide fs-dense",
        )
        + f"<details><summary>SHA256SUMS, all {len(listed)} files (its own SHA-256 is "
        f"<code>{sha256_file(catalog.root / MANIFEST)}</code>)</summary>"
        f'<pre tabindex="0" aria-label="SHA256SUMS">{escape(lines)}</pre></details>'
    )


def _short(digest: str | None) -> str:
    return "–" if digest is None else f"<code>{escape(digest[:12])}</code>"


def _citations() -> str:
    cited = citations(bibtex())
    items = "".join(
        f"<li>{escape(entry.why)}: <code>{escape(entry.key)}</code></li>" for entry in cited
    )
    return (
        f"<ul>{items}</ul><details><summary>BibTeX of all {len(cited)}</summary>"
        f'<pre tabindex="0" aria-label="BibTeX">{escape(bibtex())}</pre></details>'
    )


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _joined(values: Iterable[str]) -> str:
    return escape(", ".join(dict.fromkeys(values)))


def _device(run: Run) -> str:
    device: Any = run.config["device"]
    if isinstance(device, dict):
        return ", ".join(str(value) for value in device.values())
    return str(device)


def _command(run: Run) -> str:
    command: Any = run.config["command"]
    return " ".join(map(str, command)) if isinstance(command, list) else str(command)


def add_about_tab(catalog: Catalog) -> None:
    """Draws the tab inside the current gr.Tab."""
    gr.HTML(about_html(catalog), elem_id="about")
