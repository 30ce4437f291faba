"""What this project asks of PerforatedAI beside what the library does when it is asked nothing.

The growth of this project, called early growth, is not the library's own: it comes by patience 2 or
by force at half of the epochs, once, and without the library's sweep over learning rates. Tests
hold the two columns to the installed library and to what finsent.growth.grower passes. Free of
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from finsent.config import DendriteConfig

LIBRARY_VERSION = "3.2.9"
LIBRARY_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "n_epochs_to_switch": 10,
        "max_dendrites": 100,
        "max_dendrite_tries": 2,
        "find_best_lr": True,
        "dont_give_up_unless_learning_rate_lowered": True,
        "pai_forward_function": "sigmoid",
        "candidate_weight_initialization_multiplier": 0.01,
        "improvement_threshold": (0.001, 0.0001, 0.0),
        "improvement_threshold_raw": 1e-5,
        "perforated_backpropagation": False,
    }
)
"""What `GPA.pc.get_<name>()` returns in a fresh process (of `improvement_threshold`, whose getter
fails in this version, the attribute behind it)."""


@dataclass(frozen=True)
class GrowthSetting:
    """One line of the table: a setting here and in the library."""

    name: str
    """As the library calls it; empty where it has no such setting."""
    meaning: str
    ours: str
    library: str


def passed(config: DendriteConfig) -> dict[str, Any]:
    """What a run under `config` sets in the library, of the names in LIBRARY_DEFAULTS."""
    return {
        "n_epochs_to_switch": config.patience,
        "max_dendrites": config.max_dendrites,
        "max_dendrite_tries": 2,
        "find_best_lr": False,
        "dont_give_up_unless_learning_rate_lowered": False,
        "pai_forward_function": config.activation,
        "candidate_weight_initialization_multiplier": config.init_scale,
        "improvement_threshold": (0.0,),
        "improvement_threshold_raw": 0.0,
        "perforated_backpropagation": False,
    }


_MEANINGS = {
    "n_epochs_to_switch": "epochs without a better score before a dendrite is added",
    "max_dendrites": "dendrites per map at most",
    "max_dendrite_tries": "times that a dendrite which did not help is drawn again",
    "find_best_lr": "sweep over learning rates after growth",
    "dont_give_up_unless_learning_rate_lowered": "whether the sweep has to have lowered the rate "
    "before growth is given up",
    "pai_forward_function": "non-linearity of a dendrite",
    "candidate_weight_initialization_multiplier": "standard deviation of a new dendrite's weights",
    "improvement_threshold": "relative improvement of the score that counts, a list",
    "improvement_threshold_raw": "absolute improvement of the score that counts",
    "perforated_backpropagation": "dendrites trained by Perforated Backpropagation instead of "
    "gradient descent; takes the licensed package perforatedbp",
}


def growth_settings(config: DendriteConfig | None = None) -> list[GrowthSetting]:
    """The whole table; config: of a run (None: the trainer's default)."""
    config = DendriteConfig() if config is None else config
    ours = passed(config)
    found = [
        GrowthSetting(name, meaning, _said(ours[name]), _said(LIBRARY_DEFAULTS[name]))
        for name, meaning in _MEANINGS.items()
    ]
    return [
        *found,
        GrowthSetting(
            "",
            "growth whatever the score does",
            "at half of the epochs, if patience has not run out before",
            "none: training goes on until dendrites stop helping",
        ),
        GrowthSetting(
            "",
            "learning rate after a growth that restarts the run",
            f"{config.learning_rate_factor:g} times the scheduled one",
            "the best of its sweep",
        ),
    ]


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(f"{v:g}" for v in value)
    return value if isinstance(value, str) else f"{value:g}"
