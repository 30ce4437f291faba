"""An answer as programs get it, and a run's card with what it says. HTML only, no events."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from finsent.plots.style import ARM_STYLES
from finsent.results.catalog import Catalog, Selection, backbone_title, dataset_title
from finsent.results.runs import Run
from finsent.results.text import count
from finsent.serving.answers import Answer, agreement
from finsent.serving.service import Outcome
from finsent.ui.parts.markup import (
    label_mark,
    notice,
    percent,
    percent_interval,
    swatch,
)

ARM_NOTES = {
    "baseline": "LoRA only",
    "dendritic": "LoRA + dendrites",
    "matched": "LoRA, as many parameters as dendritic",
    "restart": "LoRA, restarted when dendritic grew",
}


def result_dict(outcome: Outcome) -> dict[str, Any]:
    """What /compare answers: plain JSON values."""
    result, selection = outcome.result, outcome.selection
    agree, summary = agreement(outcome.answers)
    return {
        "text": result.text,
        "n_tokens": result.n_tokens,
        "truncated": result.truncated,
        "backbone": selection.backbone,
        "dataset": selection.dataset,
        "seed": selection.seed,
        "device": outcome.device_name,
        "queue_ms": float(outcome.queue_ms),
        "agree": agree,
        "summary": summary,
        "notices": [{"kind": n.kind, "message": n.message} for n in outcome.notices],
        "passages": [
            {"text": passage.text, "labels": {a.arm: a.label for a in passage.answers}}
            for passage in outcome.passages
        ],
        "predictions": {
            answer.arm: {**answer.to_dict(), "latency_ms": float(prediction.latency_ms)}
            for answer, prediction in zip(outcome.answers, result.predictions, strict=True)
        },
    }


def cards_row(cards: Sequence[str]) -> str:
    """Cards side by side."""
    return f'<div class="fs-cards" data-cards="{len(cards)}">{"".join(cards)}</div>'


def missing_arm_notice(selection: Selection) -> str:
    """Says so when there is nothing to compare with."""
    missing = [arm for arm in ("baseline", "dendritic") if arm not in selection.arms]
    if not missing:
        return ""
    return notice(
        "Half a comparison.",
        f"Training run {selection.seed} of {backbone_title(selection.backbone)} on "
        f"{dataset_title(selection.dataset)} has no finished {' and no '.join(missing)} variant "
        "here. Choose another training run.",
        tone="warning",
    )


def no_dendrite_notice(catalog: Catalog, selection: Selection) -> str:
    """The loud warning for a dendritic run that is none."""
    if "dendritic" not in selection.arms:
        return ""
    run = catalog.run(selection.backbone, selection.dataset, "dendritic", selection.seed)
    if run.metrics["dendrites"] > 0:
        return ""
    return notice(
        "No dendrite in the dendritic run.",
        f"Training run {selection.seed} asked for dendrites and kept none: its model is LoRA "
        "only, like the baseline. A difference below is not the work of dendrites.",
        tone="warning",
    )


def card_html(run: Run, said: str) -> str:
    """A card of one run around what it says."""
    style = ARM_STYLES[run.arm]
    return (
        f'<section class="fs-card" data-arm="{escape(run.arm)}" style="--arm:{style.colour}" '
        f'aria-label="{escape(style.title)}">'
        f"<header>{swatch(run.arm)}<h3>{escape(style.title)}</h3>"
        f'<span class="fs-quiet">{escape(ARM_NOTES[run.arm])}</span></header>'
        f"{said}{_evidence(run)}</section>"
    )


def answer_html(answer: Answer) -> str:
    """Label, set and probabilities of one arm."""
    label = answer.label
    return (
        f'<p class="fs-answer" data-label="{escape(label)}">'
        f'<span aria-hidden="true">{label_mark(label)}</span> '
        f"{escape(label[:1].upper() + label[1:])}</p>"
        f"{_set(answer)}{_bars(answer.label_names, answer.shown, label)}{_raw(answer)}"
    )


def _set(answer: Answer) -> str:
    if answer.calibration is None or answer.set_words is None:
        return ""
    calibration = answer.calibration
    unseen = ""
    if calibration.transfer is not None:
        shares = calibration.transfer.coverages.values()
        unseen = (
            f", and {percent(min(shares), 0)} to {percent(max(shares), 0)} on sources never seen"
        )
    return (
        '<p class="fs-set">Labels that cannot be ruled out: '
        f"<b>{escape(answer.set_words)}</b>"
        f'<span class="fs-quiet">such sets held the true label of '
        f"{percent(calibration.coverage_measured)} of {count(calibration.n_test)} "
        f"test sentences{unseen}</span></p>"
    )


def _raw(answer: Answer) -> str:
    if answer.calibration is None:
        return ""
    listed = ", ".join(
        f"{escape(name)} {percent(p)}"
        for name, p in zip(answer.label_names, answer.raw, strict=True)
    )
    return (
        '<details class="fs-raw"><summary>Probabilities before calibration</summary>'
        f"<p>{listed}</p>"
        f'<p class="fs-quiet">How far confidence is toned down (temperature; 1: not at all): '
        f"{answer.calibration.temperature:.2f}, fitted on "
        f"{count(answer.calibration.n_validation)} validation sentences; test loss (NLL) "
        f"{answer.calibration.nll_raw:.3f} before, {answer.calibration.nll_calibrated:.3f} "
        "after.</p></details>"
    )


def _bars(
    label_names: Sequence[str], probabilities: Sequence[float] | None, top: str | None
) -> str:
    rows = ""
    for index, name in enumerate(label_names):
        value = None if probabilities is None else probabilities[index]
        width = 0 if value is None else 100 * value
        rows += (
            f'<div class="fs-bar" data-top="{str(name == top).lower()}" '
            f'data-label="{escape(name)}">'
            f"<dt>{escape(name)}</dt>"
            f'<dd><span class="fs-track" aria-hidden="true"><i style="width:{width:.2f}%"></i>'
            f"</span><b>{'–' if value is None else percent(value)}</b></dd></div>"
        )
    longest = max(map(len, label_names))
    return f'<dl class="fs-bars" style="--letters:{longest}">{rows}</dl>'


def _evidence(run: Run) -> str:
    metrics = run.metrics
    dendrites = metrics["dendrites"]
    parts = [
        (
            "Test accuracy",
            f"{percent(metrics['accuracy'])} "
            f"<span>95&#8239;% CI {percent_interval(metrics['ci']['accuracy'])}, "
            f"n&nbsp;=&nbsp;{count(metrics['n_test'])}</span>",
        ),
        (
            "Macro-F1",
            f"{percent(metrics['macro_f1'])} "
            f"<span>95&#8239;% CI {percent_interval(metrics['ci']['macro_f1'])}</span>",
        ),
        ("Trained parameters", count(metrics["trainable_params"])),
        ("Dendrites kept", count(dendrites)),
    ]
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in parts)
    return f'<dl class="fs-evidence">{items}</dl>'
