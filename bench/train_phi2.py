"""Training Phi-2 at full geometry on one GPU: time of an epoch, memory, dendrites, stability.

    python bench/train_phi2.py [--parts PART ...] [--seconds N] [--out FILE] [--scratch FOLDER]

The weights are random (2.65 B, made here and written to the scratch folder, 5.3 GB): neither time
nor memory depends on their values. Sentences are random tokens with the lengths of Financial
PhraseBank's. What is timed is `finsent.training.loop.train` itself, with the kernels that make a
run reproducible: by the fused blocks, and in the parts called `generic` by transformers' blocks
with adapter modules, as for families that are not known. The part `reference` is the loop of the
original write-up (8-bit, one padded sentence at a time, gradient checkpointing), of which a few
steps are taken and the epoch is extrapolated.

Parts are run in the order given, most important first; one that would not end in the time left is
not begun, one that fails is recorded with its error, and results are written after each. Each
figure is the median over epochs after those in which steps are captured.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from bench.phi2_setup import (
    CLASSES,
    GPU,
    Sentences,
    at_most,
    difference,
    generic_blocks,
    make_phi2,
    reference_epoch,
    run,
    settings,
    steady,
    strip,
    with_dendrite,
)
from finsent.config import DendriteConfig
from finsent.kernels import adapter_maps
from finsent.machine.devices import use_deterministic_kernels
from finsent.models.backbones import Backbone, HiddenStates, entering_hidden_states, load_backbone
from finsent.results.provenance import git_commit
from finsent.training import adapted_model
from finsent.training.adapted_model import AdaptedModel, build_model
from finsent.training.loop import TrainResult


@dataclass
class Bench:
    """What the parts share: the base at hand and what has been found."""

    folder: Path
    data: Sentences
    profile_path: Path
    found: dict[str, Any] = field(default_factory=dict)
    _backbone: Backbone | None = None
    _states: HiddenStates | None = None

    def base(self, precision: Any) -> tuple[Backbone, HiddenStates]:
        """The base in that precision and what enters it; the one before is let go."""
        if self._backbone is None or self._states is None or self._backbone.precision != precision:
            self.release()
            started = time.perf_counter()
            backbone = load_backbone("phi-2", precision, GPU, folder=self.folder)
            torch.cuda.synchronize()
            self.found.setdefault("load_seconds", {})[precision] = time.perf_counter() - started
            self._backbone = backbone
            self._states = entering_hidden_states(backbone, self.data.ids, 0)
        return self._backbone, self._states

    def release(self) -> None:
        """Let the base go."""
        self._backbone = self._states = None
        gc.collect()
        torch.cuda.empty_cache()

    def arms(self, precision: Any, batch: int) -> dict[str, Any]:
        """Both arms by the fused blocks."""
        backbone, states = self.base(precision)
        config = settings(precision, batch)
        plain, _ = run(config, backbone, states, self.data)
        reserved = torch.cuda.max_memory_reserved() / 1e9
        # Growth after the first epoch: the next two capture the dendritic steps.
        growing = replace(config, treatment=DendriteConfig(grow_by=0), epochs=7)
        dendritic, growths = run(growing, backbone, states, self.data)
        return {
            **self._figures(plain),
            "dendritic_epoch_seconds": steady(dendritic, 4),
            "dendritic_epochs": [round(record.seconds, 3) for record in dendritic.history],
            "dendritic_step_ratio": steady(dendritic, 4) / steady(plain, 2),
            "restructure_seconds": max(growths),
            "dendrites": dendritic.dendrites,
            "peak_memory_gb_dendritic": dendritic.peak_memory_mb / 1e3,
            "peak_reserved_gb": reserved,
            "peak_reserved_gb_dendritic": torch.cuda.max_memory_reserved() / 1e9,
        }

    def generic(self, precision: Any, batch: int) -> dict[str, Any]:
        """The baseline by transformers' blocks."""
        backbone, states = self.base(precision)
        with generic_blocks():
            plain, _ = run(
                replace(settings(precision, batch), epochs=4), backbone, states, self.data
            )
        return self._figures(plain)

    @staticmethod
    def _figures(plain: TrainResult) -> dict[str, Any]:
        return {
            "epoch_seconds": steady(plain, 2),
            "epochs": [round(record.seconds, 3) for record in plain.history],
            "first_epoch_seconds": plain.history[0].seconds,
            "peak_memory_gb": plain.peak_memory_mb / 1e3,
        }

    @contextlib.contextmanager
    def _checked(
        self, precision: Any
    ) -> Iterator[tuple[AdaptedModel, Callable[..., dict[str, torch.Tensor]]]]:
        """A model whose adapters' B maps are not zero, and what gives the gradients of its tensors
        on the first eight sentences, or on some of them."""
        backbone, states = self.base(precision)
        labels = torch.tensor(self.data.labels[:8], device=GPU)
        where = torch.arange(8, device=GPU)
        hidden, last = states.batch(where, max(map(len, self.data.ids[:8])))
        model = build_model(settings(precision), backbone, CLASSES)
        if model.fused is None:
            raise RuntimeError(
                "this GPU has no fused blocks, and their gradients are what is compared"
            )
        draw = torch.Generator(device=GPU).manual_seed(0)
        for pair in model.pairs.values():
            pair.b.weight.data.normal_(0, 0.01, generator=draw)

        def gradients(rows: slice = slice(0, 8)) -> dict[str, torch.Tensor]:
            logits = model.head(model.pooled(hidden[rows], last[rows]))
            loss = torch.nn.functional.cross_entropy(logits, labels[rows])
            tensors = model.tensors()
            found = torch.autograd.grad(loss, list(tensors.values()))
            return dict(zip(tensors, found, strict=True))

        try:
            yield model, gradients
        finally:
            strip(backbone.decoder)

    def check(self, precision: Any) -> dict[str, Any]:
        """Gradients of fused and generic blocks on one batch: relative difference, and how far away
        those on other sentences are in the same measure."""
        with self._checked(precision) as (model, gradients):
            fused, again = gradients(), gradients()
            with model.module_by_module():
                generic, other = gradients(), gradients(slice(4, 8))
        return {
            "gradient_difference": difference(fused, generic),
            "gradient_difference_of_other_sentences": difference(other, generic),
            "repeats_exactly": all(torch.equal(fused[n], again[n]) for n in fused),
            "finite": all(bool(g.isfinite().all()) for g in fused.values()),
        }

    def check_dendrites(self, precision: Any) -> dict[str, Any]:
        """With one dendrite on every map: gradients by the kernels for that, by PyTorch in the
        fused blocks, and by the generic ones; relative differences over all tensors, and over those
        of a kind."""
        with self._checked(precision) as (model, gradients):
            grown = {f"{name}.lora_B": with_dendrite(pair.b) for name, pair in model.pairs.items()}
            adapted_model.adopt_grown_modules(model, grown)
            kernels, again = gradients(), gradients()
            with mock.patch.object(adapter_maps, "uses_kernels", return_value=False):
                pytorch = gradients()
            with model.module_by_module():
                generic = gradients()
        pairs = {
            "kernels_to_pytorch": (kernels, pytorch),
            "kernels_to_modules": (kernels, generic),
            "pytorch_to_modules": (pytorch, generic),
        }
        kinds = {name: name.rpartition(".lora_")[2] for name in kernels}
        return {
            **{pair: difference(*both) for pair, both in pairs.items()},
            "by_tensor": {
                kind: {
                    pair: difference(*({n: g[n] for n in kinds if kinds[n] == kind} for g in both))
                    for pair, both in pairs.items()
                }
                for kind in sorted(set(kinds.values()))
            },
            "repeats_exactly": all(torch.equal(kernels[n], again[n]) for n in kernels),
            "finite": all(bool(g.isfinite().all()) for g in kernels.values()),
        }

    def profile(self, precision: Any) -> dict[str, Any]:
        """Kernels of one epoch of replayed steps, at batch 64, and a table of them in a file."""
        from torch.profiler import ProfilerActivity, profile

        backbone, states = self.base(precision)
        activities = [getattr(ProfilerActivity, GPU.type.upper())]
        with profile(activities=activities):
            torch.ones(1, device=GPU).add_(1)  # before the capture, or it would see no kernels
        profiler = profile(activities=activities)

        def epoch_done(record: Any) -> None:
            if record.epoch == 1:
                torch.cuda.synchronize()
                profiler.start()
            elif record.epoch == 2:
                torch.cuda.synchronize()
                profiler.stop()

        config = replace(settings(precision), epochs=3)
        run(config, backbone, states, self.data, epoch_done=epoch_done)
        kernels = sorted(profiler.key_averages(), key=lambda k: -k.self_device_time_total)
        total = sum(k.self_device_time_total for k in kernels) / 1e6
        lines = [
            f"{precision}, batch 64: {total:.3f} s in {sum(k.count for k in kernels)} kernels",
            f"{'ms':>9} {'share':>6} {'calls':>7}  kernel",
        ]
        for kernel in kernels[:35]:
            spent = kernel.self_device_time_total / 1e6
            share = spent / (total or 1)
            lines.append(f"{spent * 1e3:9.2f} {share:6.1%} {kernel.count:7d}  {kernel.key[:150]}")
        text = "\n".join(lines) + "\n"
        self.profile_path.write_text(text, encoding="utf-8")
        print(text, flush=True)
        return {"kernel_seconds": total, "kernels": sum(k.count for k in kernels)}

    def seeds(self, precision: Any) -> list[list[float]]:
        """Training losses of three seeds over ten epochs, half of them with dendrites. A NaN or an
        infinity would raise TrainingDiverged."""
        backbone, states = self.base(precision)
        losses = []
        for seed in range(3):
            config = settings(precision)
            treatment = DendriteConfig(grow_by=4)
            config = replace(config, seed=seed, epochs=10, treatment=treatment)
            result, _ = run(config, backbone, states, self.data)
            losses.append([round(record.train_loss, 4) for record in result.history])
        return losses

    def resume(self, precision: Any) -> dict[str, Any]:
        """A dendritic run of four epochs, and the same one interrupted after two."""
        backbone, states = self.base(precision)
        config = replace(
            settings(precision), epochs=4, treatment=DendriteConfig(grow_by=0), batch_size=64
        )

        def interrupt(record: Any) -> None:
            if record.epoch == 1:
                raise KeyboardInterrupt

        whole, _ = run(config, backbone, states, self.data)
        with tempfile.TemporaryDirectory() as scratch:
            options: dict[str, Any] = {"folder": Path(scratch), "identity": "bench"}
            with contextlib.suppress(KeyboardInterrupt):
                run(config, backbone, states, self.data, epoch_done=interrupt, **options)
            resumed, _ = run(config, backbone, states, self.data, **options)
        pairs = list(zip(whole.history, resumed.history, strict=True))
        tensors = resumed.model.tensors()
        return {
            "train_loss_difference": max(abs(a.train_loss - b.train_loss) for a, b in pairs),
            "val_loss_difference": max(abs(a.val_loss - b.val_loss) for a, b in pairs),
            "val_accuracy_difference": max(abs(a.val_accuracy - b.val_accuracy) for a, b in pairs),
            "largest_weight_difference": max(
                float((t - tensors[n]).detach().abs().max())
                for n, t in whole.model.tensors().items()
            ),
            "events": [record.event for record in resumed.history],
        }

    def reference(self) -> float:
        """The original write-up's loop, alone on the GPU."""
        self.release()
        return reference_epoch(self.folder, self.data)


