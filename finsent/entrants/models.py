"""Classifiers from elsewhere as one function: texts to probabilities of a data set's labels."""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finsent.entrants.labels import (
    EntrantError,
    Labels,
    Probabilities,
    check_order,
    label_order,
    label_sets,
)
from finsent.entrants.sources import (
    ADAPTER,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ONNX,
    Source,
    find_source,
    onnx_file,
    read_settings,
    tensor_shapes,
)
from finsent.machine.timing import Conditions
from finsent.models.adapter_files import AdapterError
from finsent.models.tokenization import FileTokenizer, token_batches
from finsent.results.calibration import softmax

BATCH_TOKENS = 2048
LONGEST = 512
"""Tokens of a text that are read at most."""


class Model(Protocol):
    """Anything that answers texts, each for itself."""

    form: str
    parameters: int | None
    """Numbers in its weights, as far as they are known."""
    settings: dict[str, Any]
    """How it is asked, to be recorded."""
    device: str

    @property
    def label_sets(self) -> Sequence[Labels]:
        """The labels that it can answer with."""
        ...

    def answer(self, texts: Sequence[str], labels: Labels) -> Probabilities:
        """Probabilities (n, labels)."""
        ...


def load_classifier(
    source: Source, given: Mapping[str, str] | None = None, base: str | None = None
) -> Model:
    """The classifier in a source, its label order checked on the sanity sentences.

    Args:
        source: Its files.
        given: Label -> name or number of its output; None reads it off the model's names.
        base: Folder or Hub id that an adapter belongs on; None: what the adapter names.

    Raises:
        EntrantError: It is no such classifier, or its labels are in another order.
    """
    if base is not None and source.form != ADAPTER:
        raise EntrantError(f"{source.name} is no adapter, so it has no --base; leave it out")
    model: Model
    if source.form == ONNX:
        model = OnnxClassifier(source, given)
    else:
        model = TorchClassifier(source, given, base)
    (labels,) = model.label_sets
    right = check_order(lambda texts: model.answer(texts, labels), labels)
    model.settings["sanity_right"] = right
    return model


class _Classifier(abc.ABC):
    """What the kinds of classifiers share: outputs in the order of a data set's labels."""

    def __init__(
        self, form: str, own_names: Sequence[str], given: Mapping[str, str] | None
    ) -> None:
        self.form = form
        order = label_order(own_names, given)
        (self._labels,) = (labels for labels in label_sets() if set(labels) == set(order))
        self._places = [order[label] for label in self._labels]
        self.settings: dict[str, Any] = {
            "labels": {label: own_names[order[label]] for label in self._labels}
        }

    @property
    def label_sets(self) -> tuple[Labels]:
        return (self._labels,)

    def answer(self, texts: Sequence[str], labels: Labels) -> Probabilities:
        if labels != self._labels:
            raise EntrantError(f"the model answers {self._labels}, not {labels}")
        ids = self._tokenize(texts)
        found = np.empty((len(texts), len(labels)))
        for batch in token_batches([len(tokens) for tokens in ids], BATCH_TOKENS):
            scores = self._scores([ids[i] for i in batch])
            if scores.shape != (len(batch), len(labels)):
                raise EntrantError(
                    f"the model gives scores of shape {scores.shape} to {len(batch)} texts; a "
                    f"classifier with {len(labels)} labels gives one score for each"
                )
            found[batch] = softmax(scores[:, self._places])
        return checked_answers(found)

    @abc.abstractmethod
    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]: ...

    @abc.abstractmethod
    def _scores(self, ids: Sequence[Sequence[int]]) -> Probabilities: ...


def checked_answers(found: Probabilities) -> Probabilities:
    """The same. EntrantError when an answer is no number."""
    bad = int((~np.isfinite(found).all(axis=1)).sum())
    if bad:
        raise EntrantError(
            f"the model's answers to {bad} of {len(found)} texts are not finite (NaN or infinite); "
            "its weights are damaged, or were saved in too low a precision"
        )
    return found


