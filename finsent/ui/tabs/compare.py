"""One headline: both models' answer to it, first of all."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from finsent.data.registry import DATASETS
from finsent.entrants.guest import Guest
from finsent.results.catalog import (
    Catalog,
    Selection,
    backbone_title,
    dataset_examples,
    dataset_title,
)
from finsent.results.disagreements import Found, read_found
from finsent.results.schema import ArtifactError
from finsent.serving.service import ModelService, ServiceError
from finsent.ui.parts.answer import answered_html, problem_html, waiting_html
from finsent.ui.parts.headline import MAX_ARTICLE_CHARACTERS, text_problem
from finsent.ui.parts.markup import notice
from finsent.ui.parts.opening import Opening
from finsent.ui.parts.selectors import (
    QUICK,
    RunSelectors,
    add_matched_box,
    add_run_selectors,
    add_size_switch,
)
from finsent.ui.parts.share import ASKING_JS, COPY_ADDRESS_JS, answered, keep_in_address
from finsent.ui.parts.words import explain_words, words_html
from finsent.ui.tabs.guest import (
    GuestForm,
    add_guest,
    add_guest_box,
    draw_guest_form,
    remove_guest,
    renewed_box,
)
from finsent.ui.tabs.recorded import RECORDED_HINT, add_recorded

MODEL_QUEUE = "model"
VISITORS_AT_ONCE = 64
"""Who waits, waits for the model inside the service, which measures it; gradio's own queue would
hide the wait. Model times stay clean: the model answers one question at a time."""
POLL_SECONDS = 0.5
NOTHING_HERE = (
    "This page compares trained models, and there are none yet. It opens by itself as soon as the "
    "first are finished."
)
Waiting = dict[str, list[str]]
_log = logging.getLogger(__name__)
CHIPS = max(len(entry.examples) for entry in DATASETS.values())


@dataclass(frozen=True)
class CompareTab:
    """What the page needs of the section to open it on a link."""

    selectors: RunSelectors
    text: gr.Textbox
    matched: gr.Checkbox
    opening: Opening
    ask_linked: Mapping[str, Any]
    """Arguments of an event that answers the text in the box, if it can be answered."""


@dataclass(frozen=True)
class _Parts:
    """The section's components."""

    text: gr.Textbox
    button: gr.Button
    chips: list[gr.Button]
    disagree: gr.Button
    none_found: gr.HTML
    """Stands for the button where there is nothing behind it."""
    guess: gr.Checkbox
    answer: gr.HTML
    explain: gr.Button
    link: gr.Button
    words: gr.HTML
    selectors: RunSelectors
    matched: gr.Checkbox
    guest: gr.Checkbox
    form: GuestForm | None
    """None where visitors may not add a model."""

    @property
    def chosen(self) -> list[Any]:
        """What says which runs answer."""
        return [*self.selectors.components, self.matched]


def add_compare_tab(
    catalog: Catalog, service: ModelService, guest: Guest, *, open_to_visitors: bool
) -> CompareTab | None:
    """Draws the section inside the current gr.Tab; None when there are no runs.

    guest: the model from elsewhere that answers too. open_to_visitors: whether they may choose it.
    """
    if not catalog.runs:
        gr.HTML(notice("Nothing trained yet.", NOTHING_HERE, tone="warning"))
        return None
    opening = Opening(catalog, service)
    parts = _draw(catalog, opening, guest, open_to_visitors)
    again = _connect(parts, _Answers(catalog, service, guest))
    _connect_guest(parts, guest, again)
    return CompareTab(parts.selectors, parts.text, parts.matched, opening, again)


def _draw(catalog: Catalog, opening: Opening, guest: Guest, open_to_visitors: bool) -> _Parts:
    first = opening.selection
    with gr.Row(elem_classes="fs-ask", equal_height=False):
        text = gr.Textbox(
            value=opening.text,
            label="Headline",
            placeholder="Type or paste a financial headline, then press Enter",
            lines=1,
            max_lines=6,
            autofocus=True,
            elem_id="headline",
            scale=8,
        )
        button = gr.Button("Compare", variant="primary", elem_id="compare", scale=1, min_width=96)
    with gr.Row(elem_classes="fs-chips fs-examples"):
        disagree = gr.Button(
            "A headline where they disagree",
            size="sm",
            elem_classes="fs-chip",
            elem_id="disagree",
            min_width=0,
            visible=_found(catalog, first) is not None,
        )
        none_found = gr.HTML(none_found_html(catalog, first), elem_id="none-found")
        guess = gr.Checkbox(label="Guess first", elem_id="guess", min_width=0, container=False)
        chips = [
            gr.Button(**settings, size="sm", elem_classes="fs-chip", min_width=0)
            for settings in _chips(first.dataset)
        ]
    answer = gr.HTML(opening.html(), elem_id="answer")
    with gr.Row(elem_classes="fs-chips"):
        explain = gr.Button("Which words mattered?", size="sm", elem_id="explain", min_width=0)
        link = gr.Button("Copy link to this comparison", size="sm", elem_id="share", min_width=0)
    words = gr.HTML(elem_id="words")
    gr.HTML("<h2>Models being compared</h2>", elem_id="which")
    with gr.Row(elem_classes="fs-controls"):
        size = add_size_switch(catalog, first)
        selectors = add_run_selectors(catalog, first, size=size)
        matched = add_matched_box(
            catalog,
            selectors,
            first,
            "Include a same-size model without dendrites",
            "matched",
        )
        included = add_guest_box(guest)
    form = None
    if open_to_visitors:
        with gr.Accordion("Add another model", open=False, elem_id="guest-section"):
            form = draw_guest_form()
    add_recorded(catalog, [*selectors.components, matched])
    return _Parts(
        text,
        button,
        chips,
        disagree,
        none_found,
        guess,
        answer,
        explain,
        link,
        words,
        selectors,
        matched,
        included,
        form,
    )


