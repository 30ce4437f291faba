"""A model from elsewhere beside ours on the page: added once, bounded, refused in one line."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from finsent.entrants import guest as guests
from finsent.entrants.guest import Guest
from finsent.entrants.labels import EntrantError
from tests.app_fixtures import made_up_owner
from tests.entrant_factory import LABELS, make_classifier, make_peft

TEXT = "Operating profit fell and the plant was closed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier("bert", tmp_path_factory.mktemp("models") / "my-bert")


def test_a_folder_answers_beside_ours(folder: Path) -> None:
    guest = Guest()
    assert guest.answer(TEXT, LABELS) is None
    said = guest.add(f" {folder} ")
    assert re.fullmatch(
        r"my-bert answers beside ours now \(sequence classification, .* loaded in .* s\)\.", said
    )
    for _ in range(6):
        beside = guest.answer(TEXT, LABELS)
    assert beside is not None
    assert beside.answer is not None
    assert np.isclose(sum(beside.answer.raw), 1)
    assert beside.latency_ms > 0
    assert beside.times is not None
    assert beside.n == 6
    other = guest.answer(TEXT, ("dovish", "neutral", "hawkish"))
    assert other is not None
    assert other.answer is None
    assert "It answers negative, neutral, positive" in other.problem
    guest.remove()
    assert guest.name is None


def test_what_cannot_be_added_is_said_in_a_line_and_the_model_before_stays(
    folder: Path, tmp_path: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    guest = Guest()
    guest.add(str(folder))
    pickled = Path(shutil.copytree(folder, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    numbered = make_classifier("roberta", tmp_path / "numbered", ("LABEL_0", "LABEL_1", "LABEL_2"))
    adapter, _ = make_peft(tmp_path, tiny_cache)
    for model, labels, wanted in (
        ("", "", "name a folder"),
        ("nowhere", "", "there is no folder nowhere"),
        ("some/model", "", "download it elsewhere and name its folder"),
        (str(pickled), "", "pytorch_model.bin only"),
        (str(numbered), "", "say which is which"),
        (str(numbered), "positive=LABEL_0,negative=LABEL_1", "a data set has the labels"),
        (str(tiny_cache / "tiny-phi"), "", "a base model without a classification head"),
        (str(adapter), "", "is an adapter"),
    ):
        with pytest.raises(EntrantError, match=re.escape(wanted)) as error:
            guest.add(model, labels)
        assert "\n" not in str(error.value)
        assert guest.name == "my-bert"
    with pytest.raises(EntrantError, match="too large to answer live"):
        Guest(largest=1000).add(str(folder))
    assert "numbered" in guest.add(
        str(numbered), "positive=LABEL_0,negative=LABEL_1,neutral=LABEL_2"
    )


def test_loading_is_given_up_after_a_while(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = threading.Event()
    find = guests.find_source

    def slow(*args: Any, **options: Any) -> Any:
        going_on.wait(60)
        return find(*args, **options)

    monkeypatch.setattr(guests, "find_source", slow)
    guest = Guest(seconds=0.05)
    with pytest.raises(EntrantError, match="was not loaded within 0 s and is given up"):
        guest.add(str(folder))
    with pytest.raises(EntrantError, match="another model is being loaded"):
        guest.add(str(folder))
    going_on.set()
    with guest._loading:
        pass
    assert guest.name is None, "what came too late is not taken"
    monkeypatch.setattr(guests, "find_source", lambda *args, **options: 1 / 0)
    with pytest.raises(EntrantError, match="cannot be loaded: division by zero"):
        Guest().add(str(folder))


def test_only_the_owner_of_a_public_page_adds_a_model(app_artifacts: Path, folder: Path) -> None:
    import gradio as gr

    from finsent.ui.tabs.owner import _Actions
    from tests.app_fixtures import OWNER_TOKEN

    guest = Guest()
    actions = _Actions(made_up_owner(app_artifacts), guest)  # type: ignore[arg-type]
    request: Any = SimpleNamespace(client=SimpleNamespace(host="here"))
    for act, given in ((actions.invite, (str(folder), "")), (actions.dismiss, ())):
        with pytest.raises(gr.Error, match="for the owner of the page only"):
            act("a guess at the secret", *given, None, request)
    assert guest.name is None
    assert "answers beside ours" in actions.invite(OWNER_TOKEN, str(folder), "", None, request)
    assert "Only the models of this page answer" in actions.dismiss(OWNER_TOKEN, None, request)
