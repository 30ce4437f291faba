"""The registered studies: which regimes, recipes and settings are tried. A new one is one entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import TypeVar

from finsent.config import DendriteConfig
from finsent.data.folds import FOLDS, FRACTIONS
from finsent.study.cycles.plans import CYCLE_STUDIES, CycleStudy
from finsent.study.head_recipe import HeadRecipe
from finsent.study.rows import StudyError

SELECTION_SEED = 1000
"""The repetition of the folds on whose validation parts settings are chosen; it is never tested."""
SELECTION_FOLDS = 5
"""How many of its folds are used."""


@dataclass(frozen=True)
class Regime:
    """What a head may see."""

    name: str
    dimensions: int | None = None
    """Principal components of the frozen features (None: all of them)."""
    fraction: float = 1.0
    """Share of the training part."""
    settings_of: str | None = None
    """A regime of the same kind whose settings are used (None: chosen for this one)."""
    test_datasets: tuple[str, ...] = ()
    """Data sets of the same classes on which the trained heads are tested as well, whole."""

    def __post_init__(self) -> None:
        if self.fraction not in FRACTIONS:
            raise StudyError(f"regime {self.name}: fraction must be one of {FRACTIONS}")


@dataclass(frozen=True)
class Settings:
    """What is chosen on validation; every arm of a recipe is tuned over the same grid."""

    features: str
    """`<pooling>-<layer>`; chosen for the baseline, and then the same for all arms."""
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class HeadStudy:
    """Heads on frozen features: data sets x regimes x recipes x arms x folds x seeds."""

    name: str
    datasets: tuple[str, ...]
    regimes: tuple[Regime, ...]
    recipes: Mapping[str, HeadRecipe]
    variants: Mapping[str, HeadRecipe]
    """Recipes that differ from one of `recipes` in one setting, compared on validation only."""
    variant_regimes: tuple[str, ...]
    features: tuple[str, ...]
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    backbone: str = "smollm2-135m"
    folds: int = FOLDS
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    settings_from: str | None = None
    """A study whose chosen settings are used, for regimes of the same names (None: its own)."""

    def regime(self, name: str) -> Regime:
        """The regime of that name. StudyError for an unknown one."""
        return _named(self.regimes, name, self.name)

    def grid(self) -> list[tuple[float, float]]:
        """(learning_rate, weight_decay) pairs that every arm is tuned over."""
        return list(product(self.learning_rates, self.weight_decays))


RANDOM = HeadRecipe(candidates="random")
REFINED = HeadRecipe(candidates="refined", dendrites=3)

HEADS = HeadStudy(
    name="heads",
    datasets=("allagree", "50agree"),
    regimes=(
        Regime("full"),
        Regime("pca-32", dimensions=32),
        Regime("data-10", fraction=0.1),
        Regime("pca-32-data-10", dimensions=32, fraction=0.1),
        *(Regime(f"pca-{k}", dimensions=k, settings_of="pca-32") for k in (64, 16, 8)),
        Regime("data-50", fraction=0.5, settings_of="full"),
        *(
            Regime(f"data-{round(100 * f)}", fraction=f, settings_of="data-10")
            for f in (0.25, 0.05)
        ),
    ),
    recipes=MappingProxyType(
        {
            "random-1": RANDOM,
            "refined-3": REFINED,
            "refined-8": REFINED.with_(dendrites=8, epochs=45),
        }
    ),
    variants=MappingProxyType(
        {
            "random-1, init 0.01": RANDOM.with_(init_scale=0.01),
            "random-1, init 0.05": RANDOM.with_(init_scale=0.05),
            "random-1, init 0.5": RANDOM.with_(init_scale=0.5),
            "random-1, tanh": RANDOM.with_(activation="tanh"),
            "random-1, sigmoid": RANDOM.with_(activation="sigmoid"),
            "random-1, rate x 1": RANDOM.with_(learning_rate_factor=1.0),
            "random-1, rate x 0.2": RANDOM.with_(learning_rate_factor=0.2),
            "random-1, scored by accuracy": RANDOM.with_(score="accuracy"),
            "random-1, not pruned": RANDOM.with_(prune=False),
            "random-3": RANDOM.with_(dendrites=3),
            "refined-1": REFINED.with_(dendrites=1),
            "refined-5": REFINED.with_(dendrites=5, epochs=42),
            "refined-3, tanh": REFINED.with_(activation="tanh"),
            "refined-3, rate x 1": REFINED.with_(learning_rate_factor=1.0),
            "refined-3, scored by accuracy": REFINED.with_(score="accuracy"),
            "refined-3, not pruned": REFINED.with_(prune=False),
        }
    ),
    variant_regimes=("full", "pca-32", "data-10"),
    features=("mean-16", "mean-20", "last-28"),
    learning_rates=(1e-3, 3e-3, 1e-2, 3e-2),
    weight_decays=(0.01, 1.0),
)


TARGETS = ("labels", "agreement")
"""The label alone, or the share of annotators who chose it (finsent.data.agreement)."""


@dataclass(frozen=True)
class LoraRegime:
    """Where LoRA maps stand, how large they are, where dendrites may grow, and what is learnt."""

    name: str
    r: int = 8
    last_layers: int | None = None
    """Adapted blocks, counted from the top (None: all)."""
    placement: tuple[str, ...] = ("lora_B", "score")
    fraction: float = 1.0
    """Share of the training part."""
    learning_rate: float | None = None
    """None: the recipe's."""
    recipes: tuple[str, ...] = ("grown",)
    """Keys of LORA_RECIPES. They share the baseline and the controls."""
    target_modules: tuple[str, ...] | None = None
    """Kinds of layer that have LoRA maps (None: the recipe's)."""
    targets: str = "labels"
    """What training aims for, one of TARGETS."""
    copies: int = 1
    """How often a text stands there (see TrainConfig)."""
    first_on: str | None = None
    """Data set of the same classes on which every run is trained before; ensembles only."""

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise StudyError(f"regime {self.name}: targets must be one of {TARGETS}")
        if self.copies < 1:
            raise StudyError(f"regime {self.name}: copies must be at least 1, got {self.copies}")


