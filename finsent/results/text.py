"""How numbers are written, and the templates of pages that show them.

A template holds the prose and the structure of a page; Python hands it values. A name that a
template asks for and nobody gave is an error (`StrictUndefined`), not an empty place.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.filters import do_mark_safe

NONE = "–"
"""Stands where there is no figure."""
MINUS = "\N{MINUS SIGN}"


def percent(share: float | None, digits: int = 2) -> str:
    """0.9714 as `97.14`: the heading says that it is in percent."""
    return fixed(None if share is None else 100 * share, digits)


def points(difference: float | None, digits: int = 2) -> str:
    """A difference of shares, 0.0123 as `+1.23` percentage points."""
    return signed(None if difference is None else 100 * difference, digits)


def signed(value: float | None, digits: int | None = 1, *, minus: str = "-") -> str:
    """With its sign; what rounds to zero has none.

    digits: behind the point (None: as many as it takes). minus: `MINUS` where people read it, a
    hyphen in files and Markdown, which are searched and copied.
    """
    if value is None:
        return NONE
    shown = f"{value:+g}" if digits is None else f"{value:+.{digits}f}"
    return (shown if float(shown) else shown[1:]).replace("-", minus)


def fixed(value: float | None, digits: int) -> str:
    """With so many digits behind the point."""
    return NONE if value is None else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """A mean of counts as a whole number with thousands apart."""
    return NONE if value is None else f"{round(value):,}"


def seconds(value: float) -> str:
    """Two figures: a share of a stack's time is worth no more."""
    if value < 0.01:
        return "under 0.01"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


@cache
def _templates(package: str) -> Environment:
    environment = Environment(
        loader=PackageLoader(package),
        undefined=StrictUndefined,
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for written in (percent, points, signed, fixed, count, seconds):
        environment.filters[written.__name__] = written
    return environment


def safe(html: str) -> str:
    """HTML that a template takes as it is: whoever made it has escaped what was text."""
    return do_mark_safe(html)


def render(package: str, template: str, **values: Any) -> str:
    """A template from a package's folder `templates`; `*.html.j2` are HTML and escape values.

    However many blank lines a template leaves, the page has one. Raises jinja2.UndefinedError for
    a value that the template names and `values` lacks.
    """
    text = _templates(package).get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"
