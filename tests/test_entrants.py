"""Models from elsewhere: loaded safely, asked in the right order, refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from finsent.entrants import sources
from finsent.entrants.labels import (
    EntrantError,
    check_order,
    label_order,
    label_sets,
    parse_labels,
    sanity_sentences,
)
from finsent.entrants.models import load_classifier
from finsent.entrants.sources import find_source
from finsent.entrants.zero_shot import PROMPTS, ZeroShot
from tests.entrant_factory import LABELS, NAMES, make_classifier, make_onnx, make_peft


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier("modernbert", tmp_path_factory.mktemp("models") / "modernbert")


def loaded(folder: Path, **options: Any) -> Any:
    return load_classifier(find_source(str(folder)), **options)


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_encoders_answer_in_the_data_sets_order(kind: str, tmp_path: Path) -> None:
    model = loaded(make_classifier(kind, tmp_path / kind))
    texts, truth = sanity_sentences(LABELS)
    found = model.answer([*texts, " ".join(texts)], LABELS)
    assert found.shape == (25, 3)
    assert np.allclose(found.sum(axis=1), 1)
    assert (found[:24].argmax(axis=1) == truth).mean() > 0.6
    # A text alone is answered as in a batch with longer ones.
    assert np.allclose(model.answer(texts[:1], LABELS), found[:1], atol=1e-5)
    assert model.settings["labels"] == {name.lower(): name for name in NAMES}


def test_an_adapter_is_read_with_its_base(tmp_path: Path) -> None:
    adapter, base = make_peft(tmp_path, tmp_path / "cache")
    model = loaded(adapter, base=str(base))
    texts, truth = sanity_sentences(LABELS)
    assert (model.answer(texts, LABELS).argmax(axis=1) == truth).mean() > 0.6
    assert model.settings["base_revision"].startswith("sha256:")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if "lora" in n}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(EntrantError, match="no classification head"):
        loaded(adapter, base=str(base))


def test_an_onnx_export_is_read(tmp_path: Path) -> None:
    model = loaded(make_onnx(tmp_path / "onnx"))
    texts, truth = sanity_sentences(LABELS)
    assert (model.answer(texts, LABELS).argmax(axis=1) == truth).mean() > 0.6


def test_labels_in_the_wrong_order_are_noticed(encoder: Path) -> None:
    assert (
        loaded(encoder, given=dict(zip(LABELS, "120", strict=True))).settings["sanity_right"] > 12
    )
    with pytest.raises(EntrantError, match="seem to be in the wrong order"):
        loaded(encoder, given=dict(zip(LABELS, ("0", "2", "1"), strict=True)))


@pytest.mark.parametrize("labels", label_sets())
def test_every_set_of_labels_has_sanity_sentences(labels: tuple[str, ...]) -> None:
    texts, truth = sanity_sentences(labels)
    eye = np.eye(len(labels))
    right = {text: eye[label] for text, label in zip(texts, truth, strict=True)}
    assert check_order(lambda asked: np.array([right[t] for t in asked]), labels) == len(texts)
    with pytest.raises(EntrantError, match="wrong order"):
        check_order(lambda asked: np.array([right[t][::-1] for t in asked]), labels)
    # A model that knows nothing is not told that its labels are wrong.
    assert check_order(lambda asked: np.tile(eye[0], (len(asked), 1)), labels) < len(texts)


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        (("LABEL_0", "LABEL_1", "LABEL_2"), None, "--labels negative=LABEL_0,neutral=LABEL_1"),
        (("a", "b", "c", "d", "e"), None, "calls its 5 outputs a, b, c, d, e"),
        (NAMES, {"bad": "Negative", "fair": "Neutral", "good": "Positive"}, "names bad, fair"),
        (NAMES, dict(zip(LABELS, "012x", strict=False)) | {"positive": "x"}, "no output 'x'"),
        (NAMES, dict(zip(LABELS, "011", strict=True)), "every output has to mean one label"),
        ((*NAMES, "mixed"), dict(zip(LABELS, "102", strict=True)), "3 of the model's 4 outputs"),
    ],
)
def test_label_names_that_do_not_fit(
    names: tuple[str, ...], given: dict[str, str] | None, said: str
) -> None:
    with pytest.raises(EntrantError) as error:
        label_order(names, given)
    assert said in str(error.value)


def test_label_names_that_fit() -> None:
    assert label_order(("Bearish", "Bullish", "Neutral"), None) == dict(
        zip(("negative", "positive", "neutral"), range(3), strict=True)
    )
    assert label_order(("in-claim", "out-of-claim"), None) == {"out-of-claim": 1, "in-claim": 0}
    assert parse_labels("a=b, c = d") == {"a": "b", "c": "d"}
    for text in ("a", "a=b,a=c", "=b", "a="):
        with pytest.raises(EntrantError, match="--labels"):
            parse_labels(text)


def changed(folder: Path, target: Path, **settings: Any) -> Path:
    """A copy with other settings in its config.json."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text()) | settings
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_models_that_cannot_stand_on_the_board(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headless = changed(encoder, tmp_path / "headless", architectures=["ModernBertModel"])
    with pytest.raises(EntrantError, match="base model without a classification head"):
        loaded(headless)
    untrained = changed(encoder, tmp_path / "untrained")
    tensors = load_file(untrained / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if not n.startswith("classifier")},
        untrained / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(EntrantError, match="head was never trained"):
        loaded(untrained)
    broken = changed(encoder, tmp_path / "broken")
    save_file(
        {n: t * float("nan") for n, t in tensors.items()},
        broken / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(EntrantError, match="not finite"):
        loaded(broken)
    pickled = changed(encoder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(EntrantError, match=r"pytorch_model\.bin only"):
        loaded(pickled)
    with pytest.raises(EntrantError, match="holds no model"):
        loaded(tmp_path)
    coded = changed(encoder, tmp_path / "coded", model_type="mine", auto_map={"AutoConfig": "a.B"})
    with pytest.raises(EntrantError, match="cannot be loaded as a classifier"):
        loaded(coded)
    monkeypatch.setattr(sources, "available_bytes", lambda: 1000)
    with pytest.raises(EntrantError, match="too large for this machine"):
        loaded(encoder)


def test_what_the_hub_refuses_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    answer = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co/a/b"))
    files = [SimpleNamespace(rfilename="pytorch_model.bin", size=5)]
    for found, said in (
        (errors.GatedRepoError("no", response=answer), "gated: accept its terms"),
        (errors.RepositoryNotFoundError("no", response=answer), "the Hub has no model a/b"),
        (errors.RevisionNotFoundError("no", response=answer), "has no revision v2"),
        (errors.OfflineModeIsEnabled("offline"), "check the network, or download it elsewhere"),
        (SimpleNamespace(siblings=files, sha="1", card_data=None), r"pytorch_model\.bin only"),
    ):

        def model_info(*args: object, found: Any = found, **options: object) -> object:
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(
            huggingface_hub, "HfApi", lambda ask=model_info: SimpleNamespace(model_info=ask)
        )
        with pytest.raises(EntrantError, match=said):
            find_source("a/b", "v2")
    with pytest.raises(EntrantError, match="there is no folder ./nowhere"):
        find_source("./nowhere")


def test_zero_shot_is_the_distribution_over_the_words(tiny_cache: Path, tmp_path: Path) -> None:
    from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

    base = tiny_cache / "tiny-phi"
    with pytest.raises(EntrantError, match="never trained to continue texts"):
        ZeroShot(base)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.save_pretrained(tmp_path / "phi")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        language_model = PhiForCausalLM(PhiConfig.from_pretrained(base)).eval()
    language_model.save_pretrained(tmp_path / "phi")
    model = ZeroShot(tmp_path / "phi")
    texts = ["Profit doubled.", "The meeting is in Oslo, as before."]
    for labels, (prompt, words) in PROMPTS.items():
        found = model.answer(texts, labels)
        for text, row in zip(texts, found, strict=True):
            logs = []
            for word in words.values():
                ids = [
                    tokenizer(part, add_special_tokens=False)["input_ids"]
                    for part in (text, prompt, word)
                ]
                whole = torch.tensor([[*ids[0], *ids[1], *ids[2]]])
                logits = language_model(whole).logits[0].log_softmax(dim=-1).detach()
                start = whole.shape[1] - len(ids[2])
                logs.append(sum(logits[start - 1 + i, t] for i, t in enumerate(ids[2])))
            expected = torch.tensor(logs).softmax(dim=0).numpy()
            assert row == pytest.approx(expected, abs=1e-4)
