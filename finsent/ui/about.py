"""The About tab: what was done, with what, under which terms, and what it does not show."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

import gradio as gr

from finsent.runs import Run, slug
from finsent.ui.markup import table
from finsent.ui.state import (
    LARGE_BACKBONE,
    Catalog,
    backbone_title,
    dataset_description,
    dataset_title,
)

_QUESTION = """
<section><h2>The question</h2>
<p>Does dendritic optimization, as done by PerforatedAI, improve a LoRA-tuned language model on
financial sentiment: by how much, in which regime, at what cost? “No gain here” is a valid answer
and is shown as such.</p></section>
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
    "number on this page is SmolLM2-135M's."
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

_COMMANDS = (
    ("make app", "this page, on this machine"),
    ("make test", "lint, types and every test"),
    ("make train", "all three arms, one seed, on a CPU"),
    ("python train_models.py leaderboard", "rebuild the leaderboard from the runs"),
    (
        "python train_models.py verify",
        "recompute every published number from the saved predictions",
    ),
)


def about_html(catalog: Catalog) -> str:
    """The whole tab."""
    return (
        f'<div class="fs-prose">{_QUESTION}{_PROTOCOL}{_limits(catalog)}'
        f"<section><h2>Licences</h2>{_licences()}</section>"
        f"<section><h2>Commands</h2>{_commands()}</section>"
        f"<section><h2>How the runs here were made</h2>{_provenance(catalog)}</section></div>"
    )


def _licences() -> str:
    return table(
        ["What", "Licence", "Where it is used"],
        [[escape(cell) for cell in row] for row in _LICENCES],
        caption="Licences of data, weights and code",
    )


def _limits(catalog: Catalog) -> str:
    phi_2 = any(slug(run.backbone) == LARGE_BACKBONE for run in catalog.runs)
    return _LIMITS.replace("{phi_2}", _WITH_PHI_2 if phi_2 else _WITHOUT_PHI_2)


def _commands() -> str:
    return table(
        ["Command", "What it does"],
        [[f"<code>{escape(command)}</code>", escape(what)] for command, what in _COMMANDS],
        caption="Commands",
    )


def _provenance(catalog: Catalog) -> str:
    if not catalog.runs:
        return "<p>No finished run yet.</p>"
    places = dict.fromkeys((slug(run.backbone), run.dataset) for run in catalog.runs)
    rows = []
    for backbone, dataset in places:
        runs = catalog.of(backbone, dataset)
        rows.append(
            [
                escape(backbone_title(backbone)),
                f"{escape(dataset_title(dataset))} "
                f'<span class="fs-note">{escape(dataset_description(dataset))}</span>',
                str(len(runs)),
                _joined(_device(run) for run in runs),
                _joined((run.config["git_commit"] or "not recorded")[:10] for run in runs),
                f"<code>{escape(runs[0].config['dataset_sha256'][:12])}</code>",
                _joined(run.config["finished_at"][:10] for run in runs),
            ]
        )
    runs_table = table(
        ["Backbone", "Data set", "Runs", "Device", "Commit", "Data sha256", "Finished"],
        rows,
        caption="Where and when, from each run's config.json",
        numeric=(2,),
        css_class="fs-wide",
    )
    commands = dict.fromkeys(_command(run) for run in catalog.runs)
    listing = "".join(f"<li><code>{escape(command)}</code></li>" for command in commands)
    return (
        f"{runs_table}{_versions(catalog.runs)}"
        f"<details><summary>Exact commands ({len(commands)})</summary><ul>{listing}</ul></details>"
    )


def _versions(runs: Iterable[Run]) -> str:
    seen: dict[str, dict[str, None]] = {}
    for run in runs:
        for package, version in run.config["versions"].items():
            seen.setdefault(package, {})[str(version)] = None
    return table(
        ["Package", "Version"],
        [[escape(name), escape(", ".join(found))] for name, found in sorted(seen.items())],
        caption="Versions recorded with the runs",
        css_class="fs-narrow",
    )


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
