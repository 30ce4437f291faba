"""What `bench/train_phi2.py` measures with: a random Phi-2, sentences, a timed training run."""

from __future__ import annotations

import contextlib
import gc
import json
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from finsent.config import TrainConfig
from finsent.growth.grower import DendriteGrower
from finsent.models.adapter_files import DendriticMap
from finsent.models.backbones import Backbone, HiddenStates
from finsent.models.dendritic_linear import DendriticLinear
from finsent.models.weights import ensure_tiny_phi
from finsent.training import adapted_model
from finsent.training.loop import TrainingData, TrainResult, train

ROOT = Path(__file__).resolve().parent.parent
GPU = torch.device("cuda")
CLASSES = 3
MAX_LENGTH = 128
REFERENCE_STEPS = 12
VALIDATION = 32
"""Few, so that an epoch's time is that of its steps."""


def make_phi2(folder: Path) -> None:
    """A Phi-2 with random bf16 weights and some tokenizer, as a model folder."""
    from transformers import PhiConfig, PhiModel

    config = PhiConfig(
        vocab_size=51200,
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=32,
        num_attention_heads=32,
        partial_rotary_factor=0.4,
        max_position_embeddings=2048,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with GPU:
        model = PhiModel(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    for path in ensure_tiny_phi().iterdir():
        if "token" in path.name or path.suffix in (".txt",):
            shutil.copyfile(path, folder / path.name)


class Sentences:
    """Random token ids of the lengths of real sentences, with random labels."""

    def __init__(self) -> None:
        path = ROOT / "bench" / "data" / "phrasebank_lengths.json"
        lengths = json.loads(path.read_text(encoding="utf-8"))
        cut = [min(n, MAX_LENGTH) for n in lengths["train"]]
        rng = random.Random(0)
        every = cut + cut[:VALIDATION]
        self.ids = [[rng.randrange(51200) for _ in range(n)] for n in every]
        self.labels = [rng.randrange(CLASSES) for _ in every]
        self.train = list(range(len(cut)))
        self.validation = list(range(len(cut), len(every)))
        self.tokens = sum(cut)


class OutOfTime(Exception):
    """A part took longer than it was given."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside after that many seconds."""

    def ring(*_: Any) -> None:
        raise OutOfTime(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def generic_blocks() -> Any:
    """Inside, models are built as for a family that is not known."""
    return mock.patch.object(adapted_model, "can_fuse", return_value=False)


def strip(decoder: Any) -> None:
    """Take the adapters out that an interrupted run has left in."""
    for name, module in list(decoder.named_modules()):
        if hasattr(module, "base_layer"):
            decoder.set_submodule(name, module.base_layer)


def run(
    config: TrainConfig,
    backbone: Backbone,
    states: HiddenStates,
    data: Sentences,
    folder: Path | None = None,
    **options: Any,
) -> tuple[TrainResult, list[float]]:
    """Train, leave the base as it was, and return the seconds of every growth."""
    growths: list[float] = []
    epoch_end = DendriteGrower.epoch_end

    def timed(self: DendriteGrower, *args: Any, **options: Any) -> Any:
        torch.cuda.synchronize()
        started = time.perf_counter()
        event = epoch_end(self, *args, **options)
        torch.cuda.synchronize()
        if event is not None:
            growths.append(time.perf_counter() - started)
        return event

    DendriteGrower.epoch_end = timed  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            result = train(
                config,
                backbone,
                TrainingData(states, data.labels, CLASSES, data.train, data.validation),
                folder or Path(scratch),
                **options,
            )
    finally:
        DendriteGrower.epoch_end = epoch_end  # type: ignore[method-assign]
        strip(backbone.decoder)
        gc.collect()
        torch.cuda.empty_cache()
    result.model.fused = None
    return result, growths


def with_dendrite(b: torch.nn.Module) -> DendriticLinear:
    """An adapter's B map (out, r) with one dendrite, random and not zero."""
    weight = b.weight
    if not isinstance(weight, torch.nn.Parameter):
        raise TypeError(f"B maps hold a Parameter, this is a {type(weight).__name__}")
    draw = torch.Generator(device=GPU).manual_seed(0)
    v = torch.nn.Parameter(torch.empty_like(weight).normal_(0, 0.3, generator=draw))
    t = torch.nn.Parameter(weight.new_empty(1, len(weight)).normal_(0, 0.03, generator=draw))
    grown = DendriticLinear(weight, None, "relu")
    grown.adopt(DendriticMap(weight, None, ((v, None),), t))
    return grown


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all tensors, as a part of the norm of the expected ones."""
    one, other = (torch.cat([t[n].flatten() for n in expected]) for t in (found, expected))
    return float((one - other).norm() / other.norm())


def steady(result: TrainResult, skip: int) -> float:
    """Median seconds of the epochs after the first `skip`."""
    return statistics.median(record.seconds for record in result.history[skip:])


def reference_epoch(folder: Path, data: Sentences) -> float:
    """Seconds of an epoch of the original write-up's loop, extrapolated from a few steps."""
    import peft
    from transformers import AutoModel, BitsAndBytesConfig

    model = AutoModel.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        device_map={"": GPU},
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
    )
    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(model, lora)
    head = torch.nn.Linear(2560, CLASSES, bias=False, device=GPU)
    parameters = [*[p for p in model.parameters() if p.requires_grad], *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4)
    times = []
    for step in range(REFERENCE_STEPS):
        ids = (data.ids[step] + [0] * 128)[:128]
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            states = model(input_ids=torch.tensor([ids], device=GPU)).last_hidden_state
        logits = head(states[:, -1].float())
        label = torch.tensor([data.labels[step]], device=GPU)
        loss = torch.nn.functional.cross_entropy(logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:]) * len(data.train)


def settings(precision: Any, batch: int = 64) -> TrainConfig:
    """The preset's settings, for few epochs."""
    return TrainConfig(backbone="phi-2", precision=precision, epochs=5, batch_size=batch)
