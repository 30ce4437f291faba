"""What the project promises about data: SECURITY.md names these tests.

A process that serves the page and scores a file is watched by Python's own audit hooks: nothing is
unpickled, nobody but this machine is spoken to, and what was typed is nowhere when it has ended.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finsent.results import leaderboard, manifest
from finsent.results.runs import Run
from tests.app_fixtures import free_port

ROOT = Path(__file__).resolve().parents[1]
TYPED = "Kestrelholm Brewing widened its loss by 4711 crowns"
UPLOADED = "Sandermoor Shipping doubled its dividend to 1213 cents"

WATCHED = """
import json, os, signal, sys, threading, time, urllib.error, urllib.request
from pathlib import Path

here = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", None)
seen = []

def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in here:
        seen.append(f"connects to {args[1][0]}")
    elif event == "socket.getaddrinfo" and args[0] not in here:
        seen.append(f"looks up {args[0]}")
    elif event == "os.fork":
        seen.append("forks a process, in which nothing is watched")
    elif event == "pickle.find_class":
        seen.append(f"unpickles {args[0]}.{args[1]}")

sys.addaudithook(watch)
artifacts, runs, port, typed, uploaded, report = sys.argv[1:]

def post(path, body, kind="application/json"):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/gradio_api/{path}", body,
                                     {"content-type": kind})
    return urllib.request.urlopen(request, timeout=60).read()

def visit():
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60).read()
            break
        except OSError:
            time.sleep(0.1)
    answers = []
    for name, data in (("compare", [typed, ""]), ("score", [[typed], "dendritic", ""])):
        event = json.loads(post(f"call/{name}", json.dumps({"data": data}).encode()))["event_id"]
        url = f"http://127.0.0.1:{port}/gradio_api/call/{name}/{event}"
        answers.append(urllib.request.urlopen(url, timeout=120).read().decode())
    file = f'--x\\r\\ncontent-disposition: form-data; name="files"; filename="a.csv"\\r\\n\\r\\n'
    post("upload", f"{file}text\\r\\n{uploaded}\\r\\n--x--\\r\\n".encode(),
         "multipart/form-data; boundary=x")
    kept = any(uploaded.encode() in p.read_bytes()
               for p in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if p.is_file())
    said = {"answers": answers, "kept while it runs": kept, "seen": sorted(set(seen))}
    Path(report).write_text(json.dumps(said))
    os.kill(os.getpid(), signal.SIGINT)

from finsent.commands.cli import main

source = Path(report).with_name("in.csv")
out = Path(report).with_name("out.csv")
source.write_text("text\\nProfit rose.\\n")
assert main(["score", str(source), "--column", "text", "--out", str(out), "--runs", runs]) == 0
threading.Thread(target=visit, daemon=True).start()
main(["app", "--artifacts", artifacts, "--port", port])
"""


@pytest.mark.slow
def test_nothing_leaves_the_machine_is_unpickled_logged_or_kept(
    trained: dict[str, Run], tiny_cache: Path, tmp_path: Path
) -> None:
    root = trained["baseline"].folder.parents[3]
    leaderboard.write(root)
    manifest.write_manifest(root)
    report = tmp_path / "report.json"
    places = {name: tmp_path / name for name in ("home", "temporary", "uploads")}
    for place in places.values():
        place.mkdir()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "GRADIO_", "COV_"))},
        "PYTHONPATH": str(ROOT),
        "FINSENT_CACHE_DIR": str(tiny_cache),
        "HOME": str(places["home"]),
        "TMPDIR": str(places["temporary"]),
        "GRADIO_TEMP_DIR": str(places["uploads"]),
    }
    arguments = [root, trained["baseline"].folder.parents[1], free_port(), TYPED, UPLOADED, report]
    ended = subprocess.run(
        [sys.executable, "-c", WATCHED, *map(str, arguments)],
        cwd=places["temporary"],
        env=environment,
        capture_output=True,
        timeout=240,
    )
    output = ended.stdout + ended.stderr
    assert report.is_file(), output.decode()
    said = json.loads(report.read_text())
    assert all("probabilities" in answer for answer in said["answers"]), said["answers"]
    assert said["kept while it runs"], "or the search below proves nothing"
    assert said["seen"] == []
    for text in (TYPED, UPLOADED):
        assert text.encode() not in output
    left = [
        path
        for place in (*places.values(), tiny_cache, root)
        for path in place.rglob("*")
        if path.is_file() and any(t.encode() in path.read_bytes() for t in (TYPED, UPLOADED))
    ]
    assert left == []


UNPICKLERS = {
    "pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib.load", "torch.load",
    "pandas.read_pickle", "pd.read_pickle", "yaml.load", "eval", "exec",
}  # fmt: skip
"""Names that turn bytes from a file into whatever the file says, code among it."""


def test_no_module_reads_what_could_run_code() -> None:
    found = []
    sources = [p for d in ("finsent", "bench") for p in (ROOT / d).rglob("*.py")]
    for path in [*sources, ROOT / "app.py", ROOT / "train_models.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {node.module or "", *(f"{node.module}.{a.name}" for a in node.names)}
            elif isinstance(node, ast.Call):
                given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                names = set() if given.get("weights_only") is True else {ast.unparse(node.func)}
                if given.get("allow_pickle", False) is not False:
                    names.add("pickle")
            else:
                continue
            for name in names & UNPICKLERS:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert found == []


def test_no_line_of_a_log_holds_a_text() -> None:
    """Calls of loggers and of print in what serves are few, and none is given a text."""
    said = []
    for folder in ("serving", "ui", "engines"):
        for path in (ROOT / "finsent" / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func)
                    if name == "print" or name.startswith(("_log.", "logging.", "warnings.")):
                        given = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                        if given & {"text", "texts", "item", "items", "row", "rows", "headline"}:
                            said.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert said == []
