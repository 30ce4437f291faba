"""What the page knows: the runs on disk, and which of them are selected. Nothing here draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finsent.config import ARMS, BACKBONE_TITLES
from finsent.data.registry import DATASETS
from finsent.data.sets.examples import HEADLINES, Headline
from finsent.results.calibration import Calibration, calibration_of
from finsent.results.external.runs import external_folders, read_external
from finsent.results.manifest import MANIFEST, Checksums, check_run, checksums_of, is_published
from finsent.results.runs import (
    LEADERBOARD,
    Run,
    finished_folders,
    in_order,
    read_json,
    read_run,
    slug,
)
from finsent.results.schema import ArtifactError
from finsent.results.unseen.files import read_transfers

LARGE_BACKBONE = "phi-2"
EMBEDDED_BACKBONES = ("minilm-l6", "smollm2-135m")
"""Backbones for any machine; the first one with runs is the default."""
FIRST_DATASETS = ("allagree", "50agree", "75agree", "66agree")


@dataclass(frozen=True)
class Selection:
    """Which runs answer: the arms of one backbone, data set and seed."""

    backbone: str
    dataset: str
    seed: int
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Damage:
    """A part of the artifacts that is left out, and why."""

    place: str
    """Relative to the artifacts root: the folder of a run, or a file."""
    reason: str
    """Names the file, below the root, the fault and the mend."""

    @classmethod
    def of(cls, path: Path, root: Path, error: ArtifactError | str) -> Damage:
        """Without the root, which is nobody's business who opens the page."""
        return cls(path.relative_to(root).as_posix(), str(error).replace(f"{root}/", ""))


@dataclass(frozen=True)
class Catalog:
    """Every finished run below an artifacts root that can be trusted, indexed once."""

    root: Path
    runs: tuple[Run, ...]
    leaderboard: Mapping[str, Any] | None
    """leaderboard.json as written by finsent.results.leaderboard; None when it has not been
    made."""
    studies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Study name -> content of its summary.json."""
    damaged: tuple[Damage, ...] = ()
    """What is not among the above because it cannot be read or is not what was published."""
    external: tuple[Run, ...] = ()
    """Runs of models that were not trained here; nothing on the page can ask them."""
    _calibrations: dict[Path, Calibration | None] = field(default_factory=dict, compare=False)
    _agreements: dict[Selection, tuple[float, int]] = field(default_factory=dict, compare=False)

    @classmethod
    def read(
        cls,
        root: Path | str,
        studies: Mapping[str, Mapping[str, Any]] | None = None,
        damaged: Iterable[Damage] = (),
    ) -> Catalog:
        """The runs and the board below `root`, beside the studies read by whoever knows them.

        A damaged run or board is left out and named in `damaged`, after what is given there.
        """
        root = Path(root)
        sums = checksums_of(root)
        found, left_out = _sound_runs(root, sums)
        if sums.problem is not None:
            left_out.append(Damage.of(root / MANIFEST, root, sums.problem))
        board: dict[str, Any] | None = None
        path = root / LEADERBOARD
        if path.is_file():
            try:
                is_published(path, root, sums)
                board = _read_board(path)
            except ArtifactError as error:
                left_out.append(Damage.of(path, root, error))
        external = []
        for folder in external_folders(root):
            try:
                external.append(read_external(folder))
            except ArtifactError as error:
                left_out.append(Damage.of(folder, root, error))
        return cls(root, tuple(found), board, studies or {}, (*damaged, *left_out), tuple(external))

    def backbones(self) -> list[str]:
        """Folder names, those for any machine first, the default at their head."""
        names = sorted({slug(run.backbone) for run in self.runs})
        return sorted(names, key=lambda name: (_embedded_rank(name), name == "tiny-phi"))

    def datasets(self, backbone: str) -> list[str]:
        """Names of the data sets with runs of this backbone, the benchmark's main ones first."""
        names = sorted({run.dataset for run in self.runs if slug(run.backbone) == backbone})
        return sorted(names, key=dataset_order)

    def all_datasets(self) -> list[str]:
        """Names of the data sets with runs of any backbone, the benchmark's main ones first."""
        return sorted({run.dataset for run in self.runs}, key=dataset_order)

    def seeds(self, backbone: str, dataset: str) -> list[int]:
        """Seeds with at least one arm."""
        return sorted({run.seed for run in self.of(backbone, dataset)})

    def arms(self, backbone: str, dataset: str, seed: int) -> list[str]:
        """Arms with a finished run, in the order baseline, dendritic, matched."""
        found = {run.arm for run in self.of(backbone, dataset) if run.seed == seed}
        return [arm for arm in ARMS if arm in found]

    def of(self, backbone: str, dataset: str) -> list[Run]:
        """All arms and seeds of one backbone on one data set."""
        return [r for r in self.runs if slug(r.backbone) == backbone and r.dataset == dataset]

    def run(self, backbone: str, dataset: str, arm: str, seed: int) -> Run:
        """One run. Raises ArtifactError when it is not there."""
        for run in self.of(backbone, dataset):
            if run.arm == arm and run.seed == seed:
                return run
        raise ArtifactError(
            f"no finished {arm} run of seed {seed} for {backbone} on {dataset} below {self.root}; "
            "choose another or train it"
        )

    def select(
        self,
        backbone: str,
        dataset: str | None = None,
        seed: int | None = None,
        *,
        matched: bool = False,
    ) -> Selection:
        """The nearest selection that exists: what is not here gives way to the first that is.

        Raises ArtifactError for a backbone without runs.
        """
        datasets = self.datasets(backbone)
        if not datasets:
            raise ArtifactError(f"no finished run of {backbone} below {self.root}")
        dataset = dataset if dataset in datasets else datasets[0]
        seeds = self.seeds(backbone, dataset)
        seed = seed if seed in seeds else seeds[0]
        found = self.arms(backbone, dataset, seed)
        return Selection(
            backbone, dataset, seed, tuple(arm for arm in found if matched or arm != "matched")
        )

    def calibrations(self, selection: Selection) -> dict[str, Calibration | None]:
        """Arm -> calibration; None for all arms when one has none.

        Raw and calibrated probabilities must not be compared, nor those of arms that are corrected
        for sources never seen with those of arms that are not: an arm that was not measured on
        sources left out, as the controls were not, is corrected as the baseline is.

        Raises:
            ArtifactError: A file that they are fitted on is damaged.
        """
        transfers = read_transfers(self.folder(selection))
        found = {}
        for arm in selection.arms:
            run = self.run(selection.backbone, selection.dataset, arm, selection.seed)
            if run.folder not in self._calibrations:
                transfer = transfers.get(arm, transfers.get("baseline"))
                self._calibrations[run.folder] = calibration_of(run, transfer)
            found[arm] = self._calibrations[run.folder]
        return found if all(found.values()) else dict.fromkeys(found)

    def agreement(self, selection: Selection) -> tuple[float, int] | None:
        """Share of the test examples that all arms give the same label, and how many examples.

        None for a single arm. Raises ArtifactError when predictions are damaged.
        """
        if len(selection.arms) < 2:
            return None
        if selection not in self._agreements:
            answers: dict[str, set[int]] = {}
            for arm in selection.arms:
                run = self.run(selection.backbone, selection.dataset, arm, selection.seed)
                predictions = run.read_predictions()
                for name, row in zip(predictions.ids, predictions.probabilities, strict=True):
                    answers.setdefault(name, set()).add(row.index(max(row)))
            same = sum(len(labels) == 1 for labels in answers.values())
            self._agreements[selection] = (same / len(answers), len(answers))
        return self._agreements[selection]

    def label_names(self, selection: Selection) -> tuple[str, ...]:
        """Classes of a selection, in the order of every row of probabilities."""
        return self.of(selection.backbone, selection.dataset)[0].label_names

    def folder(self, selection: Selection) -> Path:
        """Folder that holds the arms of a selection."""
        return self.root / selection.backbone / selection.dataset


