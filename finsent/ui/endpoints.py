"""What programs may ask: /compare, /score and /leaderboard. Google-style docstrings, because they
become the documentation of the API and of the MCP tools."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from finsent.models.tokenization import InputError
from finsent.results.catalog import Selection
from finsent.serving.answers import answers
from finsent.serving.service import ModelService, ServiceError
from finsent.ui.parts.cards import result_dict
from finsent.ui.parts.headline import MAX_ARTICLE_CHARACTERS, text_problem
from finsent.ui.tabs.compare import MODEL_QUEUE

MAX_SCORED = 64
"""Texts per call of /score: about as many as the model reads in a few seconds."""


ENDPOINTS = ("compare", "score", "leaderboard")


class Page(gr.Blocks):  # type: ignore[misc]
    """gradio's page. A call of an endpoint with too few or too many values is told in the
    endpoint's own words; gradio would speak of event handlers, and leave out what is too much."""

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> Any:
        """As gradio's, with the values that a program may leave out filled in."""
        if block_fn.api_name in ENDPOINTS:
            inputs = complete(block_fn.fn, inputs)
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)


def complete(function: Callable[..., Any], given: Sequence[Any]) -> list[Any]:
    """Values for every parameter of a function, defaults where there are fewer.

    Raises gr.Error, naming the parameter, where there is none, and where there are too many.
    """
    parameters = list(inspect.signature(function).parameters.values())
    with _refusals():
        if len(given) > len(parameters):
            names = ", ".join(parameter.name for parameter in parameters)
            raise InputError(
                f"{function.__name__}: {len(given)} values, and it takes {len(parameters)}: {names}"
            )
        for parameter in parameters[len(given) :]:
            if parameter.default is parameter.empty:
                raise InputError(f"{parameter.name}: it is missing")
        return [*given, *(parameter.default for parameter in parameters[len(given) :])]


def add_endpoints(service: ModelService) -> None:
    """Publishes them inside the current gr.Blocks. They answer from the newest runs: a program's
    connection may outlive many."""

    def selected(dataset: object) -> Selection:
        dataset = _string("dataset", dataset)
        chosen, catalog = service.default_selection(), service.catalog
        known = catalog.datasets(chosen.backbone)
        if dataset and dataset not in known:
            raise InputError(f"dataset: no runs on {dataset!r}; there are {', '.join(known)}")
        return catalog.select(chosen.backbone, dataset or None)

    def compare(text: str, dataset: str = "") -> dict[str, Any]:
        """Sentiment of a financial text, or its class on another task, by each arm.

        Args:
            text: a headline, a sentence or an article of at most 20,000 characters, which is read
                in passages.
            dataset: which data set's runs answer; empty for the first.

        Returns:
            The text, each arm's label, calibrated and raw probabilities by label, 90 % label set
            (empty when no label is probable enough) with the coverage measured on test, and model
            time in milliseconds; time spent queueing; whether the arms agree; which runs and
            device answered.
        """
        with _refusals():
            problem = text_problem(text, most=MAX_ARTICLE_CHARACTERS)
            if problem is not None:
                raise InputError(f"text: {problem}")
            service.start()
            return result_dict(service.compare(text, selected(dataset)))

    def score(texts: list[str], arm: str = "dendritic", dataset: str = "") -> list[dict[str, Any]]:
        """Sentiment of several financial texts, or their classes on another task, by one arm.

        Args:
            texts: at most 64 headlines or sentences of at most 2,000 characters each.
            arm: baseline, dendritic or matched.
            dataset: which data set's runs answer; empty for the first.

        Returns:
            For each text, in order: the text, its label, calibrated and raw probabilities by
            label, and the 90 % label set with its measured coverage.
        """
        with _refusals():
            _check_texts(texts)
            _string("arm", arm)
            service.start()
            catalog = service.catalog
            selection = selected(dataset)
            seeds_arms = catalog.arms(selection.backbone, selection.dataset, selection.seed)
            if arm not in seeds_arms:
                raise InputError(f"arm: no arm {arm!r} here; there are {', '.join(seeds_arms)}")
            wanted = catalog.select(
                selection.backbone, selection.dataset, selection.seed, matched=arm == "matched"
            )
            found, _ = service.scores(texts, wanted, arm)
        run = catalog.run(wanted.backbone, wanted.dataset, arm, wanted.seed)
        calibrations = catalog.calibrations(wanted)
        return [
            {"text": text, **answers({arm: row}, run.label_names, calibrations)[0].to_dict()}
            for text, row in zip(texts, found[arm], strict=True)
        ]

    def leaderboard(dataset: str = "") -> dict[str, Any]:
        """Test scores of the arms over all seeds, with intervals and paired tests.

        Args:
            dataset: allagree, 50agree or another data set with runs; empty for all.

        Returns:
            The arms' rows and the paired comparisons, as stored in leaderboard.json.
        """
        with _refusals():
            _string("dataset", dataset)
            board = service.catalog.leaderboard
            if board is None:
                raise ServiceError("no leaderboard.json here; `finsent leaderboard` makes it")
            known = sorted({row["dataset"] for row in board["arms"]})
            if dataset and dataset not in known:
                raise InputError(f"dataset: no runs on {dataset!r}; there are {', '.join(known)}")
        return {
            key: [row for row in board[key] if not dataset or row["dataset"] == dataset]
            for key in ("arms", "comparisons")
        }

    for function in (compare, score):
        gr.api(function, api_name=function.__name__, concurrency_id=MODEL_QUEUE)
    gr.api(leaderboard, api_name="leaderboard", queue=False)


def _check_texts(texts: object) -> None:
    if not isinstance(texts, list) or not texts:
        raise InputError("texts: give a list of at least one text")
    if len(texts) > MAX_SCORED:
        raise InputError(f"texts: {len(texts)} texts are too many: at most {MAX_SCORED} a call")
    for number, text in enumerate(texts, start=1):
        problem = text_problem(text, "it is empty")
        if problem is not None:
            raise InputError(f"texts: text {number}: {problem}")


def _string(field: str, value: object) -> str:
    """A parameter that names something. Types are not checked before a function is called."""
    if not isinstance(value, str):
        raise InputError(f"{field}: it is no string, but of type {type(value).__name__}")
    return value


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Errors that the caller can mend, as their messages, with the class as title. Others go on."""
    try:
        yield
    except (ServiceError, ValueError) as error:
        # gradio's title is the one field of an error that a program can tell kinds apart by.
        raise gr.Error(str(error), title=type(error).__name__, print_exception=False) from error