def _found(catalog: Catalog, selection: Selection) -> Found | None:
    """Headlines that these runs were found to disagree on; none where the file is damaged."""
    try:
        return read_found(catalog.root, selection.backbone, selection.dataset, selection.seed)
    except ArtifactError:
        _log.exception("the page does without headlines that the models disagree on")
        return None


def none_found_html(catalog: Catalog, selection: Selection) -> str:
    """Why there is no button for headlines that these runs disagree on, and which ones have some;
    empty where there is the button, or nothing to point to."""
    if _found(catalog, selection) is not None:
        return ""
    searched = [
        f"{backbone_title(backbone)} on {dataset_title(dataset)}"
        for backbone in catalog.backbones()
        for dataset in catalog.datasets(backbone)
        if _found(catalog, catalog.select(backbone, dataset)) is not None
    ]
    if not searched:
        return ""
    return (
        '<p class="fs-quiet">Headlines where they disagree have been searched for '
        f"{escape(' and '.join(searched))} only.</p>"
    )


class _Answers:
    """What the section's events show."""

    def __init__(self, catalog: Catalog, service: ModelService, guest: Guest) -> None:
        self._catalog, self._service, self._guest = catalog, service, guest
        self._random = random.Random()

    def answer(self, value: str, *asked: Any) -> Iterator[tuple[Any, Any]]:
        """Answer and words for a text, and until the model is there what it waits for."""
        yield from self._answer(value, *asked, retry=True)

    def answer_again(self, value: str, *asked: Any) -> Iterator[tuple[Any, Any]]:
        """The same where there is a text that can be answered, else what is shown stays."""
        if text_problem(value, most=MAX_ARTICLE_CHARACTERS) is None:
            yield from self._answer(value, *asked, retry=False)
        else:
            yield gr.skip(), gr.skip()

    def _answer(
        self,
        value: str,
        guess: bool,
        backbone: str,
        dataset: str,
        seed: int,
        with_matched: bool,
        with_guest: bool,
        *,
        retry: bool,
    ) -> Iterator[tuple[Any, Any]]:
        """retry: try to load a base model once more that could not be loaded."""
        catalog, service = self._catalog, self._service
        wanted = catalog.select(backbone, dataset, seed, matched=with_matched)
        problem = text_problem(value, most=MAX_ARTICLE_CHARACTERS)
        if problem is not None:
            # Not by gradio's `validator`: any later event of the page wipes what that one says.
            yield problem_html(problem), ""
            return
        service.start()
        while not service.settled:
            status = service.wait(POLL_SECONDS)
            if not service.settled:
                yield waiting_html(status.message), ""
        try:
            coming, failed, selection = "", "", wanted
            if not service.holds(wanted):
                # Nobody waits for a base model to be fetched: the default answers meanwhile.
                failed = "" if retry else service.second_problem(wanted) or ""
                if not failed:
                    service.bring(wanted)
                coming = wanted.backbone
                # A page opened earlier may not know the runs of a default that came since.
                catalog = service.catalog
                selection = catalog.select(
                    service.default_selection().backbone, dataset, matched=with_matched
                )
            outcome = service.compare(value, selection)
            labels = outcome.result.label_names
            beside = self._guest.answer(value, labels) if with_guest else None
            found = _found(catalog, selection)
            yield (
                answered_html(
                    catalog,
                    outcome,
                    guess=guess,
                    coming=coming,
                    problem=failed,
                    found=found if found is not None and value in found.texts else None,
                    beside=beside,
                ),
                "",
            )
        except ServiceError as error:
            # In the page itself: a message of gradio's is gone after ten seconds.
            yield problem_html(f"{error} {RECORDED_HINT}"), ""
        except ValueError as error:
            yield problem_html(str(error)), ""

    def explanation(
        self, value: str, backbone: str, dataset: str, seed: int, with_matched: bool
    ) -> Iterator[str]:
        """Which words mattered."""
        yield '<p class="fs-quiet">Leaving out each word once …</p>'
        problem = text_problem(value)
        if problem is not None:
            yield problem_html(problem)
            return
        wanted = self._catalog.select(backbone, dataset, seed, matched=with_matched)
        if not self._service.holds(wanted):
            yield problem_html(
                f"{backbone_title(wanted.backbone)} is still being loaded; try again in a moment."
            )
            return
        try:
            found, labels = explain_words(value, wanted, self._catalog, self._service)
        except (ServiceError, ValueError) as error:
            yield problem_html(str(error))
            return
        yield words_html(found, labels)

    def disagreement(
        self, now: str, waiting: Waiting, backbone: str, dataset: str, seed: int
    ) -> tuple[str, Waiting]:
        """Another headline that these runs were found to disagree on, and those to come.

        waiting: runs -> what a visitor has not seen yet. All come before one comes again.
        """
        selection = self._catalog.select(backbone, dataset, seed)
        found = _found(self._catalog, selection)
        if found is None:
            return now, waiting
        key = f"{selection.backbone}/{selection.dataset}/{selection.seed}"
        left = [text for text in waiting.get(key, []) if text in found.texts and text != now]
        left = left or [text for text in found.in_turn(self._random) if text != now]
        return (left[0] if left else now), {**waiting, key: left[1:]}

    def searched(self, backbone: str, dataset: str, seed: int) -> tuple[dict[str, Any], str]:
        """Whether there are such headlines for other runs, and what is said if not."""
        selection = self._catalog.select(backbone, dataset, seed)
        there = _found(self._catalog, selection) is not None
        return dict(gr.update(visible=there)), none_found_html(self._catalog, selection)


