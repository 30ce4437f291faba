"""finsent train: make checkpoints and metrics."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from finsent.commands.options import (
    KEPT,
    add_artifacts,
    add_data,
    add_resources,
    chosen_device,
    gpus_for,
    rebuild_index,
    recipe_config,
    shown_command,
)
from finsent.config import (
    ACTIVATIONS,
    ADAPTATIONS,
    ADAPTER_PRECISIONS,
    ARMS,
    CANDIDATES,
    NOISE_RULES,
    PLACEMENTS,
    POOLINGS,
    PRECISIONS,
    RESTART_RULES,
    SCHEDULES,
    STORED_PRECISIONS,
    STUDY_ARMS,
)
from finsent.machine.options import Distinct, add_seeds
from finsent.machine.places import artifacts_to_write, checkout
from finsent.machine.workers import workers_from_options

if TYPE_CHECKING:
    import torch

    from finsent.config import DendriteConfig, TrainConfig
    from finsent.training.scheduling import Plan


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to train, where to put it, and every setting that a preset would else choose."""
    parser.set_defaults(run=run, when_interrupted=KEPT)
    add = parser.add_argument
    add("--backbone", default="smollm2-135m", help="preset, Hub id or folder (%(default)s)")
    add("--dataset", default="allagree", help="data set name, see docs/data.md (%(default)s)")
    add_data(parser)
    add(
        "--arms",
        nargs="+",
        action=Distinct,
        choices=STUDY_ARMS,
        default=list(ARMS),
        help=f"default: {' '.join(ARMS)}",
    )
    add(
        "--restart-matched",
        action="store_true",
        help="give the matched arm the restarts of the dendritic run, as the restart arm has them",
    )
    add_seeds(parser, "seeds, one run of each arm per seed (0)", [0])
    add_artifacts(parser, "--out")
    add("--overwrite", action="store_true", help="train finished runs again")
    add_resources(parser)
    _add_model(parser)
    _add_schedule(parser)
    _add_growth(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--precision", choices=PRECISIONS, help="how the frozen weights are held")
    add("--adapter-precision", choices=ADAPTER_PRECISIONS, default="fp32")
    add(
        "--autocast",
        action=argparse.BooleanOptionalAction,
        help="bf16 autocast in training steps (default: where the device computes bf16)",
    )
    add("--last-layers", type=_layers, default="preset", help="adapt the last N blocks, or 'all'")
    add("--adapt", choices=ADAPTATIONS, help="low-rank maps, or whole weights (lora)")
    add("--stored", choices=STORED_PRECISIONS, help="precision of the adapter file (fp16)")
    add("--lora-r", type=int, help="rank; default of this and the next two: the preset's")
    add("--lora-alpha", type=float)
    add(
        "--target-modules",
        nargs="+",
        action=Distinct,
        metavar="NAME",
        help="maps of a block that are adapted",
    )
    add("--depth", type=_layers, default="preset", help="use the first D blocks, or 'all'")
    add("--pooling", choices=POOLINGS, help="what the head reads; default: the preset's")
    add("--max-length", type=int, default=128, help="tokens per sentence (%(default)s)")
    add(
        "--balance",
        default="repeat-4",
        help="sources of 'news': 'natural', or 'repeat-K' for the smaller ones' sentences up to K "
        "times an epoch (%(default)s)",
    )
    add("--noise", choices=NOISE_RULES, default="keep", help="noisy rows of the training part")
    add("--copies", type=int, default=1, help="read every text N times in a row (%(default)s)")


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--epochs", type=int, help="default of this and the next two: the preset's")
    add("--batch-size", type=int)
    add("--learning-rate", type=float)
    add("--label-smoothing", type=float, help="default: the preset's")
    add("--schedule", choices=SCHEDULES, help="decay of the learning rate (linear)")
    add("--layer-decay", type=float, help="learning rate of a block to that above it (1)")
    add("--class-weight-power", type=float, help="1: inverse frequency, 0.5: its root")
    add("--views", type=int, help="other ways in which training texts are written (0)")
    add("--prompt-suffix", help="ends every text; default: the data set's, if the preset has one")


def _add_growth(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--placement",
        nargs="+",
        action=Distinct,
        choices=PLACEMENTS,
        help="default: all that adapt has",
    )
    add("--activation", choices=ACTIVATIONS, default="relu")
    add("--max-dendrites", type=int, default=1)
    add("--patience", type=int, default=2, help="epochs without improvement before growth")
    add("--grow-by", type=int, help="last epoch to add the first dendrite after (half of all)")
    add("--init-scale", type=float, default=0.1, help="standard deviation of new dendrites")
    add("--candidates", choices=CANDIDATES, default="random", help="how new dendrites start")
    add("--growth-learning-rate-factor", type=float, default=0.5)
    add(
        "--restart",
        choices=RESTART_RULES,
        default="behind",
        help="which growths go back to the best state with a fresh optimizer (%(default)s)",
    )
    add("--prune", action="store_true", help="drop dendrites that did not improve validation")


def _layers(text: str) -> int | str | None:
    if text in ("all", "preset"):
        return None if text == "all" else text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"a number of blocks or 'all', not {text!r}")
    return int(text)


