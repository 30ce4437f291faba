"""One training run: the loop, read top to bottom.

The base is frozen and its lower blocks are already applied (`HiddenStates`); what is trained are
LoRA maps in the upper blocks, a score head on the last token, and, in the dendritic arm, dendrites
on either. Every arm goes through the same lines; the only branch is whether a grower is present.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor, nn

from finsent.adapters import (
    STORED_DTYPE,
    LoraPair,
    attach_lora,
    linear_shapes,
    lora_ranks,
    replace_b,
    save_adapter,
    split_tensor_name,
    trainable_count,
    trainable_tensors,
    whole_model_name,
)
from finsent.backbones import Backbone, HiddenStates, pool, token_batches, upper_blocks
from finsent.config import DendriteConfig, MatchedCapacity, TrainConfig
from finsent.dendrites import DendriteGrower, GrowthError
from finsent.dendritic_linear import DendriticLinear
from finsent.stepping import StepRunner

EVALUATION_TOKENS = 8192
"""Padded tokens per evaluation batch."""

BUCKET = 32
"""Batches whose examples are sorted by length together; larger pads less and shuffles less."""


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite. The last good state is kept on disk."""


@dataclass(frozen=True)
class EpochRecord:
    """A line of history.jsonl. Dendrites and parameters are those the epoch was trained with."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    val_macro_f1: float
    learning_rate: float
    dendrites: int
    trainable_params: int
    seconds: float
    event: str | None


@dataclass(frozen=True)
class Validation:
    """Scores of one state on the validation part."""

    epoch: int
    accuracy: float
    macro_f1: float
    nll: float
    """Mean negative log-likelihood in nats, unweighted: what states are selected by."""


@dataclass
class TrainResult:
    """What a run found. The model holds the selected state."""

    model: AdaptedModel
    history: list[EpochRecord]
    selected: Validation
    best_before_growth: Validation | None
    dendrites: int
    dendrite_logit_share: float | None
    trainable_params: int
    optimizer_steps: int
    train_seconds: float
    peak_memory_mb: float


@dataclass
class AdaptedModel:
    """The upper blocks with adapters, and the head, mapping hidden states to class logits."""

    upper: Any
    head: Any
    """nn.Linear or DendriticLinear: hidden -> classes."""
    pairs: dict[str, LoraPair]
    b_maps: dict[str, nn.Module]
    first_block: int
    scaling: float
    pooling: str
    activation: str = "none"

    def pooled(self, hidden: Tensor, last: Tensor) -> Tensor:
        """(B, L, H) states and last positions (B,) -> what the head reads: (B, H), fp32."""
        return pool(self.upper(inputs_embeds=hidden).last_hidden_state, last, self.pooling)

    def tensors(self) -> dict[str, Tensor]:
        """Every trainable tensor by its name in an adapter file."""
        return trainable_tensors(self.pairs, self.b_maps, self.head, self.first_block)

    def parameters(self) -> list[nn.Parameter]:
        """The same tensors as an optimizer wants them."""
        return [t for t in self.tensors().values() if isinstance(t, nn.Parameter)]

    def dendritic_maps(self) -> list[DendriticLinear]:
        """Maps that have at least one dendrite."""
        maps = [self.head, *self.b_maps.values()]
        return [m for m in maps if isinstance(m, DendriticLinear) and m.n_dendrites > 0]

    @contextlib.contextmanager
    def dendrites_silenced(self) -> Iterator[None]:
        """Inside, every dendrite contributes nothing."""
        weights = [m.output_weights for m in self.dendritic_maps() if m.output_weights is not None]
        saved = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for w in weights:
                w.zero_()
            try:
                yield
            finally:
                for w, value in zip(weights, saved, strict=True):
                    w.copy_(value)

    def round_to_stored(self) -> None:
        """Give every trainable tensor the value its file will have."""
        with torch.no_grad():
            for tensor in self.tensors().values():
                tensor.copy_(tensor.to(STORED_DTYPE))

    def save(self, path: Path) -> None:
        """Write the adapter file."""
        save_adapter(path, self.tensors(), self.scaling, self.activation)


def build_model(config: TrainConfig, backbone: Backbone, n_classes: int) -> AdaptedModel:
    """Attach fresh adapters and a head, seeded by the configuration alone.

    Initial weights are drawn on the CPU, so every device starts from the same numbers.
    """
    torch.manual_seed(config.seed)
    first = backbone.first_adapted_block(config.lora.last_layers)
    head = nn.Linear(backbone.hidden_size, n_classes, bias=False)
    head.to(backbone.device)
    upper = upper_blocks(backbone.decoder, first)
    shapes = linear_shapes(upper, config.lora.target_modules)
    matched = config.treatment if isinstance(config.treatment, MatchedCapacity) else None
    ranks = lora_ranks(shapes, config.lora.r, head.weight.numel(), matched)
    pairs = attach_lora(upper, config.lora, ranks)
    return AdaptedModel(
        upper=upper,
        head=head,
        pairs=pairs,
        b_maps={name: pair.b for name, pair in pairs.items()},
        first_block=first,
        scaling=config.lora.alpha / config.lora.r,
        pooling=config.pooling,
    )


def growable_maps(model: AdaptedModel, placement: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear maps that dendrites may grow on."""
    maps: dict[str, nn.Linear] = {}
    if "lora_B" in placement:
        maps.update({f"{name}.lora_B": pair.b for name, pair in model.pairs.items()})
    if "score" in placement:
        if not isinstance(model.head, nn.Linear):
            raise TypeError(f"the head is a {type(model.head).__name__}, not a linear map")
        maps["score"] = model.head
    return maps


