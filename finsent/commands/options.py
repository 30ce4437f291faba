"""Options that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from finsent.machine.workers import add_worker_options, workers_from_options

if TYPE_CHECKING:
    import torch

    from finsent.config import TrainConfig
    from finsent.study.cycles.runner import CycleResources

KEPT = "interrupted; finished runs are kept"
PATHS = ("--data-dir", "--backbone-dir", "--artifacts", "--out")
"""Options whose values are of one machine and are not recorded with a run."""


def add_artifacts(parser: argparse.ArgumentParser, *names: str) -> None:
    """The folder of runs, under --artifacts and further names; None where it is not given."""
    parser.add_argument(
        "--artifacts",
        *names,
        type=Path,
        metavar="DIR",
        help="folder of runs (default: FINSENT_ARTIFACTS, else ./artifacts, else the checkout's)",
    )


def add_resources(parser: argparse.ArgumentParser) -> None:
    """Where a command works: the device, and several workers, GPUs or machines."""
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is a GPU")
    add_worker_options(parser, "seeds")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Where data sets and weights lie."""
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder or zip of the data set"
    )
    parser.add_argument(
        "--backbone-dir",
        type=Path,
        metavar="DIR",
        help="local folder that replaces the Hub, or one of several by name",
    )


def chosen_device(options: argparse.Namespace) -> torch.device:
    """The device that --device names, else the best there is."""
    import torch

    from finsent.models.backbones import default_device

    return torch.device(options.device) if options.device else default_device()


def gpus_for(device: torch.device) -> int:
    """How many GPUs there are to work on."""
    from finsent.machine.devices import gpu_count

    return gpu_count() if device.type == "cuda" else 0


def shown_command() -> str:
    """The command line as typed, without paths of this machine, to be recorded with a run."""
    import shlex

    shown, skip = [], False
    for argument in sys.argv[1:]:
        if skip:
            skip = False
            continue
        name, _, value = argument.partition("=")
        if name in PATHS:
            skip = not value
            continue
        shown.append(argument)
    script = Path(sys.argv[0]).name == "train_models.py"
    return shlex.join([*(["python", "train_models.py"] if script else ["finsent"]), *shown])


def recipe_config(backbone: str, dataset: str, device: str, *, bf16: bool) -> TrainConfig:
    """The configuration that suits a backbone and a data set on a kind of device.

    Args:
        backbone: Name of a preset, Hub id or folder.
        dataset: Name in the registry of data sets.
        device: "cpu" or "cuda".
        bf16: Whether steps run under bf16 autocast where the base is held in fp32.
    """
    from finsent.config import LoraConfig, TrainConfig
    from finsent.models.presets import cue, preset

    recipe = preset(backbone).recipe(device)
    return TrainConfig(
        backbone=backbone,
        dataset=dataset,
        precision=recipe.precision,
        autocast=bf16,
        lora=LoraConfig(
            r=recipe.lora_r,
            alpha=recipe.lora_alpha,
            target_modules=recipe.target_modules,
            last_layers=recipe.last_layers,
        ),
        depth=recipe.depth,
        pooling=recipe.pooling,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        label_smoothing=recipe.label_smoothing,
        class_weight_power=recipe.class_weight_power,
        prompt_suffix=cue(recipe, dataset),
    )


def rebuild_index(artifacts: Path) -> None:
    """leaderboard.json and SHA256SUMS, made again from the runs."""
    from finsent.results import leaderboard, manifest

    leaderboard.write(artifacts)
    manifest.write_manifest(artifacts)


def cycle_resources(options: argparse.Namespace) -> CycleResources:
    """What a study of cycles may use. StudyError for options that it does not have."""
    import torch

    from finsent.machine.places import checkout
    from finsent.results.provenance import git_commit, versions
    from finsent.study.cycles.runner import STACKED, CycleResources
    from finsent.study.rows import StudyError

    device = chosen_device(options)
    workers = workers_from_options(options, gpus_for(device))
    if workers.address is not None:
        raise StudyError(
            f"--ray-address {workers.address}: studies of cycles use processes and GPUs of this "
            "machine; leave it out, and unset RAY_ADDRESS"
        )
    processes = workers.count * max(1, len(workers.gpus))
    stacked = stacked_of(options, STACKED[device.type])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return CycleResources(
        device=device.type,
        processes=processes,
        gpus=workers.gpus,
        provenance={
            "commit": git_commit(checkout()),
            "device": name,
            "processes": processes,
            "stacked": stacked,
            "versions": versions(),
        },
        data_dir=options.data_dir,
        backbone_dir=options.backbone_dir,
        stop_after=options.stop_after,
        stacked=stacked,
    )


def stacked_of(options: argparse.Namespace, usual: int) -> int:
    """Runs side by side in a process. StudyError for fewer than one."""
    from finsent.study.rows import StudyError

    if options.stacked is not None and options.stacked < 1:
        raise StudyError(f"--stacked must be at least 1, got {options.stacked}")
    return int(options.stacked or usual)
