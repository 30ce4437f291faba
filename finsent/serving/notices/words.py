"""What is a word, and the word lists of the notices, written for this project."""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
ADDRESS = re.compile(r"(?:https?://|www\.)\S+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without web addresses."""
    return [word.lower() for word in WORD.findall(ADDRESS.sub(" ", text))]


BUSINESS = _words(
    "accounts acquir acquisition agm agreement analyst antitrust appeal approv asset auditor "
    "backlog bank bankrupt bearish beat bid billion board bond bonus boss borrow brand broker bull "
    "bullish business buy buyback buyout capex capital cash ceo cfo chairman charge chief client "
    "commodit compan competitor compliance consensus consumer contract corporat cost court "
    "coverage creditor crude cryptocurrenc currenc customer deal dealings debt default deficit "
    "delist deliver demand deposit dividend dollar downgrade earn ebit economy economic employ "
    "employee eps equit estimate etf euro exchange executive expens export factor filing finance "
    "financial fine firm fiscal forecast fraud fund futures gain gdp gold growth guidance drug "
    "headquarter hedge hold holder holding import income index industr inflation insider insolven "
    "insur interest inventor invest ipo jobs jobless joint labour labor launch lawsuit layoff "
    "lender lend licen liquid listed listing litigation loan long loss losses machinery manag "
    "manufactur margin market merger million mln money mortgage nasdaq net notes offer office "
    "offering oil operating operations option order outlook output owner partner patent pay "
    "payout payroll pension percent pct plant pmi portfolio position premarket premium price "
    "probe produc production profit project prosecutor purchas quarter rally rallies rate rating "
    "recall recession recover regulator report results retail return revenue rival ruling sale "
    "sales sector securit sell seller service share shareholder shares short sold spending stake "
    "startup stock stocks strike subsidiar subpoena supplier supply support takeover target "
    "tariff tax technolog trade trader trading treasury turnover underwrit unemployment unit "
    "upgrade upside valuation volume wage warning workers yield yoy"
)
"""Beginnings of words of companies and markets."""

EVERYDAY = _words(
    "appeal asset beat bid board bonus boss brand bull buy capital cash charge chief client "
    "contract cost court customer deal deliver deposit drug employ expens export factor fine "
    "finish firm fund gain gold growth hold holder holding import index industr input interest "
    "jobs joint labour labor launch licen list long loss manag market money net notes offer "
    "office oil operations option order output owner partner patent pay pension plant position "
    "price probe produc product project purchas quarter rate rating recall recover regulator "
    "report results retail return rival sale sales sector securit sell service share short sold "
    "spending stake stock strike supplies support target tax technolog trade unit upgrade volume "
    "wage warning workers yield"
)
"""Those of BUSINESS that everyday talk has too."""

PERSONAL = _words(
    "i i'm i've me my mine myself you your yours she her hers he him himself let please lol "
    "thanks mum dad"
)
"""Words by which a person speaks of himself or to another."""

SPORT = _words(
    "goalkeeper striker strikers midfielder quarterback batsman wicket wickets innings touchdown "
    "touchdowns semifinal semifinals semi-final semi-finals quarterfinal quarterfinals playoffs "
    "hat-trick kick-off halftime half-time headers goalless equaliser equalizer knockout relegated "
    "relegation"
)
"""Words that only matches have."""

CALENDAR = _words(
    "monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays "
    "thursdays fridays saturdays sundays january february march april may june july august "
    "september october november december christmas easter god english"
)
"""Words with a capital that name no company."""

ENDS_NOTHING = _words(
    "the a an of and or to with by from at its their his her our than as that which whose while "
    "whereas because although if into amid among against between during until via per nearly "
    "almost be has have had will would could should might must worth expects said"
)
"""Words that end no sentence; those that end a verb, as "off" in "pays off", are not among them."""

POLICY = _words(
    "fed federal ecb boe boj congress parliament senate trump biden white opec eu us u.s uk china "
    "japan europe germany france america wall street dow nasdaq nikkei ftse dax s&p"
)
"""Names of those who move markets, and of indices: their ways up and down are no company's."""

OPENERS = _words(
    "the a an my our your his her their its this that these those she he it we you they i there "
    "here what who how why where if as in on at by for from with after before once some all no "
    "not every each one two three boil add rain although though despite because since while "
    "whereas both more most less many few until when between during under over about"
)
"""First words that are not the name of a company."""

UP = _words(
    "rise rises rose risen gain gains gained climb climbs climbed jump jumps jumped soar soars "
    "soared surge surges surged rally rallies rallied advance advances advanced grow grows grew "
    "up higher beat beats wins win won profits leaps improves raises lifts adds attracts doubles "
    "rebounds upgrade upgraded upgrades rally"
)
DOWN = _words(
    "fall falls fell fallen lose loses lost drop drops dropped sink sinks sank slumps slumped "
    "plunge plunges plunged slide slides slid tumble tumbles tumbled shrink shrinks shrank down "
    "lower miss misses missed cuts suffers tanks sheds declines declined slips weakens "
    "disappoints loss slashes downgrade downgraded downgrades crashes"
)
"""Directions of prices and results."""
