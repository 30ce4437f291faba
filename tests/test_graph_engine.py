"""The engine of a GPU while it warms up: order, exchange, errors, and questions meanwhile."""

from __future__ import annotations

import copy
import gc
import importlib.util
import logging
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from finsent.engines import cuda_graphs, graph_engine
from finsent.engines.cuda_graphs import FairLock, GraphedForward
from finsent.engines.graph_engine import GraphEngine
from finsent.kernels import adapter_maps, attention
from finsent.kernels.triton_support import without_triton
from finsent.models.backbones import Backbone
from finsent.models.fused_decoder import FusedArm, FusedDecoder
from finsent.models.products import FusionError
from tests import test_openvino as families
from tests.test_serving import CPU, TEXTS, adapter_of, decoder_of, reference

QV = ("self_attn.q_proj", "self_attn.v_proj")
SMALL = (1, 16)


class Few:
    """Stands in for the kernels: the fused forward, and remembers what was asked of it."""

    most = 64

    def __init__(self, decoder: FusedDecoder, arm: FusedArm) -> None:
        self._decoder, self._arm = decoder, arm
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, ids: Tensor, last: Tensor) -> Tensor:
        self.shapes.append(tuple(ids.shape))
        return self._decoder(ids, last, self._arm)


class Recorder:
    """Stands in for CUDA graphs: as they do, it runs once without the device and records with it.

    `before` is called first, with the number of the recording.
    """

    def __init__(self, before: Callable[[int], object] = lambda number: None) -> None:
        self.before = before
        self.recorded = 0

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.before(self.recorded)
        with torch.inference_mode():
            compute()
            with cuda_graphs.DEVICE:
                result = compute().clone()
        self.recorded += 1

        def replay() -> None:
            result.copy_(compute())

        return replay, result


def engine_of(
    recorder: Recorder, *, max_length: int = 128
) -> tuple[GraphEngine, dict[str, object]]:
    decoder = decoder_of("phi")
    arms = {f"k{k}": adapter_of(decoder, QV, k) for k in (0, 1)}
    backbone = Backbone("phi", copy.deepcopy(decoder), None, "fp32", CPU, "abc")
    engine = GraphEngine(backbone, "last", max_length, record=recorder)
    engine.set_arms(arms)
    expected = {name: reference(decoder, arm, "last").numpy() for name, arm in arms.items()}
    return engine, expected


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[Few]:
    """Kernels for few rows that know every arm, and compilation that costs nothing."""
    made: list[Few] = []

    def forward(decoder: FusedDecoder, arm: FusedArm) -> tuple[Few, str]:
        made.append(Few(decoder, arm))
        return made[-1], "kernels for few rows"

    monkeypatch.setattr(graph_engine, "few_rows_forward", forward)
    monkeypatch.setattr(graph_engine, "compiled", lambda decoder: decoder)
    return made


def recordings(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, int, int]]:
    """What was recorded, for whom, texts and tokens, in order."""
    return [
        r.args[:4]
        for r in caplog.records
        if r.name == "finsent.engines.graph_engine" and len(r.args) == 5
    ]


