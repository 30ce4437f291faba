"""Data sets with other classes than negative, neutral and positive, or with two, through every
page, the published endpoints and the trainer."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import random
import shutil
from collections.abc import Iterator, Sequence
from html import escape, unescape
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from openpyxl import Workbook
from playwright.sync_api import expect, sync_playwright

from bench.screenshots import CHROMIUM, FLAGS
from finsent.classifier import Classifier
from finsent.commands.cli import main
from finsent.config import DendriteConfig, LoraConfig, TrainConfig, arm_config
from finsent.data.registry import DATASETS
from finsent.data.sets import fomc, numclaim
from finsent.data.sets.examples import CLAIMS, STANCES
from finsent.models.weights import ReportProgress
from finsent.plots import png_figures
from finsent.plots.live import distribution_figure
from finsent.results import catalog as state
from finsent.results import leaderboard as leaderboard_file
from finsent.results.calibration import calibration_of
from finsent.results.manifest import write_manifest
from finsent.results.runs import read_run
from finsent.serving import many_texts
from finsent.serving import service as service_module
from finsent.training import child_main
from finsent.training import run as run_module
from finsent.ui.parts.answer import answered_html
from finsent.ui.parts.cards import result_dict
from finsent.ui.parts.markup import label_mark
from finsent.ui.parts.words import explain_words, words_html
from finsent.ui.tables import board, published
from finsent.ui.tables.filters import Filters
from finsent.ui.tables.scored import ALL, WRONG, Results, rows_html
from finsent.ui.tabs import about, differ
from finsent.ui.tabs.compare import CHIPS, _chips
from finsent.verification import verify
from tests.app_fixtures import FakeComparer, running_app
from tests.artifact_factory import make_artifacts

NAMES = {
    "fomc": ("dovish", "neutral", "hawkish"),
    "numclaim": ("out-of-claim", "in-claim"),
}
TEXT = "Members judged that a split of 5 views would remain"


@pytest.fixture(autouse=True)
def no_copy_of_the_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("FINSENT_DATA_DIR", raising=False)
    differ.texts_of.cache_clear()
    yield
    differ.texts_of.cache_clear()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifacts(
        tmp_path_factory.mktemp("labels") / "artifacts",
        backbones=("smollm2-135m",),
        datasets=tuple(NAMES),
        seeds=(0, 1),
        n_test=100,
    )


@pytest.fixture(scope="module")
def service(artifacts: Path) -> service_module.ModelService:
    def load(
        folder: Path, seed: int, arms: Sequence[str], progress: ReportProgress
    ) -> FakeComparer:
        return FakeComparer(folder, seed, arms)

    made = service_module.ModelService(
        state.Catalog.read(artifacts), load, probe_cuda=lambda: False
    )
    made.start()
    assert made.wait(20).phase == "ready"
    return made


@pytest.fixture(params=NAMES)
def selection(
    request: pytest.FixtureRequest, service: service_module.ModelService
) -> state.Selection:
    return service.catalog.select("smollm2-135m", request.param, 0)


def test_the_artifacts_verify(artifacts: Path) -> None:
    assert verify(artifacts) == []


def test_every_registered_title_and_mark_is_shown(service: service_module.ModelService) -> None:
    assert service.catalog.all_datasets() == ["fomc", "numclaim"]
    assert [state.dataset_title(name) for name in NAMES] == ["FOMC stance", "Numerical claims"]
    assert state.dataset_title("unheard of") == "unheard of"
    for name, known in DATASETS.items():
        assert state.dataset_title(name) == known.short_title
        assert tuple(label_mark(label) for label in known.label_names) == known.label_marks
        shown = [chip["value"] for chip in _chips(name) if chip["visible"]]
        assert shown == [example.kind for example in known.examples]
        assert len(_chips(name)) == CHIPS
    assert label_mark("bearish") == "■"


def test_the_cards_name_the_classes(
    service: service_module.ModelService, selection: state.Selection
) -> None:
    catalog, names = service.catalog, NAMES[selection.dataset]
    outcome = service.compare(TEXT, selection)
    html = answered_html(catalog, outcome)
    for name in names:
        assert html.count(f"<dt>{name}</dt>") == 1
    answers = result_dict(outcome)["predictions"]
    assert answers["baseline"]["label"] != answers["dendritic"]["label"]
    for answer in answers.values():
        assert tuple(answer["probabilities"]) == tuple(answer["raw_probabilities"]) == names
        mark = label_mark(answer["label"])
        assert f"{mark} {answer['label']}</b>" in html
        assert set(answer["label_set"]) <= set(names)


def test_the_words_are_explained(
    service: service_module.ModelService, selection: state.Selection
) -> None:
    found, labels = explain_words(TEXT, selection, service.catalog, service)
    assert labels == NAMES[selection.dataset]
    html = words_html(found, labels)
    for attribution in found.values():
        assert f": {labels[attribution.label]}, " in html


def test_a_batch_counts_the_classes(
    service: service_module.ModelService, selection: state.Selection
) -> None:
    names = NAMES[selection.dataset]
    truth = [names[i % len(names)] for i in range(20)]
    items = [many_texts.Item(i, f"text {i} split", None, truth[i].upper()) for i in range(20)]
    (scored,) = many_texts.score(
        items,
        lambda texts: service.batch(texts, selection)[0],
        names,
        service.catalog.calibrations(selection),
    )
    counts = many_texts.label_counts(scored)
    assert all(tuple(by_label) == names for by_label in counts.values())
    assert [tuple(bar.x) for bar in distribution_figure(counts).data] == [names, names]
    results = Results(tuple(scored), names)
    html = rows_html(results, ALL, 0)
    for row in scored:
        label = row.answers[0].label
        assert f"{label_mark(label)} {label} " in html
    wrong = results.select(WRONG)
    assert wrong == [
        place
        for place, row in enumerate(scored)
        if any(answer.label != truth[place] for answer in row.answers)
    ]
    for found in results.confusions():
        cells = np.array(found["confusion"])
        assert cells.sum() == len(scored)
        right = sum(row.answers[0].label == truth[i] for i, row in enumerate(scored))
        assert found["arm"] != "baseline" or cells.trace() == right
    header = many_texts.results_csv(scored, selection.arms, names).decode().splitlines()[0]
    assert f"baseline_{names[0]}_" in header


def test_the_evidence_pages_name_the_classes(
    service: service_module.ModelService, selection: state.Selection
) -> None:
    catalog, names = service.catalog, NAMES[selection.dataset]
    assert catalog.leaderboard is not None
    arms = [a for a in catalog.leaderboard["arms"] if a["dataset"] == selection.dataset]
    matrices = differ.scores_html(arms, names, "confusions")
    for name in names:
        marked = f'<span aria-hidden="true">{label_mark(name)}</span> {name}</th>'
        assert matrices.count(marked) == 2 * len(arms)
    classes = differ.scores_html(arms, names, "classes")
    places = [classes.index(f"{name}</th>") for name in names]
    assert places == sorted(places)
    assert "does not say how far its annotators agreed" in differ.scores_html(arms, names, "bands")
    cases = differ.read_cases(catalog.of("smollm2-135m", selection.dataset))
    html = differ.cases_html(cases[:5], len(cases), 5, "wrong", selection.dataset)
    assert f" {cases[0].label}</b>" in html
    filters = Filters(selection.dataset)
    assert "Macro-F1" in board.board_html(dict(catalog.leaderboard), filters)
    assert published.references_html(dict(catalog.leaderboard), filters) == ""
    assert DATASETS[selection.dataset].title in unescape(about.about_html(catalog))


def test_ids_stand_for_sentences_and_about_names_the_right_files(artifacts: Path) -> None:
    page = about.about_html(state.Catalog.read(artifacts))
    for name in ("fomc", "numclaim"):
        texts, hint = differ.texts_of(name)
        assert texts is None
        assert DATASETS[name].licence in hint
        assert escape(f"{DATASETS[name].files} from {DATASETS[name].url}") in page


def test_the_figures_are_drawn(artifacts: Path, tmp_path: Path) -> None:
    root = shutil.copytree(artifacts, tmp_path / "artifacts")
    assert all(path.stat().st_size > 10_000 for path in png_figures.make_figures(root))


# ---------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module", params=NAMES)
def trained(
    request: pytest.FixtureRequest, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Both arms, trained for real on made-up sentences in the published format."""
    name = request.param
    rng = random.Random(0)
    nouns = [f"{a}{b}" for a in ("rate", "price", "wage", "bond") for b in "abcdefghijklmnopqrst"]
    sentences = [
        (f"{' '.join(rng.sample(nouns, 7))} {NAMES[name][i % len(NAMES[name])]} {i}", i)
        for i in range(120)
    ]
    module, header, code = {
        "fomc": (fomc, ("sentence", "label", "year", "orig_index"), (0, 2, 1)),
        "numclaim": (numclaim, ("text", "label"), (0, 1)),
    }[name]
    root = tmp_path_factory.mktemp(name)
    sums = {}
    for number, file in enumerate(module.FILES.sha256):
        book = Workbook()
        book.active.append(header)
        for text, i in sentences[number :: len(module.FILES.sha256)]:
            book.active.append([text, code[i % len(code)], 2000, i][: len(header)])
        book.save(root / file)
        sums[file] = hashlib.sha256((root / file).read_bytes()).hexdigest()
    base = TrainConfig(
        backbone="tiny-phi",
        dataset=name,
        epochs=3,
        learning_rate=2e-2,
        lora=LoraConfig(r=2),
        autocast=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINSENT_CACHE_DIR", str(tiny_cache))
        patch.setattr(module, "FILES", dataclasses.replace(module.FILES, sha256=sums))
        for arm, treatment in (("baseline", None), ("dendritic", DendriteConfig(grow_by=0))):
            config = arm_config(base, arm, treatment)
            job = child_main.Job(
                config, root / "artifacts", root / "shared", "cpu", "test", None, root
            )
            run_module.run_job(job)
    return root / "artifacts" / "tiny-phi" / name


def test_a_trained_model_answers_in_the_order_of_its_label_names(
    trained: Path, tiny_environment: None
) -> None:
    names = NAMES[trained.name]
    run = read_run(trained / "dendritic" / "seed-0")
    assert run.label_names == names
    assert run.metrics["dendrites"] > 0
    assert set(run.metrics["per_class"]) == set(names)
    model = Classifier.from_artifacts(trained, "dendritic", 0)
    assert model.label_names == names
    found = model.predict_proba(["ratea wagec bonde 1", "priceb"])
    assert found.shape == (2, len(names))
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_the_command_writes_a_column_for_each_class(
    trained: Path, tmp_path: Path, tiny_environment: None
) -> None:
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("text\nratea wagec\n")
    arguments = ["score", str(source), "--column", "text", "--out", str(target)]
    assert main([*arguments, "--runs", str(trained), "--arm", "baseline"]) == 0
    header, row = csv.reader(target.read_text().splitlines())
    assert header == ["text", "label", *NAMES[trained.name], "truncated"]
    assert row[1] in NAMES[trained.name]


def test_its_runs_verify_and_make_a_leaderboard(trained: Path) -> None:
    root = trained.parents[1]
    leaderboard_file.write(root)
    write_manifest(root)
    assert verify(root) == []


# ------------------------------------------------------------------------------------------ server


@pytest.fixture(scope="module")
def url(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_app(artifacts, tmp_path_factory.mktemp("log") / "app.log") as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    client = Client(url, verbose=False)
    yield client
    client.close()


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["", "fomc", "numclaim"])
def test_the_endpoints_answer_for_the_data_set_asked_for(
    dataset: str, client: Client, artifacts: Path
) -> None:
    expected = dataset or "fomc"
    compared = client.predict(TEXT, dataset, api_name="/compare")
    assert compared["dataset"] == expected
    (row,) = client.predict([TEXT], "baseline", dataset, api_name="/score")
    same = compared["predictions"]["baseline"]
    assert row["label"] == same["label"]
    assert tuple(row["probabilities"]) == NAMES[expected]
    run = read_run(artifacts / "smollm2-135m" / expected / "baseline" / "seed-0")
    calibration = calibration_of(run)
    assert calibration is not None
    raw = list(row["raw_probabilities"].values())
    np.testing.assert_allclose(
        list(row["probabilities"].values()), calibration.calibrate(raw), atol=1e-12
    )


@pytest.mark.slow
def test_an_endpoint_names_the_data_sets_it_has(client: Client) -> None:
    with pytest.raises(AppError, match="no runs on 'allagree'; there are fomc, numclaim"):
        client.predict(TEXT, "allagree", api_name="/compare")


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}")
def test_another_data_set_brings_its_examples_and_classes(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#answer dt", has_text="hawkish")).to_have_count(1)
        expect(page.get_by_role("button", name=STANCES[0].kind)).to_be_visible()
        page.get_by_label("Data set").first.click()
        page.get_by_role("option", name="Numerical claims").click()
        expect(page.locator("#answer dt", has_text="out-of-claim")).to_have_count(1)
        expect(page.get_by_role("button", name=STANCES[0].kind)).to_have_count(0)
        page.get_by_role("button", name=CLAIMS[1].kind, exact=True).click()
        expect(page.locator("#answer blockquote")).to_have_text(CLAIMS[1].text)
        expect(page.locator("#answer .fs-says")).to_contain_text("claim")
        # A class's name may not run into its bar.
        name, track = (page.locator(f"#answer .fs-merged {part}").first for part in ("dt", "dd"))
        assert name.evaluate("e => e.scrollWidth <= e.clientWidth")
        assert track.bounding_box()["x"] > name.bounding_box()["x"]  # type: ignore[index]
        browser.close()