PARTS: dict[str, tuple[float, Callable[[Bench], Any]]] = {
    "check_bf16": (15, lambda b: b.check("bf16")),
    "bf16_64": (30, lambda b: b.arms("bf16", 64)),
    "check_dendrites_bf16": (15, lambda b: b.check_dendrites("bf16")),
    "profile_bf16": (15, lambda b: b.profile("bf16")),
    "generic_bf16_64": (18, lambda b: b.generic("bf16", 64)),
    "check_nf4": (12, lambda b: b.check("nf4")),
    "check_dendrites_nf4": (12, lambda b: b.check_dendrites("nf4")),
    "nf4_16": (40, lambda b: b.arms("nf4", 16)),
    "nf4_64": (30, lambda b: b.arms("nf4", 64)),
    "bf16_16": (45, lambda b: b.arms("bf16", 16)),
    "seeds_bf16": (75, lambda b: b.seeds("bf16")),
    "resume_bf16": (40, lambda b: b.resume("bf16")),
    "seeds_nf4": (75, lambda b: b.seeds("nf4")),
    "resume_nf4": (40, lambda b: b.resume("nf4")),
    "generic_nf4_64": (20, lambda b: b.generic("nf4", 64)),
    "generic_bf16_16": (30, lambda b: b.generic("bf16", 16)),
    "generic_nf4_16": (35, lambda b: b.generic("nf4", 16)),
    "profile_nf4": (15, lambda b: b.profile("nf4")),
    "reference": (25, lambda b: b.reference()),
}
"""What each part takes, in seconds at most as far as is known, and how it is measured."""


