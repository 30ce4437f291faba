"""The Compare tab: one headline, the arms side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from finsent.charts import ARM_STYLES
from finsent.examples import HEADLINES
from finsent.runs import Run
from finsent.ui.markup import (
    LABEL_MARKS,
    count,
    milliseconds,
    notice,
    percent,
    percent_interval,
    sentence,
    swatch,
)
from finsent.ui.selectors import RunSelectors, add_run_selectors
from finsent.ui.state import (
    ArmPrediction,
    Catalog,
    ModelService,
    Outcome,
    Rolling,
    Selection,
    ServiceError,
    backbone_title,
    dataset_title,
)

MAX_CHARACTERS = 2000
MODEL_QUEUE = "model"
"""Everything that runs the model shares one queue: timings would mean nothing otherwise."""
POLL_SECONDS = 0.5

_ARM_NOTES = {
    "baseline": "LoRA only",
    "dendritic": "LoRA + dendrites",
    "matched": "LoRA, as many parameters as dendritic",
}


# ---------------------------------------------------------------------------------------- contents


def text_problem(text: str | None) -> str | None:
    """Why a text cannot be compared, or None when it can."""
    if text is None or not text.strip():
        return "Nothing to compare yet: type a headline or pick an example."
    if len(text) > MAX_CHARACTERS:
        return (
            f"{len(text):,} characters are too many: at most {MAX_CHARACTERS:,}. "
            "One headline or sentence works best."
        )
    return None


def top_label(prediction: ArmPrediction, label_names: Sequence[str]) -> str:
    """The most probable label, the first of them when tied."""
    best = max(range(len(label_names)), key=lambda index: prediction.probabilities[index])
    return label_names[best]


def agreement(predictions: Sequence[ArmPrediction], label_names: Sequence[str]) -> tuple[bool, str]:
    """Whether all arms name the same label, and the sentence that says so."""
    tops = [top_label(prediction, label_names) for prediction in predictions]
    gap = max(
        max(column) - min(column)
        for column in zip(*(p.probabilities for p in predictions), strict=True)
    )
    # Rounded once, so that "0.0 points" is never said of numbers that visibly differ.
    points = f"{100 * gap:.1f}" if gap >= 0.0005 or gap == 0 else "less than 0.1"
    if len(predictions) == 1:
        return True, f"Only the {predictions[0].arm} run is here: it says {tops[0]}."
    if len(set(tops)) == 1:
        who = "Both say" if len(tops) == 2 else f"All {len(tops)} say"
        by = points if points.startswith("less") else f"at most {points}"
        return True, f"{who} {tops[0]}; probabilities differ by {by} points."
    each = ", ".join(f"{p.arm} says {top}" for p, top in zip(predictions, tops, strict=True))
    return False, f"They differ: {each}. Probabilities differ by up to {points} points."


def result_dict(outcome: Outcome) -> dict[str, Any]:
    """What /compare answers: plain JSON values."""
    result, selection = outcome.result, outcome.selection
    agree, sentence = agreement(result.predictions, result.label_names)
    return {
        "text": result.text,
        "n_tokens": result.n_tokens,
        "truncated": result.truncated,
        "backbone": selection.backbone,
        "dataset": selection.dataset,
        "seed": selection.seed,
        "device": outcome.device_name,
        "agree": agree,
        "summary": sentence,
        "predictions": {
            p.arm: {
                "label": top_label(p, result.label_names),
                "probabilities": dict(
                    zip(result.label_names, map(float, p.probabilities), strict=True)
                ),
                "latency_ms": float(p.latency_ms),
            }
            for p in result.predictions
        },
    }


def banner_html(outcome: Outcome) -> str:
    """The sentence above the cards, with the text it is about."""
    result = outcome.result
    agree, sentence = agreement(result.predictions, result.label_names)
    tokens = f"{result.n_tokens} tokens"
    cut = (
        notice(
            "Cut.",
            f"The models read the first {tokens} of this text; the rest did not count.",
            tone="warning",
        )
        if result.truncated
        else ""
    )
    size = "" if result.truncated else f'<span class="fs-quiet">{tokens}</span>'
    return (
        f'<div class="fs-banner" data-agree="{str(agree).lower()}">'
        f'<span class="fs-banner-mark" aria-hidden="true">{"=" if agree else "≠"}</span>'
        f"<div><p class='fs-banner-says'>{escape(sentence)}</p>"
        f'<blockquote dir="auto">{escape(result.text.strip())}</blockquote>{size}</div></div>{cut}'
    )


def waiting_html(message: str) -> str:
    """Shown instead of an answer while the model loads."""
    return (
        '<div class="fs-banner" data-agree="waiting">'
        '<span class="fs-banner-mark" aria-hidden="true">…</span>'
        f'<div><p class="fs-banner-says">Your headline waits for the model.</p>'
        f'<span class="fs-quiet">{escape(message)}</span></div></div>'
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
    predictions = {p.arm: p for p in outcome.result.predictions} if outcome else {}
    cards = [
        _card(
            catalog.run(selection.backbone, selection.dataset, arm, selection.seed),
            predictions.get(arm),
            outcome,
        )
        for arm in selection.arms
    ]
    return (
        missing_arm_notice(selection)
        + no_dendrite_notice(catalog, selection)
        + f'<div class="fs-cards" data-cards="{len(cards)}">{"".join(cards)}</div>'
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
            return (
                '<aside class="fs-verdict"><h2>One headline proves nothing. '
                f"{escape(dataset_title(selection.dataset))}, every seed together:</h2>"
                f"<p>{escape(sentence(comparison['verdict']))}</p></aside>"
            )
    return ""


def _name(catalog: Catalog, selection: Selection) -> str:
    """The backbone as the configs spell it, which is how the leaderboard names it."""
    return catalog.of(selection.backbone, selection.dataset)[0].backbone


def _card(run: Run, prediction: ArmPrediction | None, outcome: Outcome | None) -> str:
    style = ARM_STYLES[run.arm]
    answer = (
        _empty_answer(run.label_names)
        if prediction is None or outcome is None
        else _answer(prediction, outcome.result.label_names, outcome.rolling, outcome.device_name)
    )
    return (
        f'<section class="fs-card" data-arm="{escape(run.arm)}" style="--arm:{style.colour}" '
        f'aria-label="{escape(style.title)}">'
        f"<header>{swatch(run.arm)}<h3>{escape(style.title)}</h3>"
        f'<span class="fs-quiet">{escape(_ARM_NOTES[run.arm])}</span></header>'
        f"{answer}{_evidence(run)}</section>"
    )


def _answer(
    prediction: ArmPrediction,
    label_names: Sequence[str],
    rolling: Mapping[str, Rolling],
    device_name: str,
) -> str:
    label = top_label(prediction, label_names)
    recent = rolling[prediction.arm]
    calls = "call" if recent.n == 1 else "calls"
    return (
        f'<p class="fs-answer" data-label="{escape(label)}">'
        f'<span aria-hidden="true">{LABEL_MARKS.get(label, "■")}</span> {escape(label)}</p>'
        f"{_bars(label_names, prediction.probabilities, label)}"
        f'<p class="fs-time"><b>{milliseconds(prediction.latency_ms)}</b> model time'
        f'<span class="fs-quiet">median {milliseconds(recent.median_ms)}, '
        f"p95 {milliseconds(recent.p95_ms)} over {recent.n} {calls} "
        f"on {escape(device_name)}</span></p>"
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
    return f'<dl class="fs-bars">{rows}</dl>'


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


# --------------------------------------------------------------------------------------------- tab


def add_compare_tab(catalog: Catalog, service: ModelService) -> RunSelectors | None:
    """Draws the tab inside the current gr.Tab and publishes `/compare`.

    Returns the selectors, which the page sets when the backbone has been chosen; None when there
    are no runs.
    """
    add_compare_endpoint(service)
    if not catalog.runs:
        gr.HTML(notice("Nothing trained yet.", service.status.message, tone="warning"))
        return None
    first = catalog.select(catalog.backbones()[0])
    with gr.Row(elem_classes="fs-ask", equal_height=False):
        text = gr.Textbox(
            label="Headline",
            placeholder="Type or paste a financial headline, then press Enter",
            lines=1,
            max_lines=6,
            autofocus=True,
            elem_id="headline",
            scale=8,
        )
        button = gr.Button("Compare", variant="primary", elem_id="compare", scale=1, min_width=120)
    with gr.Row(elem_classes="fs-chips"):
        gr.HTML("<span>Try</span>", elem_classes="fs-chips-lead")
        chips = [
            gr.Button(example.kind, size="sm", elem_classes="fs-chip", min_width=0)
            for example in HEADLINES
        ]
    banner = gr.HTML(idle_html(), elem_id="banner")
    cards = gr.HTML(cards_html(catalog, first), elem_id="cards")
    verdict = gr.HTML(verdict_html(catalog, first), elem_id="verdict")
    gr.HTML("<h2>Which runs answer</h2>", elem_id="which")
    with gr.Row(elem_classes="fs-controls"):
        selectors = add_run_selectors(catalog, first)
        matched = gr.Checkbox(
            label="Also run the matched control",
            info="No dendrites, but as many parameters as the dendritic run",
            elem_id="matched",
            min_width=220,
        )
    chosen = [*selectors.components, matched]

    def selection(backbone: str, dataset: str, seed: int, with_matched: bool) -> Selection:
        return catalog.select(backbone, dataset, seed, matched=with_matched)

    def check(value: str | None, *_: Any) -> list[dict[str, Any]]:
        problem = text_problem(value)
        others = [gr.validate(True, "") for _ in chosen]
        return [gr.validate(problem is None, problem or ""), *others]

    def answer(
        value: str, backbone: str, dataset: str, seed: int, with_matched: bool
    ) -> Iterator[tuple[str | dict[str, Any], str | dict[str, Any]]]:
        wanted = selection(backbone, dataset, seed, with_matched)
        service.start()
        while not service.settled:
            status = service.wait(POLL_SECONDS)
            if not service.settled:
                yield waiting_html(status.message), gr.skip()
        try:
            outcome = service.compare(value, wanted)
        except (ServiceError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        yield banner_html(outcome), cards_html(catalog, wanted, outcome)

    def answer_again(
        value: str, backbone: str, dataset: str, seed: int, with_matched: bool
    ) -> Iterator[tuple[str | dict[str, Any], str | dict[str, Any]]]:
        if text_problem(value) is None:
            yield from answer(value, backbone, dataset, seed, with_matched)
        else:
            yield gr.skip(), gr.skip()

    def reset(backbone: str, dataset: str, seed: int, with_matched: bool) -> tuple[str, str, str]:
        wanted = selection(backbone, dataset, seed, with_matched)
        return idle_html(), cards_html(catalog, wanted), verdict_html(catalog, wanted)

    asked: dict[str, Any] = {
        "fn": answer,
        "inputs": [text, *chosen],
        "outputs": [banner, cards],
        "concurrency_id": MODEL_QUEUE,
        "concurrency_limit": 1,
        "show_progress": "minimal",
        "show_progress_on": banner,
        "api_visibility": "private",
    }
    button.click(**asked, validator=check)
    text.submit(**asked, validator=check)
    for chip, example in zip(chips, HEADLINES, strict=True):
        chip.click(
            lambda value=example.text: value, outputs=text, queue=False, api_visibility="private"
        ).then(**asked)
    # Other runs: show what they are at once, then let them answer the same headline.
    gr.on(
        [component.change for component in chosen],
        reset,
        inputs=chosen,
        outputs=[banner, cards, verdict],
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    ).then(**{**asked, "fn": answer_again})
    return selectors


def add_compare_endpoint(service: ModelService) -> None:
    """Publishes /compare: one string in, one JSON object out."""

    def compare(text: str) -> dict[str, Any]:
        """Sentiment of a financial text according to each arm.

        Args:
            text: one headline or sentence, at most 2,000 characters.

        Returns:
            The text, each arm's label, probabilities by label and model time in milliseconds,
            whether the arms agree, and which runs and device answered.
        """
        problem = text_problem(text)
        if problem is not None:
            raise gr.Error(problem, print_exception=False)
        service.start()
        try:
            selection = service.default_selection()
            return result_dict(service.compare(text, selection))
        except (ServiceError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    gr.api(
        compare,
        api_name="compare",
        concurrency_id=MODEL_QUEUE,
        concurrency_limit=1,
    )