LORA_RECIPES = {"grown": "random", "grown-refined": "refined"}
"""Recipe of a LoRA study -> how its dendrites start (DendriteConfig.candidates)."""


_EARLY_GROWTH = DendriteConfig()


@dataclass(frozen=True)
class LoraStudy:
    """Fine-tuning: data sets x regimes x recipes x arms x folds x seeds.

    Everything not named here is the backbone's own recipe for a GPU, computed in bf16, wherever the
    study runs: what one file holds has to be comparable.
    """

    name: str
    datasets: tuple[str, ...]
    regimes: tuple[LoraRegime, ...]
    splits: tuple[str, ...] = tuple(f"fold-{number}" for number in range(FOLDS))
    """Values of TrainConfig.split."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    dendrites: DendriteConfig = _EARLY_GROWTH
    """Placement, candidates and `grow_by` are those of regimes and recipes."""
    epochs: int | None = None
    """None: the recipe's."""
    backbone: str = "smollm2-135m"

    def __post_init__(self) -> None:
        for regime in self.regimes:
            if regime.first_on is not None:
                raise StudyError(
                    f"regime {regime.name}: only ensembles are trained on {regime.first_on} first; "
                    "the larger ranks of matched runs have no state to go on from"
                )

    def regime(self, name: str) -> LoraRegime:
        """The regime of that name. StudyError for an unknown one."""
        return _named(self.regimes, name, self.name)


@dataclass(frozen=True)
class Source:
    """What ensembles are trained on and tested on."""

    dataset: str
    """Data set trained on."""
    tested: tuple[str, ...]
    """Data sets tested on, each on those of its sentences that are in the fold's test part. All of
    them are part of the one trained on, so that over all folds each sentence is tested once."""
    epochs: int | None = None
    """None: the recipe's."""