def version(package: str) -> str | None:
    """None where it is missing: without 4-bit parts, bitsandbytes may be."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def summary(bench: Bench) -> dict[str, Any]:
    """What the file holds; figures that were not measured are None."""
    found = bench.found
    figures = {
        precision: {
            f"batch_{batch}": found[f"{precision}_{batch}"]
            for batch in (64, 16)
            if f"{precision}_{batch}" in found
        }
        for precision in ("bf16", "nf4")
    }
    every = [of_batch for of_precision in figures.values() for of_batch in of_precision.values()]

    def figure(part: str, name: str) -> Any:
        return found.get(part, {}).get(name)

    ratios = [f["dendritic_step_ratio"] for f in every]
    restructuring = [f["restructure_seconds"] for f in every]
    packages = ("torch", "transformers", "peft", "bitsandbytes", "perforatedai")
    return {
        "epoch_seconds_bf16": figure("bf16_64", "epoch_seconds"),
        "epoch_seconds_nf4": figure("nf4_64", "epoch_seconds"),
        "epoch_seconds_reference_loop": found.get("reference"),
        "dendritic_step_ratio": max(ratios, default=None),
        "restructure_seconds": max(restructuring, default=None),
        "peak_memory_gb_nf4_b16": figure("nf4_16", "peak_memory_gb_dendritic"),
        "precisions": figures,
        "other_parts": {
            name: value
            for name, value in found.items()
            if name not in {f"{p}_{b}" for p in figures for b in (64, 16)} | {"reference"}
        },
        "weights": "random, full geometry",
        "device": torch.cuda.get_device_name(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "command": " ".join(["python bench/train_phi2.py", *sys.argv[1:]]),
        "commit": git_commit(ROOT),
        "n": {"sentences": len(bench.data.train), "tokens": bench.data.tokens, "epochs": 3},
    }


def main() -> int:
    """Measure, print, write the results; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/train_phi2.json")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "phi-2")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=600, help="for everything")
    options = parser.parse_args()
    begun = time.perf_counter()
    use_deterministic_kernels(GPU)
    if not (options.scratch / "config.json").exists():
        make_phi2(options.scratch)
    print(f"weights made: {time.perf_counter() - begun:.1f} s", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    profile_path = options.out.with_name(options.out.stem + "_profile.txt")
    bench = Bench(options.scratch, Sentences(), profile_path)
    errors: dict[str, str] = {}
    results: dict[str, Any] = {}
    for name in options.parts:
        expected, measure = PARTS[name]
        started = time.perf_counter()
        left = options.seconds - (started - begun)
        if left < expected / 2:
            errors[name] = f"not begun: {left:.0f} s were left"
            continue
        try:
            with at_most(min(2 * expected, left)):
                bench.found[name] = measure(bench)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
            del error
            bench.release()
        results = {**summary(bench), "not_measured": errors}
        text = json.dumps(results, indent=2, sort_keys=True) + "\n"
        options.out.write_text(text, encoding="utf-8")
        said = json.dumps(bench.found.get(name, errors.get(name)))
        print(f"{name} ({time.perf_counter() - started:.1f} s): {said}", flush=True)
    print(json.dumps({k: v for k, v in results.items() if k != "precisions"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
