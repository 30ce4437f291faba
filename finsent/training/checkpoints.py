"""What a killed run needs to go on after its last whole epoch, in one safetensors file.

Tensors: the model's, the optimizer's, and the states that selection and growth may go back to.
Everything else is JSON in the file's metadata. PerforatedAI's own state is not stored: it is a
function of the scores it was told, and is made again by telling it the same scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from finsent.machine.files import write_bytes_atomically

CHECKPOINT = "checkpoint.safetensors"
_FORMAT = "finsent-checkpoint-1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read, or belongs to another run."""


@dataclass(frozen=True)
class Checkpoint:
    """A run between two epochs."""

    identity: str
    """Tells runs apart: settings, data, split and weights. See `finsent.training.child_main`."""
    facts: dict[str, Any]
    """JSON-ready: counters, history, validations."""
    tensors: dict[str, dict[str, Tensor]]
    """Groups of named tensors, e.g. "model" and "optimizer"."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: whatever happens, the checkpoint before this one or this one is there.

    CheckpointError when the file system refuses, for example because the disk is full.
    """
    flat = {
        # Copied: two groups may hold the same tensor, which the format refuses.
        f"{group}/{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for group, tensors in checkpoint.tensors.items()
        for name, tensor in tensors.items()
    }
    about = {"format": _FORMAT, "identity": checkpoint.identity, "facts": checkpoint.facts}
    content = save(flat, metadata={"finsent": json.dumps(about)})
    try:
        write_bytes_atomically(path, content)
    except OSError as error:
        epochs = len(checkpoint.facts["history"])
        raise CheckpointError(
            f"cannot write {path} after epoch {epochs}: {error.strerror or error}. Make room and "
            "start the same command again: it goes on from the last epoch it kept"
        ) from error


def load_checkpoint(path: Path, device: torch.device, identity: str) -> Checkpoint | None:
    """The checkpoint at `path`, None where there is none.

    CheckpointError when it cannot be read or was left by a run with another identity.
    """
    if not path.exists():
        return None
    remedy = "remove its folder, or pass --overwrite, to train the run from the start"
    try:
        with safe_open(path, framework="pt", device=str(device)) as archive:
            about = json.loads((archive.metadata() or {}).get("finsent", "{}"))
            names = archive.keys()
            flat = {name: archive.get_tensor(name) for name in names}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path} ({error}); {remedy}") from error
    if about.get("format") != _FORMAT:
        raise CheckpointError(f"{path} has format {about.get('format')!r}, not {_FORMAT}; {remedy}")
    if about["identity"] != identity:
        raise CheckpointError(
            f"{path} was left by an unfinished run with other settings, data or weights; finish "
            f"that one with its own command, or {remedy}"
        )
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        group, _, rest = name.partition("/")
        tensors.setdefault(group, {})[rest] = tensor
    return Checkpoint(about["identity"], about["facts"], tensors)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors: `<parameter index>.<name>`."""
    state: Mapping[int, Mapping[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`, on an optimizer over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, rest = name.partition(".")
        state.setdefault(int(index), {})[rest] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
