"""What an arm's probabilities say: the label, the set, in which form the numbers are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finsent.results.calibration import Calibration, set_in_words

UNSURE_BELOW = 0.6
"""Shown probabilities below this are called unsure: a model that knows its doubt is wrong in four
of ten such answers or more. Measured on each source of news that was left out of training and of
the correction (left-out.safetensors): 41 to 62 % of these answers are wrong, where their
confidence says 46 to 51 %. Sets are no measure of it, since most hold two labels on news from a
source that the model was not trained on."""


@dataclass(frozen=True)
class Answer:
    """One arm about one text."""

    arm: str
    label_names: tuple[str, ...]
    raw: tuple[float, ...]
    """Softmax of the model's logits."""
    calibration: Calibration | None

    @property
    def shown(self) -> tuple[float, ...]:
        """Calibrated probabilities where there is a calibration, else the raw ones."""
        if self.calibration is None:
            return self.raw
        return tuple(float(p) for p in self.calibration.calibrate(self.raw))

    @property
    def label(self) -> str:
        """The most probable label, the first of them when tied; calibration does not change it."""
        return self.label_names[max(range(len(self.raw)), key=lambda i: self.raw[i])]

    @property
    def confidence(self) -> float:
        """Shown probability of the label."""
        return max(self.shown)

    @property
    def unsure(self) -> bool:
        """Whether even the most probable label has little to say for it."""
        return self.confidence < UNSURE_BELOW

    @property
    def label_set(self) -> tuple[str, ...] | None:
        """The conformal set, likeliest first, never empty; None without a calibration."""
        if self.calibration is None:
            return None
        return tuple(self.label_names[i] for i in self.calibration.label_set(self.shown))

    @property
    def set_words(self) -> str | None:
        """The conformal set as a phrase."""
        if self.label_set is None:
            return None
        return set_in_words(self.label_set, len(self.label_names))

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values, with the probabilities that are shown and the raw ones."""
        c = self.calibration
        return {
            "label": self.label,
            "probabilities": dict(zip(self.label_names, self.shown, strict=True)),
            "raw_probabilities": dict(zip(self.label_names, self.raw, strict=True)),
            "calibrated": c is not None,
            "label_set": None if self.label_set is None else list(self.label_set),
            "label_set_coverage": None if c is None else c.coverage_measured,
        }


def answers(
    raw: Mapping[str, Sequence[float]],
    label_names: Sequence[str],
    calibrations: Mapping[str, Calibration | None],
) -> list[Answer]:
    """An answer per arm, in the order of `raw`."""
    return [
        Answer(arm, tuple(label_names), tuple(map(float, row)), calibrations[arm])
        for arm, row in raw.items()
    ]


def confidence_gap(given: Sequence[Answer]) -> float:
    """Points between the lowest and the highest confidence, of the tenths that are shown: a reader
    who subtracts what he sees gets the same."""
    shown = [round(100 * answer.confidence, 1) for answer in given]
    return round(max(shown) - min(shown), 1)


def agreement(given: Sequence[Answer]) -> tuple[bool, str]:
    """Whether all arms name the same label, and the sentence that says so."""
    labels = [answer.label for answer in given]
    if len(given) == 1:
        return True, f"Only the {given[0].arm} run is here: it says {labels[0]}."
    kind = "raw" if given[0].calibration is None else "calibrated"
    if len(set(labels)) == 1:
        who = "Both say" if len(labels) == 2 else f"All {len(labels)} say"
        return True, (
            f"{who} {labels[0]}; {kind} confidence differs by {confidence_gap(given):.1f} points."
        )
    each = ", ".join(f"{a.arm} says {a.label} ({100 * a.confidence:.1f} %)" for a in given)
    return False, f"They differ: {each}; {kind} confidence in brackets."
