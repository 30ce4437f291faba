"""Frozen backbones: tokens, the two halves of a model, pooling, and errors that say what to do."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch

from finsent.config import (
    ConfigError,
    MatchedCapacity,
)
from finsent.models.adapters import (
    linear_shapes,
    lora_ranks,
)
from finsent.models.backbones import (
    Backbone,
    HiddenStates,
    check_decomposition,
    entering_hidden_states,
    load_backbone,
    pool,
    upper_blocks,
)
from finsent.models.presets import BackboneError
from finsent.models.tokenization import FileTokenizer, token_batches
from finsent.models.weights import ensure_tiny_phi
from finsent.training import run as run_module
from tests.training_factory import BASE, CPU


def test_lower_and_upper_blocks_make_the_whole_model(tiny: Backbone) -> None:
    ids = tiny.tokenize(["Profit rose.", "The bank cut its dividend after a weak year."], 64)
    for block in (0, 1):
        states = entering_hidden_states(tiny, ids, block)
        upper = upper_blocks(tiny.decoder, block)
        hidden, last = states.batch(torch.tensor([0, 1]), max(map(len, ids)))
        with torch.no_grad():
            ours = pool(upper(inputs_embeds=hidden).last_hidden_state, last, "last")
            for row, tokens in enumerate(ids):
                whole = tiny.decoder(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]
                torch.testing.assert_close(ours[row], whole, atol=1e-5, rtol=1e-5)
        check_decomposition(tiny, ids, block)


def test_a_model_that_does_not_decompose_is_refused(tiny: Backbone) -> None:
    ids = tiny.tokenize(["Profit rose.", "Sales fell in the third quarter."], 64)
    drift = torch.linspace(-1, 1, 64) ** 3
    handle = tiny.decoder.layers[1].register_forward_hook(
        lambda module, args, output: output + drift * args[0].shape[0]
    )
    with pytest.raises(BackboneError, match="does not split"):
        check_decomposition(tiny, ids, 1)
    handle.remove()


def test_depth_uses_the_first_blocks(tiny: Backbone, tiny_environment: None) -> None:
    shallow = load_backbone("tiny-phi", "fp32", CPU, depth=1)
    ids = torch.tensor(tiny.tokenize(["Profit rose again."], 64))
    with torch.no_grad():
        entering = entering_hidden_states(tiny, ids.tolist(), 1).values
        expected = tiny.decoder.final_layernorm(entering)
        torch.testing.assert_close(shallow.decoder(input_ids=ids).last_hidden_state[0], expected)
    with pytest.raises(BackboneError, match="has 2 blocks"):
        load_backbone("tiny-phi", "fp32", CPU, depth=3)


def test_backbones_that_cannot_be_had_are_one_line_errors(
    tmp_path: Path, tiny_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [
        (lambda: load_backbone("tiny-phi", "int3", CPU), "precision must be one of"),  # type: ignore[arg-type]
        (lambda: load_backbone("tiny-phi", "fp32", CPU, folder=tmp_path), "no config.json"),
        (lambda: load_backbone("no/such-model", "fp32", CPU), "could not load backbone"),
    ]
    if not torch.cuda.is_available():
        cuda = torch.device("cuda")
        cases.append((lambda: load_backbone("tiny-phi", "fp32", cuda), "use --device cpu"))
    for call, message in cases:
        with pytest.raises(BackboneError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BackboneError, match="pip install bitsandbytes"):
        load_backbone("tiny-phi", "nf4", CPU)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would try again for minutes."""
    asked = []

    class Unreachable:
        def repo_info(self, repo: str, **options: object) -> None:
            asked.append(repo)
            raise ConnectionError("no route to host\nand a long explanation")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    with pytest.raises(BackboneError, match=r"'no/such-model': no route to host\. Name a preset"):
        load_backbone("no/such-model", "fp32", CPU)
    assert asked == ["no/such-model"]


def test_pickled_weights_are_not_loaded(tiny: Backbone, tmp_path: Path) -> None:
    tiny.decoder.config.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    torch.save(tiny.decoder.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="could not load backbone"):
        load_backbone("tiny-phi", "fp32", CPU, folder=tmp_path)


