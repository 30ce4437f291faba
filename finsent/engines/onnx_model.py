"""Classifiers that were exported to ONNX, read and run by OpenVINO on a CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from finsent.engines.rule import EngineError
from finsent.machine.timing import Conditions


class OnnxModel:
    """Token ids in, one score for each class out."""

    def __init__(self, path: Path, pad: int) -> None:
        """pad: the id that fills up shorter texts. EngineError for a file that is no such model."""
        core = ov.Core()
        try:
            model = core.read_model(path)
            self._inputs = [port.get_any_name() for port in model.inputs]
            self._compiled = core.compile_model(model, "CPU")
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise EngineError(f"{path}: OpenVINO cannot read it ({reason}); export it again") from (
                error
            )
        strange = set(self._inputs) - {"input_ids", "attention_mask", "token_type_ids"}
        if strange or "input_ids" not in self._inputs:
            raise EngineError(
                f"{path}: its inputs are {', '.join(self._inputs)}; a text classifier takes "
                "input_ids, attention_mask and perhaps token_type_ids"
            )
        self._pad = pad

    @property
    def conditions(self) -> Conditions:
        """Where and how it computes."""
        return Conditions("CPU", len(os.sched_getaffinity(0)), "OpenVINO, ONNX")

    def scores(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Class scores (n, classes) of texts given as token ids."""
        longest = max(map(len, token_ids))
        ids = np.full((len(token_ids), longest), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(token_ids):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        given = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
        }
        found = self._compiled({name: given[name] for name in self._inputs})[0]
        return np.asarray(found, np.float64)
