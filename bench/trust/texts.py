"""Generated texts through the model, the API and the command line."""

from __future__ import annotations

import csv
import json
import math
import random
import urllib.error
import urllib.request

from bench.screenshots import own_app
from bench.trust.scenario import RUNS, Setting, Tally, finsent

PIECES = (
    "Profit rose", "sales fell", "\u202eesrever", "\ufeff", "<script>alert(1)</script>", "=1+1",
    '"quoted"', "a,b;c", "line\nbreak", "\r", "\t", "\u2028", "𝔘𝔫𝔦", "利润上升", "ربح", "🚀" * 9,
    "\u0301" * 40, "%s %n", "{0}", "${x}", "\\", "'; --", "NaN", "1e999", "9" * 60, "\u200d",
    "\x1b[31m", "\x07", "Ｆｕｌｌ", "@cmd", "-2+3", "|", "\u00a0", "ﬁ", "İ", "ß", "…",
)  # fmt: skip
STRANGE = ("", " \n", "x" * 20_001, "\ud800", 7, None, ["a"], {"a": 1}, True, 1.5)
"""What must be refused, each by a message."""


def text(draw: random.Random) -> str:
    """Of pieces and characters from anywhere, up to 2,000 characters; no half characters."""
    parts = [draw.choice(PIECES) for _ in range(draw.choice((1, 2, 3, 5, 30)))]
    for _ in range(draw.choice((0, 1, 8))):
        code = draw.randrange(1, 0x11000)
        parts.append("?" if 0xD800 <= code < 0xE000 else chr(code))
    draw.shuffle(parts)
    return draw.choice((" ", "")).join(parts)[:2000].strip() or "Profit"


def through_the_model(setting: Setting) -> Tally:
    """Page functions: what a text is refused for, the answer, and the card that shows it."""
    from finsent.results.catalog import Catalog
    from finsent.serving.comparer import Comparer
    from finsent.serving.service import ModelService
    from finsent.ui.parts.cards import result_dict
    from finsent.ui.parts.headline import text_problem

    tally, draw = Tally(), setting.random
    service = ModelService(
        Catalog.read(RUNS.parents[1]),
        lambda folder, seed, arms, progress: Comparer.from_artifacts(folder, seed, arms),
        lambda: False,
    )
    service.start()
    service.wait(300)
    selection = service.default_selection()
    for _ in range(setting.count(2000)):
        given = text(draw)
        if text_problem(given) is not None:
            tally.check(True, "")
            continue
        said = result_dict(service.compare(given, selection))
        answers = said["predictions"].values()
        sums = [sum(answer["probabilities"].values()) for answer in answers]
        whole = json.loads(json.dumps(said, allow_nan=False))["text"] == given
        tally.check(whole and all(math.isclose(s, 1, abs_tol=1e-6) for s in sums), repr(given))
    for strange in STRANGE:
        tally.check(text_problem(strange) is not None, repr(strange)[:60])
    return tally


def post(url: str, data: object, name: str = "compare") -> str:
    """The server's events for one call, or the body of its refusal."""
    call = urllib.request.Request(
        f"{url}/gradio_api/call/{name}",
        json.dumps({"data": data}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(call, timeout=120) as response:
            event = json.load(response)["event_id"]
        with urllib.request.urlopen(f"{call.full_url}/{event}", timeout=120) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        return f"refused {error.code}"


def through_the_api(setting: Setting) -> Tally:
    """/compare and /score of a running app."""
    tally, draw = Tally(), setting.random
    with own_app(None) as url:
        for _ in range(setting.count(300)):
            given = text(draw)
            said = post(url, [given, ""])
            named = "event: error" in said and "characters" in said
            tally.check("event: complete" in said or named, f"{given!r}: {said[:200]}")
        for strange in STRANGE:
            for data, name in (([strange, ""], "compare"), ([[strange], "baseline", ""], "score")):
                said = post(url, data, name)
                tally.check(
                    ("event: error" in said or "refused 4" in said) and "Traceback" not in said,
                    f"{name} {strange!r}: {said[:200]}"[:300],
                )
        tally.check("event: complete" in post(url, ["Profit rose.", ""]), "answers afterwards")
    return tally


def through_the_command(setting: Setting) -> Tally:
    """`finsent score` of a CSV file of such texts: every strict reader gets the same cells back."""
    tally, draw = Tally(), setting.random
    given = [text(draw).replace("\r", " ").strip() or "x" for _ in range(setting.count(2000))]
    source, out = setting.folder / "in.csv", setting.folder / "out.csv"
    with source.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([["n", "text"], *([i, line] for i, line in enumerate(given))])
    ended = finsent("score", source, "--column", "text", "--out", out, "--runs", RUNS)
    if ended.returncode != 0:
        tally.check(False, ended.stderr[-300:])
        return tally
    with out.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.reader(stream, strict=True))
    tally.check(len(rows) == len(given) + 1, f"{len(rows)} rows of {len(given)}")
    label = next(i for i, name in enumerate(rows[0]) if "label" in name.lower())
    # That there are as many has just been counted; the others are compared all the same.
    for row, before in zip(rows[1:], given, strict=False):
        # A cell that a spreadsheet would take for a formula gets an apostrophe in front.
        same = row[1] == before or row[1] == f"'{before}"
        tally.check(same and bool(row[label]), repr(before)[:80])
    return tally
