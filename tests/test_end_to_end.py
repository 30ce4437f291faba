"""The app as a user gets it: `python app.py`, real model, committed artifacts, real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright

from bench.screenshots import CHROMIUM, FLAGS
from finsent.classifier import Classifier
from finsent.data.registry import load_dataset
from finsent.models.encoder_weights import MINILM, ensure_encoder
from finsent.models.weights import WeightsError, ensure_embedded
from finsent.results.catalog import Catalog
from finsent.results.runs import read_run
from tests.app_fixtures import serving

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "artifacts" / "smollm2-135m" / "allagree"
DEFAULT = ROOT / "artifacts" / "minilm-l6" / "news"
ARMS = ("baseline", "dendritic")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def embedded_weights() -> Path:
    """The real weights, from the cache or, once, from the network (98 MB)."""
    try:
        return ensure_embedded()
    except WeightsError as error:
        pytest.skip(f"the embedded weights cannot be had here: {error}")


@pytest.fixture(scope="module")
def default_weights() -> Path:
    """Those of the default, from the cache or, once, from the network (83 MB)."""
    try:
        return ensure_encoder(MINILM)
    except WeightsError as error:
        pytest.skip(f"MiniLM's weights cannot be had here: {error}")


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}")
def test_a_typed_headline_is_answered_by_both_models(default_weights: Path, tmp_path: Path) -> None:
    text = "The brewer cut its full-year profit forecast after a weak summer."
    with serving(["app.py"], tmp_path / "log") as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        page = browser.new_page()
        page.goto(url)
        page.locator("#headline textarea").fill(text)
        page.locator("#headline textarea").press("Enter")
        answer = page.locator("#answer")
        expect(answer.locator("blockquote")).to_have_text(text, timeout=90_000)
        shown = {}
        for arm in ARMS:
            bars = answer.locator(f".fs-bar[data-arm={arm}]")
            expect(bars).to_have_count(3)
            shown[arm] = [
                float(
                    re.findall(
                        r"[\d.]+", bars.and_(page.locator(f"[data-label={name}]")).inner_text()
                    )[0]
                )
                for name in ("negative", "neutral", "positive")
            ]
        browser.close()
    catalog = Catalog.read(ROOT / "artifacts")
    calibrations = catalog.calibrations(catalog.select("minilm-l6", "news", 0))
    for arm in ARMS:
        expected = Classifier.from_artifacts(DEFAULT, arm, 0).predict_proba([text])[0]
        calibration = calibrations[arm]
        assert calibration is not None
        np.testing.assert_allclose(shown[arm], 100 * calibration.calibrate(expected), atol=0.06)


def test_the_cpus_fast_path_imports_no_torch(embedded_weights: Path) -> None:
    """Nor what imports it: that takes seconds, in which nobody is answered. A first start converts
    the model, which takes torch; every later one finds the compiled graph."""
    code = (
        "import sys\nfrom finsent.classifier import Comparer\n"
        f"comparer = Comparer({str(FOLDER)!r}, 0, {ARMS!r}, device='cpu')\n"
        "assert len(comparer.compare('Profit rose.').predictions) == 2\n"
        "assert comparer.conditions.engine == 'OpenVINO fp32', comparer.conditions\n"
        "print(sorted({'torch', 'transformers', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    for _ in ("may convert", "does not"):
        answer = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arm", "engine", "atol"),
    [
        ("baseline", None, 2e-3),
        ("dendritic", None, 2e-3),
        ("matched", "torch", 2e-3),
        # 8 bits move a probability now and then, but no label: see docs/serving.md.
        ("dendritic", "openvino", 0.2),
    ],
)
def test_the_committed_model_reproduces_its_stored_predictions(
    arm: str, engine: str | None, atol: float, embedded_weights: Path, real_data: Path
) -> None:
    """Trained on a GPU, served on this CPU: the same label, nearly the same probabilities."""
    predictions = read_run(FOLDER / arm / "seed-0").read_predictions()
    texts = {e.id: e.text for e in load_dataset("allagree", real_data).examples}
    some = range(0, len(predictions), 10)
    model = Classifier.from_artifacts(FOLDER, arm, 0, engine=engine)
    found = model.predict_proba([texts[predictions.ids[i]] for i in some])
    stored = np.array([predictions.probabilities[i] for i in some])
    np.testing.assert_allclose(found, stored, atol=atol)
    assert (found.argmax(axis=1) == stored.argmax(axis=1)).all()


@pytest.mark.parametrize(
    ("arm", "engine", "atol"),
    [
        # bf16 moves a probability by 0.014 at most here; where it could move a label, fp32 answers.
        ("baseline", None, 0.02),
        ("dendritic", None, 0.02),
        ("dendritic", "openvino-fp32", 1e-5),
    ],
)
def test_the_default_reproduces_its_stored_predictions(
    arm: str, engine: str | None, atol: float, default_weights: Path, real_data: Path
) -> None:
    """An encoder trained on a GPU and stored in 8 bits, served on this CPU."""
    texts = {e.id: e.text for e in load_dataset("news", real_data).examples}
    predictions = read_run(DEFAULT / arm / "seed-0").read_predictions()
    some = range(0, len(predictions), 40)
    model = Classifier.from_artifacts(DEFAULT, arm, 0, engine=engine)
    found = model.predict_proba([texts[predictions.ids[i]] for i in some])
    stored = np.array([predictions.probabilities[i] for i in some])
    np.testing.assert_allclose(found, stored, atol=atol)
    assert (found.argmax(axis=1) == stored.argmax(axis=1)).all()


def test_the_default_reads_headlines_in_any_case(default_weights: Path) -> None:
    model = Classifier.from_artifacts(DEFAULT, "dendritic", 0)
    plain = ["Operating profit fell 30 percent", "Northmill files for bankruptcy"]
    found = model.predict_proba([*plain, *(text.upper() for text in plain)])
    assert (found.argmax(axis=1) == 0).all(), "negative news, whatever its case"
    np.testing.assert_allclose(found[:2], found[2:], atol=1e-6)
