"""Which tabs the page has, and what each is called in an address.

`?tab=` takes the id of a tab or of a section inside one. Ids of sections are older than the tabs
around them, so links from then still open what they meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import gradio as gr


@dataclass(frozen=True)
class Tab:
    """A tab, and the sections it is divided into, if it is."""

    title: str
    sections: Mapping[str, str] = field(default_factory=dict)
    """Id of a section -> its title, in the order of the page."""


TABS: Mapping[str, Tab] = MappingProxyType(
    {
        "try": Tab("Try", {"compare": "One headline", "batch": "Many headlines"}),
        "results": Tab("Results", {"leaderboard": "Board", "latency": "Speed"}),
        "evidence": Tab(
            "Evidence",
            {
                "curves": "Training curves",
                "differ": "Where they differ",
                "behaviour": "What it gets wrong",
                "studies": "Studies",
            },
        ),
        "about": Tab("About"),
        "owner": Tab("Owner"),
    }
)
"""Id of a tab -> the tab, in the order of the page."""


def tab_of(place: str) -> str | None:
    """Id of the tab that a name in an address leads to; None for a name that is none."""
    if place in TABS:
        return place
    return next((name for name, tab in TABS.items() if place in tab.sections), None)


@dataclass(frozen=True)
class Bars:
    """The page's bar of tabs, and inside of some tabs a bar of sections."""

    outer: gr.Tabs
    inner: Mapping[str, gr.Tabs]
    """Id of a tab -> its bar."""

    @property
    def components(self) -> list[gr.Tabs]:
        """What `opening` gives values for."""
        return [self.outer, *self.inner.values()]

    def opening(self, place: str | None) -> Sequence[object]:
        """Updates of `components` that open a tab or a section; None leaves all as they are."""
        tab = None if place is None else tab_of(place)
        if tab is None:
            return [gr.skip() for _ in self.components]
        inner = [
            gr.Tabs(selected=place) if name == tab and place in TABS[name].sections else gr.skip()
            for name in self.inner
        ]
        return [gr.Tabs(selected=tab), *inner]
