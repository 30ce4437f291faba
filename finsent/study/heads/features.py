"""Frozen features: what a backbone says of every sentence, computed once and kept on disk.

Heads on frozen features need no backbone while they train, so hundreds of them take minutes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from finsent.config import POOLINGS
from finsent.data.registry import Dataset
from finsent.machine.files import published
from finsent.models.backbones import Backbone, load_backbone, pool, right_padded
from finsent.models.presets import cue, preset
from finsent.models.tokenization import token_batches
from finsent.models.weights import ReportProgress, default_cache_dir
from finsent.results.runs import slug

LAYERS = (12, 16, 20, 24, 28, 30)
"""Blocks whose output is kept. Those above the last block of a smaller model are left out."""
MAX_LENGTH = 128
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Features:
    """Pooled hidden states of a data set's sentences, in the data set's order."""

    values: dict[str, Tensor]
    """`<pooling>-<layer>` -> (n, H) fp32."""


def frozen_features(
    backbone: str,
    dataset: Dataset,
    *,
    folder: Path | None = None,
    cache: Path | None = None,
    device: torch.device | None = None,
    progress: ReportProgress | None = None,
) -> Features:
    """Features of every sentence of `dataset`, from the cache folder or computed and left there.

    folder: a local model folder that replaces the preset's source. cache: default, the folder of
    the weights. Raises BackboneError when the backbone cannot be loaded.
    """
    suffix = cue(preset(backbone).cpu, dataset.name)
    about = {
        "backbone": backbone,
        "folder": None if folder is None else str(folder),
        "texts": hashlib.sha256(
            json.dumps([example.text for example in dataset.examples]).encode()
        ).hexdigest(),
        "suffix": suffix,
        "layers": LAYERS,
        "max_length": MAX_LENGTH,
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    root = (cache or default_cache_dir()) / "features"
    path = root / f"{slug(backbone)}-{dataset.name}-{key}.safetensors"
    if not path.exists():
        loaded = load_backbone(
            backbone, "fp32", device or torch.device("cpu"), folder=folder, progress=progress
        )
        texts = [example.text for example in dataset.examples]
        values = pooled_states(loaded, texts, suffix, progress=progress)
        with published(path) as partial:
            save_file({name: tensor.half() for name, tensor in values.items()}, partial)
    # Half precision on disk for both, so that the first study and the next see the same numbers.
    values = {name: tensor.float() for name, tensor in load_file(path).items()}
    return Features(values)


@torch.no_grad()
def pooled_states(
    backbone: Backbone,
    texts: Sequence[str],
    suffix: str,
    *,
    layers: Sequence[int] = LAYERS,
    progress: ReportProgress | None = None,
) -> dict[str, Tensor]:
    """`<pooling>-<layer>` -> (n, H) fp32 on the CPU: the states after those blocks, each pooled as
    `finsent.models.backbones.pool` does, for texts that end with `suffix`."""
    token_ids = backbone.tokenize(texts, MAX_LENGTH, suffix)
    lengths = [len(ids) for ids in token_ids]
    kept = [layer for layer in layers if layer <= backbone.n_blocks] or [backbone.n_blocks]
    values = {
        f"{pooling}-{layer}": torch.empty(len(texts), backbone.hidden_size)
        for pooling in POOLINGS
        for layer in kept
    }
    done = 0
    for batch in token_batches(lengths, BATCH_TOKENS):
        padded = right_padded([token_ids[i] for i in batch]).to(backbone.device)
        last = torch.tensor([lengths[i] - 1 for i in batch], device=backbone.device)
        found = backbone.decoder(input_ids=padded, output_hidden_states=True).hidden_states
        for pooling in POOLINGS:
            for layer in kept:
                # hidden_states[0] is the embedding, [i] what leaves block i.
                values[f"{pooling}-{layer}"][batch] = pool(found[layer], last, pooling).cpu()
        done += sum(lengths[i] for i in batch)
        if progress is not None:
            progress("frozen features", done / sum(lengths))
    return values
