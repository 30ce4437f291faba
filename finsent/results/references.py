"""Published results on Financial PhraseBank, with the protocol each was measured under.

They stand on the leaderboard as context. Numbers under different protocols (agreement level,
split, averaging of F1) are not comparable with each other or with this project's rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Reference:
    """One published figure. None: the publication does not state it."""

    model: str
    dataset: str
    """Agreement level, by the data set name used here."""
    split: str
    """The protocol in a word or two, to choose by."""
    protocol: str
    """The protocol as far as it is published."""
    accuracy: float | None = None
    macro_f1: float | None = None
    weighted_f1: float | None = None
    f1_average_not_stated: float | None = None
    """An F1 whose averaging over classes is not stated."""
    sd: float | None = None
    """Standard deviation or error of the first metric given, as published."""
    n: int | None = None
    """Test sentences."""
    source: str = ""
    url: str | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return asdict(self)


_WRITE_UP_NOTE = (
    "Not a measurement of dendrites: the published code trains the baseline for 1 epoch at 1e-5 "
    "and the other model for 2 epochs at 8e-6, and the call that reports validation scores to "
    "PerforatedAI is commented out, so no dendrite is ever added. The gain is an extra epoch."
)
_ZERO = "Shah and Chava 2023, Zero is Not Hero Yet"
_ZERO_URL = "https://github.com/gtfintechlab/zero-shot-finance"
"""Holds the grid results and the answers that the four rows are computed from."""
_FIGURE_ONLY = "Reported figure; its publication is not recorded here"

REFERENCES: tuple[Reference, ...] = (
    Reference(
        model="Perforated Phi-2 (original write-up), baseline",
        dataset="allagree",
        split="70/15/15",
        protocol="70/15/15, one run, 1 epoch; arms not trained alike",
        accuracy=0.73,
        f1_average_not_stated=0.72,
        source="The original Perforated Phi-2 write-up",
        note=_WRITE_UP_NOTE,
    ),
    Reference(
        model='Perforated Phi-2 (original write-up), "dendritic"',
        dataset="allagree",
        split="70/15/15",
        protocol="70/15/15, one run, 2 epochs; arms not trained alike",
        accuracy=0.77,
        f1_average_not_stated=0.76,
        source="The original Perforated Phi-2 write-up",
        note=_WRITE_UP_NOTE,
    ),
    Reference(
        model="FinBERT (Araci 2019)",
        dataset="allagree",
        split="its authors'",
        protocol="as in the paper",
        accuracy=0.97,
        f1_average_not_stated=0.95,
        source="Araci 2019, FinBERT",
        url="https://arxiv.org/abs/1908.10063",
    ),
    Reference(
        model="FinBERT (Araci 2019)",
        dataset="50agree",
        split="its authors'",
        protocol="as in the paper",
        accuracy=0.86,
        f1_average_not_stated=0.84,
        source="Araci 2019, FinBERT",
        url="https://arxiv.org/abs/1908.10063",
    ),
    Reference(
        model="FinBERT (its repository's notebook)",
        dataset="50agree",
        split="its authors'",
        protocol="the split its code makes",
        accuracy=0.83,
        macro_f1=0.82,
        n=970,
        source="ProsusAI/finBERT repository",
        url="https://github.com/ProsusAI/finBERT",
    ),
    Reference(
        model="RoBERTa-base",
        dataset="allagree",
        split="80/20",
        protocol="80/20, 3 seeds",
        weighted_f1=0.9735,
        sd=0.004,
        n=453,
        source=_ZERO,
        url=_ZERO_URL,
    ),
    Reference(
        model="RoBERTa-large",
        dataset="allagree",
        split="80/20",
        protocol="80/20, 3 seeds",
        weighted_f1=0.9757,
        sd=0.008,
        n=453,
        source=_ZERO,
        url=_ZERO_URL,
    ),
    Reference(
        model="FinBERT, fine-tuned",
        dataset="allagree",
        split="70/15/15",
        protocol="70/15/15",
        accuracy=0.982,
        f1_average_not_stated=0.973,
        n=340,
        source=_FIGURE_ONLY,
    ),
    Reference(
        model="BERT-base",
        dataset="allagree",
        split="70/15/15",
        protocol="70/15/15",
        accuracy=0.962,
        f1_average_not_stated=0.950,
        n=340,
        source=_FIGURE_ONLY,
    ),
    Reference(
        model="TF-IDF + SVM",
        dataset="allagree",
        split="70/15/15",
        protocol="70/15/15",
        accuracy=0.921,
        f1_average_not_stated=0.898,
        n=340,
        source=_FIGURE_ONLY,
    ),
    Reference(
        model="ModernBERT + LoRA",
        dataset="50agree",
        split="10-fold",
        protocol="stratified 10-fold",
        accuracy=0.8688,
        macro_f1=0.854,
        sd=0.010,
        source="ModernFinBERT repository, experiment 4",
        url="https://github.com/neoyipeng2018/ModernFinBERT",
        note="Macro F1 0.854 +/- 0.014.",
    ),
    Reference(
        model="GPT-4, zero-shot",
        dataset="allagree",
        split="80/20",
        protocol="80/20, 3 test sets",
        accuracy=0.939,
        n=453 * 3,
        source=_ZERO,
        url=_ZERO_URL,
    ),
    Reference(
        model="ChatGPT, zero-shot",
        dataset="allagree",
        split="80/20",
        protocol="80/20, 3 test sets",
        accuracy=0.896,
        n=453 * 3,
        source=_ZERO,
        url=_ZERO_URL,
    ),
    Reference(
        model="FinGPT v3.3 (13B)",
        dataset="50agree",
        split="75/25",
        protocol="25 % test part, seed 42",
        weighted_f1=0.882,
        n=1212,
        source="FinGPT",
        url="https://github.com/AI4Finance-Foundation/FinGPT",
    ),
    Reference(
        model="Phi-2 + LoRA r=16",
        dataset="50agree",
        split="class-balanced",
        protocol="class-balanced test set",
        accuracy=0.858,
        n=900,
        source=_FIGURE_ONLY,
        note="Its split leaks: near-copies of test sentences are in the training part.",
    ),
)