@dataclass(frozen=True)
class EnsembleStudy:
    """Runs of the same folds that differ in their seed alone, and the mean of what they say.

    No arm here has dendrites: this is about the best that a backbone can do.
    """

    name: str
    sources: tuple[Source, ...]
    regimes: tuple[LoraRegime, ...] = (LoraRegime("r8-all"),)
    """Of several, each source has the one that is chosen on validation, unless `together`."""
    members: int = 5
    """Runs of a fold and regime."""
    together: bool = False
    """Runs of all regimes answer together."""
    refit: bool = False
    """Runs are trained on the validation part as well, to the last epoch: nothing is selected."""
    repetition: int = 0
    """Which deal of the folds."""
    backbone: str = "smollm2-135m"

    def __post_init__(self) -> None:
        for regime in self.regimes:
            if regime.fraction != 1.0:
                raise StudyError(
                    f"regime {regime.name}: ensembles learn the whole training part, not a share "
                    f"of {regime.fraction}"
                )

    @property
    def chooses(self) -> bool:
        """Whether one of several regimes is chosen on validation."""
        return len(self.regimes) > 1 and not self.together

    def regime(self, name: str) -> LoraRegime:
        """The regime of that name. StudyError for an unknown one."""
        return _named(self.regimes, name, self.name)

    def source(self, dataset: str) -> Source:
        """What is trained on that data set. StudyError for an unknown one."""
        for source in self.sources:
            if source.dataset == dataset:
                return source
        known = ", ".join(source.dataset for source in self.sources)
        raise StudyError(f"study {self.name!r} trains on {known}, not on {dataset!r}")


R = TypeVar("R", Regime, LoraRegime)


def _named(regimes: tuple[R, ...], name: str, study: str) -> R:
    for regime in regimes:
        if regime.name == name:
            return regime
    known = ", ".join(regime.name for regime in regimes)
    raise StudyError(f"study {study!r} has no regime {name!r}; it has {known}")


_BOTH = tuple(LORA_RECIPES)
_FEW_BLOCKS_RATE = 1e-3
"""Chosen on validation for few adapted blocks (LOG.md); all arms share it."""

LORA = LoraStudy(
    name="lora",
    datasets=("allagree", "50agree"),
    regimes=(
        LoraRegime("r8-all"),
        *(
            LoraRegime(
                f"r{r}-last{layers}",
                r=r,
                last_layers=layers,
                learning_rate=_FEW_BLOCKS_RATE,
                recipes=_BOTH,
            )
            for r in (1, 4, 16)
            for layers in (1, 4)
        ),
        *(
            LoraRegime(
                f"r8-last1-{name}",
                last_layers=1,
                placement=(placement,),
                learning_rate=_FEW_BLOCKS_RATE,
                recipes=_BOTH,
            )
            for name, placement in (("head", "score"), ("lora", "lora_B"))
        ),
        LoraRegime("r8-all-data-10", fraction=0.1),
        LoraRegime("r1-all", r=1),
        LoraRegime("r16-all", r=16),
    ),
)

UNINTERRUPTED = LoraStudy(
    name="lora-uninterrupted",
    datasets=LORA.datasets,
    regimes=tuple(
        LORA.regime(name) for name in ("r8-all", "r8-all-data-10", "r1-last1", "r1-last4")
    ),
    dendrites=DendriteConfig(restart="stalled", prune=True),
)
"""The same where growth leaves a run that has not stalled its optimizer and learning rate, and may
be undone; made after `lora` was tested, where the restart did harm to such runs (LOG.md)."""

KEPT = replace(
    UNINTERRUPTED,
    name="lora-kept",
    dendrites=DendriteConfig(restart="behind"),
)
"""The same where what was grown is kept, as on the leaderboard, and a run that is not at its best
goes back there: otherwise one that overfits has only overfitted states to choose from."""

TASKS = LoraStudy(
    name="lora-tasks",
    datasets=("fiqa", "fomc", "numclaim", "twitter"),
    regimes=(LORA.regime("r8-all"),),
    splits=("fold-0", "fold-1"),
    dendrites=KEPT.dendrites,
)
"""The trainer's default on the further data sets: two folds of five deals, a fifth of what all of
them would cost."""

FINBERT_SPLIT = LoraStudy(
    name="finbert-split",
    datasets=("50agree",),
    regimes=(LoraRegime("default"),),
    splits=("finbert",),
)

