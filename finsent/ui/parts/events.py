"""Clicks inside a piece of HTML, told to Python, and which listener to an event may wait.

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


WAITS, AT_ONCE = "always_last", "multiple"
"""gradio's names for a listener that is called again once its last call ended, and for one whose
calls may overlap."""


def let_one_listener_wait(demo: gr.Blocks) -> None:
    """Leaves at most one listener to every event that waits for its turn.

    When a listener that had to wait is done, gradio's page (6.31) does not call that listener again
    but sends the whole event once more. Two that wait for each other would do so for ever, a dozen
    requests a second. One that runs in the queue goes first: it takes longest.
    """
    listeners = sorted(demo.fns.items(), key=lambda item: (not item[1].queue, item[0]))
    taken: set[tuple[int, str]] = set()
    for _, listener in listeners:
        if listener.trigger_mode != WAITS:
            continue
        events = {(source, name) for source, name in listener.targets if source is not None}
        if events & taken:
            listener.trigger_mode = AT_ONCE
        else:
            taken |= events
