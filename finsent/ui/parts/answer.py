"""What is shown of an answered headline: the answer, one chart, what it means, details behind it.

HTML only, no events. `finsent/ui/page.js` dims it while the next headline is being answered and
reveals it to who guesses first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from finsent.machine.timing import SETTLED, Median, PairedTimes, Spread
from finsent.plots.style import ARM_STYLES, OTHER_STYLE, ArmStyle
from finsent.results.catalog import (
    Catalog,
    Selection,
    backbone_title,
    dataset_examples,
    dataset_title,
)
from finsent.results.disagreements import Found
from finsent.results.runs import EXTERNAL
from finsent.results.text import count
from finsent.serving.answers import Answer, confidence_gap
from finsent.serving.service import WARMUP, Outcome, Passage
from finsent.ui.parts.cards import ARM_NOTES, missing_arm_notice, no_dendrite_notice
from finsent.ui.parts.markup import (
    label_mark,
    milliseconds,
    notice,
    percent,
    percent_interval,
    plain_device,
    signed,
    swatch,
    table,
)
from finsent.ui.tables.matrix import badge

if TYPE_CHECKING:
    from finsent.entrants.guest import Beside

WHAT = (
    "Baseline: fine-tuned with LoRA alone, small trained matrices beside the model’s frozen "
    "weights. Dendritic: with dendrites as well, extra units that PerforatedAI adds while it "
    "trains."
)
"""Said below the bars where the page's head has no room for it."""
WORTH_SAYING_MS = 500.0
"""A wait that is shorter is not mentioned."""
PASSAGE_CHARACTERS = 170


def answered_html(
    catalog: Catalog,
    outcome: Outcome,
    *,
    guess: bool = False,
    coming: str = "",
    problem: str = "",
    found: Found | None = None,
    beside: Beside | None = None,
) -> str:
    """An answer as the page shows it.

    guess: hide it until the visitor has guessed. coming: folder name of the base model that was
    asked for and is not in memory. problem: why that cannot be loaded, if it cannot. found: the
    search that this text came from, if it came from one. beside: what a model from elsewhere says.
    """
    given = [*outcome.answers]
    if beside is not None and beside.answer is not None:
        given.append(beside.answer)
    agree = len({answer.label for answer in given}) == 1
    waits = f' data-waits-for="{escape(coming)}"' if coming and not problem else ""
    body = (
        _says(outcome, given, agree)
        + _notices(catalog, outcome, coming, problem, found)
        + _beside_notice(outcome, beside)
        + _chart(given, beside)
        + f'<p class="fs-quiet fs-narrow-only">{WHAT}</p>'
        + _passages(outcome.passages)
        + f'<p class="fs-quiet">{_times(outcome.times, outcome.device_name)}'
        + f"{_beside_time(beside)}</p>"
        + f'<p class="fs-quiet">{_context(catalog, outcome.selection)}</p>'
        + _details(catalog, outcome)
    )
    return (
        f'<section class="fs-result" data-agree="{str(agree).lower()}"{waits}>'
        f'<blockquote dir="auto">{escape(outcome.result.text.strip())}</blockquote>'
        + (_guessing(given, body) if guess else body)
        + "</section>"
    )


def waiting_html(message: str) -> str:
    """Shown instead of an answer while the model loads."""
    return (
        '<section class="fs-result" data-agree="waiting"><p class="fs-says">'
        "Your headline is answered as soon as the model is loaded.</p>"
        f'<p class="fs-quiet">{escape(message)}</p></section>'
    )


def problem_html(problem: str) -> str:
    """Shown instead of an answer: what is wrong with the text or the model."""
    return (
        '<section class="fs-result" data-agree="problem" role="alert">'
        f'<p class="fs-says">{escape(problem)}</p></section>'
    )


def _style(arm: str) -> ArmStyle:
    return ARM_STYLES.get(arm, OTHER_STYLE)


def _name(arm: str) -> str:
    return _style(arm).title


def _label(label: str) -> str:
    return f'<b data-label="{escape(label)}">{label_mark(label)} {escape(label)}</b>'


def _says(outcome: Outcome, given: Sequence[Answer], agree: bool) -> str:
    """The answer in words."""
    if len(given) == 1:
        said = f"{_name(given[0].arm)} says {_label(given[0].label)}"
    elif agree:
        who = "Both models" if len(given) == 2 else f"All {len(given)} models"
        said = f"{who} say {_label(given[0].label)}"
    else:
        said = "They disagree: " + ", ".join(
            f"{_name(a.arm).lower()} says {_label(a.label)}" for a in given
        )
    sub = []
    if agree and len(given) > 1:
        sub.append(f"Same answer; confidence differs by {_points(confidence_gap(given))}.")
    sub += [*_our_label(outcome), *_doubt(outcome.answers)]
    if outcome.queue_ms >= WORTH_SAYING_MS:
        sub.append(f"It waited {outcome.queue_ms / 1000:.1f} s for its turn.")
    shown = given[0].label if agree else "differ"
    return (
        f'<p class="fs-says" data-label="{escape(shown)}">{said}</p>'
        f'<p class="fs-sub">{" ".join(sub)}</p>'
    )


