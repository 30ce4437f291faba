"""Clicks inside a piece of HTML, told to Python.

A button with `data-send="…"` inside an `interactive_html` component triggers its `click` event;
`sent(event)` is what it carried. The buttons are ordinary ones, so the keyboard works them too.
"""

from __future__ import annotations

import gradio as gr

_SEND_JS = """
element.addEventListener('click', (event) => {
  // A heading sorts wherever it is hit, not on its words alone.
  const button = event.target.closest('button[data-send]')
    ?? event.target.closest('th')?.querySelector('button.fs-sort[data-send]');
  if (button) { trigger('click', {sent: button.dataset.send}); }
});
"""


def interactive_html(value: str, elem_id: str) -> gr.HTML:
    """HTML whose `button[data-send]` elements trigger the component's `click` event."""
    return gr.HTML(value, elem_id=elem_id, js_on_load=_SEND_JS)


def sent(event: gr.EventData) -> str:
    """The `data-send` of the button that was clicked; empty for a click that carried none."""
    return str(getattr(event, "sent", ""))
