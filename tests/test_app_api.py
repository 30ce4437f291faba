"""The published endpoint, called as a program would."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from tests.app_fixtures import DEVICE, LABEL_NAMES
from tests.app_fixtures import app_artifacts as app_artifacts
from tests.app_fixtures import app_url as app_url


@pytest.fixture(scope="module")
def client(app_url: str) -> Iterator[Client]:
    client = Client(app_url, verbose=False)
    yield client
    client.close()


def test_compare_takes_one_string_and_answers_json(client: Client) -> None:
    answer = client.predict("Profit rose, a split opinion", api_name="/compare")
    assert answer["text"] == "Profit rose, a split opinion"
    assert set(answer["predictions"]) == {"baseline", "dendritic"}
    for prediction in answer["predictions"].values():
        assert tuple(prediction["probabilities"]) == LABEL_NAMES
        assert math.isclose(sum(prediction["probabilities"].values()), 1.0, abs_tol=1e-6)
        top = max(prediction["probabilities"], key=prediction["probabilities"].get)
        assert prediction["label"] == top
        assert prediction["latency_ms"] > 0
    labels = {prediction["label"] for prediction in answer["predictions"].values()}
    assert answer["agree"] is (len(labels) == 1) is False
    assert (answer["backbone"], answer["dataset"], answer["seed"]) == (
        "smollm2-135m",
        "allagree",
        0,
    )
    assert answer["device"] == DEVICE


@pytest.mark.parametrize(
    "text", ["🚀📉", "<script>alert(1)</script>", "Der Gewinn stieg.", "4.7 %", "x" * 2000]
)
def test_unusual_texts_come_back_unchanged(client: Client, text: str) -> None:
    assert client.predict(text, api_name="/compare")["text"] == text


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "type a headline"), ("  \n ", "type a headline"), ("x" * 10_000, "at most 2,000")],
)
def test_texts_that_cannot_be_compared_are_refused(client: Client, text: str, message: str) -> None:
    with pytest.raises(AppError, match=message):
        client.predict(text, api_name="/compare")


def test_nothing_else_is_published(client: Client) -> None:
    api = client.view_api(return_format="dict", print_info=False)
    assert list(api["named_endpoints"]) == ["/compare"]
    assert not api["unnamed_endpoints"]
    (parameter,) = api["named_endpoints"]["/compare"]["parameters"]
    assert parameter["parameter_name"] == "text"
