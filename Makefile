# Everything is installed into .venv and nowhere else; `rm -rf .venv` undoes it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
CHECKSUMS := find nbs dreamda README.md \( -name '*.ipynb' -o -name '*.py' -o -name README.md \) \
	-not -path '*/.ipynb_checkpoints/*' -exec cksum {} + | sort -k 3

.PHONY: help demo test docs soak export clean env

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile

demo: env ## install what is needed, expand a few digits, train with and without the synthetic images: did it help?
	@mkdir -p out
	$(BIN)/papermill nbs/quickstart.ipynb out/quickstart.ipynb -p out out/quickstart
	@echo; cat out/quickstart/summary.txt
	@echo; echo 'The executed notebook, with all pictures: out/quickstart.ipynb'

test: export HF_HUB_OFFLINE := 1
test: env ## install what is needed, run all tests
	@echo '== Are the modules and README.md those of the notebooks, and the notebooks clean?'
	@$(CHECKSUMS) > .venv/before
	@$(MAKE) -s --no-print-directory export
	@$(CHECKSUMS) > .venv/after
	@changed=$$(diff .venv/before .venv/after | sed -n 's/^[<>] [0-9]* [0-9]* //p' | sort -u); test -z "$$changed" || \
		{ printf 'No, `make export` had to change these (see `git diff`):\n%s\n' "$$changed"; exit 1; }
	@echo '== Does every notebook run?'
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --do_print --timing
	@echo '== What a cell cannot show'
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -q -n 2 --durations 5

docs: env ## build the site, _docs/index.html, from the notebooks and their stored outputs, and check it
	OMP_NUM_THREADS=1 $(BIN)/python docs/build.py
	SITE=_docs $(BIN)/pytest tests/test_docs.py -q

soak: KILLS ?= 200
soak: env ## kill a run at 200 random moments and go on each time; the record: results/reliability/kills.json
	@mkdir -p results/reliability
	KILLS=$(KILLS) RECORD=$(CURDIR)/results/reliability/kills.json HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_expand.py -q -k killed

export: env ## make the modules and README.md from the notebooks, and clean these
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/jupyter-nbconvert --to markdown --no-input --log-level WARN --output-dir . --output README nbs/index.ipynb

clean: ## remove what the other commands made, but for .venv and cache
	rm -rf out build dist *.egg-info _proc _docs .pytest_cache
	find dreamda tests nbs \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

env: .venv/installed

.venv/installed: settings.ini setup.py
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or newer is needed: install it, or name it, as in make PYTHON=/path/to/python3'; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/pip install -q uv || echo 'No uv: pip takes some minutes longer.'
	@echo 'Installing into .venv: PyTorch and more, up to 6 GB'
	@PATH="$$PATH:$$PWD/$(BIN)" uv pip install --python $(BIN)/python -e '.[dev]' || $(BIN)/pip install -e '.[dev]'
	@touch $@
