"""Test examples on which arms disagree or are confidently wrong, from the saved predictions."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finsent.data.agreement import agreement_levels
from finsent.machine.files import sha256_file
from finsent.results.runs import Run, read_json
from finsent.results.schema import ArtifactError

CONFIDENT = 0.9
"""From this probability on an answer counts as confident."""

DISAGREE = "disagree"
CONFIDENTLY_WRONG = "wrong"
KINDS = (DISAGREE, CONFIDENTLY_WRONG)


_JOINT = re.compile(r",?\s*\b(?:after|and|before|but|even as|then|while|yet)\b|,", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One test example of one seed, as the arms answered it."""

    id: str
    seed: int
    label: str
    level: str | None
    """Strictest agreement level; None for a data set without annotators' agreement."""
    label_names: tuple[str, ...]
    probabilities: Mapping[str, tuple[float, ...]]
    """By arm, in the order of label_names."""

    def answer(self, arm: str) -> str:
        """The arm's most probable label, the first of them when tied."""
        row = self.probabilities[arm]
        return self.label_names[row.index(max(row))]

    @property
    def disagreement(self) -> float:
        """Largest difference between two arms' probabilities of one label."""
        columns = zip(*self.probabilities.values(), strict=True)
        return max(max(column) - min(column) for column in columns)

    @property
    def wrong_confidence(self) -> float:
        """Highest probability that an arm gave to a wrong answer; 0 when all are right."""
        wrong = (arm for arm in self.probabilities if self.answer(arm) != self.label)
        return max((max(self.probabilities[arm]) for arm in wrong), default=0.0)

    @property
    def arms_disagree(self) -> bool:
        """Whether two arms name different labels."""
        return len({self.answer(arm) for arm in self.probabilities}) > 1


def read_cases(runs: Iterable[Run]) -> list[Case]:
    """Every test example of every seed that has all the arms given, by seed.

    runs: of one backbone and data set. Raises ArtifactError when a file of predictions is damaged
    or the arms of a seed were tested on different examples or labels.
    """
    runs = list(runs)
    arms = list(dict.fromkeys(run.arm for run in runs))
    cases: list[Case] = []
    for seed in sorted({run.seed for run in runs}):
        of_seed = {run.arm: run for run in runs if run.seed == seed}
        if set(of_seed) == set(arms):
            cases += _cases_of_seed(of_seed)
    return cases


def _cases_of_seed(runs: Mapping[str, Run]) -> list[Case]:
    levels = agreement_levels()
    tables = {arm: run.read_predictions() for arm, run in runs.items()}
    answers = {
        arm: {
            example: (label, row)
            for example, label, row in zip(t.ids, t.labels, t.probabilities, strict=True)
        }
        for arm, t in tables.items()
    }
    first = next(iter(tables.values()))
    cases = []
    for example, label in zip(first.ids, first.labels, strict=True):
        found = {arm: rows.get(example) for arm, rows in answers.items()}
        if any(answer is None or answer[0] != label for answer in found.values()):
            run = next(iter(runs.values()))
            raise ArtifactError(
                f"{run.folder.parent.parent}, seed {run.seed}: the arms do not share test example "
                f"{example} with the label {label}; train them again on one data set and split"
            )
        cases.append(
            Case(
                id=example,
                seed=next(iter(runs.values())).seed,
                label=label,
                level=levels.get(example),
                label_names=first.label_names,
                probabilities={arm: answer[1] for arm, answer in found.items() if answer},
            )
        )
    return cases


def choose(
    cases: Sequence[Case],
    kind: str,
    *,
    seed: int | None = None,
    label: str | None = None,
    level: str | None = None,
) -> list[Case]:
    """Cases of a kind, biggest first; seed, label and level None: all.

    `disagree`: the arms name different labels, ordered by `Case.disagreement`. `wrong`: some arm is
    wrong with at least CONFIDENT, ordered by `Case.wrong_confidence`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {KINDS}")
    wanted = (
        case
        for case in cases
        if seed in (None, case.seed) and label in (None, case.label) and level in (None, case.level)
    )
    if kind == DISAGREE:
        found = [case for case in wanted if case.arms_disagree]
        return sorted(found, key=lambda case: (-case.disagreement, case.id, case.seed))
    found = [case for case in wanted if case.wrong_confidence >= CONFIDENT]
    return sorted(found, key=lambda case: (-case.wrong_confidence, case.id, case.seed))


@dataclass(frozen=True)
class Found:
    """Made-up sentences that baseline and dendritic of one seed answer differently."""

    searched: int
    """Sentences that both were asked."""
    differ: int
    """Of these, how many they answered differently."""
    texts: tuple[str, ...]
    """Those that both are sure of, the clearest first."""

    def in_turn(self, draw: random.Random) -> list[str]:
        """Each text once, in a random order, those of one clause first.

        A second clause and a remark behind it often make no sense together: a draw put them there.
        """
        return sorted(draw.sample(self.texts, len(self.texts)), key=joints)


def joints(text: str) -> int:
    """How many words or commas of a text join a further clause or remark to it."""
    return len(_JOINT.findall(text))


def found_file(root: Path, backbone: str, dataset: str) -> Path:
    """Where `bench/disagreements.py` writes what it found for one base model and data set."""
    return root / "disagreements" / f"{backbone}-{dataset}.json"


def read_found(root: Path, backbone: str, dataset: str, seed: int) -> Found | None:
    """What was found for one seed; None where nobody searched or the runs have changed since.

    Raises ArtifactError when the file is damaged.
    """
    path = found_file(root, backbone, dataset)
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        run = content["runs"].get(str(seed))
        if run is None:
            return None
        for arm, digest in run["adapters"].items():
            adapter = root / backbone / dataset / arm / f"seed-{seed}" / "adapter.safetensors"
            if not adapter.is_file() or sha256_file(adapter) != digest:
                return None
        texts = tuple(entry["text"] for entry in run["sentences"])
        return Found(content["searched"], run["differ"], texts)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: not what bench/disagreements.py writes ({error!r})"
        ) from error
