"""A model from elsewhere beside ours: the form that adds it, and the box that asks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from finsent.entrants.guest import LARGEST_BYTES, LONGEST_SECONDS, Guest
from finsent.entrants.labels import EntrantError
from finsent.ui.parts.markup import notice
from finsent.ui.parts.selectors import QUICK

NEEDS = (
    "Give a folder on the machine that serves this page. It has to hold config.json, the "
    "tokenizer and the weights as *.safetensors, or an ONNX export. Where that machine reaches the "
    "Hugging Face Hub, a model's id (owner/name) does as well. No code of a model is run, and "
    "weights in pickle are refused. In fp32 the weights may have "
    f"{LARGEST_BYTES / 1e9:.0f} GB, and loading may take {LONGEST_SECONDS / 60:.0f} minutes."
)


@dataclass(frozen=True)
class GuestForm:
    """The form's components, for whoever connects them."""

    model: gr.Textbox
    labels: gr.Textbox
    add: gr.Button
    remove: gr.Button
    said: gr.HTML


def draw_guest_form() -> GuestForm:
    """Draws the form inside the current block."""
    gr.HTML(f'<p class="fs-quiet">{NEEDS}</p>')
    with gr.Row(elem_classes="fs-controls"):
        model = gr.Textbox(
            label="Folder or Hub id",
            placeholder="/path/to/model or owner/name",
            elem_id="guest-model",
            min_width=240,
        )
        labels = gr.Textbox(
            label="What its labels are called, if they are not negative, neutral and positive",
            placeholder="negative=LABEL_0,neutral=LABEL_1,positive=LABEL_2",
            elem_id="guest-labels",
            min_width=240,
        )
    with gr.Row(elem_classes="fs-chips"):
        add = gr.Button("Add the model", elem_id="guest-add", min_width=120)
        remove = gr.Button("Remove it", elem_id="guest-remove", min_width=100)
    return GuestForm(model, labels, add, remove, gr.HTML(elem_id="guest-said"))


def add_guest(guest: Guest, model: str | None, labels: str | None) -> str:
    """Loads a model; what to show of that."""
    try:
        return notice("Done.", guest.add(model or "", labels or ""))
    except EntrantError as error:
        said = str(error).replace("--labels ", "the labels ")
        return notice("Not added.", f"{said[:1].upper()}{said[1:]}.", tone="warning")


def remove_guest(guest: Guest) -> str:
    """Forgets the model; what to show of that."""
    guest.remove()
    return notice("Done.", "Only the models of this page answer now.")


def add_guest_box(guest: Guest) -> gr.Checkbox:
    """Draws the box that asks for the model's answers; nobody sees it while there is none."""
    box = gr.Checkbox(**_settings(guest), elem_id="guest-include", min_width=220)
    # The page is drawn once, and a model may have come since.
    gr.on(None, lambda: renewed_box(guest), outputs=box, **QUICK)
    return box


def renewed_box(guest: Guest) -> dict[str, Any]:
    """What the box becomes when a model has come or gone."""
    return dict(gr.update(**_settings(guest)))


def _settings(guest: Guest) -> dict[str, Any]:
    name = guest.name
    return {"label": f"Include {name}", "visible": name is not None, "value": name is not None}
