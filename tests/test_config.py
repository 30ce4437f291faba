"""The arms come from one configuration; impossible settings are refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import resources

import pytest

from finsent.config import (
    STUDY_ARMS,
    ConfigError,
    DendriteConfig,
    LoraConfig,
    MatchedCapacity,
    TrainConfig,
    arm_config,
)
from finsent.plots.png_style import MARKERS
from finsent.plots.style import ARM_STYLES
from finsent.study.comparisons import REFERENCES
from finsent.study.views import ARM_ORDER, ARM_RULES
from finsent.ui.parts import cards, markup
from finsent.ui.tables import matrix

BASE = TrainConfig()


def test_the_arms_differ_in_the_treatment_alone() -> None:
    dendritic = arm_config(BASE, "dendritic", DendriteConfig())
    matched = arm_config(BASE, "matched", MatchedCapacity(1000))
    baseline = arm_config(BASE, "baseline")
    assert replace(dendritic, treatment=None) == baseline == replace(matched, treatment=None)
    assert [c.arm for c in (baseline, dendritic, matched)] == ["baseline", "dendritic", "matched"]


@pytest.mark.parametrize(
    "config",
    [
        BASE,
        replace(BASE, treatment=DendriteConfig(placement=("score",), grow_by=3)),
        replace(BASE, treatment=MatchedCapacity(7), lora=LoraConfig(last_layers=None), depth=3),
    ],
)
def test_a_configuration_survives_json(config: TrainConfig) -> None:
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_arm_with_the_wrong_treatment_is_refused() -> None:
    with pytest.raises(ConfigError, match="got the treatment of arm 'baseline'"):
        arm_config(BASE, "dendritic")
    with pytest.raises(ConfigError, match="arm must be one of"):
        arm_config(BASE, "control")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int8"}, "precision"),
        ({"seed": -1}, "seed"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"warmup_fraction": 1.0}, "warmup_fraction"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"max_length": 4}, "max_length"),
        ({"pooling": "max"}, "pooling"),
        ({"depth": 0}, "depth"),
        ({"depth": 4, "lora": LoraConfig(last_layers=5)}, "last 5 of 4"),
        ({"epochs": 3, "treatment": DendriteConfig(grow_by=2)}, "leaves no epoch"),
    ],
)
def test_impossible_runs_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(BASE, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (LoraConfig, {"r": 0}),
        (LoraConfig, {"alpha": 0.0}),
        (LoraConfig, {"target_modules": ()}),
        (LoraConfig, {"last_layers": 0}),
        (DendriteConfig, {"placement": ()}),
        (DendriteConfig, {"placement": ("lora_A",)}),
        (DendriteConfig, {"activation": "gelu"}),
        (DendriteConfig, {"max_dendrites": 0}),
        (DendriteConfig, {"patience": 0}),
        (DendriteConfig, {"grow_by": -1}),
        (DendriteConfig, {"init_scale": 0.0}),
        (DendriteConfig, {"learning_rate_factor": 0.0}),
        (MatchedCapacity, {"trainable_params": 0}),
    ],
)
def test_impossible_parts_are_refused(kind: type, change: dict[str, object]) -> None:
    (name,) = change
    with pytest.raises(ConfigError, match=name):
        kind(**change)


def test_stored_configurations_with_surprises_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown settings"):
        TrainConfig.from_dict({**BASE.to_dict(), "surprise": 1})
    with pytest.raises(ConfigError, match="treatment kind"):
        TrainConfig.from_dict({**BASE.to_dict(), "treatment": {"kind": "magic"}})


def test_every_arm_is_named_wherever_arms_are() -> None:
    """Whoever adds one learns here which table lacks it."""
    notes = re.search(r"set notes = (\{.*?\})", cells_template(), re.DOTALL)
    assert notes is not None
    tables = {
        "finsent.plots.style": ARM_STYLES,
        "finsent.plots.png_style": MARKERS,
        "finsent.reports, cells.md.j2": notes[1],
        "finsent.ui.parts.cards": cards.ARM_NOTES,
        "finsent.ui.tables.matrix": matrix.ARM_NOTES,
        "finsent.study, words.toml": ARM_RULES,
        "finsent.study.views": ARM_ORDER,
        "finsent.study.comparisons": (*REFERENCES, "dendritic"),
    }
    missing = {place: [a for a in STUDY_ARMS if a not in table] for place, table in tables.items()}
    assert {place: arms for place, arms in missing.items() if arms} == {}
    # The page cannot be built with a marker that it cannot draw.
    assert {style.symbol for style in ARM_STYLES.values()} <= set(markup._SYMBOLS)


def cells_template() -> str:
    return resources.files("finsent.reports").joinpath("templates/cells.md.j2").read_text("utf-8")
