"""Notices of what the models were not made for: found where they belong, silent on plain news."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pytest

from finsent.behaviour.suite import load_suite
from finsent.data.registry import DATASETS
from finsent.serving.notices import known, notices

FOREIGN = [
    "Der Umsatz sank",
    "Eine Bank verliert Geld",
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
    "Siemens steigert Umsatz und hebt Ausblick an",
    "Bayer-Aktie bricht um acht Prozent ein",
    "Deutsche Bank baut 2000 Stellen ab",
    "VW ruft Autos zurück",
    "Konzern meldet Insolvenz an",
    "Airbus relève ses prévisions annuelles",
    "Le chiffre d'affaires recule de 3%",
    "Renault supprime 1.500 emplois",
    "Carrefour rachète son concurrent",
    "Telefónica recorta su dividendo",
    "El banco gana un 12% más",
    "Iberdrola cierra la compra de su rival",
    "Fiat taglia le stime per l'anno",
    "La banca chiude in perdita",
    "Petrobras anuncia novo dividendo",
    "A empresa registra prejuízo recorde",
    "Philips verlaagt winstverwachting",
    "ING schrapt duizend banen",
    "Ericsson sänker sin prognos",
    "Nokia laskee tulosohjeistustaan",
    "Orlen zwiększa zysk o 20 proc.",
    "Şirketin net kârı yüzde 15 arttı",
    "Novo Nordisk opjusterer forventningerne",
    "Equinor øker utbyttet",
    "Společnost zvýšila zisk",
    "Laba perusahaan naik 12 persen pada kuartal ketiga",
    "Lợi nhuận công ty tăng 12%",
    "Η εταιρεία αύξησε τα κέρδη",
    "삼성전자 영업이익 급증",
    "कंपनी का मुनाफा बढ़ा",
    "החברה העלתה את התחזית",
    "A vállalat nyeresége nőtt",
    "Profitul companiei a crescut cu 10%",
    "DER UMSATZ SINKT IM DRITTEN QUARTAL",
    "Zalando streicht Stellen und senkt Prognose",
    "Umsatz wächst deutlich",
    "Lufthansa fliegt zurück in die Gewinnzone",
    "Danone abaisse ses objectifs",
    "La aerolínea despide a 300 trabajadores",
    "Pierde el banco 40 millones de euros",
    "Enel vende la quota alla rivale",
    "Utili in forte calo",
    "A fabricante corta postos de trabalho",
    "Heineken verkoopt brouwerij",
    "Volvo varslar tusen anställda",
    "Konecranes ostaa kilpailijansa",
    "Bank obniża dywidendę",
    "Maersk nedjusterer igen",
    "Банк снизил прибыль",
    "半導体メーカーが減益",
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
    "It rained all weekend so we stayed inside",
    "Mix the flour with two eggs and a pinch of salt",
    "My daughter started school today",
    "The cathedral was finished after two hundred years",
    "Happy birthday, hope you have a wonderful day",
    "How do I reset my password?",
    "the quick brown fox jumps over the lazy dog",
    "Whales sing to find each other in the dark",
    "He scored twice before half-time and the crowd went wild",
    "Our dog is afraid of thunder",
    "Can you pick up milk on the way home",
    "Stir until the sauce thickens",
    "I finally beat my personal best in the marathon",
    "lol that was so funny",
    "The poem is about growing old",
    "Turn left after the church",
    "She lost her keys again",
    "Why is the sky blue?",
    "The hotel room was clean but noisy",
    "I can't sleep",
    "Best pizza I've ever had!!!",
    "The choir rehearses on Thursdays",
    "Chapter three: in which the bear gets lost",
    "To be or not to be, that is the question",
    "Please close the window, it is cold",
    "Wash dark colours at thirty degrees",
    "My grandmother baked bread every Sunday",
    "Where did you put the umbrella",
    "The kitten fell asleep in my lap",
    "A thin fog lay over the lake at dawn",
    "Let's go swimming tomorrow",
    "The guitar needs new strings",
    "Peel the potatoes and slice them thinly",
    "I dreamed about flying again",
    "The museum closes at five",
    "Her brother plays the violin beautifully",
    "Happy new year to all of you",
    "The goalkeeper saved two penalties",
    "Cover the dough and let it rest for an hour",
    "Thanks for the lovely flowers",
    "The soup tastes fine today",
    "The door is in order",
    "Celton draw 2-2 with Rangmoor",
    "Norvik beat Selden 3-1 after extra time",
    "Our striker scores twice in the semi-final",
    "Harwick United lost 0\u20134 at home",
]
CUT = [
    "Tarnfield lifts its outlook as demand for…",
    "Corvane shares fall after the...",
    "Pellumex to buy rival for 3 billion dollars, subject to",
    "Shares of Vellmark jumped on news of the",
    "Hedrow sees profit of (",
    "Quaylor profit falls,",
    "Apple to acquire chip start-up in a deal worth",
    "Ford recalls trucks after reports that…",
    "BREAKING: Tesla says it will...",
    "Net sales for the period were EUR",
    "The bank said it expects",
    "Boeing shares fall as much as",
    "Analysts at Goldman raised their",
    "Company to pay $",
    "Sales fell 3 percent, while",
    "Revenue grew because",
    "The merger is likely to be",
    "Shares of the retailer dropped nearly",
    "The chief executive said that",
    "Rates may rise if",
    "Quarterly profit more than doubled [...]",
    "Vellmark to close its factory in Leeds because of",
    "Hedrow posts quarterly loss of $",
    "Shares in Corvane tumble after the company…",
    "Chip maker Quaylor said it would",
    "Dunbury wins contract worth",
    "Brisenta agrees to buy the",
    "Tarnfield names former minister as its",
    "Net income rose to EUR",
    "Ollermoor warns that",
]
APART = [
    "Tarnfield rises while Corvane falls",
    "Pellumex soars, Vellmark sinks",
    "Shares in Hedrow slid, but Quaylor gained",
    "Tarnfield takes the rail order from Corvane",
    "Court: Brisenta wins patent case against Dunbury",
    "Vellmark loses its largest client to Ollermoor",
    "Lindqvarn overtakes Hedrow in market value",
    "Intel slides as AMD gains market share",
    "Boeing loses order to Airbus",
    "Airbus beats Boeing to huge Gulf order",
    "Nike jumps, Adidas tumbles after trade news",
    "Uber up 4%, Lyft down 6%",
    "Walmart gains at Target's expense",
    "Jury orders Google to pay Epic damages",
    "Pfizer wins patent fight with Moderna",
    "Delta raises outlook while United cuts its own",
    "Ford outsells GM for the first time in years",
    "Shell profit rises but BP disappoints",
    "Microsoft takes cloud customers from Amazon",
    "Oracle shares soar; SAP shares plunge",
    "Apple sues Masimo",
    "Netflix adds subscribers as Disney loses them",
    "Visa climbs and Mastercard slips after ruling",
    "Samsung overtakes Intel as top chip maker",
    "BHP lifts dividend, Rio Tinto cuts payout",
    "Coca-Cola beats estimates, Pepsi misses",
    "Upgrade for Exxon, downgrade for Chevron",
    "Nvidia rallies whereas Intel slumps",
    "Court rules for Qualcomm against Broadcom",
    "TSMC profits while Samsung posts a loss",
    "Corvane surges; Pellumex slumps",
    "Tarnfield outbids Vellmark for chip designer",
    "Hedrow sues Quaylor over copied software",
    "Dunbury shares up, Brisenta shares down",
    "Lindqvarn gains while Ollermoor drops",
    "Vellmark wins court battle against Corvane",
    "Judge rules in favour of Pellumex over Tarnfield",
    "Quaylor poaches top customers from Hedrow",
    "Brisenta loses airport contract to Dunbury",
    "Corvane jumps 8% but Lindqvarn sinks 5%",
    "Ollermoor upgraded, Pellumex downgraded",
    "Vellmark overtakes Tarnfield as largest grocer",
]
ORDINARY = [
    "Rev +12% YoY; EPS $1.32 vs $1.10 est.",
    "AGM on 4 May",
    "Das Capital raises stake in Vellmark",
    "Die Casting Corp beats estimates",
    "Vellmark wins 5-4 ruling in patent case",
    "Corvane wins approval for 2-1 stock split",
    "Hedrow loses 3-2 appeals court decision",
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
    "Nokia to cut 500 jobs in Finland",
    "Ryanair carries more passengers in May",
    "Shell and BP both raise dividends",
    "Amazon hires new finance chief",
    "EasyJet shares up 3% after results",
    "Net profit fell to EUR 3.1 mn from EUR 4.5 mn",
    "Operating profit rose while net sales declined",
    "Costs fell and profit rose at Nestle",
    "Tesco in talks to sell its Polish arm",
    "Barclays fined over currency rigging",
    "Oil slips as dollar strengthens",
    "Gold up, dollar down",
    "Stocks end higher, bonds lower",
    "$AAPL long here",
    "$TSLA puts looking good",
    "Glencore shuts mine",
    "Vodafone, Liberty end talks",
    "Facebook bans political ads",
    "Starbucks opens first store in Italy",
    "UPDATE 1-Astra cuts outlook",
    "Merck's drug fails in late-stage trial",
    "Finnair to fly to Osaka",
    "The company has no debt",
    "Kone builds lifts for tower in Mecca",
    "Ericsson wins 5G order from Verizon",
    "Intel's chief steps down",
    "GE sells its lighting arm to Savant",
    "JPMorgan upgrades Shell to overweight",
    "Pfizer buys Arena for $6.7 billion",
    "Roche loses patent on best-selling drug",
    "Airbus takes charge on A380",
    "Nordea, SEB raise mortgage rates",
    "BRIEF-Hedrow names new chairman",
    "H&M shares slide on weak June sales",
    "Fed leaves rates unchanged",
    "Dow falls 300 points",
    "China exports beat forecasts",
    "Toyota to build battery plant in North Carolina",
    "Siemens Energy surges",
    "Volkswagen ag to invest 10 bln euros in software",
    "Santander to buy back shares",
    "De Beers cuts prices",
    "Deutsche Bank raises Bayer to buy",
    "Société Générale posts loss",
    "L'Oreal sales beat forecasts",
    "El Pollo Loco reports strong quarter",
    "Der Spiegel publisher sells stake",
    "Telecom Italia in talks with KKR",
    "Petrobras raises fuel prices",
    "Banco Santander profit up 5%",
    "Credit Agricole buys Creval",
    "Grupo Bimbo sales rise",
    "Tarnfield wins contract from Norwegian army",
    "Buffett's Berkshire adds to Apple stake",
    "Boeing gets order from United",
    "Cisco to acquire Splunk",
    "Google loses antitrust case",
    "Tesla loses bid to end lawsuit",
    "Nokia gains from Huawei ban",
    "Glaxo, Pfizer to merge consumer units",
    "Vellmark opens second plant in Ohio",
    "Hedrow cuts its dividend in half",
    "Corvane names Anna Meyer as finance chief",
    "Rising costs hit Pellumex",
    "Quaylor and Dunbury agree merger",
    "Brisenta gets nod for cancer drug",
    "Shares of Ollermoor hit record high",
    "Tarnfield: no comment on takeover report",
    "Lindqvarn to pay special dividend in June",
    "Pellumex swings to profit",
    "Deutsche Post lifts parcel prices",
    "Groupe Seb sales climb 4 percent",
    "La Poste to hire 5000",
    "Banco Comercial sees flat year",
    "Los Angeles port traffic up",
    "Die-casting firm Corvane expands",
    "$HDRW short interest climbing",
    "$QUAY to the moon",
    "CORVANE TO REPORT RESULTS ON MAY 4",
    "dunbury warns on profit",
    "Copper rallies, zinc falls",
    "Tarnfield beats forecasts as costs fall",
    "Hedrow rises after analyst upgrade",
    "Bank of Vellmark fined 3 mln euros",
    "Brisenta to appeal ruling",
    "Fewer layoffs than feared at Lindqvarn",
    "Ollermoor stock falls as Fed raises rates",
    "Pellumex reaches deal with union",
    "Quaylor gets order from Norwegian navy",
    "Corvane completes sale of its seed unit",
    "Sales fell",
    "The plant made a loss",
    "The orders rose",
    "The stock slides",
    "Ostrell wins a 10-15 mn euro order",
    "Marlotec beats profit estimates for 2024-25",
]


FAR = [
    "Corvane thrombocytopenia assays reveal heterozygous phenotypes of fibroblasts, Hedrow adds",
    "Tarnfield gigachads yeeted copium memecoins sideways",
    "Pellumex oboist serenades tiptoeing hedgehogs while bassoonists hum",
    "Vellmark boffins untangle quark chirality puzzle with Dunbury",
    "Hedrow crochet hooks, skeins and doilies restocked at Quaylor",
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


@pytest.mark.parametrize("text", FAR)
def test_texts_of_words_that_no_training_text_has_are_noticed(text: str) -> None:
    assert kinds(text) == ["far"]


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
    assert share_with(news, "far") == 0


def test_real_news_is_seldom_noticed(real_data: Path) -> None:
    for name in ("50agree", "twitter", "fiqa"):
        texts = [record.text for record in DATASETS[name].loader(real_data)]
        assert share_with(texts, "language") <= 0.005, name
        assert share_with(texts, "content") <= 0.04, name
        assert share_with(texts, "directions") <= 0.01, name
        assert share_with(texts, "far") <= 0.001, name


@pytest.mark.slow
def test_the_known_words_are_those_of_the_training_part(real_data: Path) -> None:
    stored = resources.files("finsent.serving.notices").joinpath(known.FILE)
    assert stored.read_bytes() == known.as_file(known.training_words(real_data))


def test_figures_alone_are_no_text() -> None:
    (found,) = notices("1,204.5 998 -3.2 % 14 2024")
    assert (found.kind, "no words" in found.message) == ("content", True)


def test_an_article_names_companies_in_passing() -> None:
    headline = "Ostrell shares jump while Marlotec falls"
    assert [n.kind for n in notices(headline)] == ["directions"]
    article = (
        f"{headline}. " + "The company said that sales in its home market had been stable. " * 5
    )
    assert notices(article) == []