def _points(gap: float) -> str:
    return f"{gap:.1f} point{'' if gap == 1 else 's'}"


def _doubt(given: Sequence[Answer]) -> list[str]:
    """Which models are unsure, and how often answers with so little confidence are wrong.

    Of each by its own confidence: beside an unsure answer there may be a sure one.
    """
    unsure = [a for a in given if a.unsure]
    said = []
    expected = dict.fromkeys(_wrong_of_ten(a) for a in unsure)
    for wrong in expected:
        alike = [a for a in unsure if _wrong_of_ten(a) == wrong]
        if len(alike) == len(given) > 1:
            who = "Both models are" if len(given) == 2 else "All models are"
        else:
            names = " and ".join(_name(a.arm).lower() for a in alike)
            who = f"The {names} {'model is' if len(alike) == 1 else 'models are'}"
        shown = " and ".join(percent(a.confidence) for a in alike)
        # Raw probabilities were measured against nothing: they promise no share of errors.
        expect = (
            ""
            if any(a.calibration is None for a in alike)
            else f": of 10 answers with so little confidence, expect {wrong} to be wrong"
        )
        said.append(f"<b>{who} unsure ({shown}){expect}.</b>")
    return said


def _wrong_of_ten(answer: Answer) -> int:
    return round(10 * (1 - answer.confidence))


def _our_label(outcome: Outcome) -> list[str]:
    """Of an example that this project wrote: which label it was meant to have, where a model gives
    another one."""
    meant = {e.text: e.label for e in dataset_examples(outcome.selection.dataset)}
    label = meant.get(outcome.result.text.strip())
    wrong = [_name(a.arm).lower() for a in outcome.answers if label and a.label != label]
    if label is None or not wrong:
        return []
    said = f"Our label for this example: {_label(label)}"
    everyone = len(wrong) == len(outcome.answers) > 1
    who = f"{'both' if len(wrong) == 2 else 'all'} models" if everyone else " and ".join(wrong)
    return [f'{said}; <b class="fs-flag">{who} got it wrong.</b>']


def _notices(
    catalog: Catalog, outcome: Outcome, coming: str, problem: str, found: Found | None
) -> str:
    """What stands between the answer and the chart, if anything does."""
    said = missing_arm_notice(outcome.selection) + no_dendrite_notice(catalog, outcome.selection)
    if problem:
        said += notice(
            f"{backbone_title(coming)} could not be loaded.",
            f"{problem} {backbone_title(outcome.selection.backbone)} answers instead; ask again to "
            "try once more.",
            tone="warning",
        )
    elif coming:
        said += notice(
            f"{backbone_title(coming)} is being loaded.",
            f"{backbone_title(outcome.selection.backbone)} answers meanwhile; this answer is "
            "renewed when the other model is ready.",
        )
    for remark in outcome.notices:
        said += notice("Careful.", remark.message, tone="warning")
    if outcome.result.truncated:
        said += notice(
            "Long text.",
            f"The models read one sentence at a time, so this text was read in "
            f"{len(outcome.passages)} passages; the answer above is their mean, weighted by "
            "length.",
        )
    if found is not None:
        share = percent(found.differ / found.searched)
        said += notice(
            "Picked because they disagree.",
            f"It is one of {found.differ:,} made-up headlines, {share} of {found.searched:,} that "
            "were searched, which these two answer differently.",
        )
    return said


def _beside_notice(outcome: Outcome, beside: Beside | None) -> str:
    """Why a model from elsewhere has no bar, or what it did not read."""
    if beside is None:
        return ""
    if beside.problem:
        return notice(f"{beside.name} is left out.", beside.problem, tone="warning")
    if outcome.result.truncated:
        return notice("Long text.", f"{beside.name} reads its beginning only.")
    return ""


def _beside_time(beside: Beside | None) -> str:
    if beside is None or beside.answer is None:
        return ""
    said = f"<b>{milliseconds(beside.latency_ms)}</b> this time"
    if beside.times is not None:
        said = (
            f"<b>{milliseconds(beside.times.value)}</b>, the median of its last {beside.n}"
            f"{_half(beside.times)}"
        )
    return f" The other model: {said}, reading the text included, on {escape(beside.device)}."


