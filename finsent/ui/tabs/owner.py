"""The Owner tab: on a Space with a GPU its owner, and nobody else, trains the large backbone.

The owner is who knows the secret FINSENT_OWNER_TOKEN, or who is logged in with the Hugging Face
account that the Space belongs to. Every action asks again; what the page shows protects nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from huggingface_hub import HfApi

from finsent.entrants.guest import Guest
from finsent.machine.devices import cuda_available, zero_gpu
from finsent.plots.live import training_figure
from finsent.results.catalog import backbone_title, dataset_title
from finsent.serving.owner_training import (
    ACTIVE,
    Hub,
    OwnerTraining,
    OwnerTrainingError,
    Recipe,
    TrainingState,
)
from finsent.ui.guard import Guesses
from finsent.ui.parts.markup import notice
from finsent.ui.tabs.guest import add_guest, draw_guest_form, remove_guest

SHORTEST_TOKEN = 16
TICK_SECONDS = 2.0
CHARTS = (("val_loss", "validation NLL"), ("val_accuracy", "validation accuracy"))


class OwnerError(ValueError):
    """Settings that would let the wrong person in."""


def why_not_here() -> str | None:
    """Why this machine cannot train the large backbone; None when it can."""
    if zero_gpu():
        return "a ZeroGPU Space lends its GPU for seconds, training takes longer; use a GPU Space"
    if not cuda_available():
        return "no CUDA device here; choose GPU hardware in the Space's settings"
    return None


@dataclass(frozen=True)
class Owner:
    """Who the owner is and what may be trained."""

    training: OwnerTraining
    token: str | None = None
    """The secret; None when only a login counts."""
    username: str | None = None
    """The Hugging Face account; None when only the secret counts."""
    obstacle: Callable[[], str | None] = why_not_here
    hub: Callable[[str], Hub] = lambda token: HfApi(token=token)

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise OwnerError(
                f"FINSENT_OWNER_TOKEN has {len(self.token)} characters; a secret that cannot be "
                f"guessed has at least {SHORTEST_TOKEN}"
            )

    def is_owner(self, token: str | None, username: str | None) -> bool:
        """Whether the secret or the login is right. The secret is compared in constant time."""
        if self.token is not None and hmac.compare_digest(_digest(token), _digest(self.token)):
            return True
        return self.username is not None and username == self.username


def _digest(secret: object) -> bytes:
    """Of equal length for all, so that not even a length shows in the time that comparing takes."""
    # A program may send any JSON, and halves of characters.
    said = secret if isinstance(secret, str) else ""
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()


def owner_from_environment(
    artifacts: Path, environment: Mapping[str, str] = os.environ
) -> Owner | None:
    """The owner that a Space's settings name; None when there is none, as on a laptop.

    Raises OwnerError when the secret is too short.
    """
    token = environment.get("FINSENT_OWNER_TOKEN") or None
    # The account counts only where Hugging Face's login is switched on (hf_oauth in README.md).
    logins = environment.get("OAUTH_CLIENT_ID")
    username = environment.get("SPACE_AUTHOR_NAME") if logins else None
    if token is None and username is None:
        return None
    missing = [name for name in ("authlib", "itsdangerous") if find_spec(name) is None]
    if username is not None and missing:
        raise OwnerError(
            f"logging in needs {' and '.join(missing)}; install gradio[oauth], or take hf_oauth "
            "out of README.md and set FINSENT_OWNER_TOKEN instead"
        )
    return Owner(OwnerTraining(artifacts, Recipe()), token, username)


def state_html(state: TrainingState) -> str:
    """Phase, message and what the trainer printed last."""
    log = (
        f'<pre class="fs-log" tabindex="0" aria-label="Log">{escape(chr(10).join(state.log))}</pre>'
        if state.log
        else ""
    )
    return (
        f'<p class="fs-batch-says" role="status" data-phase="{escape(state.phase)}">'
        f"<b>{escape(state.phase.capitalize())}.</b> {escape(state.message)}</p>{log}"
    )


def add_owner_tab(owner: Owner, guest: Guest) -> None:
    """Draws the tab inside the current gr.Tab. guest: the model from elsewhere that answers too."""
    obstacle = owner.obstacle()
    lead = f"It cannot train here: {obstacle}." if obstacle else _training_lead(owner)
    gr.HTML(f'<h2>For the owner of this page</h2><p class="fs-lead">{escape(lead)}</p>')
    with gr.Row(elem_classes="fs-controls"):
        token = gr.Textbox(
            label="Owner's secret",
            type="password",
            elem_id="owner-token",
            visible=owner.token is not None,
            min_width=240,
        )
        if owner.username is not None:
            gr.LoginButton(elem_id="owner-login", min_width=200)
    actions = _Actions(owner, guest)
    if obstacle is None:
        _add_training(actions, token)
        _add_push(actions, token)
    _add_entry(actions, token)
    with gr.Accordion("Let another model answer", open=False, elem_id="owner-guest-section"):
        form = draw_guest_form()
    for event, act, inputs in (
        (form.add.click, actions.invite, [token, form.model, form.labels]),
        (form.remove.click, actions.dismiss, [token]),
    ):
        event(
            act,
            inputs=inputs,
            outputs=form.said,
            show_progress="minimal",
            api_visibility="private",
        )


def _training_lead(owner: Owner) -> str:
    recipe = owner.training.recipe
    return (
        f"Train {backbone_title(recipe.backbone)} on {dataset_title(recipe.dataset)}. Visitors go "
        "on using the model that is loaded. All variants of training run "
        f"{', '.join(map(str, recipe.seeds))} are trained on this machine and kept when all "
        "have finished; who opens the page then gets this model. A Space forgets its disk when it "
        "restarts: download the runs or push them first."
    )


def _add_training(actions: _Actions, token: gr.Textbox) -> None:
    """Buttons, status and curves of a training, and the runs to download."""
    with gr.Row(elem_classes="fs-chips"):
        unlock = gr.Button("Show", elem_id="owner-unlock", min_width=90)
        start = gr.Button("Start training", variant="primary", elem_id="owner-start", min_width=150)
        stop = gr.Button("Cancel training", elem_id="owner-stop", min_width=150)
        download = gr.DownloadButton(
            "Download the runs (zip)", interactive=False, elem_id="owner-download", min_width=190
        )
    status = gr.HTML(elem_id="owner-status")
    charts: list[gr.Plot] = []
    with gr.Row(elem_classes="fs-panels"):
        for column, _ in CHARTS:
            with gr.Column(elem_classes="fs-panel", min_width=0):
                charts.append(
                    gr.Plot(
                        show_label=False,
                        container=False,
                        buttons=[],
                        visible=False,
                        elem_id=f"owner-{column.replace('_', '-')}",
                    )
                )
    timer = gr.Timer(TICK_SECONDS, active=False)
    packed = gr.State(False)
    for event, action in (
        (unlock.click, actions.show),
        (start.click, actions.begin),
        (stop.click, actions.end),
        (timer.tick, actions.show),
    ):
        event(
            action,
            inputs=[token, packed],
            outputs=[status, *charts, timer, download, packed],
            show_progress="hidden",
            # Through the queue: gradio shows no message for an error outside of it.
            concurrency_limit=None,
            api_visibility="private",
        )


def _add_push(actions: _Actions, token: gr.Textbox) -> None:
    """Where the runs go, and the button that sends them there."""
    with gr.Accordion("Push to a repository of yours", open=False, elem_id="owner-push-section"):
        with gr.Row(elem_classes="fs-controls"):
            repo = gr.Textbox(
                label="Repository",
                value=os.environ.get("SPACE_ID", ""),
                placeholder="user/name",
                elem_id="owner-repo",
                min_width=200,
            )
            repo_type = gr.Radio(
                [("This or another Space", "space"), ("Model repository", "model")],
                value="space",
                label="Kind",
                elem_id="owner-kind",
                min_width=220,
            )
            write_token = gr.Textbox(
                label="Access token with write permission; not stored",
                type="password",
                elem_id="owner-write-token",
                min_width=240,
            )
        push = gr.Button("Push", elem_id="owner-push", min_width=90)
        pushed = gr.HTML(elem_id="owner-pushed")
    push.click(
        actions.send,
        inputs=[token, repo, repo_type, write_token],
        outputs=pushed,
        show_progress="minimal",
        api_visibility="private",
    )


def _add_entry(actions: _Actions, token: gr.Textbox) -> None:
    """Predictions of a model from elsewhere, put on the board as self-reported."""
    with gr.Accordion("Put predictions on the board", open=False, elem_id="owner-entry-section"):
        with gr.Row(elem_classes="fs-controls"):
            name = gr.Textbox(label="Name on the board", elem_id="owner-entry-name", min_width=200)
            page = gr.Textbox(
                label="Page that describes the model",
                placeholder="https://…",
                elem_id="owner-entry-url",
                min_width=240,
            )
        file = gr.File(
            label="CSV file of one test part: id and a column for each label",
            file_types=[".csv"],
            elem_id="owner-entry-file",
        )
        button = gr.Button("Put on the board", elem_id="owner-enter", min_width=150)
        entered = gr.HTML(elem_id="owner-entered")
    button.click(
        actions.enter,
        inputs=[token, name, page, file],
        outputs=entered,
        show_progress="minimal",
        api_visibility="private",
    )


class _Actions:
    """What the owner may do. Every action asks who is there; raises gr.Error for anybody else."""

    def __init__(self, owner: Owner, guest: Guest) -> None:
        self._owner, self._training, self._guest = owner, owner.training, guest
        self._guesses = Guesses()
        self._folder = tempfile.TemporaryDirectory(prefix="finsent-zip-")

    def show(
        self, given: str, is_packed: bool, profile: gr.OAuthProfile | None, request: gr.Request
    ) -> list[Any]:
        """Where the training stands."""
        self._require(given, profile, request)
        return self._view(is_packed)

    def begin(
        self, given: str, is_packed: bool, profile: gr.OAuthProfile | None, request: gr.Request
    ) -> list[Any]:
        """Starts it."""
        self._require(given, profile, request)
        obstacle = self._owner.obstacle()
        if obstacle is not None:
            raise gr.Error(f"Cannot train: {obstacle}.", print_exception=False)
        try:
            self._training.start()
        except OwnerTrainingError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return self._view(is_packed)

    def end(
        self, given: str, is_packed: bool, profile: gr.OAuthProfile | None, request: gr.Request
    ) -> list[Any]:
        """Cancels it."""
        self._require(given, profile, request)
        self._training.cancel()
        return self._view(is_packed)

    def send(
        self,
        given: str,
        name: str,
        kind: str,
        access: str,
        profile: gr.OAuthProfile | None,
        request: gr.Request,
    ) -> str:
        """Pushes what was trained."""
        self._require(given, profile, request)
        if not access.strip():
            raise gr.Error("Give an access token that may write.", print_exception=False)
        try:
            hub = self._owner.hub(access.strip())
            return notice("Done.", self._training.push(hub, name.strip(), kind))
        except OwnerTrainingError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def enter(
        self,
        given: str,
        name: str,
        page: str,
        file: str | None,
        profile: gr.OAuthProfile | None,
        request: gr.Request,
    ) -> str:
        """Scores predictions and puts them on the board; raises gr.Error where they are wrong."""
        self._require(given, profile, request)
        # Here, because it brings scikit-learn and the behaviour suite along.
        from finsent.entrants.labels import EntrantError
        from finsent.entrants.submitting import Submission, submit

        if not file:
            raise gr.Error("Choose a CSV file first.", print_exception=False)
        try:
            said = submit(
                [Path(file)],
                Submission(name.strip(), page.strip(), command="the Owner tab"),
                self._training.artifacts,
            )
        except EntrantError as error:
            shown = str(error).replace(str(Path(file).parent) + os.sep, "")
            raise gr.Error(shown, print_exception=False) from error
        return notice("Done.", f"{Path(said[0]).name} Load the page again to see it.")

    def invite(
        self,
        given: str,
        model: str,
        labels: str,
        profile: gr.OAuthProfile | None,
        request: gr.Request,
    ) -> str:
        """Lets a model from elsewhere answer beside ours."""
        self._require(given, profile, request)
        return add_guest(self._guest, model, labels)

    def dismiss(self, given: str, profile: gr.OAuthProfile | None, request: gr.Request) -> str:
        """Lets it answer no longer."""
        self._require(given, profile, request)
        return remove_guest(self._guest)

    def _require(self, given: str, profile: gr.OAuthProfile | None, request: gr.Request) -> None:
        username = None if profile is None else profile.username
        if self._owner.is_owner(None, username):
            return
        is_owner, wait = False, 0.0
        if given:
            address = getattr(request.client, "host", "")
            is_owner, wait = self._guesses.look(address, lambda: self._owner.is_owner(given, None))
        if wait > 0:
            raise gr.Error(
                f"Too many wrong secrets: the next one is looked at in {math.ceil(wait)} seconds.",
                print_exception=False,
            )
        if not is_owner:
            raise gr.Error("This is for the owner of the page only.", print_exception=False)

    def _view(self, is_packed: bool) -> list[Any]:
        training = self._training
        state = training.state
        figures = _figures(training)
        button: Any = gr.skip()
        if not is_packed and state.phase not in ACTIVE and not training.needed:
            name = f"finsent-{training.place.as_posix().replace('/', '-')}.zip"
            packed = training.zip_runs(Path(self._folder.name) / name)
            button = gr.update(value=str(packed), interactive=True)
            is_packed = True
        return [
            state_html(state),
            *figures,
            gr.Timer(active=state.phase in ACTIVE),
            button,
            is_packed,
        ]


def _figures(training: OwnerTraining) -> Sequence[Any]:
    histories = training.histories()
    if not histories:
        return [gr.update(visible=False) for _ in CHARTS]
    return [
        gr.Plot(training_figure(histories, column, title), visible=True) for column, title in CHARTS
    ]
