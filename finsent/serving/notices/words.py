"""Word lists of the notices, written for this project."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ENGLISH = _words(
    "the of and to for with from by as at is are was were be been has have had will would its it "
    "this that than after before over into amid on an not no new says said up down out off more "
    "less may might could can their his her who what which when how why all but if about"
)
"""Little words by which English is known."""

OTHER_LANGUAGES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "German": _words(
            "der das und ist nicht mit von den dem des ein eine einen einer auf für im zum zur bei "
            "nach aus wird sind hat über unter wegen trotz gewinn umsatz aktie aktien steigt sinkt "
            "fällt stieg prozent mehr weniger jahr quartal verlust erwartet hebt senkt kurs"
        ),
        "French": _words(
            "le les des du une un est et dans pour avec sur par aux ses leur en hausse baisse "
            "bénéfice chiffre ventes résultat perte trimestre année cours actions annonce après "
            "prévisions plus moins que qui cette"
        ),
        "Spanish": _words(
            "el los las del una un y en con por para su sus al que se más menos sube baja cae "
            "beneficio ventas pérdidas acciones trimestre tras ganancias previsiones año eleva"
        ),
        "Italian": _words(
            "il lo gli della delle dei nel nella una un e di con per su che è più meno utile "
            "ricavi perdita trimestre azioni titolo sale scende crolla dopo stime anno alza taglia"
        ),
        "Portuguese": _words(
            "os das dos uma um e do da em com por para seu sua ao não mais lucro receita ações "
            "prejuízo trimestre sobe cai após ano vendas queda alta"
        ),
        "Dutch": _words(
            "het een van en met voor niet op bij naar uit wordt zijn heeft winst omzet verlies "
            "aandeel aandelen stijgt daalt kwartaal jaar procent hoger lager meer minder verwacht"
        ),
        "Swedish": _words(
            "och att det som för med till av är ett en från efter sin sina ökar minskar vinst "
            "omsättning resultat förlust kvartalet utdelning aktien höjer sänker procent stiger"
        ),
        "Finnish": _words(
            "ja on ei että sen oli myös mutta kuin vuoden liikevaihto tulos kasvoi laski osake "
            "voitto tappio prosenttia nousi yhtiö osinko miljoonaa euroa"
        ),
        "Polish": _words(
            "i w z na do nie się że jest po od za dla zysk strata spółka akcje wzrost spadek "
            "kwartale przychody kurs rośnie spada roku procent"
        ),
    }
)
"""Little words and words of results; a word that English has too is no sign of either."""

BUSINESS = _words(
    "accounts acquir acquisition agreement analyst antitrust approv asset auditor backlog bank "
    "bankrupt bearish beat bid billion board bond bonus boss borrow brand broker bull "
    "bullish business buy buyback buyout capex capital cash ceo cfo chairman charge chief client "
    "commodit compan competitor compliance consensus consumer contract corporat cost court "
    "coverage creditor crude cryptocurrenc currenc customer deal dealings debt default deficit "
    "delist deliver demand deposit dividend dollar downgrade earn ebit economy economic employ "
    "employee eps equit estimate etf euro exchange executive expens export factor filing "
    "finance financial fine firm fiscal forecast fraud fund futures gain gdp gold growth guidance "
    "headquarter hedge hold holder holding import income index industr inflation insider insolven "
    "insur interest inventor invest ipo jobs jobless joint labour labor launch lawsuit layoff "
    "lender lend licen liquid listed listing litigation loan long loss losses machinery manag "
    "manufactur margin market merger million mln mortgage nasdaq net notes offer office offering "
    "oil operating operations option order outlook output owner partner patent pay payout payroll "
    "pension percent pct plant pmi portfolio position premarket premium price probe produc "
    "production profit project prosecutor purchas quarter rally rallies rate rating recall "
    "recession recover regulator report results retail return revenue rival sale sales "
    "sector securit sell seller service share shareholder shares short sold spending stake "
    "startup stock stocks strike subsidiar subpoena supplier supply support takeover target tariff "
    "tax technolog trade trader trading treasury turnover underwrit unemployment unit upgrade "
    "upside valuation volume wage warning workers yield yoy"
)
"""Beginnings of words of companies and markets."""

OPENERS = _words(
    "the a an my our your his her their its this that these those she he it we you they i there "
    "here what who how why when where if as in on at by for from with after before once some all "
    "no not every each one two three boil add rain"
)
"""First words that are not the name of a company."""

UP = _words(
    "rise rises rose risen gain gains gained climb climbs climbed jump jumps jumped soar soars "
    "soared surge surges surged rally rallies rallied advance advances advanced grow grows grew "
    "up higher beat beats wins win won profits leaps improves raises lifts"
)
DOWN = _words(
    "fall falls fell fallen lose loses lost drop drops dropped sink sinks sank slumps slumped "
    "plunge plunges plunged slide slides slid tumble tumbles tumbled shrink shrinks shrank down "
    "lower miss misses missed cuts suffers tanks sheds declines declined slips weakens"
)
"""Directions of prices and results."""