def test_more_adapted_blocks_than_there_are(tiny: Backbone) -> None:
    assert tiny.first_adapted_block(None) == 0
    assert tiny.first_adapted_block(1) == 1
    with pytest.raises(BackboneError, match="has 2"):
        tiny.first_adapted_block(3)


def test_an_unknown_target_module_names_those_there_are(tiny: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"called qq_proj; this backbone has .*q_proj"):
        linear_shapes(tiny.decoder, ("q_proj", "qq_proj"))


def test_token_batches_respect_the_budget() -> None:
    lengths = [7, 100, 3, 50, 50, 8, 200]
    batches = list(token_batches(lengths, 120))
    assert sorted(i for b in batches for i in b) == list(range(7))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 120 for b in batches)


def test_pooling_never_sees_the_padding() -> None:
    states = torch.arange(24.0).reshape(2, 3, 4)
    last = torch.tensor([1, 2])
    expected = torch.stack([states[0, :2].mean(0), states[1].mean(0)])
    states[0, 2] = float("nan")
    torch.testing.assert_close(pool(states, last, "mean"), expected)
    torch.testing.assert_close(
        pool(states, last, "last"), torch.stack([states[0, 1], states[1, 2]])
    )
    with pytest.raises(ValueError, match="pooling"):
        pool(states, last, "max")


def test_matched_ranks_spend_the_target_to_within_half_a_rank() -> None:
    shapes = {"layers.0.q_proj": (64, 64), "layers.0.v_proj": (64, 32), "layers.1.q_proj": (64, 64)}
    costs = {name: sum(shape) for name, shape in shapes.items()}
    for target in range(10_000, 12_000, 37):
        ranks = lora_ranks(shapes, 8, 192, MatchedCapacity(target))
        spent = 192 + sum(ranks[n] * costs[n] for n in shapes)
        assert abs(spent - target) <= 64, target
        assert min(ranks.values()) >= 8
    with pytest.raises(ConfigError, match="rank 8 alone has"):
        lora_ranks(shapes, 8, 192, MatchedCapacity(1000))
    assert set(lora_ranks(shapes, 4, 192, None).values()) == {4}


def test_hidden_states_are_shared_between_runs(tiny: Backbone, tmp_path: Path) -> None:
    ids = tiny.tokenize(["Profit rose.", "Sales fell sharply."], 64)
    path = tmp_path / "states.safetensors"

    def status(what: str, done: float) -> None: ...

    first = run_module._shared_states(path, tiny, ids, 1, status)
    path.rename(tmp_path / "moved")
    (tmp_path / "moved").rename(path)
    assert isinstance(first, HiddenStates)
    tiny.decoder = None  # a second computation would fail
    second = run_module._shared_states(path, tiny, ids, 1, status)
    torch.testing.assert_close(first.values, second.values, atol=0, rtol=0)


def test_copies_of_a_text_stand_in_lines_of_their_own(tiny: Backbone) -> None:
    texts = ["Profit rose.", "Sales fell in the third quarter. " * 40]
    thrice = tiny.tokenize(texts, 96, " This is", 3)
    read = ["\n".join([text] * 3) for text in texts]
    assert thrice == tiny.tokenize(read, 96, " This is")
    assert len(thrice[1]) == 96
    light = FileTokenizer(ensure_tiny_phi(), 96, " This is", 3)
    assert light(texts) == [(thrice[0], False), (thrice[1], True)]
    assert (replace(BASE, copies=3).longest, BASE.longest) == (3 * BASE.max_length, BASE.max_length)


def test_a_prompt_suffix_ends_every_text_also_a_cut_one(tiny: Backbone) -> None:
    texts = ["Profit rose.", "Sales fell in the third quarter. " * 40]
    plain = tiny.tokenize(texts, 32)
    ended = tiny.tokenize(texts, 32, " This is")
    end = tiny.tokenizer(" This is", add_special_tokens=False)["input_ids"]
    assert end
    assert all(ids[-len(end) :] == end for ids in ended)
    assert ended[0] == plain[0] + end
    assert len(ended[1]) == 32
    assert ended[1][: -len(end)] == plain[1][: -len(end)]
    with pytest.raises(BackboneError, match="leaves no room"):
        tiny.tokenize(texts, 8, " This is" * 20)