def _or_preset(given: int | str | None, preset: int | None) -> int | None:
    """A number of blocks (None: all) as typed, or the preset's."""
    return preset if isinstance(given, str) else given


def run(options: argparse.Namespace) -> int:
    """Trains what is not trained yet, times it, and rebuilds the board.

    Returns:
        0 when every run is there, 1 when some failed; the others are kept.
    """
    # Imported here so that --help does not wait for torch.
    from finsent.results import runs
    from finsent.serving.retiming import retime
    from finsent.training import scheduling

    device = chosen_device(options)
    plan = _plan(options, device)
    before = {run.folder: run.config["finished_at"] for run in runs.find_runs(plan.artifacts)}
    failed = scheduling.execute(plan)
    # Only seeds of this command: another one may be writing to the same folder.
    found = [run for run in runs.find_runs(plan.artifacts) if plan.holds(run.folder)]
    new = {run.seed for run in found if before.get(run.folder) != run.config["finished_at"]}
    try:
        retime([run for run in found if run.seed in new], device, plan.backbone_dir)
    finally:
        rebuild_index(plan.artifacts)
    for line in scheduling.summary(plan):
        print(line)
    if failed:
        print(f"error: {len(failed)} runs failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    return 0


def _plan(options: argparse.Namespace, device: torch.device) -> Plan:
    from finsent.models.presets import PRESETS, require_source
    from finsent.results.provenance import git_commit
    from finsent.training.scheduling import Plan

    if options.backbone not in PRESETS and options.backbone_dir is None:
        # Told once, before every run finds it out for itself.
        require_source(options.backbone, options.backbone)
    base = _base(options, device)
    return Plan(
        base=base,
        dendrites=_dendrites(options, base),
        arms=tuple(options.arms),
        seeds=tuple(options.seeds),
        artifacts=artifacts_to_write(options.artifacts).absolute(),
        device=device.type,
        workers=workers_from_options(options, gpus_for(device)),
        overwrite=options.overwrite,
        command=shown_command(),
        git_commit=git_commit(checkout()),
        data_dir=options.data_dir,
        backbone_dir=options.backbone_dir,
        restart_matched=options.restart_matched,
    )


def _base(options: argparse.Namespace, device: torch.device) -> TrainConfig:
    """What all arms share: the preset's recipe with what the command line says otherwise."""
    from dataclasses import replace

    from finsent.config import LoraConfig
    from finsent.models.backbones import computes_bf16

    recipe = recipe_config(
        options.backbone, options.dataset, device.type, bf16=computes_bf16(device)
    )
    given = {
        name: getattr(options, name)
        for name in (
            "precision", "autocast", "pooling", "epochs", "batch_size", "learning_rate",
            "label_smoothing", "prompt_suffix", "adapt", "stored", "schedule", "layer_decay",
            "class_weight_power",
            "views",
        )
        if getattr(options, name) is not None
    }  # fmt: skip
    return replace(
        recipe,
        adapter_precision=options.adapter_precision,
        lora=LoraConfig(
            r=recipe.lora.r if options.lora_r is None else options.lora_r,
            alpha=recipe.lora.alpha if options.lora_alpha is None else options.lora_alpha,
            target_modules=tuple(options.target_modules or recipe.lora.target_modules),
            last_layers=_or_preset(options.last_layers, recipe.lora.last_layers),
        ),
        depth=_or_preset(options.depth, recipe.depth),
        max_length=options.max_length,
        copies=options.copies,
        balance=options.balance,
        noise=options.noise,
        **given,
    )


def _dendrites(options: argparse.Namespace, base: TrainConfig) -> DendriteConfig:
    from finsent.config import DendriteConfig, default_placement, latest_growth

    return DendriteConfig(
        placement=tuple(options.placement or default_placement(base.adapt)),
        activation=options.activation,
        max_dendrites=options.max_dendrites,
        patience=options.patience,
        grow_by=latest_growth(base.epochs) if options.grow_by is None else options.grow_by,
        init_scale=options.init_scale,
        candidates=options.candidates,
        learning_rate_factor=options.growth_learning_rate_factor,
        restart=options.restart,
        prune=options.prune,
    )
