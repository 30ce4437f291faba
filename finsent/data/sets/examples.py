"""Texts to try, written for this project: one for each way such a text can be easy or hard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """A text and what makes it interesting."""

    kind: str
    text: str
    label: str | None = None
    """Right by our own reading; None where none of the labels is, or where one may argue."""


HEADLINES = (
    Headline(
        "Clear gain",
        "Quarterly profit doubled as orders for the harbour-crane unit reached a record high.",
        "positive",
    ),
    Headline(
        "Clear loss",
        "The retailer slid to an operating loss and will close forty stores before spring.",
        "negative",
    ),
    Headline(
        "Neutral",
        "The annual general meeting will be held in the Lisbon office on the ninth of April.",
        "neutral",
    ),
    Headline(
        "Mixed",
        "Sales climbed 8 %, yet higher freight costs wiped out the entire improvement in margin.",
    ),
    Headline(
        "Negated",
        "The board does not expect earnings to weaken, and no further write-downs are planned.",
    ),
    Headline(
        "Numbers only",
        "EUR 41.7 mn in the second quarter, against EUR 39.2 mn a year ago.",
        "positive",
    ),
    Headline(
        "Jargon",
        "EBITDA-to-capex conversion normalised after the covenant reset on the revolving facility.",
    ),
    Headline("Not finance", "The lighthouse keeper painted his door green and fed the cat."),
)

NEWS = (
    Headline(
        "Distress",
        "Corvane Mills files for bankruptcy after lenders refuse a third waiver",
        "negative",
    ),
    Headline(
        "Beats",
        "$TARN - Tarnfield EPS of $1.12 beats by $0.09, raises full-year outlook",
        "positive",
    ),
    Headline("Capitals", "PELLUMEX SHARES SINK AFTER FOURTH PROFIT WARNING THIS YEAR", "negative"),
    Headline(
        "Bad news averted",
        "Watchdog closes its inquiry into Ostrell Glass without a fine",
        "positive",
    ),
    Headline(
        "Narrower loss",
        "Quaylor Robotics halves its loss; analysts had expected it to widen",
        "positive",
    ),
    Headline(
        "Plain fact", "Hedrow Shipping to publish its interim report on 4 May at 8 a.m.", "neutral"
    ),
    Headline("Two companies", "Marlotec takes the rail order that Dunbury Signals had counted on"),
    Headline("Not finance", "The lighthouse keeper painted his door green and fed the cat."),
)

STANCES = (
    Headline(
        "Clear tightening",
        "Further increases in the policy rate are warranted, since inflation is well above target.",
        "hawkish",
    ),
    Headline(
        "Clear easing",
        "With demand weakening, members saw good reasons to lower the policy rate in the spring.",
        "dovish",
    ),
    Headline(
        "Neutral",
        "Staff presented the usual review of conditions in short-term markets.",
        "neutral",
    ),
    Headline(
        "Mixed",
        "Hiring stayed brisk, although several members noted that prices had begun to soften.",
    ),
    Headline(
        "Negated",
        "It would not be appropriate to reduce the pace of purchases before growth is secure.",
        "dovish",
    ),
    Headline("Numbers only", "Core prices rose 2.4 percent over the twelve months to June."),
)

CLAIMS = (
    Headline(
        "Forecast",
        "We expect revenue of $41 million to $43 million in the next quarter.",
        "in-claim",
    ),
    Headline(
        "Report",
        "Revenue of the cooling segment was $41 million, up 6 % from a year ago.",
        "out-of-claim",
    ),
    Headline(
        "Hedged", "Margins could well return to 12 % once the new plant is running.", "in-claim"
    ),
    Headline(
        "Target of old",
        "Last year's goal of 500 branches was met in the third quarter.",
        "out-of-claim",
    ),
    Headline(
        "Estimate",
        "Our price target of $58 implies 21 times the earnings of next year.",
        "in-claim",
    ),
)
