"""Choice of backbone, catalog, model service and the page's sentences, without a browser."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finsent.data.sets.examples import HEADLINES
from finsent.machine.timing import PairedWindow
from finsent.models.weights import ReportProgress
from finsent.results import catalog as state
from finsent.results.calibration import Calibration
from finsent.results.schema import ArtifactError
from finsent.serving import service as service_module
from finsent.serving.answers import Answer, agreement
from finsent.serving.comparer import ArmPrediction, ComparisonResult
from finsent.serving.notices import Notice
from finsent.ui.build import status_html
from finsent.ui.parts import answer, cards, markup
from finsent.ui.tabs import compare
from tests.app_fixtures import LABEL_NAMES, WITHOUT_DENDRITES, FakeComparer
from tests.artifact_factory import make_run


@pytest.fixture(scope="module")
def catalog(app_artifacts: Path) -> state.Catalog:
    return state.Catalog.read(app_artifacts)


def service_of(catalog: state.Catalog, factory: object = None) -> service_module.ModelService:
    def load(
        folder: Path, seed: int, arms: Sequence[str], progress: ReportProgress
    ) -> FakeComparer:
        return FakeComparer(folder, seed, arms)

    return service_module.ModelService(catalog, factory or load, probe_cuda=lambda: False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("available", "cuda", "expected", "reason"),
    [
        (["smollm2-135m", "phi-2"], True, "phi-2", "a CUDA device and Phi-2 artifacts"),
        (["smollm2-135m", "phi-2"], False, "smollm2-135m", "but no CUDA device"),
        (["smollm2-135m"], True, "smollm2-135m", "but no Phi-2 artifacts"),
        (["smollm2-135m"], False, "smollm2-135m", "no Phi-2 artifacts here"),
        (["minilm-l6", "smollm2-135m"], False, "minilm-l6", "no Phi-2 artifacts here"),
        (["tiny-phi"], False, "tiny-phi", "none of the embedded default"),
        (["phi-2"], False, "phi-2", "no CUDA device"),
    ],
)
def test_choice_of_backbone(available: list[str], cuda: bool, expected: str, reason: str) -> None:
    choice = service_module.choose_backbone(available, cuda)
    assert choice.backbone == expected
    assert reason in choice.reason


def test_choice_without_runs_says_what_to_do() -> None:
    with pytest.raises(service_module.ServiceError, match="make train"):
        service_module.choose_backbone([], cuda=True)


def test_selection_falls_back_to_what_is_there(catalog: state.Catalog) -> None:
    wanted = catalog.select("smollm2-135m", "66agree", 99)
    assert wanted == state.Selection("smollm2-135m", "allagree", 0, ("baseline", "dendritic"))
    assert catalog.select("smollm2-135m", matched=True).arms == state.ARMS


def test_cuda_is_not_asked_for_when_there_is_nothing_to_choose(catalog: state.Catalog) -> None:
    def probe() -> bool:
        raise AssertionError("asked for CUDA without Phi-2 artifacts")

    service = service_of(catalog)
    service.probe_cuda = probe
    service.start()
    assert service.wait(10).phase == "ready"


def test_service_answers_after_loading_and_keeps_times(catalog: state.Catalog) -> None:
    release = threading.Event()

    def slow(
        folder: Path, seed: int, arms: Sequence[str], progress: ReportProgress
    ) -> FakeComparer:
        progress("downloading weights", 0.43)
        release.wait(10)
        return FakeComparer(folder, seed, arms)

    service = service_of(catalog, slow)
    service.start()
    selection = service.default_selection()
    while service.status.fraction is None:
        service.wait(0.01)
    assert "Downloading weights, 43\u202f%" in status_html(service.status)
    assert not service.settled
    release.set()
    # A time is told only when there are enough for a median; the first ones do not count.
    told = [service.compare(f"profit rose {n}", selection).times for n in range(9)]
    assert told[:7] == [None] * 7
    assert [times.n for times in told[7:] if times is not None] == [6, 7]
    # Another seed is another model: its times are its own.
    other = service.compare("profit rose", catalog.select("smollm2-135m", "50agree", 1))
    assert other.times is None
    assert service.status.message == "SmolLM2-135M on CPU, 2 threads, fp32"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_failed_loading_is_told_and_tried_again(catalog: state.Catalog) -> None:
    attempts: list[int] = []

    def flaky(
        folder: Path, seed: int, arms: Sequence[str], progress: ReportProgress
    ) -> FakeComparer:
        attempts.append(seed)
        if len(attempts) == 1:
            raise OSError("no route to the package index")
        return FakeComparer(folder, seed, arms)

    service = service_of(catalog, flaky)
    service.start()
    assert service.wait(10).phase == "failed"
    with pytest.raises(service_module.ServiceError, match="no route to the package index"):
        service.compare("profit rose", service.default_selection())
    service.start()
    assert service.wait(10).phase == "ready"


class Failing(FakeComparer):
    """Cannot load Phi-2."""

    def use(self, folder: Path, seed: int, arms: Sequence[str], /) -> None:
        if folder.parent.name == "phi-2":
            raise OSError("no room on the device")
        super().use(folder, seed, arms)


@pytest.mark.parametrize(
    ("model", "cuda", "expected", "reason"),
    [
        (FakeComparer, True, "phi-2", "a CUDA device and Phi-2 artifacts are both here"),
        (FakeComparer, False, "smollm2-135m", "Phi-2 artifacts are here, but no CUDA device"),
        (Failing, True, "smollm2-135m", "Phi-2 could not be loaded: no room on the device"),
    ],
)
def test_the_default_follows_runs_that_come_later(
    model: type[FakeComparer],
    cuda: bool,
    expected: str,
    reason: str,
    app_artifacts: Path,
    tmp_path: Path,
) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(app_artifacts, root)
    service = service_of(
        state.Catalog.read(root), lambda folder, seed, arms, progress: model(folder, seed, arms)
    )
    service.probe_cuda = lambda: cuda
    service.start()
    assert service.wait(10).phase == "ready"
    for arm in ("baseline", "dendritic"):
        make_run(root, "phi-2", "allagree", arm)
    service.renew(state.Catalog.read(root))
    service.default_selection()
    assert service.wait(10).phase == "ready"
    assert service.default_selection().backbone == expected
    assert service.choice is not None
    assert reason in service.choice.reason
    assert service.compare("profit rose", service.default_selection()).selection.seed == 0
    assert state.backbone_title(expected) in service.status.message
    if model is Failing:
        with pytest.raises(service_module.ServiceError, match="Phi-2 could not be loaded: no room"):
            service.compare("profit rose", service.catalog.select("phi-2"))
        # Who asks for others next is answered.
        service.compare("profit rose", service.default_selection())
    # Gone again: back to what is here.
    shutil.rmtree(root / "phi-2")
    service.renew(state.Catalog.read(root))
    assert service.default_selection().backbone == "smollm2-135m"
    assert service.wait(10).phase == "ready"


def test_empty_artifacts_are_explained(tmp_path: Path) -> None:
    service = service_of(state.Catalog.read(tmp_path))
    service.start()
    assert service.status.phase == "empty"
    with pytest.raises(service_module.ServiceError, match="make train"):
        service.default_selection()
    with pytest.raises(ArtifactError, match="no finished run of phi-2"):
        service.catalog.select("phi-2")


@pytest.mark.parametrize(
    ("a", "b", "agree", "said"),
    [
        (
            (0.1, 0.2, 0.7),
            (0.1, 0.212, 0.688),
            True,
            "Both say positive; raw confidence differs by 1.2 points.",
        ),
        (
            (0.1, 0.2, 0.7),
            (0.6, 0.2, 0.2),
            False,
            "They differ: baseline says positive (70.0 %), dendritic says negative (60.0 %)",
        ),
        # The largest gap is in another label than the one that is answered.
        ((0.114, 0.262, 0.624), (0.141, 0.202, 0.657), True, "differs by 3.3 points"),
        ((0.1, 0.2, 0.7), (0.1, 0.2, 0.7), True, "differs by 0.0 points"),
    ],
)
def test_agreement_sentence(
    a: tuple[float, ...], b: tuple[float, ...], agree: bool, said: str
) -> None:
    names = ("negative", "neutral", "positive")
    found, sentence = agreement(
        [Answer("baseline", names, a, None), Answer("dendritic", names, b, None)]
    )
    assert found is agree
    assert said in sentence


@pytest.mark.parametrize("text", ["", "   \n\t ", None, "x" * 2001])
def test_texts_that_cannot_be_compared(text: str | None) -> None:
    assert compare.text_problem(text)


@pytest.mark.parametrize("text", ["🚀", "x" * 2000, "<b>", "利益が増えた", "EUR 4.1 mn"])
def test_texts_that_can(text: str) -> None:
    assert compare.text_problem(text) is None


def outcome_of(
    selection: state.Selection, text: str, rows: Sequence[tuple[float, ...]], **facts: Any
) -> service_module.Outcome:
    predictions = tuple(
        ArmPrediction(arm, row, 5.0) for arm, row in zip(selection.arms, rows, strict=True)
    )
    result = ComparisonResult(text, 12, False, predictions, LABEL_NAMES)
    given = tuple(Answer(p.arm, LABEL_NAMES, p.probabilities, None) for p in predictions)
    about = {"times": None, "device_name": "<cpu>", "queue_ms": 12.5, **facts}
    return service_module.Outcome(selection, result, given, **about)


def test_html_of_an_answer_is_escaped(catalog: state.Catalog) -> None:
    text = '<img src=x onerror="alert(1)"> & more'
    selection = catalog.select("smollm2-135m")
    window = PairedWindow()
    for _ in range(8):
        window.add({"baseline": 5.0, "dendritic": 6.0})
    outcome = outcome_of(
        selection,
        text,
        [(0.2, 0.3, 0.5)] * 2,
        times=window.summary(),
        notices=(Notice("language", "The text seems to be <German>."),),
        passages=(service_module.Passage(text, ()),),
    )
    for guess in (False, True):
        html = answer.answered_html(catalog, outcome, guess=guess)
        assert "<img" not in html
        assert "<cpu>" not in html
        assert "&lt;img src=x" in html
        assert "&lt;German&gt;" in html
    # A wait that nobody notices is not mentioned, one that somebody does is.
    assert "waited" not in html
    late = outcome_of(selection, text, [(0.2, 0.3, 0.5)] * 2, queue_ms=1234.0)
    assert "waited 1.2 s" in answer.answered_html(catalog, late)
    assert "dendritic takes 1.20 times as long as baseline" in html
    # Arms that were answered in one pass are not said to be equally fast.
    joined = PairedWindow()
    for ms in range(5, 13):
        joined.add({"baseline": float(ms), "dendritic": float(ms)})
    once = outcome_of(selection, text, [(0.2, 0.3, 0.5)] * 2, times=joined.summary())
    html = answer.answered_html(catalog, once)
    assert "All models answer in one pass here" in html
    assert "no measurable difference between" not in html


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        # The figure is the difference of the two that are shown, not of another label's.
        (((0.624, 0.261, 0.115), (0.657, 0.202, 0.141)), ["confidence differs by 3.3 points"]),
        (
            ((0.514, 0.4, 0.086), (0.475, 0.3, 0.225)),
            ["Both models are unsure (51.4 % and 47.5 %): of 10", "expect 5 to be wrong"],
        ),
        # Beside a sure answer it is said whose the doubt is.
        (((0.74, 0.2, 0.06), (0.49, 0.3, 0.21)), ["The dendritic model is unsure (49.0 %)"]),
        (
            ((0.59, 0.3, 0.11), (0.43, 0.42, 0.15)),
            [
                "The baseline model is unsure (59.0 %): of 10",
                "The dendritic model is unsure (43.0 %): of 10",
            ],
        ),
    ],
)
def test_confidence_is_told_of_the_answers_that_are_shown(
    catalog: state.Catalog, rows: Sequence[tuple[float, ...]], said: Sequence[str]
) -> None:
    outcome = outcome_of(catalog.select("smollm2-135m"), "A text", rows)
    as_is = Calibration(1.0, 0.1, 0.9, 0.9, 2.0, 0.5, 0.5, 40, 40)
    outcome = replace(
        outcome, answers=tuple(replace(a, calibration=as_is) for a in outcome.answers)
    )
    html = answer.answered_html(catalog, outcome).replace("\u202f", " ")
    for sentence in said:
        assert sentence in html


def test_raw_probabilities_promise_no_share_of_errors(catalog: state.Catalog) -> None:
    outcome = outcome_of(catalog.select("smollm2-135m"), "A text", [(0.5, 0.4, 0.1)] * 2)
    html = answer.answered_html(catalog, outcome).replace("\u202f", " ")
    assert "Both models are unsure (50.0 % and 50.0 %)." in html
    assert "to be wrong" not in html


@pytest.mark.parametrize(
    ("guess", "said"),
    [
        ("positive", "You say positive; baseline too, the other not."),
        ("negative", "You say negative; the models do not."),
    ],
)
def test_a_guess_is_answered(catalog: state.Catalog, guess: str, said: str) -> None:
    selection = catalog.select("smollm2-135m")
    outcome = outcome_of(selection, "A text", [(0.1, 0.2, 0.7), (0.1, 0.7, 0.2)])
    html = answer.answered_html(catalog, outcome, guess=True)
    assert f'data-for="{guess}" hidden>{said}</p>' in html
    assert '<div class="fs-reveal" hidden>' in html


def test_what_is_not_there_yet_is_said_beside_the_default_s_answer(catalog: state.Catalog) -> None:
    selection = catalog.select("smollm2-135m")
    outcome = outcome_of(selection, "A text", [(0.1, 0.2, 0.7)] * 2)
    coming = answer.answered_html(catalog, outcome, coming="mpnet-base")
    assert 'data-waits-for="mpnet-base"' in coming
    assert "SmolLM2-135M answers meanwhile" in coming
    failed = answer.answered_html(catalog, outcome, coming="mpnet-base", problem="no network.")
    assert "data-waits-for" not in failed
    assert "could not be loaded" in failed


def test_run_without_dendrites_is_announced(catalog: state.Catalog) -> None:
    loud = "No dendrite in the dendritic run."
    with_none = catalog.select("smollm2-135m", "allagree", WITHOUT_DENDRITES)
    assert loud in cards.no_dendrite_notice(catalog, with_none)
    assert cards.no_dendrite_notice(catalog, catalog.select("smollm2-135m", "allagree", 0)) == ""


def test_missing_arm_is_announced(app_artifacts: Path, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(app_artifacts, root)
    shutil.rmtree(root / "smollm2-135m" / "allagree" / "dendritic" / "seed-0")
    catalog = state.Catalog.read(root)
    html = cards.missing_arm_notice(catalog.select("smollm2-135m", "allagree", 0))
    assert "Half a comparison." in html
    assert "Training run 0 of SmolLM2-135M on AllAgree has no finished dendritic variant" in html


def test_signed_numbers_have_a_true_minus_and_zero_has_none() -> None:
    assert [markup.signed(value) for value in (1.24, -0.31, 0.0, -0.02)] == [
        "+1.2",
        "\u22120.3",
        "0.0",
        "0.0",
    ]


def test_verdicts_become_sentences() -> None:
    assert markup.sentence("tied: b -0.4 points, sign-flip p = 0.0004; n = 2659 x 3 seeds") == (
        "Tied: b \u22120.4 points, p = 0.0004; n = 2,659 \u00d7 3 training runs."
    )


def test_an_example_that_is_answered_wrongly_is_marked(catalog: state.Catalog) -> None:
    selection = catalog.select("smollm2-135m", "allagree", 0)
    loss = next(e for e in HEADLINES if e.label == "negative").text
    for rows, said in (
        ([(0.1, 0.1, 0.8)] * 2, "both models got it wrong."),
        ([(0.8, 0.1, 0.1), (0.1, 0.8, 0.1)], "dendritic got it wrong."),
    ):
        html = answer.answered_html(catalog, outcome_of(selection, loss, rows))
        assert "Our label for this example:" in html
        assert said in html
    for text in (loss, "Mine"):
        html = answer.answered_html(catalog, outcome_of(selection, text, [(0.8, 0.1, 0.1)] * 2))
        assert "Our label" not in html


def test_an_interval_that_rounding_leaves_empty_is_not_shown(catalog: state.Catalog) -> None:
    selection = catalog.select("smollm2-135m", "allagree", 0)
    window = PairedWindow()
    for _ in range(8):
        window.add({"baseline": 43.3, "dendritic": 46.3})
    outcome = outcome_of(selection, "Mine", [(0.8, 0.1, 0.1)] * 2, times=window.summary())
    html = answer.answered_html(catalog, outcome)
    assert "43.3 to 43.3" not in html
    assert "43.3\u202fms" in html