def _chart(given: Sequence[Answer], beside: Beside | None) -> str:
    """All labels, a bar for each model in each."""
    notes = {**ARM_NOTES, **({} if beside is None else {EXTERNAL: beside.name})}
    legend = "".join(
        f'<li title="{escape(notes[a.arm])}">{swatch(a.arm, style=_style(a.arm))}'
        f'{escape(_name(a.arm))} <span class="fs-quiet">{escape(notes[a.arm])}</span></li>'
        for a in given
    )
    groups = ""
    for place, label in enumerate(given[0].label_names):
        bars = "".join(_bar(a, place, label) for a in given)
        groups += f"<dt>{escape(label)}</dt><dd>{bars}</dd>"
    return f'<ul class="fs-legend">{legend}</ul><dl class="fs-merged">{groups}</dl>'


def _bar(answer: Answer, place: int, label: str) -> str:
    value = answer.shown[place]
    return (
        f'<div class="fs-bar" data-arm="{answer.arm}" data-label="{escape(label)}" '
        f'data-top="{str(answer.label == label).lower()}" '
        f'style="--arm:{_style(answer.arm).colour}">'
        f'<span class="fs-hidden">{escape(_name(answer.arm))}</span>'
        f'<span class="fs-track" aria-hidden="true"><i style="width:{100 * value:.2f}%"></i></span>'
        f"<b>{percent(value)}</b></div>"
    )


def _passages(passages: Sequence[Passage]) -> str:
    if not passages:
        return ""
    rows = []
    for number, passage in enumerate(passages, start=1):
        text = passage.text
        cut = text if len(text) <= PASSAGE_CHARACTERS else text[:PASSAGE_CHARACTERS] + " …"
        labels = [f"{_label(a.label)} {percent(a.confidence, 0)}" for a in passage.answers]
        rows.append([str(number), f'<span dir="auto">{escape(cut)}</span>', *labels])
    names = [escape(_name(a.arm)) for a in passages[0].answers]
    return (
        '<details data-keep="passages" open><summary>Answer by passage</summary>'
        + table(
            ["", "Passage", *names],
            rows,
            caption="What the models say of each passage",
            css_class="fs-passages",
        )
        + "</details>"
    )


def _digits(milliseconds: float) -> int:
    return 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0


def _half(found: Spread) -> str:
    """Between which times half of the answers lie; nothing where rounding leaves no room."""
    low, high = (f"{bound:,.{_digits(found.value)}f}" for bound in (found.low, found.high))
    return "" if low == high else f" (half of them took {low} to {high})"


def _times(times: PairedTimes | None, device: str) -> str:
    """How long each model takes, and whether they differ in that."""
    if times is None:
        return (
            f"The time taken is shown from the {WARMUP + SETTLED}th answer on: the first ones "
            "take longer."
        )
    of = f"the median of the last {times.n} answers to anybody here"
    where = f"Computed on {escape(plain_device(device))}."
    if times.ratios and all(r.low == r.high == 1 for r in times.ratios.values()):
        # Arms that one pass answers have no time of their own.
        both = next(iter(times.spreads.values()))
        return (
            f"Time for a headline: <b>{milliseconds(both.value)}</b>, {of}{_half(both)}. All "
            "models answer in one pass here, so none has a time of its own; Results, Speed times "
            f"each alone. {where}"
        )
    said = ", ".join(
        f"{_name(arm).lower()} <b>{milliseconds(found.value)}</b>{_half(found)}"
        for arm, found in times.spreads.items()
    )
    compared = []
    first = _name(next(iter(times.spreads))).lower()
    for arm, ratio in times.ratios.items():
        if times.differs(arm):
            compared.append(
                f"{_name(arm).lower()} takes {ratio.value:.2f} times as long as {first} "
                f"({_interval(ratio)})"
            )
        else:
            compared.append(f"no measurable difference between {_name(arm).lower()} and {first}")
    tail = f"; {'; '.join(compared)}" if compared else ""
    return f"Time for a headline, {of}: {said}{tail}. {where}"


def _interval(ratio: Median) -> str:
    return f"95\u202f% interval {ratio.low:.2f} to {ratio.high:.2f}"


def _context(catalog: Catalog, selection: Selection) -> str:
    """What the test set says beside this one headline."""
    said = []
    share = catalog.agreement(selection)
    if share is not None and len(selection.arms) > 1:
        *others, last = (_name(arm).lower() for arm in selection.arms)
        who = f"{', '.join(others)} and {last}".capitalize()
        said.append(f"{who} agree on <b>{percent(share[0])}</b> of {share[1]:,} held-out texts.")
    said.append(_across(catalog, selection))
    return " ".join(said)


