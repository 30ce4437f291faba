"""Notices of what the models were not made for: found where they belong, silent on plain news."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from finsent.behaviour.suite import load_suite
from finsent.data.registry import DATASETS
from finsent.serving.notices import notices

FOREIGN = [
    "Der Gewinn stieg um 20 Prozent.",
    "Tarnfield hebt die Prognose für das Jahr an",
    "Aktie von Corvane fällt nach Gewinnwarnung und Verlust",
    "Le bénéfice de Tarnfield est en hausse au premier trimestre",
    "Les ventes du groupe ont reculé dans une année difficile",
    "El beneficio de Corvane cae en el tercer trimestre",
    "Las acciones suben tras los resultados del banco",
    "L'utile della società è sceso nel trimestre",
    "I ricavi di Pellumex sono più alti delle stime",
    "O lucro da empresa não cresceu em um ano de queda",
    "De winst van Hedrow stijgt met tien procent",
    "Vinsten ökar och utdelning höjs efter ett starkt kvartal",
    "Yhtiö ei maksa osinko vuoden jälkeen, tulos laski",
    "Zysk spółki w trzecim kwartale nie wzrósł, strata na akcje",
    "Прибыль компании выросла на 12 процентов",
    "宣布下调全年业绩预期",
    "トヨタの利益が増加",
    "ارتفعت أرباح الشركة في الربع الثالث",
]
ENGLISH = [
    "Société de Vellmark raises its outlook for the year",
    "Le Pellumex Group beats estimates",
    "Das Haus der Mode AG shares fall on a profit warning",
    "El Corvane to cut jobs in Madrid",
    "Tarnfield profit up 5%",
    "$TRNF",
    "Lindqvarn och Hedrow merge",
]
NOT_NEWS = [
    "The lighthouse keeper fed the cat before breakfast",
    "My neighbour's roses are in bloom again",
    "Boil the pasta for nine minutes and add salt",
    "She read the novel twice and lent it to her brother",
    "the hiking path ends at a small wooden chapel",
    "What a lovely evening",
    "hello there",
    "I love this song so much",
]
CUT = [
    "Tarnfield lifts its outlook as demand for…",
    "Corvane shares fall after the...",
    "Pellumex to buy rival for 3 billion dollars, subject to",
    "Shares of Vellmark jumped on news of the",
    "Hedrow sees profit of (",
    "Quaylor profit falls,",
]
APART = [
    "Tarnfield rises while Corvane falls",
    "Pellumex soars, Vellmark sinks",
    "Shares in Hedrow slid, but Quaylor gained",
    "Tarnfield takes the rail order from Corvane",
    "Court: Brisenta wins patent case against Dunbury",
    "Vellmark loses its largest client to Ollermoor",
    "Lindqvarn overtakes Hedrow in market value",
]
ORDINARY = [
    "Tarnfield profit rises 5 percent in the third quarter",
    "Sales rose while costs fell",
    "Corvane beats estimates, raises outlook",
    "PELLUMEX SHARES PLUNGE ON PROFIT WARNING",
    "Vellmark tanks in early dealings",
    "Hedrow files for bankruptcy",
    "Quaylor wakes up",
    "$TRNF breaking out",
    "Tarnfield rises after a fall in costs",
    "Brisenta wins an order from the city",
    "Ollermoor loses a lawsuit",
    "Dunbury to publish its report on 4 May.",
    "Jobless claims drop to the lowest level in fifty years",
    "Corvane gains, its rivals wait",
    "Vellmark wins an order from Mexico",
    "Traders await the Fed",
]


def kinds(text: str) -> list[str]:
    return [notice.kind for notice in notices(text)]


@pytest.mark.parametrize("text", FOREIGN)
def test_other_languages_are_noticed_and_nothing_else_is_said(text: str) -> None:
    assert kinds(text) == ["language"]


@pytest.mark.parametrize("text", [*ENGLISH, *ORDINARY])
def test_ordinary_news_has_no_notice(text: str) -> None:
    assert kinds(text) == []


@pytest.mark.parametrize("text", NOT_NEWS)
def test_texts_without_company_or_market_are_noticed(text: str) -> None:
    assert kinds(text) == ["content"]


@pytest.mark.parametrize("text", CUT)
def test_cut_texts_are_noticed(text: str) -> None:
    assert kinds(text) == ["cut"]


@pytest.mark.parametrize("text", APART)
def test_companies_in_opposite_directions_are_noticed(text: str) -> None:
    assert kinds(text) == ["directions"]


def test_a_message_names_the_language() -> None:
    (notice,) = notices("Der Gewinn ist im Quartal gestiegen")
    assert "German" in notice.message


@pytest.mark.parametrize("text", ["", "   ", "123", "🙂", "https://example.org"])
def test_nothing_to_read_is_no_error(text: str) -> None:
    assert set(kinds(text)) <= {"content"}


def share_with(texts: Sequence[str], kind: str) -> float:
    return sum(kind in kinds(text) for text in texts) / len(texts)


def test_the_behaviour_suite_is_ordinary_where_it_is_about_companies() -> None:
    cases = [case for case in load_suite().cases if case.kind == "label"]
    news = [case.texts[0] for case in cases if not case.notice_counts]
    assert share_with(news, "content") <= 0.01
    assert share_with(news, "language") == 0
    assert share_with(news, "directions") <= 0.01


def test_real_news_is_seldom_noticed(real_data: Path) -> None:
    for name in ("50agree", "twitter", "fiqa"):
        texts = [record.text for record in DATASETS[name].loader(real_data)]
        assert share_with(texts, "language") <= 0.005, name
        assert share_with(texts, "content") <= 0.04, name
        assert share_with(texts, "directions") <= 0.01, name
