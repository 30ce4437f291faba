"""Drop-downs that offer what the artifacts hold: backbone, data set and, where asked, seed."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta

from finsent.results.catalog import Catalog, Selection, backbone_title, dataset_title
from finsent.results.runs import Run

QUICK: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
"""Of events that only draw the page anew from what is in memory."""


ALL_RUNS = -1
"""Stands for every training run, where one may choose so."""


def chosen_runs(catalog: Catalog, backbone: str, dataset: str, seed: int) -> list[Run]:
    """The runs that a choice names: every arm, of one seed or of all.

    Drop-downs change one after the other; what is named in between gives way to what is near.
    """
    wanted = catalog.select(backbone, dataset, seed)
    found = catalog.of(wanted.backbone, wanted.dataset)
    return [run for run in found if seed == ALL_RUNS or run.seed == wanted.seed]


class _WithoutStub(ComponentMeta):  # type: ignore[misc]
    """gradio writes a .pyi file beside the source of every component; not beside this one."""

    def __new__(
        cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]
    ) -> _WithoutStub:
        return ABCMeta.__new__(cls, name, bases, attributes)


class LinkedDropdown(gr.Dropdown, metaclass=_WithoutStub):  # type: ignore[misc]
    """A drop-down whose choices follow another one. Functions of it get a value that was a choice
    a moment ago: the server knows the new choices before the browser shows them, and gr.Dropdown
    would refuse whatever the visitor does in between."""

    is_template = True
    """For gradio: the browser draws it as a drop-down."""

    def preprocess(self, payload: Any) -> str | int | float | None:
        """The chosen value. Raises gr.Error for what no drop-down sends."""
        if payload is None or isinstance(payload, str | int | float):
            return payload
        raise gr.Error(f"a single choice was expected, got {payload!r}", print_exception=False)


class LinkedCheckboxes(gr.CheckboxGroup, metaclass=_WithoutStub):  # type: ignore[misc]
    """The same of boxes to tick: one that was a choice a moment ago is no error."""

    is_template = True

    def preprocess(self, payload: Any) -> list[str | int | float]:
        """What is ticked. Raises gr.Error for what no boxes send."""
        if isinstance(payload, list) and all(isinstance(v, str | int | float) for v in payload):
            return payload
        raise gr.Error(f"a list of choices was expected, got {payload!r}", print_exception=False)


@dataclass(frozen=True)
class RunSelectors:
    """Linked drop-downs: a new backbone renews the data sets, a new data set the seeds."""

    backbone: gr.Dropdown
    dataset: LinkedDropdown
    seed: LinkedDropdown | None

    @property
    def components(self) -> list[gr.Dropdown]:
        """In the order backbone, data set, seed."""
        return [c for c in (self.backbone, self.dataset, self.seed) if c is not None]


SIZES = {"minilm-l6": "Fast", "mpnet-base": "Accurate"}
"""Base models that the one switch chooses from -> what it calls them."""


def add_size_switch(catalog: Catalog, first: Selection) -> gr.Radio | None:
    """Draws the switch between a fast and an accurate base model; None where not both are here."""
    if not set(SIZES) <= set(catalog.backbones()):
        return None
    return gr.Radio(
        [(f"{size} ({backbone_title(name)})", name) for name, size in SIZES.items()],
        value=first.backbone if first.backbone in SIZES else None,
        label="Size",
        elem_id="size",
    )


def add_run_selectors(
    catalog: Catalog,
    first: Selection,
    *,
    with_seed: bool = True,
    all_runs: bool = False,
    prefix: str = "compare",
    size: gr.Radio | None = None,
) -> RunSelectors:
    """Draws the drop-downs and links them. `prefix` starts their element ids.

    all_runs: the seed may be ALL_RUNS, and is at first. size: a switch that chooses the base model
    as well.
    """
    every = [("All", ALL_RUNS)] if all_runs else []
    backbone = gr.Dropdown(
        choices=_backbone_choices(catalog),
        value=first.backbone,
        label="Base model",
        elem_id=f"{prefix}-backbone",
        filterable=False,
        min_width=150,
    )
    dataset = LinkedDropdown(
        choices=dataset_choices(catalog, first.backbone),
        value=first.dataset,
        label="Data set",
        elem_id=f"{prefix}-dataset",
        filterable=False,
        min_width=150,
    )
    seed = (
        LinkedDropdown(
            choices=[*every, *seed_choices(catalog, first.backbone, first.dataset)],
            value=ALL_RUNS if all_runs else first.seed,
            label="Training run",
            elem_id=f"{prefix}-seed",
            filterable=False,
            min_width=110,
        )
        if with_seed
        else None
    )
    selectors = RunSelectors(backbone, dataset, seed)

    def renew(
        chosen_backbone: str, chosen_dataset: str, chosen_seed: int | None = None
    ) -> dict[Any, Any]:
        nearest = catalog.select(chosen_backbone, chosen_dataset, chosen_seed)
        found = dataset_choices(catalog, chosen_backbone)
        updates: dict[Any, Any] = {dataset: moved(found, chosen_dataset, nearest.dataset)}
        if seed is not None:
            found = [*every, *seed_choices(catalog, chosen_backbone, nearest.dataset)]
            kept = all_runs and chosen_seed not in catalog.seeds(nearest.backbone, nearest.dataset)
            updates[seed] = moved(found, chosen_seed, ALL_RUNS if kept else nearest.seed)
        return updates

    if size is not None:
        size.input(lambda name: name, inputs=size, outputs=backbone, **QUICK)
        backbone.change(
            lambda name: name if name in SIZES else None, inputs=backbone, outputs=size, **QUICK
        )
    gr.on(
        [backbone.change, dataset.change],
        renew,
        inputs=selectors.components,
        outputs=selectors.components[1:],
        **QUICK,
    )
    return selectors


def add_matched_box(
    catalog: Catalog,
    selectors: RunSelectors,
    first: Selection,
    label: str,
    elem_id: str,
    *,
    info: str | None = None,
) -> gr.Checkbox:
    """Draws the box that asks for the matched control; off where the chosen runs have none."""

    def settings(backbone: str, dataset: str, seed: int) -> dict[str, Any]:
        here = "matched" in catalog.select(backbone, dataset, seed, matched=True).arms
        return {"interactive": here, "label": label if here else f"{label}: none for these runs"}

    box = gr.Checkbox(
        **settings(first.backbone, first.dataset, first.seed),
        info=info,
        elem_id=elem_id,
        min_width=220,
    )
    gr.on(
        [component.change for component in selectors.components],
        lambda *chosen: gr.update(**settings(*chosen)),
        inputs=selectors.components,
        outputs=box,
        **QUICK,
    )
    return box


def moved(choices: Sequence[Any], asked: object, nearest: object) -> dict[str, Any]:
    """What gives a drop-down new choices. Its value only where the one asked for is not among
    them: the visitor may have picked another while this was on its way."""
    if asked == nearest:
        return dict(gr.update(choices=choices))
    return dict(gr.update(choices=choices, value=nearest))


def run_updates(catalog: Catalog, selection: Selection) -> list[dict[str, Any]]:
    """What sets the drop-downs backbone, data set and seed to a selection."""
    return [
        gr.update(value=selection.backbone),
        gr.update(choices=dataset_choices(catalog, selection.backbone), value=selection.dataset),
        gr.update(
            choices=seed_choices(catalog, selection.backbone, selection.dataset),
            value=selection.seed,
        ),
    ]


def _backbone_choices(catalog: Catalog) -> list[tuple[str, str | int | float]]:
    return [(backbone_title(name), name) for name in catalog.backbones()]


def dataset_choices(catalog: Catalog, backbone: str) -> list[tuple[str, str | int | float]]:
    """Titles and names for a drop-down of the data sets that a backbone has runs on."""
    return [(dataset_title(name), name) for name in catalog.datasets(backbone)]


def seed_choices(
    catalog: Catalog, backbone: str, dataset: str
) -> list[tuple[str, str | int | float]]:
    """Seeds for a drop-down."""
    return [(str(seed), seed) for seed in catalog.seeds(backbone, dataset)]
