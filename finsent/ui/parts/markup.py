"""Small pieces of HTML and number formats that several tabs share. All text is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from html import escape
from typing import Any

from finsent.data.registry import DATASETS
from finsent.plots.style import ARM_STYLES, GROWTH_SYMBOL, ArmStyle
from finsent.results import text
from finsent.results.catalog import Damage, backbone_title
from finsent.results.runs import EXTERNAL

_LABEL_MARKS = {
    label: mark
    for entry in DATASETS.values()
    if entry.label_marks
    for label, mark in zip(entry.label_names, entry.label_marks, strict=True)
}

_SYMBOLS = {
    "circle": '<circle cx="13" cy="6" r="3.4"/>',
    "diamond": '<path d="M13 1.6 17.4 6 13 10.4 8.6 6Z"/>',
    "square": '<rect x="9.8" y="2.8" width="6.4" height="6.4"/>',
    "triangle-up": '<path d="M13 1.4 17.6 10H8.4Z"/>',
    "hexagon": '<path d="M13 1.8 16.6 3.9v4.2L13 10.2 9.4 8.1V3.9Z"/>',
    "cross": '<path d="M11.4 2h3.2v2.4H17v3.2h-2.4V10h-3.2V7.6H9V4.4h2.4z"/>',
    GROWTH_SYMBOL: '<path d="m13 0 1.6 4.1 4.4.2-3.4 2.8 1.1 4.3-3.7-2.4-3.7 2.4 1.1-4.3L7 4.3'
    'l4.4-.2z"/>',
}


def html(template: str, **values: Any) -> str:
    """A template of this package, which escapes what it is given. Raises as `render` does."""
    return text.render(
        "finsent.ui",
        f"{template}.html.j2",
        swatch=lambda arm: text.safe(swatch(arm)),
        arm_title=arm_title,
        arm_colour=lambda arm: ARM_STYLES[arm].colour if arm in ARM_STYLES else "currentColor",
        interval=percent_interval,
        share=percent,
        **values,
    ).strip()


def arm_title(arm: str) -> str:
    """An arm's name for people; one that has no style goes by its own."""
    if arm == EXTERNAL:
        return "From elsewhere"
    return ARM_STYLES[arm].title if arm in ARM_STYLES else backbone_title(arm)


def label_mark(label: str) -> str:
    """A shape that says the label without colour; the label's name always stands beside it."""
    return _LABEL_MARKS.get(label, "■")


def percent(value: float, digits: int = 1) -> str:
    """0.9714 as `97.1 %`, with a narrow no-break space."""
    return f"{text.percent(value, digits)}\u202f%"


def percent_interval(bounds: Sequence[float]) -> str:
    """A 95 % interval of a share, `95.0 to 98.5`, in percent."""
    low, high = bounds
    return f"{100 * low:.1f} to {100 * high:.1f}"


signed = partial(text.signed, minus=text.MINUS)
"""A difference with one digit, its sign a true minus."""


def milliseconds(value: float) -> str:
    """Three figures are all that a timing is worth."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}\u202fms"


_PLAIN = (
    ("OpenVINO bf16", "OpenVINO in half precision (bf16)"),
    ("OpenVINO int8", "OpenVINO in 8 bits (int8)"),
    ("close calls fp32", "close answers again in full precision (fp32)"),
)


def plain_device(name: str) -> str:
    """What computes, as files name it, for people who do not know number formats by their names."""
    for term, said in _PLAIN:
        name = name.replace(term, said)
    return name


def sentence(remark: str, stop: str = ".") -> str:
    """A stored remark as a sentence for visitors: capital first, full stop last, typographic signs,
    and plain names for what the files call otherwise."""
    said = remark[:1].upper() + remark[1:] + ("" if remark.endswith(".") else stop)
    said = said.replace("sign-flip p", "p").replace(" seeds", " training runs")
    said = re.sub(r"(?<![\d.])\d{4,}(?![\d.]\d)", lambda number: f"{int(number[0]):,}", said)
    # A hyphen before a digit after a space is a minus; " x " stands for times.
    return re.sub(r"(?<= )-(?=\d)", text.MINUS, said).replace(" x ", " \u00d7 ")


def swatch(arm: str, symbol: str | None = None, style: ArmStyle | None = None) -> str:
    """The arm's line and symbol as in the charts; decorative, its name stands beside it.

    Nothing for what has no style: models of others, unless one is given.
    """
    style = style or ARM_STYLES.get(arm)
    if style is None:
        return ""
    line = "" if symbol else '<path d="M0 6h26" stroke-width="2.4"/>'
    return (
        f'<svg class="fs-swatch" viewBox="0 0 26 12" aria-hidden="true" fill="{style.colour}" '
        f'stroke="{style.colour}" stroke-width="0">{line}{_SYMBOLS[symbol or style.symbol]}</svg>'
    )


def arms_legend(arms: Iterable[str], note: str = "") -> str:
    """A chart's legend: symbol and name of each arm, and a remark."""
    items = "".join(f"<li>{swatch(arm)}{escape(ARM_STYLES[arm].title)}</li>" for arm in arms)
    remark = f'<li class="fs-quiet">{escape(note)}</li>' if note else ""
    return f'<ul class="fs-legend">{items}{remark}</ul>'


def notice(title: str, body: str, *, tone: str = "plain") -> str:
    """A boxed message. tone: `plain` or `warning`. Both texts are escaped."""
    return (
        f'<div class="fs-notice" data-tone="{escape(tone)}" role="note">'
        f"<strong>{escape(title)}</strong> {escape(body)}</div>"
    )


def left_out(damaged: Sequence[Damage]) -> str:
    """Which parts of the artifacts the page does without, each with its reason."""
    if not damaged:
        return ""
    items = "".join(f"<li>{escape(damage.reason)}</li>" for damage in damaged)
    return (
        '<div class="fs-notice" data-tone="warning" role="note"><strong>Left out for damage.'
        "</strong> What else is here is served. If a run below has a row on the board, the row "
        "shows what was recorded before the damage. <code>finsent verify</code> checks everything."
        f"<ul>{items}</ul></div>"
    )


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str,
    numeric: Iterable[int] = (),
    css_class: str = "",
) -> str:
    """A table that scrolls inside its own box. Cells are HTML: the caller escapes what is text.

    numeric: positions of right-aligned columns. The first cell of a row is its header.
    """
    right = set(numeric)

    def style(column: int) -> str:
        return ' class="fs-num"' if column in right else ""

    head = "".join(f'<th scope="col"{style(i)}>{header}</th>' for i, header in enumerate(headers))
    body, last = "", None
    for row in rows:
        # Rows that share their header belong together.
        group, last = ("" if row[0] == last else ' class="fs-first"'), row[0]
        first = f'<th scope="row"{style(0)}>{row[0]}</th>'
        rest = "".join(f"<td{style(i)}>{cell}</td>" for i, cell in enumerate(row[1:], start=1))
        body += f"<tr{group}>{first}{rest}</tr>"
    # A scrolling box must be reachable by keyboard, hence tabindex and a name.
    return (
        f'<div class="fs-table {escape(css_class)}" tabindex="0" role="region" '
        f'aria-label="{escape(caption)}"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
