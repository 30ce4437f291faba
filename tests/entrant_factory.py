"""Small classifiers from elsewhere, made on disk: the real classes, taught a few sentences."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from finsent.entrants.labels import sanity_sentences
from finsent.models.weights import ensure_tiny_phi
from tests.tiny_encoders import CONFIGS, make_tiny

LABELS = ("negative", "neutral", "positive")
NAMES = ("Positive", "Negative", "Neutral")
"""In an order of their own, as other models have them."""


def make_classifier(kind: str, folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    """A random encoder of one of tests.tiny_encoders.CONFIGS with a head fitted to the sanity
    sentences, so that its labels mean what they say."""
    make_tiny(kind, folder)
    config = CONFIGS[kind]()
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        _teach(model, PreTrainedTokenizerFast.from_pretrained(folder), NAMES)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(folder)
    return folder


def _teach(model: Any, tokenizer: Any, meanings: tuple[str, ...]) -> None:
    """Fits all weights to the sanity sentences for a second."""
    texts, truth = sanity_sentences(LABELS)
    order = [next(i for i, n in enumerate(meanings) if n.lower() == LABELS[t]) for t in truth]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    given = tokenizer(list(texts), padding=True, return_tensors="pt")
    given.pop("token_type_ids", None)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.eval()
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(**given).logits, torch.tensor(order))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def make_peft(folder: Path, cache: Path) -> tuple[Path, Path]:
    """(adapter, base): a LoRA adapter with its head on the random Phi of the tests."""
    import peft
    from transformers import AutoTokenizer

    base = folder / "base"
    shutil.copytree(ensure_tiny_phi(cache), base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    settings = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["score"]
    )
    joined = peft.get_peft_model(model, settings)
    _teach(joined, AutoTokenizer.from_pretrained(base), NAMES)
    joined.save_pretrained(folder / "adapter")
    config = json.loads((base / "config.json").read_text())
    config["id2label"] = dict(enumerate(NAMES))
    (folder / "adapter" / "config.json").write_text(json.dumps(config))
    return folder / "adapter", base


def make_onnx(folder: Path) -> Path:
    """An ONNX classifier: the mean of a score for each token, written without the package onnx."""
    make_classifier("roberta", folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    texts, truth = sanity_sentences(LABELS)
    scores = np.zeros((len(tokenizer), len(NAMES)), np.float32)
    for text, label in zip(texts, truth, strict=True):
        place = [name.lower() for name in NAMES].index(LABELS[label])
        scores[tokenizer(text)["input_ids"], place] += 1.0
    scores[[0, 1, 2]] = 0.0
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "model.onnx").write_bytes(_onnx_of(scores))
    return folder


def _field(number: int, content: bytes | int | str) -> bytes:
    """One field of a protobuf message: a number, or bytes with their length before them."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    data = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def _onnx_of(table: np.ndarray) -> bytes:
    """logits = the sum over tokens of `table`'s rows (tokens, classes)."""

    def port(name: str, kind: int, sizes: tuple[str | int, ...]) -> bytes:
        dims = b"".join(_field(1, _field(2 if isinstance(s, str) else 1, s)) for s in sizes)
        shape = _field(2, dims)
        return _field(1, name) + _field(2, _field(1, _field(1, kind) + shape))

    gather = _field(1, "table") + _field(1, "input_ids") + _field(2, "rows") + _field(4, "Gather")
    axes = _field(5, _field(1, "keepdims") + _field(3, 0) + _field(20, 2))
    total = (
        _field(1, "rows") + _field(1, "axes") + _field(2, "logits") + _field(4, "ReduceSum") + axes
    )
    weights = (
        b"".join(_field(1, size) for size in table.shape)
        + _field(2, 1)
        + _field(8, "table")
        + _field(9, table.astype("<f4").tobytes())
    )
    axis = _field(1, 1) + _field(2, 7) + _field(8, "axes") + _field(9, struct.pack("<q", 1))
    graph = (
        _field(1, gather)
        + _field(1, total)
        + _field(2, "classifier")
        + _field(5, weights)
        + _field(5, axis)
        + _field(11, port("input_ids", 7, ("n", "length")))
        + _field(12, port("logits", 1, ("n", table.shape[1])))
    )
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 13))
