"""The offline trainer: make checkpoints and metrics, check them, draw their figures.

python train_models.py [train] --backbone smollm2-135m --dataset allagree --seeds 0 1 2
python train_models.py verify
python train_models.py latency
python train_models.py figures
python train_models.py study heads --select
python train_models.py study heads
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
from finsent.machine.workers import add_worker_options, workers_from_options

if TYPE_CHECKING:
    import torch

    from finsent.config import TrainConfig
    from finsent.study.lora.runner import Resources
    from finsent.study.plans import EnsembleStudy, LoraStudy

ROOT = Path(__file__).resolve().parent
COMMANDS = ("train", "verify", "latency", "leaderboard", "figures", "study")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given.insert(0, "train")  # training is what this file is for
    options = _parser().parse_args(given)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_models.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="{" + ",".join(COMMANDS) + "}")
    _add_train(commands.add_parser("train", help="train arms and write their artifacts"))
    for name, what, run in (
        ("verify", "re-read every artifact and recompute its numbers", _verify),
        ("latency", "time all arms of every seed side by side, as the app serves them", _latency),
        ("leaderboard", "rebuild leaderboard.json and the checksums from the runs", _leaderboard),
        ("figures", "draw the figures from the runs", _figures),
    ):
        sub = commands.add_parser(name, help=what, description=what)
        sub.add_argument("--artifacts", type=Path, default=ROOT / "artifacts", metavar="DIR")
        sub.set_defaults(run=run)
    _add_study(commands.add_parser("study", help="many runs over folds, seeds and regimes"))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_train)
    add = parser.add_argument
    add("--backbone", default="smollm2-135m", help="preset, Hub id or folder (%(default)s)")
    add("--backbone-dir", type=Path, metavar="DIR", help="local folder that replaces the Hub")
    add("--dataset", default="allagree", help="data set name, see docs/data.md (%(default)s)")
    add("--data-dir", type=Path, metavar="DIR", help="folder or zip of the data set")
    add(
        "--arms",
        nargs="+",
        choices=STUDY_ARMS,
        default=list(ARMS),
        help=f"default: {' '.join(ARMS)}",
    )
    add(
        "--restart-matched",
        action="store_true",
        help="give the matched arm the restarts of the dendritic run, as the restart arm has them",
    )
    add("--seeds", nargs="+", type=int, default=[0], help="seeds, one run of each arm per seed (0)")
    add("--artifacts", "--out", type=Path, default=ROOT / "artifacts", metavar="DIR")
    add("--overwrite", action="store_true", help="train finished runs again")
    _add_resources(parser)
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
    add("--target-modules", nargs="+", metavar="NAME", help="maps of a block that are adapted")
    add("--depth", type=_layers, default="preset", help="use the first D blocks, or 'all'")
    add("--pooling", choices=POOLINGS, help="what the head reads; default: the preset's")
    add("--epochs", type=int, help="default of this and the next two: the preset's")
    add("--batch-size", type=int)
    add("--learning-rate", type=float)
    add("--label-smoothing", type=float, help="default: the preset's")
    add("--schedule", choices=SCHEDULES, help="decay of the learning rate (linear)")
    add("--layer-decay", type=float, help="learning rate of a block to that above it (1)")
    add("--class-weight-power", type=float, help="1: inverse frequency, 0.5: its root")
    add("--views", type=int, help="other ways in which training texts are written (0)")
    add("--prompt-suffix", help="ends every text; default: the data set's, if the preset has one")
    add("--max-length", type=int, default=128, help="tokens per sentence (%(default)s)")
    add("--balance", default="repeat-4", help="of sources: natural or repeat-K (%(default)s)")
    add("--noise", choices=NOISE_RULES, default="keep", help="noisy rows of the training part")
    add("--copies", type=int, default=1, help="read every text N times in a row (%(default)s)")
    add("--placement", nargs="+", choices=PLACEMENTS, help="default: all that adapt has")
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


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_study)
    add = parser.add_argument
    add("name", help="a study of finsent/study/plans.py, or 'classical'")
    add("--select", action="store_true", help="choose settings on validation; nothing is tested")
    add(
        "--summarize",
        action="store_true",
        help="only write the study's summary.json again, from the runs that are there",
    )
    add("--artifacts", "--out", type=Path, default=ROOT / "artifacts", metavar="DIR")
    add("--data-dir", type=Path, metavar="DIR", help="folder or zip of the data sets")
    add("--backbone-dir", type=Path, metavar="DIR", help="local folder that replaces the Hub")
    _add_resources(parser)
    add(
        "--datasets",
        nargs="+",
        metavar="NAME",
        help="LoRA studies and ensembles: only these data sets",
    )
    add(
        "--regimes",
        nargs="+",
        metavar="NAME",
        help="LoRA studies, and what ensembles choose from: only these regimes",
    )
    add("--stacked", type=int, metavar="N", help="the same two: runs side by side in a process")
    add("--seeds", nargs="+", type=int, metavar="N", help="LoRA studies: only these seeds")


def _add_resources(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), help="default: cuda if there is a GPU")
    add_worker_options(parser, "seeds")


def _layers(text: str) -> int | str | None:
    if text in ("all", "preset"):
        return None if text == "all" else text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"a number of blocks or 'all', not {text!r}")
    return int(text)


def _or_preset(given: int | str | None, preset: int | None) -> int | None:
    """A number of blocks (None: all) as typed, or the preset's."""
    return preset if isinstance(given, str) else given


