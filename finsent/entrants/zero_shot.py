"""A generative model that was never told the task: which of the labels' words it would go on with.

The text is followed by a sentence to complete, and the answer is the distribution over the labels'
words alone: their log-probabilities, made to sum to one. Prompts and words were written down before
any of them was tried, and are recorded with every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from finsent.data.registry import DATASETS, SENTIMENT_CUE
from finsent.entrants.labels import EntrantError, Labels, Probabilities
from finsent.entrants.models import checked_answers, load_quietly, load_tokenizer
from finsent.entrants.sources import GENERATIVE
from finsent.machine.timing import Conditions
from finsent.models.tokenization import room_for, token_batches
from finsent.results.calibration import softmax

PROMPTS: Mapping[Labels, tuple[str, Mapping[str, str]]] = MappingProxyType(
    {
        DATASETS["allagree"].label_names: (
            SENTIMENT_CUE,
            {"negative": " negative", "neutral": " neutral", "positive": " positive"},
        ),
        DATASETS["fomc"].label_names: (
            "\nAfter this, interest rates will be",
            {"dovish": " lower", "neutral": " unchanged", "hawkish": " higher"},
        ),
        DATASETS["numclaim"].label_names: (
            DATASETS["numclaim"].cue,
            {"out-of-claim": " reported", "in-claim": " expected"},
        ),
    }
)
"""Labels -> what follows the text, and the word that stands for each label."""

MAX_LENGTH = 128
BATCH_TOKENS = 2048


class ZeroShot:
    """A causal language model, asked by `PROMPTS`."""

    form = GENERATIVE

    def __init__(self, folder: Path) -> None:
        """EntrantError for a folder that holds no causal language model."""
        import torch
        from transformers import AutoModelForCausalLM

        self._tokenizer = load_tokenizer(folder)
        try:
            # Whatever precision the weights are stored in: in bf16 an answer would depend on which
            # texts are asked together.
            model, missing = load_quietly(AutoModelForCausalLM, folder, dtype=torch.float32)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise EntrantError(
                f"{folder.name} cannot be loaded as a generative model: {reason}"
            ) from error
        if missing:
            raise EntrantError(
                f"{folder.name} lacks {missing[0]}: it was never trained to continue texts; give a "
                "generative model"
            )
        self._model = model.eval()
        head = model.get_output_embeddings()
        self._weight, self._bias = head.weight, getattr(head, "bias", None)
        self.parameters: int | None = sum(p.numel() for p in model.parameters())
        self.device = str(Conditions("CPU", torch.get_num_threads(), "PyTorch fp32"))
        self.settings: dict[str, Any] = {
            "prompts": {
                "/".join(labels): {"after the text": prompt, "words": dict(words)}
                for labels, (prompt, words) in PROMPTS.items()
            }
        }

    @property
    def label_sets(self) -> tuple[Labels, ...]:
        return tuple(PROMPTS)

    def answer(self, texts: Sequence[str], labels: Labels) -> Probabilities:
        prompt, words = PROMPTS[labels]
        end = self._ids(prompt)
        room = room_for(MAX_LENGTH, end, prompt)
        read = self._tokenizer(list(texts), truncation=True, max_length=room)["input_ids"]
        asked = [[*ids, *end] for ids in read]
        continued = [self._ids(words[label]) for label in labels]
        scores = np.empty((len(texts), len(labels)))
        for batch in token_batches([len(ids) for ids in asked], BATCH_TOKENS):
            scores[batch] = self._scores([asked[i] for i in batch], continued)
        return checked_answers(softmax(scores))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _scores(
        self, asked: Sequence[Sequence[int]], continued: Sequence[Sequence[int]]
    ) -> Probabilities:
        """Log-probability (n, labels) of each continuation, up to a constant of the row."""
        import torch

        if all(len(word) == 1 for word in continued):
            # One pass answers all labels; what makes them sum to one is the same for all of them.
            states = self._states(asked)
            last = torch.tensor([len(ids) - 1 for ids in asked])
            rows = torch.tensor([word[0] for word in continued])
            scores = self._logits(states[torch.arange(len(asked)), last], rows)
            return np.asarray(scores.numpy(), np.float64)
        found = np.zeros((len(asked), len(continued)))
        for column, word in enumerate(continued):
            states = self._states([[*ids, *word[:-1]] for ids in asked])
            for step, token in enumerate(word):
                at = torch.tensor([len(ids) - 1 + step for ids in asked])
                logits = self._logits(states[torch.arange(len(asked)), at])
                found[:, column] += logits.log_softmax(dim=-1)[:, token].numpy()
        return found

    def _states(self, ids: Sequence[Sequence[int]]) -> Any:
        """Final states (n, L, H) of right-padded texts; attention is causal, so padding behind a
        text changes nothing."""
        import torch

        from finsent.models.backbones import right_padded

        with torch.inference_mode():
            return self._model.base_model(input_ids=right_padded(ids)).last_hidden_state

    def _logits(self, states: Any, rows: Any = None) -> Any:
        """Scores of some words or of all."""
        weight = self._weight if rows is None else self._weight[rows]
        scores = states @ weight.T
        if self._bias is not None:
            scores += self._bias if rows is None else self._bias[rows]
        return scores.detach()
