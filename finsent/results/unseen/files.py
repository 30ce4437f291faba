"""left-out.safetensors, what runs said of sources left out, and left-out.json, what follows.

Both lie beside the arms of a data set made of several sources: <backbone>/<dataset>/. The first is
collected from the folders of runs on `<dataset>-without-<source>`; the second is made from it, and
`finsent verify` makes it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from finsent.data.registry import DATASETS
from finsent.machine.files import write_bytes_atomically
from finsent.results.calibration import (
    COVERAGE,
    Transfer,
    conformal_threshold,
    fit_temperature,
    scale,
    softmax,
)
from finsent.results.runs import (
    VALIDATION_FILE,
    canonical_json,
    read_json,
    read_predictions,
    rounded,
    run_folder,
    slug,
)
from finsent.results.schema import RESTORE, ArtifactError, check_config
from finsent.results.unseen.fitting import LeftOut, fit_transfer, measure

PREDICTIONS = "left-out.safetensors"
TRANSFERS = "left-out.json"

PER_RUN = ("dataset", "seed", "treatment")
"""What of a configuration may differ between the runs; the rest has to be the same."""
_BEFORE = {"scored_by": "nll"}
"""What runs were trained with that are older than a setting which is never empty."""
PROVENANCE = ("command", "device", "finished_at", "git_commit", "versions")


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a TrainConfig decides how sure a run is, but for its arm.

    What is zero, empty, not set or as it was before it could be set is left out, so that a run made
    before a setting existed compares with one made after.
    """
    lora = {key: value for key, value in config.get("lora", {}).items() if value}
    return {
        key: value
        for key, value in {**config, "lora": lora}.items()
        if key not in PER_RUN and value and value != _BEFORE.get(key)
    }


def collect(runs: Path, artifacts: Path, backbone: str, dataset: str, arms: Sequence[str]) -> Path:
    """Writes left-out.safetensors for a data set made of several sources; returns its path.

    It is made from runs of seed 0 below `runs`, on each entry that leaves out a source. Of a run it
    needs config.json, predictions.csv and validation.csv. Raises ArtifactError for one
    that is missing, damaged or trained in another way than the rest.
    """
    entries = [
        entry
        for entry in DATASETS.values()
        if entry.left_out and entry.name == f"{dataset}-without-{entry.left_out}"
    ]
    if not entries:
        raise ArtifactError(f"{dataset!r} has no entries that leave out a source; use 'news'")
    tensors: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {"dataset": dataset, "backbone": backbone, "arms": {}}
    for arm in arms:
        about["arms"][arm] = {}
        for entry in entries:
            folder = run_folder(runs, backbone, entry.name, arm, 0)
            config = read_json(folder / "config.json")
            check_config(config, folder / "config.json")
            names = tuple(config["label_names"])
            test = read_predictions(folder / "predictions.csv", names)
            validation = read_predictions(folder / VALIDATION_FILE, names)
            temperature = fit_temperature(validation.probabilities, validation.label_indices)
            own = scale(validation.probabilities, temperature)
            about["arms"][arm][entry.left_out] = {
                "temperature": temperature,
                "threshold": conformal_threshold(own, validation.label_indices, COVERAGE),
                "dataset_sha256": config["dataset_sha256"],
                "split_sha256": config["split_sha256"],
                **{key: config[key] for key in PROVENANCE},
            }
            common = {"label_names": list(names), "settings": settings(config["config"])}
            for key, value in common.items():
                if about.setdefault(key, value) != value:
                    raise ArtifactError(
                        f"{folder / 'config.json'}: {key} is {value}, others have {about[key]}; "
                        "train all of them alike"
                    )
            labels = np.array(test.label_indices, dtype=np.uint8)
            if (tensors.setdefault(f"{entry.left_out}.labels", labels) != labels).any():
                raise ArtifactError(f"{folder}: its examples are not those of the other arms")
            log = np.log(np.maximum(np.array(test.probabilities), np.finfo(np.float64).tiny))
            # Half precision: probabilities to a thousandth of themselves, in half of the bytes.
            tensors[f"{entry.left_out}.{arm}"] = (log[:, 1:] - log[:, :1]).astype(np.float16)
    folder = artifacts / slug(backbone) / dataset
    folder.mkdir(parents=True, exist_ok=True)
    header = {"about": json.dumps(rounded(about), sort_keys=True)}
    write_bytes_atomically(folder / PREDICTIONS, save(tensors, header))
    return folder / PREDICTIONS


def transfers_json(folder: Path) -> dict[str, Any]:
    """What left-out.json has to hold, from the predictions beside it. ArtifactError if damaged."""
    path = folder / PREDICTIONS
    try:
        with safe_open(path, framework="np") as stored:
            about = json.loads(stored.metadata()["about"])
            sources = {
                arm: {
                    source: _left_out(
                        stored.get_tensor(f"{source}.{arm}"),
                        stored.get_tensor(f"{source}.labels"),
                        own,
                    )
                    for source, own in runs.items()
                }
                for arm, runs in about["arms"].items()
            }
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); {RESTORE}") from error
    arms = {}
    for arm, parts in sources.items():
        factor, threshold = fit_transfer(list(parts.values()))
        arms[arm] = {"factor": factor, "threshold": threshold, "sources": measure(parts)}
    return {**about, "coverage_asked": COVERAGE, "arms": arms, "runs": about["arms"]}


def _left_out(odds: np.ndarray, labels: np.ndarray, own: Mapping[str, Any]) -> LeftOut:
    logits = np.column_stack([np.zeros(len(odds)), odds.astype(np.float64)])
    return LeftOut(softmax(logits), labels.astype(np.int64), own["temperature"], own["threshold"])


def transfers_text(folder: Path) -> str:
    """left-out.json as it has to be. Raises ArtifactError or CalibrationError as what it reads."""
    return canonical_json(rounded(transfers_json(folder)))


def write_transfers(folder: Path) -> Path:
    """Writes left-out.json from the predictions beside it."""
    path = folder / TRANSFERS
    write_bytes_atomically(path, transfers_text(folder).encode())
    return path


def read_transfers(folder: Path) -> dict[str, Transfer]:
    """Arm -> what corrects its runs for sources never seen; empty where nothing was left out.

    folder: <backbone>/<dataset> below an artifacts root. Raises ArtifactError when damaged.
    """
    path = folder / TRANSFERS
    if not path.is_file():
        return {}
    try:
        return {
            arm: Transfer(
                float(found["factor"]),
                float(found["threshold"]),
                {
                    source: float(scores["unseen"]["coverage"])
                    for source, scores in found["sources"].items()
                },
            )
            for arm, found in read_json(path)["arms"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error!r}); {RESTORE}") from error
