"""The studies of cycles: what is trained, what is grown on it when it has converged, and what is
tried for every arm. A new one is one entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finsent.config import DendriteConfig
from finsent.data.folds import FOLDS
from finsent.study.rows import StudyError

FOLD_SPLITS = tuple(f"fold-{number}" for number in range(FOLDS))


@dataclass(frozen=True)
class Recipe:
    """How dendrites grow."""

    dendrites: DendriteConfig
    cycles: int = 1
    """Growths in turn, each after the run before it has converged; a dendrite on every map each."""


@dataclass(frozen=True)
class CycleRegime:
    """One backbone trained in one way, and the dendrites that are tried on it."""

    name: str
    backbone: str
    recipes: Mapping[str, Recipe]
    """They share the baseline, and controls of as many cycles or parameters."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig, and of LoraConfig with `lora_` before them, that differ from the
    backbone's preset."""
    rates: tuple[float, ...] = (1.0,)
    """Factors of the learning rate that the first cycle of every arm is tuned over."""
    later_rates: tuple[float, ...] = (0.5,)
    """Factors that every later cycle of every arm is tuned over."""
    teacher: str | None = None
    """Backbone of the committee whose probabilities a student learns (finsent.study.cycles.
    committee); such a regime has no recipes of dendrites."""
    tested: tuple[str, ...] = ()
    """Further data sets that a student is tested on: on those sentences of theirs that are in the
    test part. They are part of the one trained on."""


@dataclass(frozen=True)
class CycleStudy:
    """Cycles of the real trainer: regimes x data sets x recipes x arms x folds x seeds.

    The first cycle is the baseline. Every arm with a second one starts it at the best state of its
    first, with a fresh optimizer and a whole schedule: `dendritic` with a new dendrite on every map
    and `restart` without; `matched` is the same as `restart` with larger ranks from the start, of
    as many trained parameters as the dendritic arm ends with. The best validation score of all
    cycles of an arm decides which of its states is tested.
    """

    name: str
    datasets: tuple[str, ...]
    regimes: tuple[CycleRegime, ...]
    splits: tuple[str, ...] = FOLD_SPLITS
    """Values of TrainConfig.split."""
    seeds: tuple[int, ...] = (0, 1)

    def regime(self, name: str) -> CycleRegime:
        """The regime of that name. StudyError for an unknown one."""
        for regime in self.regimes:
            if regime.name == name:
                return regime
        known = ", ".join(regime.name for regime in self.regimes)
        raise StudyError(f"study {self.name!r} has no regime {name!r}; it has {known}")


def _grown(placement: str = "layer", **changes: Any) -> DendriteConfig:
    """As PerforatedAI draws them unless told otherwise: sigmoid, weights N(0, 0.01^2)."""
    values = {"activation": "sigmoid", "init_scale": 0.01, "prune": True, **changes}
    return DendriteConfig(placement=(placement,), **values)


_SIGMOID = Recipe(_grown())
_RELU = Recipe(_grown(activation="relu"))

_EXAMPLE: dict[str, Any] = {
    "lora_r": 8,
    "lora_alpha": 16.0,
    "lora_dropout": 0.1,
    "learning_rate": 3e-4,
    "batch_size": 32,
    "epochs": 50,
    "stop_patience": 10,
    "scored_by": "accuracy",
}
"""PerforatedAI's own LoRA example, libraryExamples/huggingface/PEFT of PerforatedAI-Examples."""

_GUIDE: dict[str, Any] = {"lora_dropout": 0.1, "epochs": 10, "scored_by": "accuracy"}
_FULL: dict[str, Any] = {"adapt": "full", "epochs": 8, "scored_by": "accuracy"}
_FULL_RATES = {"minilm-l6": 1e-4, "mpnet-base": 3e-5}
"""Learning rates of the first runs that trained whole weights (LOG.md)."""
_SWEEP = (1.0, 0.5, 0.2)


def _authors(backbone: str) -> tuple[CycleRegime, ...]:
    rate = {"learning_rate": _FULL_RATES[backbone]}

    def regime(name: str, recipes: dict[str, Recipe], **values: Any) -> CycleRegime:
        return CycleRegime(f"{backbone}-{name}", backbone, recipes, **values)

    return (
        regime("example", {"sigmoid-1": _SIGMOID}, config=_EXAMPLE),
        regime(
            "full", {"sigmoid-1": Recipe(_grown("linear"))}, config=_FULL | rate, later_rates=_SWEEP
        ),
        regime(
            "swept",
            {"sigmoid-1": _SIGMOID, "relu-1": _RELU},
            config=_GUIDE,
            rates=_SWEEP,
            later_rates=_SWEEP,
        ),
        regime(
            "swept-nll",
            {"sigmoid-1": _SIGMOID},
            config=_GUIDE | {"scored_by": "nll"},
            rates=_SWEEP,
            later_rates=_SWEEP,
        ),
        regime(
            "example-data-10", {"sigmoid-1": _SIGMOID}, config=_EXAMPLE | {"train_fraction": 0.1}
        ),
        regime("attention", {"sigmoid-1": Recipe(_grown(among="attention"))}, config=_GUIDE),
        regime("mlp", {"sigmoid-1": Recipe(_grown(among="mlp"))}, config=_GUIDE),
        regime("three", {"sigmoid-3": Recipe(_grown(), cycles=3)}, config=_GUIDE),
    )


