"""What a run is: frozen, serialisable, refused at construction when it cannot mean anything.

The three arms come from one `TrainConfig`. They differ in exactly one field, `treatment`, so that
"identical budgets" is a property of the data structure and not of anyone's discipline.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

ARMS = ("baseline", "dendritic", "matched")
"""`baseline`: LoRA only. `dendritic`: the same, growing dendrites. `matched`: no dendrites, but as
many trainable parameters as the dendritic run of the same seed ended with."""

STUDY_ARMS = ("baseline", "dendritic", "restart", "matched")
"""Also `restart`: goes back to its best state, with a fresh optimizer and a lower learning rate,
after the epochs after which the dendritic run of the same seed grew. In the order of training."""

BACKBONE_TITLES = {
    "phi-2": "Phi-2",
    "smollm2-135m": "SmolLM2-135M",
    "mpnet-base": "MPNet-base",
    "minilm-l6": "MiniLM-L6",
    "tiny-phi": "Tiny Phi (random weights, for tests)",
    "lexicon-vader": "VADER lexicon",
    "lexicon-loughran-mcdonald": "Loughran–McDonald lexicon",
    "tfidf-logistic": "TF-IDF, logistic regression",
    "smollm2-135m-zero-shot": "SmolLM2-135M, zero-shot",
    "smollm2-135m-frozen-logistic": "SmolLM2-135M, frozen, logistic regression",
}
"""Names of the backbones and of what they are compared with for people; another goes by its own
name."""

PRECISIONS = ("nf4", "bf16", "fp32")
ADAPTER_PRECISIONS = ("fp32", "bf16")
ACTIVATIONS = ("sigmoid", "relu", "tanh")
PLACEMENTS = ("lora_B", "score", "layer", "linear")
AMONG = ("all", "attention", "mlp")
CANDIDATES = ("random", "refined")
RESTART_RULES = ("always", "behind", "stalled")
NOISE_RULES = ("keep", "drop")
POOLINGS = ("last", "mean")
ADAPTATIONS = ("lora", "full")
STORED_PRECISIONS = ("fp16", "int8")
SCALES = ":scales"
"""Ends the name of the tensor that holds the scales of an int8 one in an adapter file."""
SCHEDULES = ("linear", "cosine")
SCORES = ("nll", "accuracy")

Precision = Literal["nf4", "bf16", "fp32"]


class ConfigError(ValueError):
    """A setting, or a combination of settings, that cannot be run."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters W x + (alpha / r) B A x (Hu et al. 2021, arXiv:2106.09685)."""

    r: int = 8
    """Rank of A and B."""
    alpha: float = 16.0
    """Scaling numerator; alpha / r multiplies the adapter's output."""
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers that get an adapter in every adapted block."""
    last_layers: int | None = None
    """Adapt only the last N blocks (None: all). Hidden states below the first adapted block
    never change, so they are computed once and reused by every epoch."""
    dropout: float = 0.0
    """Share of what enters a map that is left out at random in training steps."""

    def __post_init__(self) -> None:
        _require(0 <= self.dropout < 1, f"lora.dropout must be in [0, 1), got {self.dropout}")
        _require(self.r >= 1, f"lora.r must be at least 1, got {self.r}")
        _require(0 < self.alpha < math.inf, f"lora.alpha must be positive, got {self.alpha}")
        _require(len(self.target_modules) > 0, "lora.target_modules must name at least one layer")
        _require(
            self.last_layers is None or self.last_layers >= 1,
            f"lora.last_layers must be at least 1 or None for all, got {self.last_layers}",
        )


@dataclass(frozen=True)
class DendriteConfig:
    """How dendrites grow: y = W x + sum_i t_i * act(V_i x + sum_{j<i} d_ij * o_j).

    PerforatedAI adds them and gradient descent trains them. These are not the library's own
    settings: both stand in finsent.growth.settings.
    """

    placement: tuple[str, ...] = ("lora_B", "score")
    """Which maps may grow dendrites: every LoRA B matrix, whose dendrites read A x; every adapted
    layer from its input to its output, whose dendrites are low-rank maps of their own; every layer
    that is trained in full (TrainConfig.adapt), whose dendrites are as large as it is; the score
    head. One of the first three, the head, or both."""
    among: str = "all"
    """Which layers' maps: all, attention's, or the MLP's. The head is none of them."""
    activation: str = "relu"
    """The dendrites' non-linearity."""
    max_dendrites: int = 1
    """Dendrites per wrapped map at most; growth stops there, training goes on to the budget."""
    patience: int = 2
    """Epochs without a better validation score before the library adds a dendrite."""
    grow_by: int | None = None
    """Zero-based epoch at whose end the first dendrite is added at the latest (None: only patience
    decides, and a run that never plateaus ends without dendrites and says so)."""
    init_scale: float = 0.1
    """Standard deviation of a new dendrite's weights V. Its output weight t starts at zero, so
    the model goes on from its best state so far, unchanged."""
    candidates: str = "random"
    """How V starts: `random`, as the library draws it, or `refined`, trained to follow what the map
    gets wrong before it is inserted (see finsent.growth.candidate_pool)."""
    learning_rate_factor: float = 0.5
    """Multiplies the scheduled learning rate from the first growth on that restarts the run.
    Together with the return to the best state and a fresh optimizer it is part of what the
    dendritic arm does differently."""
    restart: str = "always"
    """Which growths restart the run like that: `always`; `behind`, only where the run is not at its
    best; or `stalled`, only after `patience` epochs without a better validation score. Any other
    run goes on from where it is with its optimizer's state and its learning rate, and has its
    dendrites besides."""
    prune: bool = False
    """Whether a state of before the growth may be selected, if it validates best: dendrites that do
    not pay are dropped, and the run says so."""

    def restarts_run(self, losses: Sequence[float]) -> bool:
        """Whether growth restarts a run; `losses`: on validation, of its epochs so far in order."""
        behind = len(losses) - 1 - losses.index(min(losses))
        return behind >= {"always": 0, "behind": 1, "stalled": self.patience}[self.restart]

    def __post_init__(self) -> None:
        unknown = set(self.placement) - set(PLACEMENTS)
        _require(
            not unknown and len(self.placement) > 0,
            f"dendrites.placement must be some of {PLACEMENTS}, got {self.placement}",
        )
        _require(
            len({"lora_B", "layer", "linear"} & set(self.placement)) <= 1,
            f"dendrites.placement {self.placement} names the same layers twice; name one of "
            "lora_B, layer and linear",
        )
        _require(self.among in AMONG, f"dendrites.among must be one of {AMONG}, got {self.among!r}")
        _require(
            "layer" not in self.placement or self.candidates == "random",
            "refined candidates are fitted for single matrices, not for placement layer",
        )
        _require(
            self.activation in ACTIVATIONS,
            f"dendrites.activation must be one of {ACTIVATIONS}, got {self.activation!r}",
        )
        _require(
            self.max_dendrites >= 1,
            f"dendrites.max_dendrites must be at least 1, got {self.max_dendrites}",
        )
        _require(self.patience >= 1, f"dendrites.patience must be at least 1, got {self.patience}")
        _require(
            self.grow_by is None or self.grow_by >= 0,
            f"dendrites.grow_by must be an epoch >= 0 or None, got {self.grow_by}",
        )
        _require(
            self.candidates in CANDIDATES,
            f"dendrites.candidates must be one of {CANDIDATES}, got {self.candidates!r}",
        )
        _require(
            self.restart in RESTART_RULES,
            f"dendrites.restart must be one of {RESTART_RULES}, got {self.restart!r}",
        )
        _require(
            self.candidates == "random" or self.max_dendrites == 1,
            f"refined candidates are for one dendrite a map, got {self.max_dendrites}: a second "
            "growth would go back to a state that knows the first only as it was drawn",
        )
        _require(
            0 < self.init_scale < math.inf,
            f"dendrites.init_scale must be > 0 and finite, got {self.init_scale}",
        )
        _require(
            0 < self.learning_rate_factor < math.inf,
            f"dendrites.learning_rate_factor must be > 0, got {self.learning_rate_factor}",
        )