def adopt_grown_modules(model: AdaptedModel, modules: dict[str, DendriticLinear]) -> None:
    """Put the grower's modules where the plain linear maps were."""
    for name, module in modules.items():
        if name == "score":
            model.head = module
            continue
        layer = name.removesuffix(".lora_B")
        model.b_maps[layer] = module
        replace_b(model.upper, layer, module)


def learning_rate_at(step: int, total: int, config: TrainConfig) -> float:
    """Linear warm-up, then linear decay to zero at `total` steps."""
    warmup = round(config.warmup_fraction * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * (total - step) / max(1, total - warmup)


def new_optimizer(
    model: AdaptedModel, config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW over the trainable tensors. On CUDA its learning rate is a tensor there, so that a
    captured step reads the rate of the moment."""
    on_cuda = device.type == "cuda"
    rate = torch.tensor(config.learning_rate, device=device) if on_cuda else config.learning_rate
    return torch.optim.AdamW(
        model.parameters(),
        lr=rate,
        weight_decay=config.weight_decay,
        fused=on_cuda,
        capturable=on_cuda,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Change the rate without replacing a tensor that a captured step reads."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def class_weights(labels: Sequence[int], n_classes: int) -> Tensor:
    """Inverse class frequencies, scaled so that a balanced set gets 1: (n_classes,).

    A class that does not occur gets weight 0; its loss never occurs either.
    """
    counts = torch.bincount(torch.tensor(labels), minlength=n_classes).float()
    weights = len(labels) / (n_classes * counts)
    return torch.where(counts > 0, weights, torch.zeros(()))


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """`F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)`: scalar.

    Written out because torch's smoothing waits for the device, which a captured step must not.
    """
    n_classes = logits.shape[1]
    targets = F.one_hot(labels, n_classes) * (1 - smoothing) + smoothing / n_classes
    losses = -(F.log_softmax(logits, dim=1) * targets * weights).sum(dim=1)
    return losses.sum() / weights[labels].sum()


def epoch_batches(
    indices: Sequence[int], lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Shuffled batches of examples of similar length.

    Depends on (seed, epoch) only, never on how far a global generator has moved: arms with other
    numbers of parameters see the same batches, and a resumed run the ones it would have seen.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(np.asarray(indices))
    span = batch_size * BUCKET
    batches: list[list[int]] = []
    for start in range(0, len(order), span):
        bucket = sorted(order[start : start + span].tolist(), key=lambda i: lengths[i])
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


@torch.no_grad()
def class_logits(
    model: AdaptedModel, states: HiddenStates, indices: Sequence[int], lengths: Sequence[int]
) -> Tensor:
    """Logits (n, classes) in fp32 on the CPU, in the order of `indices`, never autocast."""
    parts: list[Tensor] = []
    order: list[int] = []
    for batch in token_batches([lengths[i] for i in indices], EVALUATION_TOKENS):
        chosen = [indices[i] for i in batch]
        where = torch.tensor(chosen, device=states.values.device)
        hidden, last = states.batch(where, max(lengths[i] for i in chosen))
        parts.append(model.head(model.pooled(hidden, last)))
        order += batch
    return torch.cat(parts).cpu()[torch.tensor(order).argsort()]


def validate(logits: Tensor, labels: Tensor, epoch: int) -> Validation:
    """Scores of logits (n, classes) against labels (n,)."""
    predicted = logits.argmax(dim=1)
    return Validation(
        epoch=epoch,
        accuracy=float((predicted == labels).double().mean()),
        macro_f1=float(f1_score(labels, predicted, average="macro", zero_division=0)),
        nll=float(F.cross_entropy(logits.double(), labels)),
    )


@dataclass
class _Best:
    """The best state so far by validation NLL, and its tensors."""

    validation: Validation
    tensors: dict[str, Tensor] = field(repr=False)


def _snapshot(model: AdaptedModel, validation: Validation) -> _Best:
    return _Best(validation, {n: t.detach().clone() for n, t in model.tensors().items()})


def _restore(model: AdaptedModel, best: _Best, *, only_ungrown: bool = False) -> None:
    """Give the model the tensors of `best`, which may have fewer dendrites than it has now.

    With `only_ungrown`, maps that the grower looks after are left as they are.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in best.tensors.items():
        path, rest = split_tensor_name(name)
        groups.setdefault(path, {})[rest] = tensor
    modules: dict[str, nn.Module] = {"score": model.head}
    for name, pair in model.pairs.items():
        whole = whole_model_name(name, model.first_block)
        modules[f"{whole}.lora_A"] = pair.a
        modules[f"{whole}.lora_B"] = model.b_maps[name]
    for path, module in modules.items():
        if isinstance(module, DendriticLinear):
            if not only_ungrown:
                module.load(groups[path], trainable=True)
        else:
            module.load_state_dict(groups[path])


def _logit_share(
    model: AdaptedModel, states: HiddenStates, indices: Sequence[int], lengths: Sequence[int]
) -> float | None:
    """How much the dendrites contribute: mean |logits - logits without them| / mean |logits|."""
    if not model.dendritic_maps():
        return None
    logits = class_logits(model, states, indices, lengths)
    with model.dendrites_silenced():
        silenced = class_logits(model, states, indices, lengths)
    return float((logits - silenced).abs().mean() / logits.abs().mean())


def _keep_last_good(
    model: AdaptedModel, last_good: _Best | None, folder: Path, epoch: int, rate: float
) -> str:
    """Save the state of the last epoch that was finite; returns what to tell the user."""
    where = "there was no good state yet"
    if last_good is not None:
        path = folder / "last_good.safetensors"
        save_adapter(path, last_good.tensors, model.scaling, model.activation)
        where = f"the state after epoch {last_good.validation.epoch} is kept in {path}"
    return (
        f"the loss became NaN or infinite in epoch {epoch} (learning rate {rate:.3g}); {where}. "
        "Lower --learning-rate or raise the precision."
    )


def _autocast(config: TrainConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.autocast)


def use_deterministic_kernels(device: torch.device) -> None:
    """Same seed, same device, same numbers. Call before anything runs on the device: cuBLAS reads
    the variable once."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Filling new tensors with NaN finds bugs in kernels, at a launch for every tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _peak_memory_mb(device: torch.device) -> float:
    """Peak of the CUDA allocator, or of the process's resident memory on a CPU, in MB (1e6 B)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1.0 if sys.platform == "darwin" else 1024.0) / 1e6


def train(
    config: TrainConfig,
    backbone: Backbone,
    states: HiddenStates,
    labels: Sequence[int],
    train_indices: Sequence[int],
    validation_indices: Sequence[int],
    n_classes: int,
    folder: Path,
    *,
    step_done: Callable[[int], None] = lambda steps: None,
    epoch_done: Callable[[EpochRecord], None] = lambda record: None,
) -> TrainResult:
    """Train one arm of one seed and return its best-validation state.

    `states` and `labels` cover the whole data set, `*_indices` say which of it to use. `folder`
    receives the last good state if the loss diverges, and the library's chart of a dendritic run.
    Raises TrainingDiverged, ConfigError, GrowthError.
    """
    started = time.perf_counter()
    device = backbone.device
    lengths = states.lengths.tolist()
    model = build_model(config, backbone, n_classes)
    all_labels = torch.tensor(labels)
    device_labels = all_labels.to(device)
    validation_labels = all_labels[list(validation_indices)]
    weights = torch.ones(n_classes, device=device)
    if config.class_weighted:
        weights = class_weights([labels[i] for i in train_indices], n_classes).to(device)

    with contextlib.ExitStack() as stack:
        grower = None
        if isinstance(config.treatment, DendriteConfig):
            maps = growable_maps(model, config.treatment.placement)
            grower = stack.enter_context(DendriteGrower(maps, config.treatment, device, folder))
            adopt_grown_modules(model, grower.modules)
            model.activation = config.treatment.activation

        optimizer = new_optimizer(model, config, device)
        parameters = model.parameters()
        loss_sum = torch.zeros((), device=device, dtype=torch.float64)

        def one_step(where: Tensor, longest: int) -> None:
            hidden, last = states.batch(where, longest)
            with _autocast(config, device):
                pooled = model.pooled(hidden, last)
            # Head and loss in fp32, outside autocast.
            logits = model.head(pooled)
            loss = weighted_loss(logits, device_labels[where], weights, config.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            # Summed on the device: asking for each value would stall the GPU at every step. A
            # single NaN or infinity survives the sum.
            loss_sum.add_(loss.detach())

        run_step = StepRunner(one_step, device)
        steps_per_epoch = math.ceil(len(train_indices) / config.batch_size)
        total_steps = steps_per_epoch * config.epochs
        learning_rate_factor = 1.0
        step = 0
        dendrites = 0
        best: _Best | None = None
        best_of_all: _Best | None = None  # what the library goes back to, dendrites or not
        best_before_growth: Validation | None = None
        last_good: _Best | None = None
        history: list[EpochRecord] = []

        for epoch in range(config.epochs):
            epoch_started = time.perf_counter()
            loss_sum.zero_()
            rate = 0.0
            batches = epoch_batches(train_indices, lengths, config.batch_size, config.seed, epoch)
            # One transfer an epoch; a transfer a step would make every step wait for the host.
            on_device = torch.tensor([i for batch in batches for i in batch]).to(device)
            chunks = on_device.split([len(batch) for batch in batches])
            for batch, where in zip(batches, chunks, strict=True):
                rate = learning_rate_factor * learning_rate_at(step, total_steps, config)
                set_learning_rate(optimizer, rate)
                run_step(where, max(lengths[i] for i in batch))
                step += 1
                step_done(1)

            train_loss = float(loss_sum) / steps_per_epoch
            logits = class_logits(model, states, validation_indices, lengths)
            if not math.isfinite(train_loss) or not bool(logits.isfinite().all()):
                raise TrainingDiverged(_keep_last_good(model, last_good, folder, epoch, rate))
            validation = validate(logits, validation_labels, epoch)
            trainable = trainable_count(model.tensors())
            last_good = _snapshot(model, validation)
            if best is None or validation.nll < best.validation.nll:
                best = last_good
            if best_of_all is None or validation.nll < best_of_all.validation.nll:
                best_of_all = last_good

            event = None
            trained_with = dendrites
            if grower is not None:
                # exp(-NLL), the geometric mean probability of the true class, lies in (0, 1] and
                # ranks states as the selection rule does.
                may_grow = epoch < config.epochs - 1
                score = math.exp(-validation.nll)
                grown = grower.epoch_end(score, optimizer, may_grow=may_grow)
                if grown is not None:
                    event = grown.description
                    # The library went back to its best state of the maps it knows; A and whatever
                    # did not grow go back with them, or the model would be of two epochs.
                    _restore(model, best_of_all, only_ungrown=True)
                    if dendrites == 0 and grown.dendrites > 0:
                        best_before_growth = best.validation
                    if (dendrites == 0) != (grown.dendrites == 0):
                        # A dendritic model is a state trained with dendrites: start comparing anew.
                        best = None
                    dendrites = grown.dendrites
                    learning_rate_factor = config.treatment.learning_rate_factor  # type: ignore[union-attr]
                    optimizer = new_optimizer(model, config, device)
                    parameters = model.parameters()
                    run_step.reset()
            record = EpochRecord(
                epoch=epoch,
                train_loss=train_loss,
                val_loss=validation.nll,
                val_accuracy=validation.accuracy,
                val_macro_f1=validation.macro_f1,
                learning_rate=rate,
                dendrites=trained_with,
                trainable_params=trainable,
                seconds=time.perf_counter() - epoch_started,
                event=event,
            )
            history.append(record)
            epoch_done(record)

        if best is None:
            raise GrowthError("dendrites were grown but no epoch trained them")
        _restore(model, best)
        model.round_to_stored()
        if grower is not None:
            grower.draw(folder / "PAI.png")

    return TrainResult(
        model=model,
        history=history,
        selected=best.validation,
        best_before_growth=best_before_growth,
        dendrites=max((m.n_dendrites for m in model.dendritic_maps()), default=0),
        dendrite_logit_share=_logit_share(model, states, validation_indices, lengths),
        trainable_params=trainable_count(model.tensors()),
        optimizer_steps=step,
        train_seconds=time.perf_counter() - started,
        peak_memory_mb=_peak_memory_mb(device),
    )
