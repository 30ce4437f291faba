"""Links to what is on screen: ?text=...&tab=... and the runs. The server keeps nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finsent.results.catalog import Catalog
from finsent.ui.parts.headline import MAX_CHARACTERS
from finsent.ui.parts.places import tab_of

_WRITE_ADDRESS = f"""
  const address = new URL(window.location.href);
  const asked = [...(text ?? '')].length <= {MAX_CHARACTERS} ? text : '';
  const written = {{text: asked, backbone, dataset, seed, matched: matched ? '1' : ''}};
  for (const [name, value] of Object.entries(written)) {{
    if (value === null || value === '') address.searchParams.delete(name);
    else address.searchParams.set(name, value);
  }}
  window.history.replaceState(null, '', address);
"""
KEEP_ADDRESS_JS = f"(text, backbone, dataset, seed, matched) => {{{_WRITE_ADDRESS}}}"
COPY_ADDRESS_JS = f"""
async (text, backbone, dataset, seed, matched) => {{{_WRITE_ADDRESS}
  const button = document.getElementById('share');
  const before = button.innerText;
  try {{
    await navigator.clipboard.writeText(address.href);
    button.innerText = 'Link copied';
  }} catch {{
    button.innerText = 'Copy it from the address bar';
  }}
  setTimeout(() => {{ button.innerText = before; }}, 2000);
}}
"""
KEEP_PLACE_JS = "() => window.finsent.placed()"
ASK_LINKED = "ask-linked"
"""Id of a button that nobody sees: pressed for the visitor of a link that brings a text. A chained
server event would run for every visitor and wipe messages that are on screen by then."""
PAGE_OPENED_JS = f"() => window.finsent.opened('{ASK_LINKED}')"
ASKING_JS = "(...asked) => { window.finsent.asking(); return asked; }"
"""Before a headline is asked: what is shown of the one before is dimmed."""


@dataclass(frozen=True)
class Opened:
    """What a link asks for; None where it does not say or asks for what is not here."""

    place: str | None
    """Id of a tab or of a section."""
    text: str
    backbone: str | None
    dataset: str | None
    seed: int | None
    matched: bool


def read_link(query: Mapping[str, str], catalog: Catalog) -> Opened:
    """The query of an address, which anybody may have written: only what exists is believed."""
    backbone = query.get("backbone")
    backbone = backbone if backbone in catalog.backbones() else None
    seed = query.get("seed", "")
    return Opened(
        place=query["tab"] if tab_of(query.get("tab", "")) else None,
        text=query.get("text", ""),
        backbone=backbone,
        dataset=query.get("dataset"),
        seed=int(seed) if seed.isascii() and seed.isdigit() and len(seed) < 10 else None,
        matched=query.get("matched") == "1",
    )


def keep_in_address(event: Any, inputs: Sequence[Any]) -> None:
    """After an event of the Compare tab that succeeded, the address names what was asked."""
    event.success(None, inputs=list(inputs), js=KEEP_ADDRESS_JS, api_visibility="private")


def answered(event: Any) -> None:
    """After an event that asked, what is shown is no longer dimmed, whatever came of it."""
    event.then(None, js="() => window.finsent.answered()", api_visibility="private")
    event.failure(None, js="() => window.finsent.heard()", api_visibility="private")
