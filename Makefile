# Everything is installed into .venv and nowhere else; `rm -rf .venv` undoes it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
CHECKSUMS := find nbs dreamda README.md \( -name '*.ipynb' -o -name '*.py' -o -name README.md \) \
	-not -path '*/.ipynb_checkpoints/*' -exec cksum {} + | sort -k 3

.PHONY: help demo test lint tables tables-quick photos docs soak export clean env

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile

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
	@$(MAKE) -s --no-print-directory lint
	@echo '== Does every notebook run, and what a cell cannot show?'
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -q -n 2 --dist worksteal --durations 10 --ignore tests/test_style.py

lint: env ## check format and style of notebooks, tests and docs, and count what CONTRIBUTING promises
	@echo '== Is the style that of CONTRIBUTING?'
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_style.py -q

TABLES = OMP_NUM_THREADS=1 $(BIN)/papermill nbs/$(1).ipynb out/tables/$(1)$(3).ipynb $(2) $(if $(DATA),-p data $(DATA)) $(if $(MODEL),-p model $(MODEL))

tables: env ## every table and figure of the paper on the digits, 5 splits, in some hours; goes on where it was; DATA=folder for your own
	@mkdir -p out/tables
	$(call TABLES,accuracy)
	$(call TABLES,similarity)
	$(call TABLES,backbones)
	$(call TABLES,labels)
	for s in 1 3 5; do $(call TABLES,ablation,-p sigma $$s -p seeds 5,-sigma$$s) || exit 1; done
	$(call TABLES,ablation,-p study components -p sigma 1.5 -p seeds 5,-components)
	$(call TABLES,ablation,-p study sites -p seeds 5,-sites)
	$(call TABLES,ablation,-p study sites -p labels amst -p scales '' -p seeds 5,-sites-amst)
	$(call TABLES,gallery)
	$(call TABLES,paper_and_release)
	$(BIN)/papermill nbs/claims.ipynb out/tables/claims.ipynb

QUICK = -p seeds 2 -p expansion 2 -p updates 100

tables-quick: env ## the same in small, to see that all of it runs: 2 splits, in ten minutes; the tables go to out/tables-quick
	@mkdir -p out/tables
	$(call TABLES,accuracy,$(QUICK) -p methods 'sd sdedit dreamda' -p semi False -p out out/tables-quick/accuracy)
	$(call TABLES,similarity,-p seeds 2 -p expansion 2 -p methods 'sd sdedit dreamda' -p out out/tables-quick/similarity)
	$(call TABLES,backbones,$(QUICK) -p methods dreamda -p classifiers 'resnet_tiny test_vit' -p out out/tables-quick/backbones)
	$(call TABLES,labels,$(QUICK) -p per_class 5 -p labellers 'clip amst' -p out out/tables-quick/labels)
	$(call TABLES,ablation,$(QUICK) -p sigma 3 -p out out/tables-quick/ablation,-sigma3)
	$(call TABLES,ablation,$(QUICK) -p study components -p sigma 1.5 -p out out/tables-quick/ablation,-components)
	$(call TABLES,ablation,$(QUICK) -p study sites -p scales 1 -p level 0 -p out out/tables-quick/ablation,-sites)
	$(BIN)/papermill nbs/claims.ipynb out/tables/claims.ipynb -p out out/tables-quick

photos: env ## the comparison of methods on four sets of photographs, some hours each on two cores; goes on where it was
	@mkdir -p out/tables
	for d in sign_digits10 clothing10 chest_xray_pneumonia caltech101-small; do $(call TABLES,photos,-p data $$d,-$$d) || exit 1; done

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