def default_placement(adapt: str) -> tuple[str, ...]:
    """Where dendrites grow, by TrainConfig.adapt, unless something else is asked for."""
    return ("lora_B", "score") if adapt == "lora" else ("score",)


def latest_growth(epochs: int) -> int:
    """Value of DendriteConfig.grow_by that leaves dendrites the second half of a run.

    Args:
        epochs: Length of the run; its validation score need not plateau.
    """
    return max(0, epochs // 2 - 1)


@dataclass(frozen=True)
class Restarts:
    """What growing does besides adding dendrites: the control for that part of it."""

    epochs: tuple[int, ...]
    """Zero-based epochs at whose end the run goes back to its best state so far. None where growth
    interrupts nothing (DendriteConfig.restart)."""
    learning_rate_factor: float = 0.5
    """Multiplies the scheduled learning rate from the first restart on."""
    prune: bool = False
    """Whether a state of before the restart may be selected, as where growth may be undone
    (DendriteConfig.prune)."""

    def __post_init__(self) -> None:
        _require(
            all(epoch >= 0 for epoch in self.epochs),
            f"restarts.epochs must be >= 0, got {self.epochs}",
        )
        _require(
            self.learning_rate_factor > 0,
            f"restarts.learning_rate_factor must be > 0, got {self.learning_rate_factor}",
        )


@dataclass(frozen=True)
class MatchedCapacity:
    """The control: larger LoRA ranks spend the parameters that dendrites would have used."""

    trainable_params: int
    """Number of trainable parameters to match, taken from the dendritic run of the same seed."""
    restarts: Restarts | None = None
    """The same restarts as the dendritic run's, where a study gives them to every control."""

    def __post_init__(self) -> None:
        _require(
            self.trainable_params > 0,
            f"matched.trainable_params must be positive, got {self.trainable_params}",
        )


Treatment = DendriteConfig | MatchedCapacity | Restarts | None


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's result, apart from software versions and the device."""

    backbone: str = "smollm2-135m"
    """Preset name, Hub id or local folder of the frozen language model."""
    dataset: str = "allagree"
    """Name of the data set; see finsent.data.registry."""
    split: str = "70/15/15"
    """Protocol: "70/15/15", "fold-<n>" of grouped 10-fold cross-validation, or "finbert", the split
    of that model's repository; see finsent.data.folds."""
    train_fraction: float = 1.0
    """Share of a fold's training part that is used."""
    balance: str = "repeat-4"
    """How an epoch balances the sources of a data set made of several (no other has a choice):
    "natural", every sentence once; "repeat-<k>", those of a smaller source up to k times, as often
    as they fit into the largest; see finsent.data.mixture."""
    noise: str = "keep"
    """Whether the training part keeps or drops the rows that finsent.data.noise finds."""
    seed: int = 0
    """Seeds the split, the initial weights, the shuffling and the dendrites."""
    precision: Precision = "fp32"
    """How the frozen weights are held; nf4 is 4-bit NormalFloat, double-quantised, bf16 compute."""
    autocast: bool = True
    """With a base held in fp32, training steps run the blocks under bf16 autocast. Head, loss,
    weights and evaluation never do, so what is reported is what a machine without bf16 would serve.
    A base held in bf16 or NF4 computes in bf16 always, and this makes no difference."""
    adapter_precision: str = "fp32"
    """How LoRA maps and dendrites on them are held, and so what the optimizer updates: fp32 or
    bf16. The head is always fp32."""
    depth: int | None = None
    """Use only the first D blocks of the backbone (None: all), then its final norm. The top blocks
    of a language model predict tokens; leaving them out saves their time."""
    pooling: str = "last"
    """What the score head reads: the last token's state, or the mean over all tokens (an encoder's
    [CLS] and [SEP] among them)."""
    adapt: str = "lora"
    """How a targeted map changes: by `lora`, low-rank maps beside the frozen weight, or `full`, a
    trained difference of the weight's own shape. Biases, norms and embeddings stay either way."""
    stored: str = "fp16"
    """How the adapter file holds what was trained: fp16, or int8 with a scale for each row of a
    matrix. The trained state is rounded so before it is evaluated on test, so the results are those
    of the file."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    treatment: Treatment = None
    """The one field in which the arms differ."""
    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup_fraction: float = 0.06
    """Share of all optimizer steps spent warming up linearly; then decay to zero."""
    schedule: str = "linear"
    """Form of that decay: linear, or half a cosine."""
    layer_decay: float = 1.0
    """Multiplies the learning rate once for every block between a map and the head: below 1, lower
    blocks change less. The head has the full rate."""
    max_grad_norm: float = 1.0
    scored_by: str = "nll"
    """Which validation score selects the state, ends a run that has stalled, and is told to
    PerforatedAI: the mean negative log-likelihood, or the accuracy."""
    stop_patience: int | None = None
    """The run ends after so many epochs without a better validation score (None: never early)."""
    class_weighted: bool = True
    """Cross-entropy weighted by inverse class frequency of the training part."""
    class_weight_power: float = 1.0
    """Exponent of those weights; 0.5 weights by the square root of inverse frequency."""
    label_smoothing: float = 0.0
    """Share of each training target spread evenly over the classes; evaluation never smooths."""
    max_length: int = 128
    """Longer sentences are cut to this many tokens, the suffix included."""
    views: int = 0
    """In how many other ways every training text is written (finsent.data.variation); each epoch
    reads one of them or the text itself, drawn anew. Validation and test are never varied."""
    copies: int = 1
    """How often a text stands there, a line for each copy. To a model that reads from left to right
    the second copy is the first in which every word may look at all the others. There is room for
    `max_length` tokens times as many."""
    prompt_suffix: str = ""
    """Ends every text, also a cut one. With a cue such as " Sentiment:" the last token stands where
    the language model itself would go on with the answer."""

    def __post_init__(self) -> None:
        _require(
            self.precision in PRECISIONS,
            f"precision must be one of {PRECISIONS}, got {self.precision!r}",
        )
        _require(
            self.adapter_precision in ADAPTER_PRECISIONS,
            f"adapter_precision must be one of {ADAPTER_PRECISIONS}, got "
            f"{self.adapter_precision!r}",
        )
        for name, known in (
            ("pooling", POOLINGS),
            ("adapt", ADAPTATIONS),
            ("stored", STORED_PRECISIONS),
            ("schedule", SCHEDULES),
            ("scored_by", SCORES),
        ):
            value = getattr(self, name)
            _require(value in known, f"{name} must be one of {known}, got {value!r}")
        if self.adapt == "full":
            _require(
                self.precision != "nf4", "adapt full trains whole weights, which nf4 does not hold"
            )
        if isinstance(self.treatment, DendriteConfig):
            placement = set(self.treatment.placement)
            _require(
                self.adapt == "lora" or placement <= {"score", "linear"},
                "adapt full has no LoRA maps to grow dendrites on; use --placement linear or score",
            )
            _require(
                self.adapt == "full" or "linear" not in placement,
                "placement linear is for layers that are trained in full; use --adapt full with it",
            )
        _require(
            0 < self.layer_decay <= 1, f"layer_decay must be in (0, 1], got {self.layer_decay}"
        )
        _require(
            0 <= self.class_weight_power <= 1,
            f"class_weight_power must be in [0, 1], got {self.class_weight_power}",
        )
        _require(
            self.depth is None or self.depth >= 1,
            f"depth must be at least 1 or None for all blocks, got {self.depth}",
        )
        if self.depth is not None and self.lora.last_layers is not None:
            _require(
                self.lora.last_layers <= self.depth,
                f"cannot adapt the last {self.lora.last_layers} of {self.depth} blocks",
            )
        _require(
            0 < self.train_fraction <= 1,
            f"train_fraction must be in (0, 1], got {self.train_fraction}",
        )
        _require(
            re.fullmatch(r"natural|repeat-[1-9]\d*", self.balance) is not None,
            f"balance must be 'natural' or 'repeat-<k>', got {self.balance!r}",
        )
        _require(
            self.noise in NOISE_RULES, f"noise must be one of {NOISE_RULES}, got {self.noise!r}"
        )
        _require(self.seed >= 0, f"seed must be >= 0, got {self.seed}")
        _require(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")
        _require(self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}")
        _require(
            0 < self.learning_rate < math.inf,
            f"learning_rate must be > 0 and finite, got {self.learning_rate}",
        )
        _require(self.weight_decay >= 0, f"weight_decay must be >= 0, got {self.weight_decay}")
        _require(
            0 <= self.warmup_fraction < 1,
            f"warmup_fraction must be in [0, 1), got {self.warmup_fraction}",
        )
        _require(self.max_grad_norm > 0, f"max_grad_norm must be > 0, got {self.max_grad_norm}")
        _require(
            0 <= self.label_smoothing < 1,
            f"label_smoothing must be in [0, 1), got {self.label_smoothing}",
        )
        _require(self.max_length >= 8, f"max_length must be at least 8, got {self.max_length}")
        _require(
            self.stop_patience is None or self.stop_patience >= 1,
            f"stop_patience must be at least 1 or None, got {self.stop_patience}",
        )
        _require(self.views >= 0, f"views must be at least 0, got {self.views}")
        _require(self.copies >= 1, f"copies must be at least 1, got {self.copies}")
        if isinstance(self.treatment, DendriteConfig) and self.treatment.grow_by is not None:
            _require(
                self.epochs >= 2,
                "a run of 1 epoch leaves none to train a dendrite in; choose at least 2 epochs, or "
                "train the baseline alone (--arms baseline)",
            )
            _require(
                self.treatment.grow_by < self.epochs - 1,
                f"dendrites.grow_by={self.treatment.grow_by} leaves no epoch to train a dendrite: "
                f"the run has {self.epochs} epochs; choose at most {self.epochs - 2}",
            )

    @property
    def longest(self) -> int:
        """Tokens that all copies of a text may have together, the suffix included."""
        return self.max_length * self.copies

    @property
    def arm(self) -> str:
        """Name of the arm this configuration belongs to."""
        if self.treatment is None:
            return "baseline"
        if isinstance(self.treatment, Restarts):
            return "restart"
        return "dendritic" if isinstance(self.treatment, DendriteConfig) else "matched"

    @property
    def restarts(self) -> Restarts | None:
        """Restarts without growth, of the arms that have them."""
        if isinstance(self.treatment, Restarts):
            return self.treatment
        return self.treatment.restarts if isinstance(self.treatment, MatchedCapacity) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values; the treatment carries its kind."""
        data = asdict(self)
        if self.treatment is not None:
            data["treatment"] = {"kind": self.arm, **data["treatment"]}
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainConfig:
        """Inverse of `to_dict` (also after a trip through JSON). Unknown keys are an error."""
        known = {f.name for f in fields(cls)}
        _require(set(data) <= known, f"unknown settings {sorted(set(data) - known)}")
        values = dict(data)
        if "lora" in values:
            lora = dict(values["lora"])
            if "target_modules" in lora:
                lora["target_modules"] = tuple(lora["target_modules"])
            values["lora"] = LoraConfig(**lora)
        treatment = values.get("treatment")
        if treatment is not None:
            treatment = dict(treatment)
            kind = treatment.pop("kind")
            if kind == "dendritic":
                treatment["placement"] = tuple(treatment["placement"])
                values["treatment"] = DendriteConfig(**treatment)
            elif kind == "matched":
                restarts = treatment.get("restarts")
                if restarts is not None:
                    treatment["restarts"] = _restarts(restarts)
                values["treatment"] = MatchedCapacity(**treatment)
            elif kind == "restart":
                values["treatment"] = _restarts(treatment)
            else:
                raise ConfigError(
                    f"unknown treatment kind {kind!r}; expected one of {STUDY_ARMS[1:]}"
                )
        return cls(**values)


def _restarts(data: dict[str, Any]) -> Restarts:
    return Restarts(**{**data, "epochs": tuple(data["epochs"])})


def arm_config(base: TrainConfig, arm: str, treatment: Treatment = None) -> TrainConfig:
    """`base` with the treatment of `arm`; nothing else changes.

    Raises ConfigError when the treatment given is not that arm's kind.
    """
    config = replace(base, treatment=treatment)
    _require(arm in STUDY_ARMS, f"arm must be one of {STUDY_ARMS}, got {arm!r}")
    _require(config.arm == arm, f"arm {arm!r} got the treatment of arm {config.arm!r}")
    return config