def _train(options: argparse.Namespace) -> int:
    # Imported here so that --help and verify do not wait for torch.
    from dataclasses import replace

    import torch

    from finsent.config import DendriteConfig, LoraConfig, default_placement, latest_growth
    from finsent.models.backbones import computes_bf16, default_device
    from finsent.results import runs
    from finsent.results.provenance import git_commit
    from finsent.serving.retiming import retime
    from finsent.training import scheduling

    device = torch.device(options.device) if options.device else default_device()
    recipe = _recipe_config(
        options.backbone, options.dataset, device.type, bf16=computes_bf16(device)
    )
    given = {
        name: getattr(options, name)
        for name in (
            "precision", "autocast", "pooling", "epochs", "batch_size", "learning_rate",
            "label_smoothing", "prompt_suffix", "adapt", "stored", "schedule", "layer_decay",
            "class_weight_power", "views",
        )
        if getattr(options, name) is not None
    }  # fmt: skip
    base = replace(
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
    dendrites = DendriteConfig(
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
    plan = scheduling.Plan(
        base=base,
        dendrites=dendrites,
        arms=tuple(options.arms),
        seeds=tuple(dict.fromkeys(options.seeds)),
        artifacts=options.artifacts.absolute(),
        device=device.type,
        workers=workers_from_options(options, _gpus_for(device)),
        overwrite=options.overwrite,
        command=shlex.join(["python", "train_models.py", *_shown_arguments()]),
        git_commit=git_commit(ROOT),
        data_dir=options.data_dir,
        backbone_dir=options.backbone_dir,
        restart_matched=options.restart_matched,
    )
    before = {run.folder: run.config["finished_at"] for run in runs.find_runs(plan.artifacts)}
    failed = scheduling.execute(plan)
    found = runs.find_runs(plan.artifacts)
    new = {
        (run.backbone, run.dataset, run.seed)
        for run in found
        if before.get(run.folder) != run.config["finished_at"]
    }
    try:
        retime(
            [run for run in found if (run.backbone, run.dataset, run.seed) in new],
            device,
            plan.backbone_dir,
        )
    finally:
        _rebuild_index(plan.artifacts)
    print(*scheduling.summary(plan), sep="\n")
    if failed:
        print(f"error: {len(failed)} runs failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    return 0


def _gpus_for(device: torch.device) -> int:
    """How many GPUs there are to work on."""
    from finsent.machine.devices import gpu_count

    return gpu_count() if device.type == "cuda" else 0


def _shown_arguments() -> list[str]:
    """The command line as typed, without paths of this machine."""
    shown, skip = [], False
    for argument in sys.argv[1:]:
        if skip:
            skip = False
            continue
        name, _, value = argument.partition("=")
        if name in ("--data-dir", "--backbone-dir", "--artifacts", "--out"):
            skip = not value
            continue
        shown.append(argument)
    return shown


def _rebuild_index(artifacts: Path) -> None:
    from finsent.results import leaderboard, manifest

    leaderboard.write(artifacts)
    manifest.write_manifest(artifacts)


def _verify(options: argparse.Namespace) -> int:
    from finsent.results.runs import find_runs
    from finsent.verification import verify

    problems = verify(options.artifacts)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(f"{len(problems)} problems in {options.artifacts}", file=sys.stderr)
        return 1
    print(f"{len(find_runs(options.artifacts))} runs verified in {options.artifacts}")
    return 0


def _latency(options: argparse.Namespace) -> int:
    from finsent.models.backbones import default_device
    from finsent.results.runs import find_runs
    from finsent.serving.retiming import retime

    for line in retime(find_runs(options.artifacts), default_device()):
        print(line)
    _rebuild_index(options.artifacts)
    return 0


def _study(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from finsent.results import manifest
    from finsent.study.heads import classical
    from finsent.study.heads.runner import HeadStudyRunner
    from finsent.study.lora.ensembles import EnsembleRunner
    from finsent.study.lora.runner import LoraStudyRunner
    from finsent.study.plans import STUDIES, EnsembleStudy, HeadStudy, LoraStudy
    from finsent.study.rows import StudyError
    from finsent.study.summary import write_summary

    folder = options.artifacts / "studies" / options.name
    study = STUDIES.get(options.name)
    if study is None and options.name != classical.NAME:
        known = ", ".join([*STUDIES, classical.NAME])
        raise StudyError(f"unknown study {options.name!r}; choose one of {known}")
    if options.select and not isinstance(study, (HeadStudy, EnsembleStudy)):
        raise StudyError(f"--select: study {options.name!r} has no settings to choose")
    whole = {
        LoraStudy: (),
        EnsembleStudy: ("seeds",) if options.select else ("regimes", "seeds"),
    }.get(type(study), ("datasets", "regimes", "seeds", "stacked"))
    for option in whole:
        if getattr(options, option) is not None:
            raise StudyError(
                f"--{option}: study {options.name!r} cannot be cut down like that; leave it out"
            )
    failed: list[str] = []
    if options.summarize:
        if options.select:
            raise StudyError("--select chooses settings and --summarize counts runs: leave one out")
    elif study is None:
        classical.run_classical(
            folder, classical.PLAN, data_dir=options.data_dir, backbone_dir=options.backbone_dir
        )
    elif isinstance(study, HeadStudy):
        runner = HeadStudyRunner(
            study, folder, data_dir=options.data_dir, backbone_dir=options.backbone_dir
        )
        if options.select:
            print(f"wrote {runner.select()}")
            return 0
        runner.run()
    elif isinstance(study, EnsembleStudy):
        if options.datasets:
            study = replace(study, sources=tuple(map(study.source, options.datasets)))
        ensembles = EnsembleRunner(study, options.artifacts.absolute(), _resources(study, options))
        if options.select:
            print(f"wrote {ensembles.select(options.regimes)}")
            return 0
        ensembles.run()
    else:
        if options.seeds:
            study = replace(study, seeds=tuple(dict.fromkeys(options.seeds)))
        if options.regimes:
            study = replace(study, regimes=tuple(study.regime(name) for name in options.regimes))
        if options.datasets:
            study = replace(study, datasets=tuple(dict.fromkeys(options.datasets)))
        failed = LoraStudyRunner(
            study, options.artifacts.absolute(), _resources(study, options)
        ).run()
    print(f"wrote {write_summary(folder)}")
    manifest.write_manifest(options.artifacts)
    if failed:
        print(f"error: {len(failed)} runs failed; run the study again", file=sys.stderr)
    return 1 if failed else 0


def _resources(study: LoraStudy | EnsembleStudy, options: argparse.Namespace) -> Resources:
    import torch

    from finsent.models.backbones import default_device
    from finsent.study.lora.runner import STACKED, Resources
    from finsent.study.rows import StudyError

    device = torch.device(options.device) if options.device else default_device()
    if options.stacked is not None and options.stacked < 1:
        raise StudyError(f"--stacked must be at least 1, got {options.stacked}")
    return Resources(
        # The same wherever it runs: lines of one file have to be comparable. Only the text that
        # ends every sentence is of the data set, and set where it is read.
        base=_recipe_config(study.backbone, "allagree", "cuda", bf16=True),
        device=device.type,
        workers=workers_from_options(options, _gpus_for(device)),
        stacked=options.stacked or STACKED[device.type],
        data_dir=options.data_dir,
        backbone_dir=options.backbone_dir,
    )


def _recipe_config(backbone: str, dataset: str, device: str, *, bf16: bool) -> TrainConfig:
    """The configuration that suits a backbone and a data set on a kind of device, "cpu" or "cuda";
    bf16: under autocast where the base is held in fp32."""
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


def _leaderboard(options: argparse.Namespace) -> int:
    _rebuild_index(options.artifacts)
    print(f"wrote {options.artifacts / 'leaderboard.json'}")
    return 0


def _figures(options: argparse.Namespace) -> int:
    from finsent.plots.png_figures import make_figures
    from finsent.results import manifest

    folder = options.artifacts / "figures"
    for path in make_figures(options.artifacts):
        print(f"wrote {path}")
    charts = sorted(
        options.artifacts.glob("*/*/dendritic/seed-*/PAI.png"),
        key=lambda path: ("allagree" not in path.parts, path),
    )
    if charts:
        shutil.copyfile(charts[0], folder / "PAI.png")
        print(f"wrote {folder / 'PAI.png'} (drawn by PerforatedAI for {charts[0].parent})")
    else:
        print("no dendritic run has a PAI.png; train one first", file=sys.stderr)
    manifest.write_manifest(options.artifacts)
    return 0 if charts else 1


if __name__ == "__main__":
    sys.exit(main())
