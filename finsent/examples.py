"""Headlines to try, written for this project: one for each way such a text can be easy or hard."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """A text and what makes it interesting."""

    kind: str
    text: str


HEADLINES = (
    Headline(
        "Clear gain",
        "Quarterly profit doubled as orders for the harbour-crane unit reached a record high.",
    ),
    Headline(
        "Clear loss",
        "The retailer slid to an operating loss and will close forty stores before spring.",
    ),
    Headline(
        "Neutral",
        "The annual general meeting will be held in the Lisbon office on the ninth of April.",
    ),
    Headline(
        "Mixed",
        "Sales climbed 8 %, yet higher freight costs wiped out the entire improvement in margin.",
    ),
    Headline(
        "Negated",
        "The board does not expect earnings to weaken, and no further write-downs are planned.",
    ),
    Headline("Numbers only", "EUR 41.7 mn in the second quarter, against EUR 39.2 mn a year ago."),
    Headline(
        "Jargon",
        "EBITDA-to-capex conversion normalised after the covenant reset on the revolving facility.",
    ),
    Headline("Not finance", "The lighthouse keeper painted his door green and fed the cat."),
)