class TorchClassifier(_Classifier):
    """A transformers model with a classification head, or one with a PEFT adapter."""

    def __init__(
        self, source: Source, given: Mapping[str, str] | None, base: str | None = None
    ) -> None:
        import torch

        settings: dict[str, Any] = {}
        if source.form == ADAPTER:
            self._model, folder, settings = _with_adapter(source, base)
        else:
            self._model, folder = _load_head(source.folder), source.folder
        config = self._model.config
        if getattr(config, "problem_type", None) == "multi_label_classification":
            raise EntrantError(
                f"{source.name} gives every label a probability of its own (multi-label); its "
                "answers are no choice of one label"
            )
        self._tokenizer = load_tokenizer(source.folder, folder)
        pad = self._tokenizer.pad_token_id
        if pad is None:
            pad = self._tokenizer.eos_token_id or 0
        self._pad = config.pad_token_id = pad
        self._longest = _longest(config, self._tokenizer.model_max_length)
        names = [str(config.id2label[place]) for place in sorted(config.id2label)]
        super().__init__(source.form, names, given)
        self.settings |= settings
        self.parameters: int | None = sum(p.numel() for p in self._model.parameters())
        self.device = str(Conditions("CPU", torch.get_num_threads(), "PyTorch fp32"))

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._tokenizer(list(texts), truncation=True, max_length=self._longest)
        return list(found["input_ids"])

    def _scores(self, ids: Sequence[Sequence[int]]) -> Probabilities:
        import torch

        longest = max(map(len, ids))
        padded = [[*tokens, *[self._pad] * (longest - len(tokens))] for tokens in ids]
        real = [[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in ids]
        with torch.inference_mode():
            out = self._model(
                input_ids=torch.tensor(padded), attention_mask=torch.tensor(real)
            ).logits
        return np.asarray(out.float().numpy(), np.float64)


class OnnxClassifier(_Classifier):
    """An ONNX export with the tokenizer.json and config.json of the model it was made from."""

    def __init__(self, source: Source, given: Mapping[str, str] | None) -> None:
        from finsent.engines.onnx_model import OnnxModel

        path = onnx_file(source.folder)
        folder = path.parent if (path.parent / "config.json").is_file() else source.folder
        config = read_settings(folder)
        id2label = config.get("id2label") or {}
        if not id2label:
            raise EntrantError(
                f"{folder / 'config.json'} names no labels (id2label); add them in the order of "
                "the outputs"
            )
        names = [str(id2label[place]) for place in sorted(id2label, key=int)]
        super().__init__(source.form, names, given)
        self._model = OnnxModel(path, config.get("pad_token_id") or 0)
        longest = min(LONGEST, int(config.get("max_position_embeddings") or LONGEST))
        tokenizer = folder if (folder / "tokenizer.json").is_file() else source.folder
        self._tokens = FileTokenizer(tokenizer, longest)
        self.parameters: int | None = None
        self.device = str(self._model.conditions)

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids for ids, _ in self._tokens(texts)]

    def _scores(self, ids: Sequence[Sequence[int]]) -> Probabilities:
        return self._model.scores(ids)


def _load_head(folder: Path, **options: Any) -> Any:
    """The model with its head. EntrantError for one without, or of code that is not here."""
    import torch
    from transformers import AutoModelForSequenceClassification

    heads = [str(name) for name in read_settings(folder).get("architectures") or ()]
    if not options and heads and not any("ForSequenceClassification" in name for name in heads):
        raise EntrantError(
            f"{folder.name} is a {heads[0]}, a base model without a classification head; give a "
            "model that was fine-tuned to classify, or ask it with --zero-shot"
        )
    try:
        model, missing = load_quietly(
            AutoModelForSequenceClassification, folder, dtype=torch.float32, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EntrantError(
            f"{folder.name} cannot be loaded as a classifier: {reason} (code of a repository is "
            "never run)"
        ) from error
    if missing and not options:
        raise EntrantError(
            f"{folder.name} lacks {missing[0]}: its classification head was never trained; give a "
            "model that was fine-tuned to classify"
        )
    return model.eval()


def load_quietly(kind: Any, folder: Path, **options: Any) -> tuple[Any, list[str]]:
    """A transformers model from safetensors, with no code of the repository and nothing printed,
    and which of its weights the files lack. Errors as `from_pretrained`."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        model, info = kind.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
    return model, sorted(info["missing_keys"])


_HEAD = re.compile(r"\b(score|classifier)\b(?!.*lora_).*\bweight$")


def _with_adapter(source: Source, base: str | None) -> tuple[Any, Path, dict[str, Any]]:
    """The base with the adapter merged into it, its folder, and what to record of it."""
    from finsent.models.adapters import with_peft_folder

    about = read_settings(source.folder, ADAPTER_CONFIG)
    if about.get("task_type") != "SEQ_CLS":
        raise EntrantError(
            f"{source.name} is an adapter for {about.get('task_type')}, not for classification "
            "(SEQ_CLS); give one that was trained to classify"
        )
    shapes = tensor_shapes(source.folder / ADAPTER_WEIGHTS)
    heads = [shape for name, shape in shapes.items() if _HEAD.search(name) and len(shape) == 2]
    if not heads:
        raise EntrantError(
            f"{source.name} holds no classification head; save the adapter with "
            "modules_to_save=['score'] (or ['classifier'])"
        )
    named = base or about.get("base_model_name_or_path") or ""
    found = find_source(named, None if base else about.get("revision"))
    own = read_settings(source.folder) if (source.folder / "config.json").is_file() else {}
    # Of a head of several layers the last one has the labels.
    options: dict[str, Any] = {"num_labels": min(shape[0] for shape in heads)}
    if own.get("id2label"):
        names = {int(place): name for place, name in own["id2label"].items()}
        options |= {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    try:
        model = with_peft_folder(_load_head(found.folder, **options), source.folder)
    except AdapterError as error:
        raise EntrantError(f"{error} by --base") from error
    return model.eval(), found.folder, {"base": found.name, "base_revision": found.revision}


def load_tokenizer(*folders: Path) -> Any:
    """The tokenizer of the first folder that has one."""
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            try:
                return AutoTokenizer.from_pretrained(
                    folder, trust_remote_code=False, local_files_only=True
                )
            except (OSError, ValueError, KeyError) as error:
                reason = str(error).strip().splitlines()[0]
                raise EntrantError(
                    f"the tokenizer in {folder.name} cannot be read: {reason}"
                ) from (error)
    raise EntrantError(f"{folders[0].name} has no tokenizer; save it beside the model")


def _longest(config: Any, tokenizer_says: int) -> int:
    positions = getattr(config, "max_position_embeddings", None) or LONGEST
    if "roberta" in config.model_type or config.model_type in ("mpnet", "camembert"):
        positions -= 2  # those counted from behind the padding's id
    return min(LONGEST, tokenizer_says, positions)