def test_short_single_texts_are_fast_first(
    known: list[Few], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine, expected = engine_of(recorder := Recorder())
    engine.warm_up()
    order = recordings(caplog)
    # A usual sentence of both arms before anything else, and all few rows before any compiler.
    assert order[:2] == [("few rows", "k0", 1, 32), ("few rows", "k1", 1, 32)]
    kinds = [kind for kind, *_ in order]
    assert kinds == sorted(kinds, key=["few rows", "plain", "compiled"].index)
    # Nothing twice but what waits for the compiler: long single texts.
    assert [kinds.count(kind) for kind in ("few rows", "plain", "compiled")] == [20, 4, 44]
    assert recorder.recorded == 68
    assert {shape for few in known for shape in few.shapes} == {
        (n, length) for kind, _, n, length in order if kind == "few rows"
    }
    assert "(compiled; one sentence: kernels for few rows)" in engine.description
    for name, scores in expected.items():
        np.testing.assert_allclose(engine.scores(name, TEXTS), scores, atol=1e-5)
    engine.warm_up()
    assert recorder.recorded == 68


@pytest.mark.parametrize(
    ("capability", "reason"),
    [((7, 5), "compute capability 7.5, the kernels need 8.0"), ((8, 0), "not phi")],
)
def test_a_card_that_is_too_old_for_the_kernels_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], reason: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    without_triton.cache_clear()
    weight = SimpleNamespace(device=torch.device("cuda"))
    decoder: Any = SimpleNamespace(
        embedding=SimpleNamespace(weight=weight), dtype=torch.bfloat16, family="llama"
    )

    def refuse(*_: object) -> None:
        raise FusionError("not phi")

    monkeypatch.setitem(sys.modules, "finsent.engines.few_rows", SimpleNamespace(FewRows=refuse))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert graph_engine.few_rows_forward(decoder, cast(FusedArm, None)) == (None, reason)
    half: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float16)
    for kernels in (attention, adapter_maps):
        assert kernels.uses_kernels(half) is (capability >= (8, 0))
    without_triton.cache_clear()


def test_a_recording_is_used_as_soon_as_it_is_there(known: list[Few]) -> None:
    seen: list[list[bool]] = []

    def before(number: int) -> None:
        if number in (1, 2):
            asked = [len(few.shapes) for few in known]
            for name in engine.names:
                engine.scores(name, TEXTS[:1])
            seen.append([len(f.shapes) > n for f, n in zip(known, asked, strict=True)])

    recorder = Recorder()
    engine, _ = engine_of(recorder, max_length=16)
    recorder.before = before
    engine.warm_up()
    assert seen == [[True, False], [True, True]]


