"""Type hundreds of headlines into the page and compare what it shows with what the model answers.

    python bench/headlines.py                                    # starts the app
    python bench/headlines.py --url http://127.0.0.1:7860        # one that runs

Headlines are those of `bench/disagreements.py`, of which no two are alike, and spellings of them:
capitals, numbers, other marks. Each is typed as a visitor would; the labels and percentages that
the page shows have to be those that `Comparer` gives for the same runs, to a tenth of a point.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Page, sync_playwright

from bench.disagreements import candidates
from bench.screenshots import CHROMIUM, FLAGS, own_app
from finsent.results.catalog import Catalog, Selection
from finsent.results.provenance import git_commit
from finsent.results.runs import write_json
from finsent.serving.answers import Answer, answers
from finsent.serving.comparer import Comparer

READ = """
(text) => {
  const answer = document.getElementById('answer');
  if (answer?.hasAttribute('data-busy')
      || answer?.querySelector('blockquote')?.textContent.trim() !== text) { return null; }
  return [...answer.querySelectorAll('.fs-bar')].map((bar) => [bar.dataset.arm, bar.dataset.label,
    bar.dataset.top === 'true', bar.querySelector('b').textContent]);
}
"""


def headlines(count: int, seed: int) -> list[str]:
    """So many different headlines, every third spelt in another way."""
    draw = random.Random(seed)
    changes = (str.upper, str.lower, lambda text: f"{text}!", lambda text: f"  “{text}” 🚀 ")
    found = []
    for place, (text, _) in enumerate(candidates(count, seed)):
        found.append(draw.choice(changes)(text).strip() if place % 3 == 2 else text)
    return found


def shown(page: Page, text: str) -> tuple[list[list[Any]], float]:
    """Types a headline; what the page then shows, and the seconds until it did."""
    box = page.locator("#headline textarea")
    box.fill(text)
    started = time.perf_counter()
    box.press("Enter")
    found = page.wait_for_function(READ, arg=text, timeout=60_000).json_value()
    return found, time.perf_counter() - started


def wrong(found: Sequence[Sequence[Any]], given: Sequence[Answer]) -> Iterator[str]:
    """Where the page shows something else than the model says."""
    by_arm = {answer.arm: answer for answer in given}
    if len(found) != sum(len(answer.label_names) for answer in given):
        yield f"{len(found)} bars"
    for arm, label, top, said in found:
        answer = by_arm[arm]
        expected = 100 * answer.shown[answer.label_names.index(label)]
        if abs(float(said.split()[0].rstrip("%")) - expected) > 0.1:
            yield f"{arm}, {label}: {said} for {expected:.2f}"
        if top != (answer.label == label):
            yield f"{arm}: {label} is marked as the answer, {answer.label} is"


def expected_answers(catalog: Catalog, selection: Selection, texts: Sequence[str]) -> Any:
    """What the model says of every text, without the page."""
    comparer = Comparer.from_artifacts(catalog.folder(selection), selection.seed, selection.arms)
    calibrations = catalog.calibrations(selection)
    given = []
    for text in texts:
        # Alone, as on the page: in a batch the last digits of a probability differ.
        result = comparer.compare(text)
        raw = {p.arm: p.probabilities for p in result.predictions}
        given.append(answers(raw, result.label_names, calibrations))
    comparer.close()
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="address of a running page (default: start the app)")
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/headlines.json")
    options = parser.parse_args(arguments)
    catalog = Catalog.read(options.artifacts)
    selection = catalog.select(catalog.backbones()[0])
    texts = headlines(options.count, options.seed)
    given = expected_answers(catalog, selection, texts)
    app = nullcontext(options.url) if options.url else own_app(options.artifacts)
    problems, seconds = [], []
    with app as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
        page.goto(url)
        page.locator("#headline textarea").wait_for(timeout=60_000)
        page.wait_for_function("window.finsentOpened", timeout=60_000)
        for text, answer in zip(texts, given, strict=True):
            found, took = shown(page, text)
            seconds.append(took)
            problems += [f"{text}: {problem}" for problem in wrong(found, answer)]
        browser.close()
    agree = sum(len({answer.label for answer in row}) == 1 for row in given)
    write_json(
        options.out,
        {
            "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "versions": {n: importlib.metadata.version(n) for n in ("openvino", "gradio")},
            "command": "python bench/headlines.py",
            "commit": git_commit(ROOT),
            "runs": f"{selection.backbone}/{selection.dataset}",
            "headlines": len(texts),
            "shown_otherwise": len(problems),
            "models_agree": agree,
            "seconds_p50": round(sorted(seconds)[len(seconds) // 2], 3),
        },
    )
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(texts)} headlines, {len(problems)} shown otherwise, models agree on {agree}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
