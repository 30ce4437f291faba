"""What to cite, as BibTeX: this project, its data, models and methods, and the published rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Citation:
    """One BibTeX entry."""

    key: str
    kind: str
    why: str
    """What of it is used here."""
    fields: tuple[tuple[str, str], ...]

    def bibtex(self) -> str:
        """The entry, one field a line."""
        width = max(len(name) for name, _ in self.fields)
        lines = "".join(f"  {name:<{width}} = {{{value}}},\n" for name, value in self.fields)
        return f"@{self.kind}{{{self.key},\n{lines}}}\n"


CITATIONS = (
    Citation(
        "finsent",
        "software",
        "this benchmark, its trainer and this page",
        (
            ("title", "{finsent}: a fair benchmark of dendritic optimization on financial news"),
            ("author", "{The finsent contributors}"),
            ("version", "0.1.0"),
            ("license", "Apache-2.0"),
        ),
    ),
    Citation(
        "malo2014good",
        "article",
        "Financial PhraseBank, the sentences and their labels",
        (
            ("title", "Good debt or bad debt: Detecting semantic orientations in economic texts"),
            (
                "author",
                "Malo, Pekka and Sinha, Ankur and Korhonen, Pekka and Wallenius, Jyrki and "
                "Takala, Pyry",
            ),
            (
                "journal",
                "Journal of the Association for Information Science and Technology",
            ),
            ("volume", "65"),
            ("number", "4"),
            ("pages", "782--796"),
            ("year", "2014"),
        ),
    ),
    Citation(
        "hu2021lora",
        "misc",
        "LoRA, what every arm trains",
        (
            ("title", "{LoRA}: Low-Rank Adaptation of Large Language Models"),
            (
                "author",
                "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and "
                "Li, Yuanzhi and Wang, Shean and Wang, Lu and Chen, Weizhu",
            ),
            ("year", "2021"),
            ("eprint", "2106.09685"),
            ("archiveprefix", "arXiv"),
        ),
    ),
    Citation(
        "brenner2025perforated",
        "misc",
        "dendrites as PerforatedAI grows them",
        (
            (
                "title",
                "Perforated Backpropagation: A Neuroscience Inspired Extension to Artificial "
                "Neural Networks",
            ),
            ("author", "Brenner, Rorry and Itti, Laurent"),
            ("year", "2025"),
            ("eprint", "2501.18018"),
            ("archiveprefix", "arXiv"),
        ),
    ),
    Citation(
        "allal2025smollm2",
        "misc",
        "SmolLM2, the embedded backbone",
        (
            (
                "title",
                "{SmolLM2}: When Smol Goes Big -- Data-Centric Training of a Small Language Model",
            ),
            ("author", "Ben Allal, Loubna and others"),
            ("year", "2025"),
            ("eprint", "2502.02737"),
            ("archiveprefix", "arXiv"),
        ),
    ),
    Citation(
        "javaheripi2023phi2",
        "misc",
        "Phi-2, the large backbone",
        (
            ("title", "{Phi-2}: The surprising power of small language models"),
            ("author", "Javaheripi, Mojan and Bubeck, S{\\'e}bastien"),
            ("howpublished", "Microsoft Research Blog"),
            ("year", "2023"),
        ),
    ),
    Citation(
        "guo2017calibration",
        "misc",
        "expected calibration error and reliability diagrams",
        (
            ("title", "On Calibration of Modern Neural Networks"),
            (
                "author",
                "Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.",
            ),
            ("year", "2017"),
            ("eprint", "1706.04599"),
            ("archiveprefix", "arXiv"),
        ),
    ),
    Citation(
        "araci2019finbert",
        "misc",
        "FinBERT, a published row",
        (
            (
                "title",
                "{FinBERT}: Financial Sentiment Analysis with Pre-trained Language Models",
            ),
            ("author", "Araci, Dogu"),
            ("year", "2019"),
            ("eprint", "1908.10063"),
            ("archiveprefix", "arXiv"),
        ),
    ),
)


def bibtex() -> str:
    """Every entry, each under a comment that says what it is cited for."""
    return "\n".join(f"% {entry.why}\n{entry.bibtex()}" for entry in CITATIONS)


Entry = Mapping[str, Any]


IDENTITY = ("backbone", "dataset", "protocol", "arm", "seeds", "rank", "tie_group", "n_test")


def arms_csv(arms: Sequence[Entry]) -> str:
    """One line an arm (an entry of leaderboard.json's `arms`), in the order given.

    Columns: what the arm is, then for each metric its mean, standard deviation over seeds
    (`_sd`) and, where there is one, 95 % interval (`_low`, `_high`). Shares are in 0..1, times in
    the unit of their name; a missing value is an empty cell.
    """
    metrics = list(dict.fromkeys(name for arm in arms for name in arm["mean"]))
    intervals = {name for arm in arms for name in arm["ci"]}
    header = [*IDENTITY, "dendrites_min", "dendrites_max"]
    for name in metrics:
        header += [name, f"{name}_sd"]
        if name in intervals:
            header += [f"{name}_low", f"{name}_high"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, lineterminator="\n", restval="")
    writer.writeheader()
    for arm in arms:
        line = {name: arm.get(name, "") for name in IDENTITY}
        line["seeds"] = " ".join(map(str, arm["seeds"]))
        line["dendrites_min"], line["dendrites_max"] = arm["dendrites_min"], arm["dendrites_max"]
        for name in metrics:
            line[name], line[f"{name}_sd"] = arm["mean"].get(name), arm["sd"].get(name)
            if name in arm["ci"]:
                line[f"{name}_low"], line[f"{name}_high"] = arm["ci"][name]
        writer.writerow(line)
    return buffer.getvalue()