def _sound_runs(root: Path, sums: Checksums) -> tuple[list[Run], list[Damage]]:
    """The finished runs whose files are whole and as published, and the others with the reason."""
    found, damaged = [], []
    for folder in sorted(finished_folders(root)):
        try:
            run = read_run(folder)
            check_run(run, sums)
        except ArtifactError as error:
            damaged.append(Damage.of(folder, root, error))
        else:
            found.append(run)
    return in_order(found), damaged


def _embedded_rank(name: str) -> int:
    """Place of a backbone among those for any machine; any other comes after them."""
    known = EMBEDDED_BACKBONES
    return known.index(name) if name in known else len(known)


_BOARD_ARM_KEYS = {
    "protocol", "per_class", "confusion", "reliability", "by_agreement", "standing",
}  # fmt: skip
"""What the newest additions to leaderboard.json put into an arm."""


def _read_board(path: Path) -> dict[str, Any]:
    """leaderboard.json. Raises ArtifactError when it is damaged or of an earlier format."""
    board = read_json(path)
    lists = [board.get(key) for key in ("arms", "rows", "comparisons", "references")]
    if not all(isinstance(part, list) and all(map(_is_object, part)) for part in lists):
        raise ArtifactError(f"{path}: its arms, rows or comparisons are no lists of objects")
    missing = {key for arm in board["arms"] for key in _BOARD_ARM_KEYS - set(arm)}
    if missing:
        raise ArtifactError(
            f"{path}: its arms lack {', '.join(sorted(missing))}, so it was made by another "
            "version; make it again with `python train_models.py leaderboard --artifacts "
            f"{path.parent}`"
        )
    return board


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def dataset_order(name: str) -> int:
    """Sort key: the data sets that the project is about come first, then the registry's order."""
    order = list(dict.fromkeys([*FIRST_DATASETS, *DATASETS]))
    return order.index(name) if name in order else len(order)


def backbone_title(name: str) -> str:
    """A backbone's name for people; folder names of Hub models get their slash back."""
    return BACKBONE_TITLES.get(name, name.replace("--", "/"))


def dataset_title(name: str) -> str:
    """A data set's short name for people."""
    return (DATASETS[name].short_title or name) if name in DATASETS else name


def dataset_description(name: str) -> str:
    """A data set's full title, or its name when the registry does not know it."""
    return DATASETS[name].title if name in DATASETS else name


def dataset_examples(name: str) -> tuple[Headline, ...]:
    """Texts to try on models of a data set."""
    return DATASETS[name].examples if name in DATASETS else HEADLINES