def test_what_a_recording_reads_lives_as_long_as_it() -> None:
    source = decoder_of("phi")
    decoder = FusedDecoder(copy.deepcopy(source), "last", 128)
    arm = decoder.arm(adapter_of(source, QV, 0))

    def addresses(compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        return lambda: None, compute()  # as a CUDA graph, holds nothing of what it ran

    run = GraphedForward(partial(decoder, arm=arm), CPU, record=addresses)
    kernels = Few(decoder, arm)
    work_space = weakref.ref(kernels)
    run.record(SMALL, kernels)
    del kernels
    gc.collect()
    assert work_space() is not None
    run.record(SMALL)
    gc.collect()
    assert work_space() is None


def test_texts_are_no_longer_than_there_are_angles(
    known: list[Few], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine, _ = engine_of(Recorder(), max_length=30)
    engine.warm_up()
    assert {length for *_, length in recordings(caplog)} == {16, 24, 30}
    assert "failed" not in engine.description


def broken(*_: object) -> None:
    raise RuntimeError("ptxas is missing\nand more")


@pytest.mark.parametrize("part", ["few_rows_forward", "compiled"])
def test_an_error_ends_its_stage_only(
    part: str, known: list[Few], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graph_engine, part, broken)
    engine, expected = engine_of(Recorder())
    engine.warm_up()
    title = {"few_rows_forward": "kernels for few rows", "compiled": "compiling"}[part]
    assert f"{title} failed: RuntimeError: ptxas is missing" in engine.description
    assert "and more" not in engine.description
    assert ("one sentence" in engine.description) == (part == "compiled")
    assert any(r.exc_info and r.levelno == logging.ERROR for r in caplog.records)
    # Everything is recorded nevertheless, by the next best way.
    assert all(run.recorded == set(run.buckets) for run in engine._loaded.runs.values())
    for name, scores in expected.items():
        np.testing.assert_allclose(engine.scores(name, TEXTS), scores, atol=1e-5)


def test_an_engine_that_cannot_record_still_answers(known: list[Few]) -> None:
    engine, expected = engine_of(Recorder(broken))
    engine.warm_up()
    assert engine.description.count("failed") == 4
    for name, scores in expected.items():
        np.testing.assert_allclose(engine.scores(name, TEXTS), scores, atol=1e-5)


def test_other_arms_end_a_warm_up(known: list[Few]) -> None:
    recorder = Recorder()
    engine, _ = engine_of(recorder, max_length=16)

    def before(number: int) -> None:
        if number == 3:
            engine.close()

    recorder.before = before
    engine.warm_up()
    assert recorder.recorded == 4
    assert engine.names == ()
    assert engine.description.endswith("(recording)")


def test_questions_while_it_warms_up(known: list[Few]) -> None:
    """Two threads that ask without a pause, a third that records: all answers right, none stuck."""
    engine, expected = engine_of(Recorder(lambda number: time.sleep(0.001)))
    done = threading.Event()
    answers = [0, 0]
    wrong: list[object] = []

    def ask(seed: int) -> None:
        draw = random.Random(seed)
        try:
            while not done.is_set():
                name, n = draw.choice(engine.names), draw.randrange(len(TEXTS))
                found = engine.scores(name, [TEXTS[n]])
                if not np.allclose(found, expected[name][n], atol=1e-5):
                    wrong.append((engine.description, name, n))
                answers[seed] += 1
        except Exception as error:
            wrong.append(error)

    warm = threading.Thread(target=engine.warm_up, daemon=True)
    askers = [threading.Thread(target=ask, args=(seed,), daemon=True) for seed in (0, 1)]
    for thread in (*askers, warm):
        thread.start()
    warm.join(60)
    stuck = warm.is_alive()
    done.set()
    for thread in askers:
        thread.join(10)
    assert not stuck
    assert not any(thread.is_alive() for thread in askers)
    assert wrong == []
    assert min(answers) > 20
    assert "compiled" in engine.description


def test_compiled_forms_are_there_before_a_question_needs_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Really traced, with nothing generated: what another thread asks later is traced by then."""
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **o: compile_(f, **{**o, "backend": "eager", "mode": None})
    )
    torch._dynamo.reset()
    engine, expected = engine_of(Recorder())
    engine.warm_up()
    assert "(compiled" in engine.description
    before = counters["stats"]["unique_graphs"]

    def ask() -> None:
        for name in engine.names:
            for n, length in ((9, 30), (31, 100), (17, 1), (1, 1), (3, 77)):
                engine.scores(name, [[5] * length] * n)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert counters["stats"]["unique_graphs"] == before
    for name, scores in expected.items():
        np.testing.assert_allclose(engine.scores(name, TEXTS * 2), [*scores, *scores], atol=1e-5)


class FakeCuda:
    """What `CudaGraphs` asks of torch.cuda, written down."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.streams = 0
        self.graphs = 0
        self.current: list[str] = ["default"]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self

        class Stream:
            def __init__(self) -> None:
                fake.streams += 1
                self.name = f"stream {fake.streams}"

            def wait_stream(self, other: object) -> None:
                pass

            def synchronize(self) -> None:
                fake.log.append(f"{self.name} done")

        class Graph:
            def __init__(self) -> None:
                fake.graphs += 1
                self.number = fake.graphs
                self.shared: object = None

            def pool(self) -> object:
                return self.shared or f"pool {self.number}"

            def replay(self) -> None:
                pass

        @contextmanager
        def stream(one: Stream) -> Iterator[None]:
            fake.current.append(one.name)
            try:
                yield
            finally:
                fake.current.pop()

        @contextmanager
        def graph(one: Graph, *, pool: object, stream: Stream, capture_error_mode: str) -> Iterator:
            one.shared = pool
            fake.log.append((pool, stream.name, capture_error_mode))
            yield

        for name, value in {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "stream": stream,
            "graph": graph,
            "current_stream": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_recordings_share_memory_and_keep_to_their_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (cuda := FakeCuda()).install(monkeypatch)
    record = cuda_graphs.CudaGraphs()
    runs: list[tuple[str, bool, bool]] = []

    def compute() -> Tensor:
        runs.append((cuda.current[-1], cuda_graphs.DEVICE._held, gc.isenabled()))
        return torch.zeros(1)

    first = record(compute)
    second = record(compute)
    # The first run, which may compile, is beside the others' answers; the next two are not.
    assert (
        runs[:3]
        == runs[3:]
        == [
            ("stream 1", False, True),
            ("stream 2", True, True),
            ("stream 2", True, False),
        ]
    )
    recorded = [entry for entry in cuda.log if isinstance(entry, tuple)]
    assert recorded == [
        (None, "stream 2", "thread_local"),
        ("pool 1", "stream 2", "thread_local"),
    ]
    # As long as any of them is there, its pool may be used; afterwards not.
    del first
    record(compute)
    assert cuda.log[-1] == ("pool 1", "stream 2", "thread_local")
    del second
    record(compute)
    assert cuda.log[-1] == (None, "stream 2", "thread_local")


def test_a_recording_that_fails_leaves_the_device_free(monkeypatch: pytest.MonkeyPatch) -> None:
    (cuda := FakeCuda()).install(monkeypatch)
    runs: list[int] = []

    def compute() -> Tensor:
        runs.append(1)
        if len(runs) in (1, 4):
            raise RuntimeError("out of memory")
        return torch.zeros(1)

    for entry in ("stream 1 done", (None, "stream 2", "thread_local")):
        with pytest.raises(RuntimeError, match="out of memory"):
            cuda_graphs.CudaGraphs()(compute)
        assert cuda.log[-1] == entry
        cuda.streams = 0
    assert not cuda_graphs.DEVICE._held
    assert gc.isenabled()
    assert cuda.current == ["default"]


def test_a_fair_lock_serves_in_the_order_of_arrival() -> None:
    lock = FairLock()
    order: list[int] = []

    def take(number: int) -> None:
        with lock:
            order.append(number)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(4)]
    with lock:
        for number, thread in enumerate(threads):
            thread.start()
            while len(lock._gates) == number:
                time.sleep(0.001)
    with lock:  # behind them all, though it asks at once
        order.append(4)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_fair_lock_forgets_who_gave_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's handler may raise in the main thread while it waits."""
    lock = FairLock()

    class Interrupted(threading.local):
        def acquire(self) -> None:
            if getattr(self, "asked", False):
                raise TimeoutError
            self.asked = True

    with lock:
        monkeypatch.setattr("finsent.engines.cuda_graphs.threading.Lock", Interrupted)
        with pytest.raises(TimeoutError), lock:
            pass
        monkeypatch.undo()
    with lock:
        pass
    assert not lock._held


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_arms_of_an_encoder_share_its_weights_and_nothing_else(family: str) -> None:
    model = families.model_of(family)
    arms = {f"k{k}": families.adapter_of(family, k) for k in (0, 1)}
    expected = {name: families.reference(family, arm, "mean") for name, arm in arms.items()}
    asked: list[str] = []

    def ask(number: int) -> None:
        # While one arm is recorded the other is asked, by what is recorded of it or without.
        other = f"k{(number + 1) % 2}"
        np.testing.assert_allclose(engine.scores(other, families.TEXTS), expected[other], atol=1e-5)
        asked.append(other)

    backbone = Backbone(family, model, None, "fp32", CPU, "abc")
    engine = GraphEngine(backbone, "mean", 48, record=(recorder := Recorder(ask)))
    before = sum(p.numel() for p in model.parameters()) * 4
    engine.set_arms(arms)
    engine.warm_up()
    # Four batches times the lengths up to 48, each for both.
    assert recorder.recorded == len(asked) == 2 * 4 * 5
    assert engine.description == "PyTorch fp32, CUDA graphs (ready)"
    for name, scores in expected.items():
        np.testing.assert_allclose(engine.scores(name, families.TEXTS), scores, atol=1e-5)
    base, adapters = engine.parameter_bytes()
    assert base >= before
    assert 0 < adapters["k0"] < adapters["k1"] < base / 2