AUTHORS = CycleStudy(
    name="authors",
    datasets=("allagree", "50agree"),
    regimes=(*_authors("minilm-l6"), *_authors("mpnet-base")),
)
"""Dendrites in the way that PerforatedAI's example and guide use them, on two encoders."""

DEPTHS = {"minilm-l6": (1, 2, 3, 4, 5, 6), "mpnet-base": (2, 4, 6, 8, 10, 12)}

SHRINK = CycleStudy(
    name="shrink",
    datasets=("allagree", "50agree"),
    regimes=tuple(
        CycleRegime(
            f"{backbone}-depth-{depth}",
            backbone,
            {"sigmoid-1": _SIGMOID},
            config={"depth": depth, "scored_by": "accuracy"},
        )
        for backbone, depths in DEPTHS.items()
        for depth in reversed(depths)
    ),
)
"""Whether a shallower encoder with dendrites equals a deeper one without."""

NEWS_ARMS = CycleStudy(
    name="news-arms",
    datasets=("news-without-phrasebank", "news-without-twitter", "news-without-fiqa"),
    regimes=tuple(
        CycleRegime(
            backbone,
            backbone,
            {"sigmoid-1": _SIGMOID},
            config={"scored_by": "accuracy", "balance": "natural"},
        )
        for backbone in DEPTHS
    ),
    splits=("70/15/15",),
    seeds=(0, 1, 2, 3, 4),
)
"""Four arms, tested on a source that none of them was trained on."""

COMMITTEE = CycleStudy(
    name="committee",
    datasets=("50agree",),
    regimes=(
        CycleRegime(
            "minilm-l6",
            "minilm-l6",
            {},
            config={"scored_by": "accuracy", "epochs": 12},
            teacher="mpnet-base",
            tested=("allagree",),
        ),
    ),
    seeds=(0,),
)
"""A committee of MPNet runs in one MiniLM, against the same MiniLM taught by labels alone."""

CYCLE_STUDIES = (AUTHORS, SHRINK, NEWS_ARMS, COMMITTEE)


PLAIN = "plain"
"""Recipe of a regime without dendrites."""
PUBLISHED_PLAIN, PUBLISHED_LONGER = "published-plain", "published-perforated"
SAME_RATE, FAIR = "two-epochs", "fair"
PUBLISHED_RATES = {PUBLISHED_PLAIN: (1, 1e-5), PUBLISHED_LONGER: (2, 8e-6), SAME_RATE: (2, 1e-5)}
"""Epochs and learning rate of the write-up's two arms, and of one between them that differs from
each in one of the two."""


def replicate_study(backbone: str) -> CycleStudy:
    """The arms of the write-up that this project starts from, as published, and fair ones beside
    them, on AllAgree.

    As published, none of them grows a dendrite; sentences are read one at a time.
    """
    published = [
        CycleRegime(
            name,
            backbone,
            {},
            config={"epochs": epochs, "learning_rate": rate, "batch_size": 1},
        )
        for name, (epochs, rate) in PUBLISHED_RATES.items()
    ]
    fair = CycleRegime(FAIR, backbone, {"relu-1": Recipe(DendriteConfig(prune=True))})
    return CycleStudy(
        name=f"replicate-{backbone}",
        datasets=("allagree",),
        regimes=(*published, fair),
        seeds=(0,),
    )


def cut_down(
    study: CycleStudy,
    *,
    datasets: Sequence[str] | None,
    regimes: Sequence[str] | None,
    seeds: Sequence[int] | None,
    folds: Sequence[int] | None,
) -> CycleStudy:
    """The part of a study that is named; None: all of it. StudyError for an unknown name."""
    if regimes is not None:
        study = replace(study, regimes=tuple(study.regime(name) for name in regimes))
    for dataset in datasets or ():
        if dataset not in study.datasets:
            known = ", ".join(study.datasets)
            raise StudyError(f"study {study.name!r} has no data set {dataset!r}; it has {known}")
    for fold in folds or ():
        if f"fold-{fold}" not in study.splits:
            raise StudyError(f"study {study.name!r} has no fold {fold}")
    return replace(
        study,
        datasets=tuple(datasets or study.datasets),
        splits=tuple(f"fold-{n}" for n in folds) if folds else study.splits,
        seeds=tuple(seeds or study.seeds),
    )
