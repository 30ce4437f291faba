# `make app` and `make test` do everything on a fresh machine: environment, dependencies, run.
PYTHON ?= python3
PORT ?= 7860
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: app train test quick coverage check figures leaderboard verify screenshots readme report trust audit clean

# Stamps: an environment is made again when what it should hold has changed.
$(VENV)/app.stamp: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 12) or sys.exit("finsent needs Python 3.11 or 3.12, this is %d.%d; try: make PYTHON=python3.12 app" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -r requirements.txt
	touch $@

$(VENV)/dev.stamp: $(VENV)/app.stamp requirements-dev.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-dev.txt
	touch $@

# The demo on the embedded default. The first start takes the 83 MB of weights.
app: $(VENV)/app.stamp
	$(BIN)/python app.py --port $(PORT)

# One seed, all three arms, AllAgree; `python app.py --artifacts runs` shows the result.
train: $(VENV)/app.stamp
	$(BIN)/python train_models.py train --dataset allagree --seeds 0 --artifacts runs

figures leaderboard verify: $(VENV)/app.stamp
	$(BIN)/python train_models.py $@

# The results tables in README.md and docs/results.md, from artifacts/leaderboard.json.
readme: $(VENV)/app.stamp
	$(BIN)/python -m finsent.reports.readme

# docs/report.md, its appendix and docs/submission.md with their figures, from artifacts/.
report: $(VENV)/app.stamp
	$(BIN)/python -m finsent.reports.report

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check
	@command -v chromium > /dev/null || sh tests/install_chromium.sh
	$(PYTEST) -m "not slow" --cov --cov-report=term --cov-fail-under=70
	$(PYTEST) -m slow --durations=20
	$(BIN)/python train_models.py verify

# Branch coverage of everything. Tracing makes the slow tests take half as long again, so `make test`
# measures that of the quick ones.
coverage: $(VENV)/dev.stamp
	$(PYTEST) --cov --cov-report=term

# What can be waited for after every change: no apps, browsers, clusters or trainers, no whole data sets.
quick: check
	$(PYTEST) -m "not slow" --durations=20

# Everything that is known to break such a project, with the real model; writes docs/trust.md.
trust: $(VENV)/dev.stamp
	$(BIN)/python -m bench.trust

# The pinned versions against published advisories. Needs the network, so `make test` leaves it out.
audit: $(VENV)/dev.stamp
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

# Every tab of the app, light and dark, at 1440 and 390 pixels, into screenshots/.
screenshots: $(VENV)/dev.stamp
	$(BIN)/python bench/screenshots.py screenshots

clean:
	rm -rf $(VENV) runs screenshots
