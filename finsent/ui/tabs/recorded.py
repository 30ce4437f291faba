"""Recorded predictions: what the runs said of held-out sentences when they were evaluated.

All that a page without the model's weights can show, so it is shown as what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from finsent.results.catalog import Catalog, Selection
from finsent.serving.answers import Answer, agreement
from finsent.ui.parts.cards import answer_html, card_html, cards_row
from finsent.ui.parts.selectors import QUICK

RECORDED_HINT = "Recorded predictions are below, under “Recorded answers”."


def recorded_ids(catalog: Catalog, selection: Selection) -> list[str]:
    """Ids of the test sentences of a selection, in the order of the file."""
    run = catalog.run(selection.backbone, selection.dataset, selection.arms[0], selection.seed)
    return list(run.read_predictions().ids)


def recorded_html(catalog: Catalog, selection: Selection, example: str) -> str:
    """What every arm of a selection said of one test sentence, with the true label."""
    calibrations = catalog.calibrations(selection)
    given, cards, truth, where = [], [], "", ""
    for arm in selection.arms:
        run = catalog.run(selection.backbone, selection.dataset, arm, selection.seed)
        predictions = run.read_predictions()
        if example not in predictions.ids:
            said = f"{escape(example)} is no test sentence of this training run."
            return f'<p class="fs-quiet">{said}</p>'
        row = predictions.ids.index(example)
        answer = Answer(arm, run.label_names, predictions.probabilities[row], calibrations[arm])
        given.append(answer)
        truth = predictions.labels[row]
        device = run.config["device"]
        where = f"{device if isinstance(device, str) else ', '.join(map(str, device.values()))}, "
        where += str(run.config["finished_at"])[:10]
        recorded = f'<p class="fs-time"><span class="fs-quiet">recorded: {escape(where)}</span></p>'
        cards.append(card_html(run, answer_html(answer) + recorded))
    _, said = agreement(given)
    return (
        "<p><b>Recorded, not computed now.</b> Sentence with the id "
        f"<code>{escape(example)}</code>, true label <b>{escape(truth)}</b>. {escape(said)}</p>"
        f"{cards_row(cards)}"
    )


def add_recorded(catalog: Catalog, chosen: Sequence[Any]) -> None:
    """Draws the section inside the Compare tab. chosen: its run selectors and the matched box."""
    first = catalog.select(catalog.backbones()[0])
    ids = recorded_ids(catalog, first)
    with gr.Accordion("Recorded answers to held-out sentences", open=False, elem_id="recorded"):
        gr.HTML(
            '<p class="fs-quiet">Saved when the runs chosen above were tested; no model is needed. '
            "Each sentence goes by an id, such as the one below, which names it everywhere here: "
            "the licences of the data sets do not allow their sentences to be passed on. Where "
            "this machine has a copy of them, Evidence, Where they differ shows them.</p>"
        )
        example = gr.Dropdown(
            choices=ids,
            value=ids[0],
            label="Id of a sentence",
            elem_id="recorded-id",
            filterable=True,
        )
        shown = gr.HTML(recorded_html(catalog, first, ids[0]), elem_id="recorded-answer")

    def show(name: str, backbone: str, dataset: str, seed: int, with_matched: bool) -> str:
        wanted = catalog.select(backbone, dataset, seed, matched=with_matched)
        return recorded_html(catalog, wanted, name)

    def renew(backbone: str, dataset: str, seed: int, with_matched: bool) -> tuple[Any, str]:
        wanted = catalog.select(backbone, dataset, seed, matched=with_matched)
        names = recorded_ids(catalog, wanted)
        return gr.update(choices=names, value=names[0]), recorded_html(catalog, wanted, names[0])

    example.input(
        show,
        inputs=[example, *chosen],
        outputs=shown,
        **QUICK,
    )
    gr.on(
        [component.change for component in chosen],
        renew,
        inputs=list(chosen),
        outputs=[example, shown],
        **QUICK,
    )
