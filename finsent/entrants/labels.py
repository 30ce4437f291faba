"""Which of a model's outputs is which label, and whether that can be right."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from finsent.data.registry import DATASETS
from finsent.results.comparison import mcnemar_p_value

Labels = tuple[str, ...]
Probabilities = NDArray[np.float64]

SURE = 0.01
"""Below this p another order of the labels fits the sanity sentences better than by chance."""

_ALSO = {
    "negative": ("neg", "bearish", "bear"),
    "neutral": ("neu",),
    "positive": ("pos", "bullish", "bull"),
}
"""What other models call the labels."""


class EntrantError(ValueError):
    """A model, or a file of predictions, that cannot stand on the board as it is."""


def label_sets() -> list[Labels]:
    """The labels of the registered data sets, each set once."""
    return list(dict.fromkeys(entry.label_names for entry in DATASETS.values()))


def label_order(own_names: Sequence[str], given: Mapping[str, str] | None) -> dict[str, int]:
    """Label of a data set -> position among a model's outputs.

    Args:
        own_names: The model's names for its outputs, in their order.
        given: Label -> name or number of the output that means it; None reads it off the names.

    Raises:
        EntrantError: The names say nothing, are too many or too few, or what was given does not
            name every label and every output once.
    """
    names = [name.casefold().strip() for name in own_names]
    shown = ", ".join(own_names)
    if given is None:
        for labels in label_sets():
            found = {
                label: place
                for label in labels
                for place, name in enumerate(names)
                if name in (label, *_ALSO.get(label, ()))
            }
            if len(found) == len(labels) == len(names):
                return found
        sets = " or ".join("/".join(labels) for labels in label_sets())
        # An example for another number of outputs names as many as there are.
        example = ",".join(
            f"{label}={name}" for label, name in zip(_likely(len(names)), own_names, strict=False)
        )
        raise EntrantError(
            f"the model calls its {len(names)} outputs {shown}, which are not {sets}; "
            f"say which is which, as in --labels {example}"
        )
    if set(given) not in [set(labels) for labels in label_sets()]:
        sets = " or ".join(", ".join(labels) for labels in label_sets())
        raise EntrantError(f"--labels names {', '.join(given)}; a data set has the labels {sets}")
    order = {label: _output(name, names, shown) for label, name in given.items()}
    if len(set(order.values())) != len(order) or len(order) != len(names):
        raise EntrantError(
            f"--labels gives {len(set(order.values()))} of the model's {len(names)} outputs "
            f"({shown}) to {len(order)} labels; every output has to mean one label"
        )
    return order


def _likely(count: int) -> Labels:
    return next((labels for labels in label_sets() if len(labels) == count), label_sets()[0])


def _output(name: str, names: Sequence[str], shown: str) -> int:
    wanted = name.casefold().strip()
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    raise EntrantError(f"--labels: the model has no output {name!r}; it has {shown}")


def parse_labels(text: str) -> dict[str, str]:
    """`negative=LABEL_0,neutral=…` as a mapping. EntrantError for another form."""
    pairs = [part.partition("=") for part in text.split(",")]
    found = {label.strip(): name.strip() for label, _, name in pairs}
    if not all(sign and label.strip() and name.strip() for label, sign, name in pairs):
        raise EntrantError(
            f"--labels {text!r}: expected label=name pairs, as in "
            "negative=LABEL_0,neutral=LABEL_1,positive=LABEL_2"
        )
    if len(found) != len(pairs):
        raise EntrantError(f"--labels {text!r}: a label stands there twice")
    return found


@cache
def sanity_sentences(labels: Labels) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Our own sentences of clear meaning, and the position of each one's label."""
    text = resources.files("finsent.entrants").joinpath("sanity.toml").read_text(encoding="utf-8")
    for entry in tomllib.loads(text)["sentences"]:
        if tuple(entry["labels"]) == labels:
            pairs = [(s, i) for i, label in enumerate(labels) for s in entry[label]]
            return tuple(s for s, _ in pairs), tuple(i for _, i in pairs)
    raise EntrantError(f"there are no sanity sentences with the labels {', '.join(labels)}")


def check_order(answer: Callable[[Sequence[str]], Probabilities], labels: Labels) -> int:
    """Asks the sanity sentences; returns how many are answered rightly.

    Raises:
        EntrantError: The answers fit far better if the labels change places (exact McNemar test).
    """
    texts, truth = sanity_sentences(labels)
    said = answer(texts).argmax(axis=1)
    right = said == np.array(truth)
    for order in itertools.permutations(range(len(labels))):
        other = np.array(order)[said] == np.array(truth)
        only_given, only_other = int((right & ~other).sum()), int((other & ~right).sum())
        if only_other > only_given and mcnemar_p_value(only_given, only_other) < SURE:
            moved = ", ".join(
                f"{labels[new]} where it now says {labels[old]}"
                for old, new in enumerate(order)
                if old != new
            )
            raise EntrantError(
                f"the labels seem to be in the wrong order: of {len(texts)} sentences of clear "
                f"meaning {int(right.sum())} are answered rightly, and {int(other.sum())} if the "
                f"model meant {moved}; give the order by --labels"
            )
    return int(right.sum())
