"""What the Compare tab says: the banner, a card per arm, the notices. HTML only, no events."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from finsent.plots.style import ARM_STYLES
from finsent.results.calibration import NOT_CALIBRATED
from finsent.results.catalog import Catalog, Selection, backbone_title, dataset_title
from finsent.results.runs import Run
from finsent.results.text import count
from finsent.serving.answers import Answer, agreement
from finsent.serving.service import Outcome
from finsent.ui.parts.markup import (
    label_mark,
    milliseconds,
    notice,
    percent,
    percent_interval,
    sentence,
    swatch,
)

_ARM_NOTES = {
    "baseline": "LoRA only",
    "dendritic": "LoRA + dendrites",
    "matched": "LoRA, as many parameters as dendritic",
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
        "predictions": {
            answer.arm: {**answer.to_dict(), "latency_ms": float(prediction.latency_ms)}
            for answer, prediction in zip(outcome.answers, result.predictions, strict=True)
        },
    }


def banner_html(outcome: Outcome) -> str:
    """The sentence above the cards, with the text it is about."""
    result = outcome.result
    agree, said = agreement(outcome.answers)
    tokens = f"{result.n_tokens} tokens"
    cut = (
        notice(
            "Cut.",
            f"The models read the first {tokens} of this text; the rest did not count. Batch "
            "takes it as one sentence a line; “python -m finsent score --long windows” reads long "
            "texts whole.",
            tone="warning",
        )
        if result.truncated
        else ""
    )
    size = "" if result.truncated else f"{tokens}; "
    waited = (
        f"waited {milliseconds(outcome.queue_ms)} for its turn"
        if outcome.queue_ms >= 1
        else "answered at once, no queue"
    )
    return (
        f'<div class="fs-banner" data-agree="{str(agree).lower()}">'
        f'<span class="fs-banner-mark" aria-hidden="true">{"=" if agree else "≠"}</span>'
        f"<div><p class='fs-banner-says'>{escape(said)}</p>"
        f'<blockquote dir="auto">{escape(result.text.strip())}</blockquote>'
        f'<span class="fs-quiet">{size}{waited}</span></div></div>{cut}'
    )


def waiting_html(message: str) -> str:
    """Shown instead of an answer while the model loads."""
    return (
        '<div class="fs-banner" data-agree="waiting">'
        '<span class="fs-banner-mark" aria-hidden="true">…</span>'
        f'<div><p class="fs-banner-says">Your headline waits for the model.</p>'
        f'<span class="fs-quiet">{escape(message)}</span></div></div>'
    )


def problem_html(problem: str) -> str:
    """Shown instead of an answer: what is wrong with the text or the model."""
    return (
        '<div class="fs-banner" data-agree="problem" role="alert">'
        '<span class="fs-banner-mark" aria-hidden="true">!</span>'
        f'<div><p class="fs-banner-says">{escape(problem)}</p></div></div>'
    )


def idle_html() -> str:
    """Shown before the first headline."""
    return (
        '<div class="fs-banner" data-agree="idle">'
        '<span class="fs-banner-mark" aria-hidden="true">?</span>'
        '<div><p class="fs-banner-says">Will they agree?</p>'
        '<span class="fs-quiet">Type a headline above or pick an example. Each model reads it '
        "once; time and probabilities are measured then and there.</span></div></div>"
    )


def cards_html(catalog: Catalog, selection: Selection, outcome: Outcome | None = None) -> str:
    """A card per arm: what the run is, and, after a headline, what it says."""
    given = {answer.arm: answer for answer in outcome.answers} if outcome else {}
    cards = []
    for arm in selection.arms:
        run = catalog.run(selection.backbone, selection.dataset, arm, selection.seed)
        if outcome is None:
            said = _empty_answer(run.label_names)
        else:
            said = answer_html(given[arm]) + _time(outcome, arm)
        cards.append(card_html(run, said))
    return (
        missing_arm_notice(selection)
        + no_dendrite_notice(catalog, selection)
        + cards_row(cards)
        + _calibration_note(catalog, selection)
    )


def cards_row(cards: Sequence[str]) -> str:
    """Cards side by side."""
    return f'<div class="fs-cards" data-cards="{len(cards)}">{"".join(cards)}</div>'


def _calibration_note(catalog: Catalog, selection: Selection) -> str:
    found = list(catalog.calibrations(selection).values())
    if all(found):
        fitted = "on each run’s validation part"
        if found[0] is not None and found[0].transfer is not None:
            fitted += (
                ", then corrected by what runs said of news sources that they had not learned. "
                "Off familiar sources the models are right less often than they are sure, so "
                "probabilities are lower here than a test on the same sources would allow"
            )
        return (
            '<p class="fs-quiet">Bars show calibrated probabilities: temperature scaling, fitted '
            f"{fitted}. The 90\u202f% set holds the likeliest label and every label as probable as "
            "nine in ten of the true ones were there. How often such sets held the true label was "
            "measured on test.</p>"
        )
    return (
        f'<p class="fs-quiet">Bars show raw probabilities; {NOT_CALIBRATED}, so there is no '
        "90\u202f% set either.</p>"
    )


def missing_arm_notice(selection: Selection) -> str:
    """Says so when there is nothing to compare with."""
    missing = [arm for arm in ("baseline", "dendritic") if arm not in selection.arms]
    if not missing:
        return ""
    return notice(
        "Half a comparison.",
        f"No finished {' and no finished '.join(missing)} run of seed {selection.seed} for "
        f"{backbone_title(selection.backbone)} on {dataset_title(selection.dataset)} is here. "
        "Choose another seed or train it.",
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
        f"The run of seed {selection.seed} asked for dendrites and kept none: its model is LoRA "
        "only, like the baseline. A difference below is not the work of dendrites.",
        tone="warning",
    )


def verdict_html(catalog: Catalog, selection: Selection) -> str:
    """The test set's answer for this backbone and data set, beside the single headline's."""
    for comparison in (catalog.leaderboard or {}).get("comparisons", []):
        same = (comparison["backbone"], comparison["dataset"], comparison["a"], comparison["b"])
        if same == (_name(catalog, selection), selection.dataset, "baseline", "dendritic"):
            n_seeds = len(comparison["seeds"])
            together = "every seed together" if n_seeds > 1 else "the whole test set"
            return (
                '<aside class="fs-verdict"><h2>One headline proves nothing. '
                f"{escape(dataset_title(selection.dataset))}, {together}:</h2>"
                f"<p>{escape(sentence(comparison['verdict']))}</p></aside>"
            )
    return ""


def _name(catalog: Catalog, selection: Selection) -> str:
    """The backbone as the configs spell it, which is how the leaderboard names it."""
    return catalog.of(selection.backbone, selection.dataset)[0].backbone


def card_html(run: Run, said: str) -> str:
    """A card of one run around what it says."""
    style = ARM_STYLES[run.arm]
    return (
        f'<section class="fs-card" data-arm="{escape(run.arm)}" style="--arm:{style.colour}" '
        f'aria-label="{escape(style.title)}">'
        f"<header>{swatch(run.arm)}<h3>{escape(style.title)}</h3>"
        f'<span class="fs-quiet">{escape(_ARM_NOTES[run.arm])}</span></header>'
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
        f'<p class="fs-set">{percent(calibration.coverage_asked, 0)} set: '
        f"<b>{escape(answer.set_words)}</b>"
        f'<span class="fs-quiet">such sets held the true label of '
        f"{percent(calibration.coverage_measured)} of {calibration.n_test} "
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
        f'<details class="fs-raw"><summary>Raw probabilities</summary><p>{listed}</p>'
        f'<p class="fs-quiet">Temperature {answer.calibration.temperature:.2f}, fitted on '
        f"{answer.calibration.n_validation} validation sentences; test NLL "
        f"{answer.calibration.nll_raw:.3f} raw, {answer.calibration.nll_calibrated:.3f} "
        "calibrated.</p></details>"
    )


def _time(outcome: Outcome, arm: str) -> str:
    latency_ms = next(p.latency_ms for p in outcome.result.predictions if p.arm == arm)
    recent = outcome.rolling[arm]
    calls = "call" if recent.n == 1 else "calls"
    return (
        f'<p class="fs-time"><b>{milliseconds(latency_ms)}</b> model time'
        f'<span class="fs-quiet">median {milliseconds(recent.p50_ms)}, '
        f"p95 {milliseconds(recent.p95_ms)} over {recent.n} {calls} "
        f"on {escape(outcome.device_name)}</span></p>"
    )


def _empty_answer(label_names: Sequence[str]) -> str:
    return (
        '<p class="fs-answer" data-label="none">no headline yet</p>'
        f"{_bars(label_names, None, None)}"
        '<p class="fs-time"><span class="fs-quiet">Model time is measured with each headline.'
        "</span></p>"
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
            f"n&nbsp;=&nbsp;{metrics['n_test']}</span>",
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
