"""The Compare tab: one headline, the arms side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from finsent.data.registry import DATASETS
from finsent.results.catalog import Catalog, Selection, dataset_examples
from finsent.serving.service import ModelService, ServiceError
from finsent.ui.parts.cards import (
    banner_html,
    cards_html,
    idle_html,
    problem_html,
    verdict_html,
    waiting_html,
)
from finsent.ui.parts.headline import text_problem
from finsent.ui.parts.markup import notice
from finsent.ui.parts.selectors import QUICK, RunSelectors, add_matched_box, add_run_selectors
from finsent.ui.parts.share import COPY_ADDRESS_JS, keep_in_address
from finsent.ui.parts.words import explain_words, words_html
from finsent.ui.tabs.recorded import RECORDED_HINT, add_recorded

MODEL_QUEUE = "model"
VISITORS_AT_ONCE = 64
"""Who waits, waits for the model inside the service, which measures it; gradio's own queue would
hide the wait. Model times stay clean: the model answers one question at a time."""
POLL_SECONDS = 0.5
NOTHING_HERE = (
    "This tab compares trained runs, and there are none. It opens by itself as soon as the first "
    "are finished."
)
CHIPS = max(len(entry.examples) for entry in DATASETS.values())
_UNCHANGED = (gr.skip(), gr.skip(), gr.skip())


@dataclass(frozen=True)
class CompareTab:
    """What the page needs of the tab to open it on a link."""

    selectors: RunSelectors
    text: gr.Textbox
    matched: gr.Checkbox
    ask_linked: Mapping[str, Any]
    """Arguments of an event that answers the text in the box, if it can be answered."""


@dataclass(frozen=True)
class _Parts:
    """The tab's components."""

    text: gr.Textbox
    button: gr.Button
    chips: list[gr.Button]
    banner: gr.HTML
    cards: gr.HTML
    explain: gr.Button
    link: gr.Button
    words: gr.HTML
    verdict: gr.HTML
    selectors: RunSelectors
    matched: gr.Checkbox

    @property
    def chosen(self) -> list[Any]:
        """What says which runs answer."""
        return [*self.selectors.components, self.matched]


def add_compare_tab(catalog: Catalog, service: ModelService) -> CompareTab | None:
    """Draws the tab inside the current gr.Tab; None when there are no runs."""
    if not catalog.runs:
        gr.HTML(notice("Nothing trained yet.", NOTHING_HERE, tone="warning"))
        return None
    parts = _draw(catalog)
    again = _connect(parts, _Answers(catalog, service))
    return CompareTab(parts.selectors, parts.text, parts.matched, again)


def _draw(catalog: Catalog) -> _Parts:
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
            gr.Button(**settings, size="sm", elem_classes="fs-chip", min_width=0)
            for settings in _chips(first.dataset)
        ]
    banner = gr.HTML(idle_html(), elem_id="banner")
    cards = gr.HTML(cards_html(catalog, first), elem_id="cards")
    with gr.Row(elem_classes="fs-chips"):
        explain = gr.Button("Which words count?", size="sm", elem_id="explain", min_width=0)
        link = gr.Button("Copy link to this comparison", size="sm", elem_id="share", min_width=0)
    words = gr.HTML(elem_id="words")
    verdict = gr.HTML(verdict_html(catalog, first), elem_id="verdict")
    gr.HTML("<h2>Which runs answer</h2>", elem_id="which")
    with gr.Row(elem_classes="fs-controls"):
        selectors = add_run_selectors(catalog, first)
        matched = add_matched_box(
            catalog,
            selectors,
            first,
            "Also run the matched control",
            "matched",
            info="No dendrites, but as many parameters as the dendritic run",
        )
    add_recorded(catalog, [*selectors.components, matched])
    return _Parts(
        text, button, chips, banner, cards, explain, link, words, verdict, selectors, matched
    )


