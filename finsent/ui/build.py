"""Puts the page together and serves it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from finsent.ui.about import add_about_tab
from finsent.ui.compare import add_compare_tab
from finsent.ui.curves import add_curves_tab
from finsent.ui.differ import DifferTab
from finsent.ui.leaderboard import add_leaderboard_tab
from finsent.ui.selectors import RunSelectors, run_updates
from finsent.ui.state import (
    Catalog,
    Choice,
    Comparer,
    ComparerFactory,
    ModelService,
    Progress,
    Status,
    cuda_available,
)
from finsent.ui.theme import CSS_FILE, PAGE_JS, THEME_TOGGLE_JS, make_theme

TITLE = "finsent: do dendrites help?"
STATUS_SECONDS = 0.7
QUEUE_SIZE = 256
CONCURRENT_USERS = 64
"""Calls that may reach the model at once; it answers them in batches. More wait their turn, and
beyond QUEUE_SIZE they are told that the queue is full."""

_MASTHEAD = """
<header class="fs-head">
<div class="fs-mark">finsent</div>
<h1>Do dendrites help a language model read financial news?</h1>
<p>One frozen model, fine-tuned twice on the same sentences: with LoRA alone, and with LoRA plus
dendrites grown by PerforatedAI. Everything else is held equal.</p>
</header>
"""

_PHASES = {
    "starting": "Starting",
    "loading": "Loading the model",
    "ready": "Ready",
    "failed": "Not ready",
    "empty": "Nothing to show",
}


def load_comparer(folder: Path, seed: int, arms: Sequence[str], progress: Progress) -> Comparer:
    """The real model. Imports torch, so it is called in the background only."""
    from finsent.classifier import Comparer as Model
    from finsent.weights import terminal_bar

    with terminal_bar() as bar:

        def report(stage: str, fraction: float) -> None:
            progress(stage, fraction)
            bar(stage, fraction)

        return Model.from_artifacts(folder, seed, arms, progress=report)


def status_html(status: Status, choice: Choice | None) -> str:
    """The line below the masthead: where the model stands, which it is, and why."""
    detail = status.message
    bar = ""
    if status.phase == "loading" and status.fraction is not None:
        share = round(100 * status.fraction)
        detail = f"{detail}, {share}\u202f%"
        bar = f'<progress max="100" value="{share}" aria-label="Loading"></progress>'
    why = ""
    if choice is not None and status.phase != "failed":
        why = f'<span class="fs-why">{escape(choice.reason)}</span>'
    return (
        f'<div class="fs-status" data-phase="{escape(status.phase)}">'
        f'<span class="fs-dot" aria-hidden="true"></span><b>{_PHASES[status.phase]}</b>'
        f"<span>{escape(detail)}</span>{bar}{why}</div>"
    )


def build_demo(
    artifacts_root: Path | str,
    *,
    comparer_factory: ComparerFactory = load_comparer,
    probe_cuda: Callable[[], bool] = cuda_available,
) -> gr.Blocks:
    """The whole page over one artifacts folder. Loading the model begins at once, in a thread.

    Raises finsent.runs.ArtifactError when a finished run or the leaderboard is damaged.
    """
    catalog = Catalog.read(artifacts_root)
    service = ModelService(catalog, comparer_factory, probe_cuda)
    service.start()

    # Unset would mean "on": gradio reports usage and looks for updates elsewhere.
    with gr.Blocks(title=TITLE, analytics_enabled=False) as demo:
        gr.HTML(_MASTHEAD)
        toggle = gr.Button("Light / dark", size="sm", elem_id="theme-toggle")
        toggle.click(None, js=THEME_TOGGLE_JS, api_visibility="private")
        status = gr.HTML(status_html(service.status, service.choice), elem_id="status")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Compare", id="compare", elem_id="tab-compare"):
                compare = add_compare_tab(catalog, service)
            with gr.Tab("Training curves", id="curves", elem_id="tab-curves"):
                curves = add_curves_tab(catalog)
            with gr.Tab("Leaderboard", id="leaderboard", elem_id="tab-leaderboard"):
                add_leaderboard_tab(catalog)
            with gr.Tab("Where they differ", id="differ", elem_id="tab-differ"):
                differ = DifferTab(catalog)
                differ.draw()
            with gr.Tab("About", id="about", elem_id="tab-about"):
                add_about_tab(catalog)
        _keep_status(service, status)
        opened = (compare, curves, differ.selectors)
        _open_on_choice(service, [s for s in opened if s is not None], demo)
        _rerun_live(demo, tabs, differ)
    return demo


def _keep_status(service: ModelService, status: gr.HTML) -> None:
    """Renews the status line until the model is there; a failed load may be tried again."""
    timer = gr.Timer(STATUS_SECONDS)

    def renew() -> tuple[str, gr.Timer]:
        return (
            status_html(service.status, service.choice),
            gr.Timer(active=service.status.phase in ("starting", "loading", "failed")),
        )

    timer.tick(
        renew,
        outputs=[status, timer],
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )


def _rerun_live(demo: gr.Blocks, tabs: gr.Tabs, differ: DifferTab) -> None:
    """A test sentence of the Where they differ tab goes to the Compare tab, to the same runs."""
    if differ.examples is None or differ.selectors is None:
        return
    by_id = {block.elem_id: block for block in demo.blocks.values() if block.elem_id}
    names = ("headline", "compare-backbone", "compare-dataset", "compare-seed")
    headline, *runs = (by_id[name] for name in names)

    def ask(backbone: str, dataset: str, event: gr.EventData) -> list[Any]:
        wanted = differ.rerun(backbone, dataset, event)
        if wanted is None:
            return [gr.skip()] * 5
        selection, text = wanted
        return [
            gr.Tabs(selected="compare"),
            text,
            *run_updates(differ.catalog, selection),
        ]

    differ.examples.click(
        ask,
        inputs=differ.selectors.components,
        outputs=[tabs, headline, *runs],
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    ).success(
        None,
        js="""() => {
          if (document.querySelector('#tab-compare')?.offsetHeight) {
            document.querySelector('#compare')?.click();
            window.scrollTo({top: 0});
          }
        }""",
        api_visibility="private",
    )


def _open_on_choice(
    service: ModelService, selectors: Sequence[RunSelectors], demo: gr.Blocks
) -> None:
    """Sets the drop-downs to the backbone that was chosen, which may be known only after the page
    was drawn: asking for CUDA means importing torch."""
    drop_downs = [s.backbone for s in selectors]
    if not drop_downs:
        return

    def open_on_choice() -> list[dict[str, Any]]:
        chosen = service.default_selection().backbone
        return [gr.update(value=chosen) for _ in drop_downs]

    # A visitor who comes while torch is imported gets the choice when it is made.
    demo.load(
        open_on_choice,
        outputs=drop_downs,
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )


def launch(demo: gr.Blocks, *, host: str | None = None, port: int | None = None) -> None:
    """Serves the page until interrupted and prints its URL. Nothing leaves the machine.

    host, port: None leaves them to GRADIO_SERVER_NAME and GRADIO_SERVER_PORT, then to gradio.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=CONCURRENT_USERS)
    demo.launch(
        server_name=host,
        server_port=port,
        inbrowser=False,
        share=False,
        show_error=True,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=["api"],
        theme=make_theme(),
        css_paths=[CSS_FILE],
        js=PAGE_JS,
    )
