"""Puts the page together and serves it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from finsent.entrants.guest import Guest
from finsent.machine import devices
from finsent.machine.devices import cuda_available
from finsent.machine.extras import missing
from finsent.results.catalog import Catalog, Damage
from finsent.serving.lifecycle.states import Status
from finsent.serving.many_texts import MAX_BYTES
from finsent.serving.service import ComparerFactory, ModelService, ServiceError
from finsent.ui.endpoints import Page, add_endpoints
from finsent.ui.guard import RequestGuard, hosts_from_environment, is_local
from finsent.ui.parts.events import let_one_listener_wait
from finsent.ui.parts.markup import notice
from finsent.ui.parts.places import TABS, Bars
from finsent.ui.parts.selectors import QUICK, RunSelectors, add_run_selectors, run_updates
from finsent.ui.parts.share import ASK_LINKED, KEEP_PLACE_JS, PAGE_OPENED_JS, read_link
from finsent.ui.parts.short_answer import head_html
from finsent.ui.renewal import First, LivePage, RenewalMiddleware, fingerprint, read_catalog
from finsent.ui.tabs.about import add_about_tab
from finsent.ui.tabs.batch import add_batch_tab
from finsent.ui.tabs.behaviour import add_behaviour_tab
from finsent.ui.tabs.compare import VISITORS_AT_ONCE, CompareTab, add_compare_tab
from finsent.ui.tabs.curves import add_curves_tab
from finsent.ui.tabs.differ import DifferTab
from finsent.ui.tabs.latency import add_latency_tab
from finsent.ui.tabs.leaderboard import add_leaderboard_tab
from finsent.ui.tabs.owner import Owner, add_owner_tab
from finsent.ui.tabs.studies import add_studies_tab
from finsent.ui.theme import CSS_FILES, HEAD, PAGE_JS, THEME_TOGGLE_JS, make_theme

if TYPE_CHECKING:
    from finsent.models.weights import ReportProgress
    from finsent.serving.comparer import Comparer

TITLE = "finsent: do dendrites help?"
STATUS_SECONDS = 0.7
NAMED = 3
"""Of what is damaged, how much the status line names."""
LOOK_SECONDS = 3.0
"""How often a page that was opened before there was any run looks for one."""
SHOW_RUNS_JS = """
(here) => {
  // Only what the owner typed or watches could be lost; the status line says what to do.
  if (here && !document.querySelector('#tab-owner')?.offsetHeight) { window.location.reload(); }
}
"""
KEPT_SECONDS = (600, 3600)
"""How often files that visitors sent or made are looked at, and how old they get."""
QUEUE_SIZE = 256
SESSIONS = 256
"""gradio keeps about 0.4 MB for each of so many visitors, of whom any program's call is one; its
own limit of 10,000 would let a CPU Space run out of memory."""

RUNS_HERE = notice("Runs are here now.", "Load this page again to see them.")

_PHASES = {
    "starting": "Starting",
    "loading": "Loading the model",
    "ready": "Ready",
    "failed": "Not ready",
    "empty": "Nothing to show",
}


def load_comparer(
    folder: Path, seed: int, arms: Sequence[str], progress: ReportProgress
) -> Comparer:
    """The real model. Imports torch, so it is called in the background only."""
    from finsent.models.weights import terminal_bar
    from finsent.serving.comparer import Comparer

    with terminal_bar() as bar:

        def report(stage: str, fraction: float) -> None:
            progress(stage, fraction)
            bar(stage, fraction)

        return Comparer.from_artifacts(folder, seed, arms, progress=report)


def status_html(
    status: Status,
    second: Status | None = None,
    problem: str = "",
    damaged: Sequence[Damage] = (),
) -> str:
    """The line below the masthead: where the model stands, and one that is loaded beside it.

    problem: why the page does not show what is in the artifacts now, if it does not.
    damaged: what it does without.
    """
    beside, coming = "", ""
    if second is not None:
        beside = f'<span class="fs-why">{_said(second)}</span>'
        coming = ' data-coming="yes"' if second.phase == "loading" else ""
    return (
        f'<div class="fs-status" data-phase="{escape(status.phase)}"{coming}>'
        f'<span class="fs-dot" aria-hidden="true"></span><b>{_PHASES[status.phase]}</b>'
        f"<span>{_said(status)}</span>{beside}</div>"
        + (notice("Not up to date.", problem, tone="warning") if problem else "")
        + (notice("Left out for damage:", _places(damaged), tone="warning") if damaged else "")
    )


def _places(damaged: Sequence[Damage]) -> str:
    shown = ", ".join(damage.place for damage in damaged[:NAMED])
    more = f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
    return f"{shown}{more}. The Results tab says why; what else is here is served."


def _said(status: Status) -> str:
    if status.phase != "loading" or status.fraction is None:
        # The time below an answer names library and precision.
        return escape(status.message.partition(", OpenVINO")[0])
    share = round(100 * status.fraction)
    return (
        f"{escape(status.message)}, {share}\u202f% "
        f'<progress max="100" value="{share}" aria-label="Loading"></progress>'
    )


def build_demo(
    artifacts_root: Path | str,
    *,
    comparer_factory: ComparerFactory = load_comparer,
    probe_cuda: Callable[[], bool] = cuda_available,
    owner: Owner | None = None,
    open_to_visitors: bool = False,
) -> LivePage:
    """The whole page over one artifacts folder. Loading the model begins at once, in a thread.

    owner: who may train the large backbone from the page, where this machine can, and put models
    of others on it; None draws no such tab.
    open_to_visitors: whether whoever opens the page may let another model answer beside ours, as
    on a laptop. An owner may in any case, and then nobody else.
    A run, a study or a leaderboard that is damaged is left out and named on the page.
    """
    devices.prepare()
    service = ModelService(read_catalog(artifacts_root), comparer_factory, probe_cuda)
    service.start()
    guest = Guest()

    def build(catalog: Catalog, problem: str) -> tuple[gr.Blocks, First]:
        demo, first = _draw(catalog, service, owner, guest, open_to_visitors, problem)
        let_one_listener_wait(demo)
        service.renew(catalog)
        return demo, first

    return LivePage(artifacts_root, build)


def _draw(
    catalog: Catalog,
    service: ModelService,
    owner: Owner | None,
    guest: Guest,
    open_to_visitors: bool,
    problem: str,
) -> tuple[gr.Blocks, First]:
    """The page, and what is filled into it anew for each visitor."""
    # Unset would mean "on": gradio reports usage and looks for updates elsewhere.
    with Page(title=TITLE, analytics_enabled=False, delete_cache=KEPT_SECONDS) as demo:
        gr.HTML(head_html(catalog.leaderboard), elem_id="head")
        with gr.Row(elem_classes="fs-standing"):
            status = gr.HTML(_status(service, catalog, problem), elem_id="status")
            toggle = gr.Button("Light / dark", size="sm", elem_id="theme-toggle")
        toggle.click(None, js=THEME_TOGGLE_JS, api_visibility="private")
        with _tab_bar("try", "tabs") as outer:
            with _tab("try"), _sections("try") as trying:
                with _section("try", "compare"):
                    compare = add_compare_tab(
                        catalog, service, guest, open_to_visitors=open_to_visitors and not owner
                    )
                with _section("try", "batch"):
                    batch = add_batch_tab(catalog, service)
            with _tab("results"), _sections("results") as results:
                with _section("results", "leaderboard"):
                    add_leaderboard_tab(catalog)
                with _section("results", "latency"):
                    latency = add_latency_tab(catalog, service)
            with _tab("evidence"):
                chosen = _add_evidence_choice(catalog)
                with _sections("evidence") as evidence:
                    with _section("evidence", "curves"):
                        add_curves_tab(catalog, chosen)
                    with _section("evidence", "differ"):
                        differ = DifferTab(catalog, chosen)
                        differ.draw()
                    with _section("evidence", "behaviour"):
                        add_behaviour_tab(catalog)
                    with _section("evidence", "studies"):
                        add_studies_tab(catalog)
            with _tab("about"):
                add_about_tab(catalog)
            if owner is not None:
                with _tab("owner"):
                    add_owner_tab(owner, guest)
        bars = Bars(outer, {"try": trying, "results": results, "evidence": evidence})
        add_endpoints(service)
        if catalog.runs:
            _keep_status(catalog, service, status, compare, problem)
        else:
            _await_runs(catalog.root, status, service, problem)
        drop_downs = [s for s in (batch, chosen, latency) if s is not None]
        _open_page(catalog, service, demo, bars, compare, drop_downs)
        _rerun_live(demo, bars, differ)

    def first() -> dict[str, str]:
        found = {"status": _status(service, catalog, problem)}
        if compare is not None:
            compare.opening.prepare()
            found["answer"] = compare.opening.html()
        return found

    return demo, first


def _status(service: ModelService, catalog: Catalog, problem: str) -> str:
    return status_html(service.status, service.second_status, problem, catalog.damaged)


def _tab_bar(first: str, elem_id: str, *classes: str) -> gr.Tabs:
    # "wrap": no tab hides in a menu.
    return gr.Tabs(
        selected=first, elem_id=elem_id, elem_classes=list(classes), overflow_behavior="wrap"
    )


def _sections(tab: str) -> gr.Tabs:
    return _tab_bar(next(iter(TABS[tab].sections)), f"sections-{tab}", "fs-sections")


@contextmanager
def _opened_as(place: str, title: str) -> Iterator[None]:
    with gr.Tab(title, id=place, elem_id=f"tab-{place}") as tab:
        yield
    # When a visitor opens it, the address names it.
    tab.select(None, js=KEEP_PLACE_JS, api_visibility="private")


def _tab(name: str) -> AbstractContextManager[None]:
    return _opened_as(name, TABS[name].title)


def _section(tab: str, name: str) -> AbstractContextManager[None]:
    return _opened_as(name, TABS[tab].sections[name])


def _add_evidence_choice(catalog: Catalog) -> RunSelectors | None:
    """The one choice of runs that the sections of Evidence share; None without runs."""
    if not catalog.runs:
        return None
    first = catalog.select(catalog.backbones()[0])
    # The page's style shows it where it changes something.
    with gr.Row(elem_classes="fs-controls", elem_id="evidence-choice"):
        return add_run_selectors(catalog, first, all_runs=True, prefix="evidence")


def _keep_status(
    catalog: Catalog,
    service: ModelService,
    status: gr.HTML,
    compare: CompareTab | None,
    problem: str,
) -> None:
    """Renews the status line until no model is being loaded; a failed load may be tried again."""
    timer = gr.Timer(STATUS_SECONDS)

    def renew() -> tuple[str, gr.Timer]:
        second = service.second_status
        return (
            _status(service, catalog, problem),
            gr.Timer(
                active=service.choosing
                or service.status.phase in ("starting", "loading", "failed")
                or (second is not None and second.phase == "loading")
            ),
        )

    ticked = timer.tick(renew, outputs=[status, timer], **QUICK)
    ticked.then(
        None, js=f"() => window.finsent.statusChanged('{ASK_LINKED}')", api_visibility="private"
    )
    if compare is None:
        return

    def wake(backbone: str) -> gr.Timer:
        if service.settled:
            service.bring(catalog.select(backbone))
        return gr.Timer(active=True)

    backbone = compare.selectors.backbone
    backbone.change(wake, inputs=backbone, outputs=timer, **QUICK)


def _await_runs(root: Path, status: gr.HTML, service: ModelService, problem: str) -> None:
    """A page without runs shows the first ones by itself: there is nothing on it to be lost.

    problem: why there are none, if files are here that cannot be shown; those are not tried again.
    """
    timer = gr.Timer(LOOK_SECONDS)
    here = gr.Checkbox(visible="hidden")
    seen = fingerprint(root) if problem else None

    def look() -> tuple[Any, Any, Any]:
        if fingerprint(root) == seen:
            return gr.skip(), False, gr.skip()
        found = read_catalog(root)
        if found.runs:
            return RUNS_HERE, True, gr.Timer(active=False)
        return _status(service, found, problem), False, gr.skip()

    timer.tick(
        look,
        outputs=[status, here, timer],
        **QUICK,
    ).then(None, inputs=here, js=SHOW_RUNS_JS, api_visibility="private")


def _rerun_live(demo: gr.Blocks, bars: Bars, differ: DifferTab) -> None:
    """A test sentence under Where they differ goes to One headline, to the same runs."""
    if differ.examples is None or differ.selectors is None:
        return
    by_id = {block.elem_id: block for block in demo.blocks.values() if block.elem_id}
    names = ("headline", "compare-backbone", "compare-dataset", "compare-seed")
    headline, *runs = (by_id[name] for name in names)

    def ask(backbone: str, dataset: str, seed: int, event: gr.EventData) -> list[Any]:
        wanted = differ.rerun(backbone, dataset, event)
        if wanted is None:
            return [gr.skip()] * (len(bars.components) + 4)
        selection, text = wanted
        return [
            *bars.opening("compare"),
            text,
            *run_updates(differ.catalog, selection),
        ]

    differ.examples.click(
        ask,
        inputs=differ.selectors.components,
        outputs=[*bars.components, headline, *runs],
        **QUICK,
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


def _open_page(
    catalog: Catalog,
    service: ModelService,
    demo: gr.Blocks,
    bars: Bars,
    compare: CompareTab | None,
    selectors: Sequence[RunSelectors],
) -> None:
    """Opens the page on what its address asks for, else on the backbone that was chosen, which may
    be known only after the page was drawn: asking for CUDA means importing torch."""
    if compare is None:
        return
    drawn = catalog.select(catalog.backbones()[0])

    def open_page(request: gr.Request) -> list[Any]:
        link = read_link(dict(request.query_params), catalog)
        # A visitor who comes while torch is imported gets the choice when it is made.
        chosen = service.default_selection()
        asked = catalog.select(
            link.backbone or chosen.backbone, link.dataset, link.seed, matched=link.matched
        )
        runs: list[Any] = run_updates(catalog, asked)
        if replace(asked, arms=drawn.arms) == drawn:
            # Setting them would count as a change and ask the model once more.
            runs = [gr.skip() for _ in runs]
        elsewhere = gr.skip() if chosen.backbone == drawn.backbone else chosen.backbone
        return [
            *bars.opening(link.place),
            link.text or gr.skip(),
            *runs,
            link.matched or gr.skip(),
            *[elsewhere for _ in selectors],
        ]

    demo.load(
        open_page,
        outputs=[
            *bars.components,
            compare.text,
            *compare.selectors.components,
            compare.matched,
            *[s.backbone for s in selectors],
        ],
        **QUICK,
    ).then(None, js=PAGE_OPENED_JS, api_visibility="private")
    # Outside of the tabs: the page draws only the one that is open.
    linked = gr.Button("Ask what the link brought", elem_id=ASK_LINKED, visible="hidden")
    linked.click(**compare.ask_linked)


def mcp_wanted(asked: bool) -> bool:
    """Whether to serve the published endpoints as MCP tools too.

    Raises ServiceError when asked to without the extra that it needs.
    """
    asked = asked or os.environ.get("GRADIO_MCP_SERVER", "").lower() == "true"
    if asked and (problem := missing("mcp")) is not None:
        raise ServiceError(f"an MCP server: {problem}")
    return asked


def launch(
    page: LivePage, *, host: str | None = None, port: int | None = None, mcp: bool = False
) -> None:
    """Serves the page until interrupted and prints its URL. Nothing leaves the machine.

    host, port: None leaves them to GRADIO_SERVER_NAME and GRADIO_SERVER_PORT, then to gradio.
    mcp: also at /gradio_api/mcp/; GRADIO_MCP_SERVER=true asks for it too.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    page.demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=VISITORS_AT_ONCE)
    page.demo.launch(
        server_name=host,
        server_port=port,
        inbrowser=False,
        share=False,
        # Else it gives up where its own first request takes 3 s, as on a machine that is busy.
        _frontend=False,
        show_error=True,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=mcp_wanted(mcp),
        state_session_capacity=SESSIONS,
        max_file_size=MAX_BYTES,
        app_kwargs={
            # The first is the outermost.
            "middleware": [
                (RequestGuard, (), {"hosts": hosts_from_environment(), "local": is_local(host)}),
                (RenewalMiddleware, (), {"renew": page.renew}),
            ],
            # A second description of what the page's own "API" link describes, private routes too.
            "openapi_url": None,
        },
        footer_links=["api"],
        theme=make_theme(),
        css_paths=CSS_FILES,
        js=PAGE_JS,
        head=HEAD,
    )