def _connect(parts: _Parts, answers: _Answers) -> dict[str, Any]:
    """Connects components and answers; the event that answers the text in the box once more."""
    inputs = [parts.text, *parts.chosen]
    asked: dict[str, Any] = {
        "fn": answers.answer,
        "inputs": [parts.text, parts.guess, *parts.chosen, parts.guest],
        "outputs": [parts.answer, parts.words],
        "concurrency_id": MODEL_QUEUE,
        "concurrency_limit": VISITORS_AT_ONCE,
        "show_progress": "hidden",
        "api_visibility": "private",
        "js": ASKING_JS,
        # Who types on while a headline is being answered is answered the last one.
        "trigger_mode": "always_last",
    }
    again = {**asked, "fn": answers.answer_again}
    events = [gr.on([parts.button.click, parts.text.submit], **asked)]
    for place, chip in enumerate(parts.chips):
        picked = chip.click(
            lambda dataset, place=place: dataset_examples(dataset)[place].text,
            inputs=parts.selectors.dataset,
            outputs=parts.text,
            queue=False,
            api_visibility="private",
        )
        events.append(picked.then(**asked))
    waiting = gr.State({})
    events.append(
        parts.disagree.click(
            answers.disagreement,
            inputs=[parts.text, waiting, *parts.selectors.components],
            outputs=[parts.text, waiting],
            queue=False,
            api_visibility="private",
        ).then(**asked)
    )
    for event in events:
        keep_in_address(event, inputs)
        answered(event)
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
    gr.on(
        [component.change for component in parts.selectors.components],
        answers.searched,
        inputs=parts.selectors.components,
        outputs=[parts.disagree, parts.none_found],
        **QUICK,
    )
    # Other runs answer the same headline.
    changes = [component.change for component in parts.chosen]
    answered(gr.on([*changes, parts.guest.input], **again))
    return again


def _connect_guest(parts: _Parts, guest: Guest, again: Mapping[str, Any]) -> None:
    """A model that comes or goes answers the same headline at once, or no longer does."""
    if parts.form is None:
        return
    for event, act, inputs in (
        (
            parts.form.add.click,
            lambda model, labels: add_guest(guest, model, labels),
            [parts.form.model, parts.form.labels],
        ),
        (parts.form.remove.click, lambda: remove_guest(guest), []),
    ):
        changed = event(
            act,
            inputs=inputs,
            outputs=parts.form.said,
            show_progress="minimal",
            api_visibility="private",
        ).then(lambda: renewed_box(guest), outputs=parts.guest, **QUICK)
        answered(changed.then(**again))


def _chips(dataset: str) -> list[dict[str, Any]]:
    """Caption and visibility of each example button."""
    kinds = [example.kind for example in dataset_examples(dataset)]
    shown = [{"value": kind, "visible": True} for kind in kinds]
    return shown + [{"value": "", "visible": False}] * (CHIPS - len(kinds))