HELD_OUT = replace(
    HEADS,
    name="heads-held-out",
    regimes=tuple(
        HEADS.regime(name) for name in ("full", "pca-32", "data-10", "pca-16", "data-25")
    ),
    recipes=MappingProxyType(
        {
            name: HEADS.recipes[name].with_(chosen_on="training")
            for name in ("refined-3", "refined-8")
        }
    ),
    variants=MappingProxyType({}),
    features=("mean-16", "last-28"),
    learning_rates=(3e-3, 1e-2),
)
"""The same with candidates that never look at the validation part; made after `heads` was tested,
which showed how far validation figures of its refined recipes were from test (LOG.md)."""

PENALISED = replace(
    HELD_OUT,
    name="heads-penalised",
    regimes=tuple(
        HEADS.regime(name) for name in ("full", "pca-32", "data-10", "data-50", "data-25")
    ),
    recipes=MappingProxyType({"random-1": RANDOM, "refined-3": HELD_OUT.recipes["refined-3"]}),
    features=HEADS.features,
    learning_rates=(1e-3, 3e-3, 1e-2),
    weight_decays=(1.0, 3.0, 10.0, 30.0),
)
"""The same with larger penalties: with a tenth of the data the larger of two was chosen above, and
with all of it a logistic regression with a tuned penalty beat every head (LOG.md)."""

ELSEWHERE = ("fiqa", "twitter")
CROSS_DOMAIN = replace(
    HEADS,
    name="cross-domain",
    datasets=("50agree",),
    regimes=tuple(
        replace(HEADS.regime(name), test_datasets=ELSEWHERE) for name in ("full", "pca-32")
    ),
    settings_from=HEADS.name,
)
"""Heads trained on Financial PhraseBank, tested on headlines, microblogs and tweets."""

ENSEMBLES = EnsembleStudy(
    name="ensembles",
    sources=(
        Source("50agree", ("50agree", "allagree")),
        Source("allagree", ("allagree",), epochs=12),
    ),
)
"""Twice the epochs for AllAgree: half the sentences, and the best single run is not what counts."""

_SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_SEVEN_RATE = 3e-4
"""Of the rates tried for seven kinds of layer the one with the lowest validation NLL (LOG.md)."""

STRONGEST = EnsembleStudy(
    name="strongest",
    sources=(Source("50agree", ("50agree", "allagree")),),
    regimes=(
        LoraRegime("r8-all"),
        LoraRegime("seven", target_modules=_SEVEN, learning_rate=_SEVEN_RATE),
        LoraRegime("agreement", targets="agreement"),
        LoraRegime("repeated", copies=2),
        LoraRegime(
            "seven-agreement",
            target_modules=_SEVEN,
            learning_rate=_SEVEN_RATE,
            targets="agreement",
        ),
        LoraRegime("repeated-twitter-first", copies=2, first_on="twitter"),
        LoraRegime("repeated-seven", copies=2, target_modules=_SEVEN, learning_rate=_SEVEN_RATE),
        LoraRegime("repeated-r16", r=16, copies=2),
        LoraRegime("thrice", copies=3),
    ),
)
"""What `ensembles` fell short of, with more than one way of fine-tuning to choose from."""

REFITTED = replace(
    STRONGEST,
    name="refitted",
    regimes=tuple(STRONGEST.regime(name) for name in ("repeated-r16", "thrice", "repeated-seven")),
    members=3,
    together=True,
    refit=True,
)
"""What validation taught `strongest`, used: ways that read a text more than once, trained on all
that is not tested; registered after five folds of `strongest` were tested (LOG.md)."""

STUDIES: Mapping[str, HeadStudy | LoraStudy | EnsembleStudy | CycleStudy] = MappingProxyType(
    {
        study.name: study
        for study in (
            HEADS,
            HELD_OUT,
            PENALISED,
            CROSS_DOMAIN,
            LORA,
            UNINTERRUPTED,
            KEPT,
            TASKS,
            FINBERT_SPLIT,
            ENSEMBLES,
            STRONGEST,
            REFITTED,
            *CYCLE_STUDIES,
        )
    }
)