def _across(catalog: Catalog, selection: Selection) -> str:
    """What the board found for these models, with all that weakens it."""
    board = catalog.leaderboard or {}
    for c in board.get("comparisons", []):
        name = catalog.of(selection.backbone, selection.dataset)[0].backbone
        place = (c["backbone"], c["dataset"], c["a"], c["b"])
        if place == (name, selection.dataset, "baseline", "dendritic"):
            runs = len(c["seeds"])
            over = f"Across {c['n'] // runs:,} test texts × {runs} run{'s' if runs > 1 else ''}"
            low, high = c["accuracy_ci_points"]
            found = {
                "tied": "no measurable difference",
                "better": "dendritic is more accurate",
                "worse": "dendritic is less accurate",
            }[c["outcome"]]
            weak = ", ".join(badge(board, c)["weak"])
            return (
                f"{over} ({escape(dataset_title(selection.dataset))}): <b>{found}</b> "
                f"(dendritic minus baseline {signed(c['accuracy_delta_points'])} points, "
                f"95\u202f% interval {signed(low)} to {signed(high)})"
                f"{f': {escape(weak)}' if weak else ''}."
            )
    return ""


def _details(catalog: Catalog, outcome: Outcome) -> str:
    """Sets, calibration and what the runs are: a column for each model."""
    given = outcome.answers
    facts: dict[str, list[str]] = {}

    def add(name: str, cells: Sequence[str]) -> None:
        if any(cells):
            facts[name] = list(cells)

    add("Labels that cannot be ruled out", [escape(a.set_words or "") for a in given])
    calibrations = [a.calibration for a in given]
    add(
        "How often the labels so found, one or more, held the true one",
        [
            "" if c is None else f"{percent(c.coverage_measured)} of {c.n_test:,} test texts"
            for c in calibrations
        ],
    )
    add("Probabilities before calibration", [_raw(a) for a in given])
    add(
        "How far confidence is toned down (temperature; 1: not at all)",
        ["" if c is None else f"{c.temperature:.2f}" for c in calibrations],
    )
    runs = [
        catalog.run(s.backbone, s.dataset, a.arm, s.seed)
        for s in (outcome.selection,)
        for a in given
    ]
    metrics: list[Mapping[str, Any]] = [run.metrics for run in runs]
    add(
        "Test accuracy, 95\u202f% interval",
        [f"{percent(m['accuracy'])} ({percent_interval(m['ci']['accuracy'])})" for m in metrics],
    )
    add("Trained parameters", [count(m["trainable_params"]) for m in metrics])
    add("Dendrites kept", [count(m["dendrites"]) for m in metrics])
    about = (
        "The chart shows raw probabilities: these runs kept no validation predictions to "
        "calibrate with."
    )
    if calibrations[0] is not None:
        about = (
            "The chart shows calibrated probabilities: a temperature, fitted on validation data, "
            "brings them to how often such answers are right."
        )
        if calibrations[0].transfer is not None:
            about += (
                " Models that were tested on news sources they had not been trained on showed how "
                "far confidence has to be lowered for other news, and it is lowered so here."
            )
    return (
        '<details data-keep="details"><summary>Details: calibration, label sets, runs</summary>'
        + table(
            ["", *(f"{swatch(a.arm)} {escape(_name(a.arm))}" for a in given)],
            [[name, *cells] for name, cells in facts.items()],
            caption="Details of the answer",
            css_class="fs-narrow",
        )
        + f'<p class="fs-quiet">{about} The text has {outcome.result.n_tokens} tokens.</p>'
        + "</details>"
    )


def _raw(answer: Answer) -> str:
    if answer.calibration is None:
        return ""
    pairs = zip(answer.label_names, answer.raw, strict=True)
    return ", ".join(f"{escape(name)} {percent(p)}" for name, p in pairs)


def _guessing(given: Sequence[Answer], body: str) -> str:
    """The question first; the answer is there and hidden until it has been guessed."""
    names = given[0].label_names
    buttons = "".join(
        f'<button type="button" data-guess="{escape(name)}">{label_mark(name)} {escape(name)}'
        "</button>"
        for name in names
    )
    said = "".join(
        f'<p class="fs-guessed" data-for="{escape(name)}" hidden>{_verdict(given, name)}</p>'
        for name in names
    )
    return (
        '<div class="fs-guess"><p class="fs-says">What would you say?</p>'
        f"<div>{buttons}</div></div>"
        f'{said}<div class="fs-reveal" hidden>{body}</div>'
    )


def _verdict(given: Sequence[Answer], guess: str) -> str:
    """What to say of a guess."""
    same = [_name(a.arm).lower() for a in given if a.label == guess]
    if len(same) == len(given):
        rest = "so do both models" if len(given) == 2 else "so do the models"
    elif same:
        rest = (
            f"{' and '.join(same)} too, the other not"
            if len(given) == 2
            else (f"{' and '.join(same)} too, not the others")
        )
    else:
        rest = "the models do not" if len(given) > 1 else "the model does not"
    return f"You say {escape(guess)}; {rest}."