class _Answers:
    """What the tab's events show."""

    def __init__(self, catalog: Catalog, service: ModelService) -> None:
        self._catalog, self._service = catalog, service

    def answer(
        self, value: str, backbone: str, dataset: str, seed: int, with_matched: bool
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Banner, cards and words for a text, and until the model is there what it waits for."""
        catalog, service = self._catalog, self._service
        wanted = self._selection(backbone, dataset, seed, with_matched)
        problem = text_problem(value)
        if problem is not None:
            # Not by gradio's `validator`: any later event of the page wipes what that one says.
            yield problem_html(problem), cards_html(catalog, wanted), ""
            return
        service.start()
        while not service.settled:
            status = service.wait(POLL_SECONDS)
            if not service.settled:
                yield waiting_html(status.message), gr.skip(), ""
        try:
            outcome = service.compare(value, wanted)
            yield banner_html(outcome), cards_html(catalog, wanted, outcome), ""
        except ServiceError as error:
            # In the page itself: a message of gradio's is gone after ten seconds.
            yield problem_html(f"{error} {RECORDED_HINT}"), cards_html(catalog, wanted), ""
        except ValueError as error:
            yield problem_html(str(error)), cards_html(catalog, wanted), ""

    def answer_again(self, value: str, *runs: Any) -> Iterator[tuple[Any, Any, Any]]:
        """The same where there is a text that can be answered, else what is shown stays."""
        if text_problem(value) is None:
            yield from self.answer(value, *runs)
        else:
            yield _UNCHANGED

    def explanation(
        self, value: str, backbone: str, dataset: str, seed: int, with_matched: bool
    ) -> Iterator[str]:
        """Which words count."""
        yield '<p class="fs-quiet">Leaving out each word once …</p>'
        problem = text_problem(value)
        if problem is not None:
            yield problem_html(problem)
            return
        wanted = self._selection(backbone, dataset, seed, with_matched)
        try:
            found, labels = explain_words(value, wanted, self._catalog, self._service)
        except (ServiceError, ValueError) as error:
            yield problem_html(str(error))
            return
        yield words_html(found, labels)

    def reset(
        self, backbone: str, dataset: str, seed: int, with_matched: bool
    ) -> tuple[str, str, str, str]:
        """Banner, cards, words and verdict of other runs, before they have answered."""
        wanted = self._selection(backbone, dataset, seed, with_matched)
        cards, verdict = cards_html(self._catalog, wanted), verdict_html(self._catalog, wanted)
        return idle_html(), cards, "", verdict

    def _selection(self, backbone: str, dataset: str, seed: int, with_matched: bool) -> Selection:
        return self._catalog.select(backbone, dataset, seed, matched=with_matched)


def _connect(parts: _Parts, answers: _Answers) -> dict[str, Any]:
    """Connects components and answers; the event that answers the text in the box once more."""
    inputs = [parts.text, *parts.chosen]
    asked: dict[str, Any] = {
        "fn": answers.answer,
        "inputs": inputs,
        "outputs": [parts.banner, parts.cards, parts.words],
        "concurrency_id": MODEL_QUEUE,
        "concurrency_limit": VISITORS_AT_ONCE,
        "show_progress": "minimal",
        "show_progress_on": parts.banner,
        "api_visibility": "private",
    }
    again = {**asked, "fn": answers.answer_again}
    for event in (parts.button.click(**asked), parts.text.submit(**asked)):
        keep_in_address(event, inputs)
    for place, chip in enumerate(parts.chips):
        event = chip.click(
            lambda dataset, place=place: dataset_examples(dataset)[place].text,
            inputs=parts.selectors.dataset,
            outputs=parts.text,
            queue=False,
            api_visibility="private",
        ).then(**asked)
        keep_in_address(event, inputs)
    parts.selectors.dataset.change(
        lambda dataset: [gr.update(**settings) for settings in _chips(dataset)],
        inputs=parts.selectors.dataset,
        outputs=parts.chips,
        **QUICK,
    )
    parts.explain.click(
        answers.explanation,
        inputs=inputs,
        outputs=parts.words,
        concurrency_id=MODEL_QUEUE,
        show_progress="minimal",
        api_visibility="private",
    )
    parts.link.click(None, inputs=inputs, js=COPY_ADDRESS_JS, api_visibility="private")
    # Other runs: show what they are at once, then let them answer the same headline.
    gr.on(
        [component.change for component in parts.chosen],
        answers.reset,
        inputs=parts.chosen,
        outputs=[parts.banner, parts.cards, parts.words, parts.verdict],
        **QUICK,
    ).then(**again)
    return again


def _chips(dataset: str) -> list[dict[str, Any]]:
    """Caption and visibility of each example button."""
    kinds = [example.kind for example in dataset_examples(dataset)]
    shown = [{"value": kind, "visible": True} for kind in kinds]
    return shown + [{"value": "", "visible": False}] * (CHIPS - len(kinds))
