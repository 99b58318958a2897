# `make` lists the targets. Every target sets up what it needs; running one again costs nothing.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
IMAGES := var/images
READY := .venv/.ready
SEEDS ?= 1000
FUZZ_S ?= 180
SOAK_S ?= 3600
OUTAGE_S ?= 120
ARGS ?= --help

.PHONY: help setup image demo up run test lint types imports proto-check unit e2e wheel lab-image lab lab-test bench chaos outage soak mutants fuzz proto lock rewrite clean
help:           ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

setup: $(READY) image  ## system packages, locked virtual environment, guest image

$(READY): requirements.lock pyproject.toml tools/system-packages.sh
	@tools/system-packages.sh $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the locked environment"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

image: $(READY)  ## the guest image, from Debian's packages
	@deploy/guest/build.sh $(IMAGES)/debian-numpy

demo: setup     ## the main job, live: a host dies in the middle of a training run
	@$(BIN)/gpupool demo --images $(IMAGES)

up: setup       ## keep an embedded cluster running; Ctrl-C ends it (ARGS are passed on)
	@$(BIN)/gpupool up --images $(IMAGES) $(filter-out --help,$(ARGS))

run: $(READY)   ## the CLI from this tree: make run ARGS='jobs -o wide'
	@$(BIN)/gpupool $(ARGS)

test: setup     ## everything that CI runs
	@$(MAKE) --no-print-directory lint types imports proto-check
	@GPUPOOL_SIM_SEEDS=$(SEEDS) $(BIN)/python tools/test_halves.py --durations=30
	@$(MAKE) --no-print-directory wheel

lint: $(READY)  ## ruff, and its formatter
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check -q

types: $(READY) ## mypy, strict
	@$(BIN)/mypy

imports: $(READY)  ## who may import whom
	@$(BIN)/lint-imports --no-cache

proto-check: $(READY)  ## the committed stubs are those of proto/
	@$(BIN)/python tools/protogen.py --check 2>/dev/null

unit: $(READY)  ## the tests that need neither etcd nor VMs
	@$(BIN)/pytest -m "not etcd and not vm"

e2e: setup      ## only the tests with real etcd and real VMs
	@$(BIN)/pytest -m "etcd or vm"

wheel: $(READY) ## build the wheel and try it in a fresh environment
	@tools/test-wheel.sh $(BIN)/python

lab-image: setup  ## what the VFIO lab's hosts boot (as root; minutes at first, seconds after a change of the code)
	@$(BIN)/python -m lab image

lab: setup      ## the VFIO lab: two emulated GPU hosts with real passthrough; Ctrl-C ends it
	@$(BIN)/python -m lab up

lab-test: setup ## the tests on the VFIO lab
	@$(BIN)/pytest -p no:randomly -s -v --durations=0 -m lab tests/lab

chaos: setup    ## three etcd members, two schedulers, three hosts with VMs, broken at random (root; CHAOS_S=900, CHAOS_SEED)
	@$(BIN)/pytest -p no:randomly -s -v -m chaos tests/chaos

outage: setup   ## two of three real etcd members are away for two minutes (OUTAGE_S=120)
	@GPUPOOL_OUTAGE_S=$(OUTAGE_S) $(BIN)/pytest -s -v --timeout $$(($(OUTAGE_S) + 480)) tests/contract/test_outage.py

soak: $(READY)  ## the simulation on new seeds for long (SOAK_S=3600)
	@$(BIN)/python -m tests.sim.soak --seconds $(SOAK_S)

mutants: $(READY)  ## plant each known bug in a copy of the tree, and see it caught
	@$(BIN)/python -m tests.mutants

fuzz: $(READY)  ## fuzz the inventory with atheris, outside the locked environment (FUZZ_S=180)
	@test -d var/fuzz/atheris || $(BIN)/python -m pip install -q --disable-pip-version-check --target var/fuzz atheris
	@mkdir -p var/fuzz-corpus
	@PYTHONPATH=.:var/fuzz $(BIN)/python tests/fuzz/fuzz_inventory.py -max_total_time=$(FUZZ_S) -len_control=0 \
	  -max_len=4096 -artifact_prefix=var/fuzz-corpus/ var/fuzz-corpus

bench: setup    ## measure, and print a table with its ceiling
	@$(BIN)/python -m bench

proto: $(READY) ## generate gpupool/v1 from proto/
	@$(BIN)/python tools/protogen.py

lock: $(READY)  ## choose the newest dependencies and lock them with hashes
	@$(BIN)/uv pip compile -q --upgrade pyproject.toml --all-extras --group dev --generate-hashes --no-annotate \
	  --no-header --no-emit-index-url -o requirements.lock

rewrite: $(READY)  ## write golden files anew; read the diff
	@$(BIN)/pytest -q tests/golden tests/unit --rewrite

clean:          ## remove what was built
	@rm -rf .venv var dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
