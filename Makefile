# CCO: one target for each command of cco.py. All logic is in Python.
# make hides exit codes (it ends with 2 for every failure); cron jobs that need them call cco.py directly.

PYTHON ?= python3
# The folder of this file, also with spaces in it, through a link, and under `make -f kit/Makefile`.
KIT := $(shell m='$(subst ','\'',$(MAKEFILE_LIST))'; m="$${m# }"; cd -- "$$(dirname -- "$$m")" && pwd -P)
RUN = "$(KIT)/.venv/bin/python" "$(KIT)/cco.py"

# What is given on the command line reaches the shell as a variable, whatever is in it.
override export MISSION := $(value MISSION)
override export CONFIG := $(value CONFIG)
override export SESSION := $(value SESSION)
override export TEMPLATE := $(value TEMPLATE)
override export TEXT := $(value TEXT)
override export ID := $(value ID)

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this help
	@awk -F ':.*## ' '/^##@/ { print "\n" substr($$0, 5) } /^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' "$(KIT)/Makefile"

##@ A mission (MISSION=missions/api.yaml CONFIG=file SESSION=id TEXT=note ID=criterion ACCEPT=1 ARGS="--once --no-wait")
.PHONY: init
init: venv ## write .cco/config.yaml, and MISSION from TEMPLATE=hello if it is named
	@$(RUN) init $(if $(MISSION),--mission "$$MISSION") $(if $(TEMPLATE),--template "$$TEMPLATE") $(ARGS)

.PHONY: check
check: venv ## validate MISSION and run its checks once; starts no session
	@$(RUN) check $(if $(CONFIG),--config "$$CONFIG") $(if $(MISSION),"$$MISSION") $(ARGS)

.PHONY: start
start: venv ## work on MISSION until it is done; safe to call again at any time
	@$(RUN) start $(if $(CONFIG),--config "$$CONFIG") $(if $(ACCEPT),--accept) $(if $(MISSION),"$$MISSION") $(ARGS)

.PHONY: resume
resume: venv ## go on with the mission of this repository, or with SESSION
	@$(RUN) resume $(if $(SESSION),--session "$$SESSION") $(if $(CONFIG),--config "$$CONFIG") $(if $(ACCEPT),--accept) $(ARGS)

.PHONY: status
status: venv ## one line for each mission, or the criteria of SESSION
	@$(RUN) status $(if $(SESSION),--session "$$SESSION") $(if $(MISSION),"$$MISSION") $(ARGS)

.PHONY: stop
stop: venv ## end after the current session; twice: now
	@$(RUN) stop $(if $(MISSION),"$$MISSION") $(ARGS)

.PHONY: tell
tell: venv ## leave a note for the worker: TEXT="use the staging database"
	@$(RUN) tell $(if $(SESSION),--session "$$SESSION") $(ARGS) -- "$$TEXT"

.PHONY: accept
accept: venv ## say as the user that the criterion ID is met
	@$(RUN) accept $(if $(SESSION),--session "$$SESSION") $(ARGS) -- "$$ID"

.PHONY: draft
draft: venv ## make a mission with checks from plain words: TEXT="an API for tasks"
	@$(RUN) draft $(if $(CONFIG),--config "$$CONFIG") $(ARGS) -- "$$TEXT"

.PHONY: models
models: venv ## list the models that the manager may be, with prices (ARGS=--free)
	@$(RUN) models $(ARGS)

.PHONY: report
report: venv ## write the report (Markdown and HTML) and print it
	@$(RUN) report $(if $(SESSION),--session "$$SESSION") $(ARGS)

##@ The kit
.PHONY: demo
demo: venv ## the whole loop offline in a scratch repository (CLAUDE=real: with the real claude)
	@$(RUN) demo $(if $(filter real,$(CLAUDE)),--real) $(ARGS)

.PHONY: test
test: venv ## run the tests (ARGS="-k name -x"; SLOW=1: the slow ones, too; NO_SKIPS=1: a skipped test is a failure)
	@cd "$(KIT)" && $(if $(NO_SKIPS),CCO_NO_SKIPS=1) .venv/bin/python -m pytest $(if $(SLOW),,-m "not slow") $(ARGS)

.PHONY: lint
lint: ## ruff and mypy, installed into .tools/lint when first asked for
	@cd "$(KIT)" && { test -x .tools/lint/bin/mypy || { $(PYTHON) -m venv .tools/lint && .tools/lint/bin/python -m pip \
	  install --quiet ruff==0.17.5 mypy==2.4.1 types-requests types-PyYAML types-tabulate types-jsonschema; }; }
	@cd "$(KIT)" && .tools/lint/bin/ruff check . && .tools/lint/bin/ruff format --check . && .tools/lint/bin/mypy cco.py

.PHONY: soak
soak: venv ## hours: random missions against lies and kill -9 (N=300 SEED=1), then sweep and load
	@cd "$(KIT)" && .venv/bin/python tests/tools/soak.py --count $(or $(N),300) --seed $(or $(SEED),1) $(ARGS)
	@$(MAKE) --no-print-directory -f "$(KIT)/Makefile" sweep load ARGS=

.PHONY: sweep
sweep: venv ## kill -9 before and after each system call that touches state or git (strace, bubblewrap)
	@cd "$(KIT)" && .venv/bin/python tests/tools/crash_sweep.py $(ARGS)

.PHONY: load
load: venv ## fifty missions in fifty repositories at once
	@cd "$(KIT)" && .venv/bin/python tests/tools/load.py $(ARGS)

.PHONY: bench
bench: venv ## measure how fast the kit answers
	@"$(KIT)/.venv/bin/python" "$(KIT)/extras/bench.py"

# Made once, and again when requirements.txt has changed.
.PHONY: venv
venv:
	@cd "$(KIT)" && if ! test -x .venv/bin/python || ! cmp -s requirements.txt .venv/.installed; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "cco: $(PYTHON) is missing or older than 3.10; name another: make PYTHON=python3.12 ..." >&2; exit 1; }; \
	  echo "making $(KIT)/.venv" >&2; rm -rf .venv; \
	  $(PYTHON) -m venv .venv \
	    || { rm -rf .venv; echo "cco: no virtual environment; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }; \
	  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt \
	    || { echo "cco: the packages of requirements.txt could not be installed, see above" >&2; exit 1; }; \
	  cp requirements.txt .venv/.installed; \
	fi
