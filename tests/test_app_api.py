"""The published endpoint, called as a program would."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from finsent.results.calibration import calibration_of
from finsent.results.runs import read_json, read_run
from finsent.serving.service import ServiceError
from finsent.ui.build import mcp_wanted
from tests.app_fixtures import DEVICE, LABEL_NAMES, running_app


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
    assert answer["queue_ms"] >= 0


def test_compare_answers_what_the_runs_calibration_says(
    client: Client, app_artifacts: Path
) -> None:
    answer = client.predict("Profit rose, a split opinion", api_name="/compare")
    for arm, prediction in answer["predictions"].items():
        run = read_run(app_artifacts / "smollm2-135m" / "allagree" / arm / "seed-0")
        calibration = calibration_of(run)
        assert calibration is not None
        assert prediction["calibrated"] is True
        raw = list(prediction["raw_probabilities"].values())
        np.testing.assert_allclose(
            list(prediction["probabilities"].values()), calibration.calibrate(raw), atol=1e-12
        )
        names = tuple(prediction["probabilities"])
        held = calibration.label_set(tuple(prediction["probabilities"].values()))
        assert prediction["label_set"] == [names[i] for i in held]
        assert prediction["label_set_coverage"] == calibration.coverage_measured


def test_score_takes_a_list_and_answers_in_order(client: Client) -> None:
    texts = ["profit rose", "split", "Der Gewinn sank", "split"]
    rows = client.predict(texts, api_name="/score")
    assert [row["text"] for row in rows] == texts
    assert rows[1] == rows[3]
    compared = client.predict("split", api_name="/compare")["predictions"]
    for arm in ("baseline", "dendritic", "matched"):
        (row,) = client.predict(["split"], arm, api_name="/score")
        assert set(row) == {"text", *compared["baseline"]} - {"latency_ms"}
        if arm in compared:
            assert row["raw_probabilities"] == compared[arm]["raw_probabilities"]


@pytest.mark.parametrize(
    ("texts", "arm", "message"),
    [
        ([], "dendritic", "at least one text"),
        (["a"] * 65, "dendritic", "65 texts are too many: at most 64"),
        (["a", " "], "dendritic", "text 2: it is empty"),
        (["x" * 2001], "dendritic", "text 1: 2,001 characters"),
        (["a"], "other", "no arm 'other' here; there are baseline, dendritic, matched"),
        ("one string", "dendritic", "texts: .*at least one text"),
        ({"a": "b"}, "dendritic", "texts: .*at least one text"),
        ([3], "dendritic", "texts: text 1: it is no string, but of type int"),
        (["a", None], "dendritic", "texts: text 2: it is empty"),
        (["a", ["b"]], "dendritic", "texts: text 2: it is no string, but of type list"),
        (["a"], 5, "arm: it is no string, but of type int"),
        (["a"], None, "arm: it is no string, but of type NoneType"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    client: Client, texts: Any, arm: str, message: str
) -> None:
    with pytest.raises(AppError, match=message):
        client.predict(texts, arm, api_name="/score")


def test_leaderboard_answers_the_file(client: Client, app_artifacts: Path) -> None:
    board = read_json(app_artifacts / "leaderboard.json")
    everything = client.predict(api_name="/leaderboard")
    assert everything == {key: board[key] for key in ("arms", "comparisons")}
    some = client.predict("50agree", api_name="/leaderboard")
    assert some["arms"] == [row for row in board["arms"] if row["dataset"] == "50agree"]
    with pytest.raises(AppError, match="dataset: no runs on 'other'; there are 50agree, allagree"):
        client.predict("other", api_name="/leaderboard")


@pytest.mark.parametrize(
    "text", ["🚀📉", "<script>alert(1)</script>", "Der Gewinn stieg.", "4.7 %", "x" * 2000]
)
def test_unusual_texts_come_back_unchanged(client: Client, text: str) -> None:
    assert client.predict(text, api_name="/compare")["text"] == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text: .*type a headline"),
        ("  \n ", "text: .*type a headline"),
        ("x" * 30_000, "text: .*at most 20,000"),
        (5, "text: it is no string, but of type int"),
        (True, "text: it is no string, but of type bool"),
        (None, "text: .*type a headline"),
        ([], "text: it is no string, but of type list"),
        ({"text": "up"}, "text: it is no string, but of type dict"),
    ],
)
def test_texts_that_cannot_be_compared_are_refused(client: Client, text: Any, message: str) -> None:
    with pytest.raises(AppError, match=f"^{message}"):
        client.predict(text, api_name="/compare")


@pytest.mark.parametrize("dataset", [5, None, [], {}, ["allagree"], "nope"])
def test_every_endpoint_names_the_field_that_is_wrong_and_quotes_once(
    client: Client, dataset: Any
) -> None:
    for arguments in (("up", dataset), (["up"], "dendritic", dataset), (dataset,)):
        name = {2: "/compare", 3: "/score", 1: "/leaderboard"}[len(arguments)]
        with pytest.raises(AppError, match="^dataset: ") as caught:
            client.predict(*arguments, api_name=name)
        assert caught.value.title == "InputError"
        assert "Traceback" not in str(caught.value)


def posted(url: str, name: str, *arguments: object) -> str:
    """What the server says of arguments that gradio_client would not send."""
    call = f"{url}gradio_api/call/{name}"
    request = urllib.request.Request(
        call, json.dumps({"data": arguments}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=60) as response:
        said: str = response.read().decode()
    return said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("up \udfff", ""), "text: character 4 is one half of a pair (U+DFFF"),
        ((["up", "\ud800"], "dendritic", ""), "texts: text 2: character 1 is one half of a pair"),
        (("up", "\ud800"), "dataset: no runs on"),
        ((["up"], "\ud800", ""), "arm: no arm"),
    ],
)
def test_half_a_character_is_refused_with_its_field(
    app_url: str, arguments: tuple[Any, ...], message: str
) -> None:
    said = posted(app_url, "compare" if len(arguments) == 2 else "score", *arguments)
    assert said.startswith("event: error")
    error = json.loads(said.split("data: ", 1)[1])
    assert error["error"].startswith(message)
    assert error["title"] == "InputError"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("compare", (), "text: it is missing"),
        ("score", (), "texts: it is missing"),
        ("compare", ("up", "", 1), "compare: 3 values, and it takes 2: text, dataset"),
        ("leaderboard", ("", ""), "leaderboard: 2 values, and it takes 1: dataset"),
    ],
)
def test_too_few_and_too_many_values_are_refused_by_name(
    app_url: str, name: str, arguments: tuple[Any, ...], message: str
) -> None:
    error = json.loads(posted(app_url, name, *arguments).split("data: ", 1)[1])
    assert (error["error"], error["title"]) == (message, "InputError")


@pytest.mark.parametrize(
    ("name", "arguments"), [("compare", ("up",)), ("score", (["up"],)), ("leaderboard", ())]
)
def test_what_has_a_default_may_be_left_out(
    app_url: str, name: str, arguments: tuple[Any, ...]
) -> None:
    assert posted(app_url, name, *arguments).startswith("event: complete")


def test_nothing_else_is_published_and_what_is_is_documented(client: Client) -> None:
    api = client.view_api(return_format="dict", print_info=False)
    parameters = {
        name: [p["parameter_name"] for p in endpoint["parameters"]]
        for name, endpoint in api["named_endpoints"].items()
    }
    assert parameters == {
        "/compare": ["text", "dataset"],
        "/score": ["texts", "arm", "dataset"],
        "/leaderboard": ["dataset"],
    }
    assert not api["unnamed_endpoints"]
    for endpoint in api["named_endpoints"].values():
        assert len(endpoint["description"]) > 40


def test_mcp_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_MCP_SERVER", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert mcp_wanted(False) is False
    with pytest.raises(ServiceError, match=r"pip install 'gradio\[mcp\]"):
        mcp_wanted(True)
    monkeypatch.setenv("GRADIO_MCP_SERVER", "True")
    with pytest.raises(ServiceError, match="needs mcp"):
        mcp_wanted(False)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mcp") is None, reason="gradio[mcp] is not installed")
def test_mcp_tools_are_the_endpoints(app_artifacts: Path, tmp_path: Path) -> None:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def ask(url: str) -> tuple[dict[str, str], str]:
        async with (
            streamable_http_client(f"{url}gradio_api/mcp/") as (reads, writes, _),
            ClientSession(reads, writes) as session,
        ):
            await session.initialize()
            tools = {t.name: t.description or "" for t in (await session.list_tools()).tools}
            name = next(tool for tool in tools if tool.endswith("compare"))
            answer = await session.call_tool(name, {"text": "profit rose"})
            return tools, answer.content[0].text

    with running_app(app_artifacts, tmp_path / "log", "--mcp") as url:
        tools, answer = asyncio.run(ask(url))
    assert sorted(name.rsplit("_", 1)[-1] for name in tools) == ["compare", "leaderboard", "score"]
    assert all("Sentiment" in text or "Test scores" in text for text in tools.values())
    assert "positive" in answer
