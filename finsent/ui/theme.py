"""How the page looks: ink on paper, colour for arms only, the system's own fonts."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr

from finsent.ui.parts.places import TABS

CSS_FILES = [Path(__file__).with_name(name) for name in ("page.css", "evidence.css")]

PAPER, PAPER_DARK = "#faf9f6", "#131518"
SURFACE, SURFACE_DARK = "#ffffff", "#1a1d21"
INK, INK_DARK = "#1c2026", "#eceae5"
QUIET, QUIET_DARK = "#5b6270", "#a3a9b4"
LINE, LINE_DARK = "#e3e0d9", "#2e3238"
FIELD_LINE, FIELD_LINE_DARK = "#8f929a", "#666c77"
"""Borders of inputs: 3:1 against the paper, which hairlines are not."""

THEME_TOGGLE_JS = """
() => {
  const dark = document.body.classList.toggle('dark');
  document.documentElement.style.colorScheme = dark ? 'dark' : 'light';
}
"""

STILL_FRAMES, LONGEST_HIDDEN_MS = 6, 15_000
"""Frames in which nothing moves before a page that opens is seen, and how long that is waited
for."""

_PLACES = {section: name for name, tab in TABS.items() for section in tab.sections}
PAGE_JS = (
    Path(__file__)
    .with_name("page.js")
    .read_text(encoding="utf-8")
    .replace("TABS_JSON", json.dumps(_PLACES))
)
"""Run once when the page is there; what events call is in `window.finsent`."""
HEAD = f"""<style>html.fs-early body > * {{ opacity: 0; }}</style>
<script>
(() => {{
  // gradio puts a page together piece by piece; it is seen once nothing moves any more.
  const root = document.documentElement;
  root.classList.add('fs-early');
  let placed = '', still = 0;
  const look = () => {{
    const panel = [...document.querySelectorAll('[role=tabpanel]')].findLast((p) => p.offsetHeight);
    const tops = [panel, document.querySelector('#answer')].map(
      (part) => Math.round(part?.getBoundingClientRect().top ?? 0));
    const now = window.finsent && panel ? `${{tops}} ${{document.body.scrollHeight}}` : '';
    still = now && now === placed ? still + 1 : 0;
    placed = now;
    if (still < {STILL_FRAMES} && performance.now() < {LONGEST_HIDDEN_MS}) {{
      requestAnimationFrame(look);
    }} else {{
      root.classList.remove('fs-early');
    }}
  }};
  look();
  const asked = new URL(location.href).searchParams.get('tab') ?? 'try';
  document.documentElement.dataset.tab = ({json.dumps(_PLACES)})[asked] ?? asked;
  document.documentElement.dataset.place = asked;
  // On a slow line the box is there seconds before anything listens to it.
  const early = (button) => {{
    if (button && !window.finsentOpened) window.finsentEarly = button;
  }};
  document.addEventListener('keydown', (event) => {{
    const asks = event.key === 'Enter' && !event.shiftKey && !event.isComposing;
    if (asks && event.target.closest('#headline')) early(document.getElementById('compare'));
  }}, true);
  document.addEventListener('click', (event) => {{
    if (event.isTrusted) early(event.target.closest('#compare, .fs-examples button'));
  }}, true);
}})();
</script>"""
"""Hides the page until its parts are in their places. Says which tab opens before it is drawn,
for off the first one the head is a single line. Notes what was asked before the page listens; it is
asked again once it does."""


_PAGE = {
    "body_background_fill": PAPER,
    "body_background_fill_dark": PAPER_DARK,
    "body_text_color": INK,
    "body_text_color_dark": INK_DARK,
    "body_text_color_subdued": QUIET,
    "body_text_color_subdued_dark": QUIET_DARK,
    "background_fill_primary": SURFACE,
    "background_fill_primary_dark": SURFACE_DARK,
    "background_fill_secondary": PAPER,
    "background_fill_secondary_dark": PAPER_DARK,
    "border_color_primary": LINE,
    "border_color_primary_dark": LINE_DARK,
    "border_color_accent": INK,
    "border_color_accent_dark": INK_DARK,
    "color_accent": INK,
    "color_accent_soft": LINE,
    "color_accent_soft_dark": LINE_DARK,
    "link_text_color": INK,
    "link_text_color_dark": INK_DARK,
    "link_text_color_hover": QUIET,
    "link_text_color_hover_dark": QUIET_DARK,
    "link_text_color_visited": INK,
    "link_text_color_visited_dark": INK_DARK,
    "link_text_color_active": INK,
    "link_text_color_active_dark": INK_DARK,
}
"""Paper, ink, hairlines and links."""

_BLOCKS = {
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "block_border_width": "0px",
    "block_shadow": "none",
    "block_padding": "0px",
    "block_title_text_weight": "700",
    "block_title_text_size": "*text_sm",
    "block_title_text_color": INK,
    "block_title_text_color_dark": INK_DARK,
    "block_info_text_color": QUIET,
    "block_info_text_color_dark": QUIET_DARK,
    "block_label_text_color": QUIET,
    "block_label_text_color_dark": QUIET_DARK,
}
"""Components stand on the paper itself, without boxes of their own."""

_INPUTS = {
    "input_background_fill": SURFACE,
    "input_background_fill_dark": SURFACE_DARK,
    "input_border_color": FIELD_LINE,
    "input_border_color_dark": FIELD_LINE_DARK,
    "input_border_color_focus": INK,
    "input_border_color_focus_dark": INK_DARK,
    "input_border_width": "1px",
    "input_shadow": "none",
    "input_shadow_focus": "none",
    "input_placeholder_color": QUIET,
    "input_placeholder_color_dark": QUIET_DARK,
    "checkbox_background_color": SURFACE,
    "checkbox_background_color_dark": SURFACE_DARK,
    # Gradio's tick is white in both modes, and blue would mean an arm.
    "checkbox_background_color_selected": INK,
    "checkbox_background_color_selected_dark": FIELD_LINE_DARK,
    "checkbox_border_color": FIELD_LINE,
    "checkbox_border_color_dark": FIELD_LINE_DARK,
    "checkbox_border_color_focus_dark": INK_DARK,
    "checkbox_border_color_selected": INK,
    "checkbox_border_color_selected_dark": FIELD_LINE_DARK,
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_background_fill_dark": "transparent",
    "checkbox_label_background_fill_hover": "transparent",
    "checkbox_label_background_fill_hover_dark": "transparent",
    "checkbox_label_background_fill_selected": "transparent",
    "checkbox_label_background_fill_selected_dark": "transparent",
    "checkbox_label_border_width": "0px",
    "checkbox_label_border_width_dark": "0px",
    "checkbox_label_text_color_selected": INK,
    "checkbox_label_text_color_selected_dark": INK_DARK,
    "checkbox_label_padding": "6px 10px 6px 0",
    "checkbox_label_shadow": "none",
    "checkbox_shadow": "none",
}
"""Fields and boxes to tick."""

_BUTTONS = {
    "button_primary_background_fill": INK,
    "button_primary_background_fill_dark": INK_DARK,
    "button_primary_background_fill_hover": "#3a404a",
    "button_primary_background_fill_hover_dark": "#c9c6bf",
    "button_primary_border_color": INK,
    "button_primary_border_color_dark": INK_DARK,
    "button_primary_text_color": "#ffffff",
    "button_primary_text_color_dark": PAPER_DARK,
    "button_secondary_background_fill": "transparent",
    "button_secondary_background_fill_dark": "transparent",
    "button_secondary_background_fill_hover": LINE,
    "button_secondary_background_fill_hover_dark": LINE_DARK,
    "button_secondary_border_color": FIELD_LINE,
    "button_secondary_border_color_dark": FIELD_LINE_DARK,
    "button_secondary_text_color": INK,
    "button_secondary_text_color_dark": INK_DARK,
    "button_border_width": "1px",
}
"""Flat buttons; the one that acts is ink-coloured."""

_TABLES = {
    "table_border_color": LINE,
    "table_border_color_dark": LINE_DARK,
    "table_even_background_fill": SURFACE,
    "table_even_background_fill_dark": SURFACE_DARK,
    "table_odd_background_fill": SURFACE,
    "table_odd_background_fill_dark": SURFACE_DARK,
    "code_background_fill": LINE,
    "code_background_fill_dark": LINE_DARK,
    "loader_color": INK,
    "loader_color_dark": INK_DARK,
}
"""Tables, code and what turns while one waits."""


def make_theme() -> gr.themes.Base:
    """The gradio theme: neutral surfaces, flat controls, ink-coloured actions."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.slate,
        secondary_hue=gr.themes.colors.slate,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_sm,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    ).set(**_PAGE, **_BLOCKS, **_INPUTS, **_BUTTONS, **_TABLES)
