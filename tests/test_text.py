"""Numbers are written one way, and a template that lacks a value says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from finsent.results import text


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with two templates of the same words."""
    folder = tmp_path / "pages_of_a_test"
    (folder / "templates").mkdir(parents=True)
    (folder / "__init__.py").touch()
    for name in ("page.md.j2", "page.html.j2"):
        (folder / "templates" / name).write_text(
            "{% if wide %}\n\n\n\n{% endif %}\n{{ share|percent }}\n\n\n\n{{ word }}\n\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, folder.name, raising=False)
    return folder.name


def test_a_page_has_single_blank_lines_and_only_html_is_escaped(package: str) -> None:
    values = {"share": 0.5, "word": "<b>"}
    assert text.render(package, "page.md.j2", wide=True, **values) == "50.00\n\n<b>\n"
    assert text.render(package, "page.html.j2", wide=False, **values) == "50.00\n\n&lt;b&gt;\n"


def test_a_value_that_nobody_gave_is_an_error(package: str) -> None:
    with pytest.raises(UndefinedError, match="'word' is undefined"):
        text.render(package, "page.md.j2", wide=False, share=0.5)


def test_numbers() -> None:
    assert [text.signed(v) for v in (0.04, -0.04, 0.06, -0.06)] == ["0.0", "0.0", "+0.1", "-0.1"]
    assert [text.signed(v, None, minus=text.MINUS) for v in (-0.5, 0.0, 1.0)] == [
        "\N{MINUS SIGN}0.5", "0", "+1",
    ]  # fmt: skip
    assert (text.points(-0.0123), text.percent(0.9714, 1)) == ("-1.23", "97.1")
    assert [text.seconds(v) for v in (0.001, 0.123, 1.26, 12.6)] == [
        "under 0.01", "0.12", "1.3", "13",
    ]  # fmt: skip
    missing = (text.signed(None), text.points(None), text.percent(None), text.count(None))
    assert {*missing, text.fixed(None, 2)} == {text.NONE}
