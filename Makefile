# SPDX-License-Identifier: Apache-2.0
# `make help` says what there is. Python 3.10 or newer: make PYTHON=python3.12 ...

PYTHON ?= python3
RUN := .venv/bin/python

# Where Debian keeps tgtd; an ordinary user does not look there.
export PATH := $(PATH):/usr/sbin:/sbin
# Read by the demonstration from its environment: no value passes through a shell.
export IMAGE ONCE SYSTEM

# Tests in several processes; a module stays in one
SPREAD ?= -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo kernel lab life-cycles kill-table soak test lint check bench format clean ready-for-demo ready-for-lab ready-for-test ready-for-check environment

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

demo: ready-for-demo ## show the whole way of an image; SYSTEM=iscsi, IMAGE=path or URL, ONCE=1 ends by itself
	@$(RUN) -m lab.demo

lab: ready-for-lab ## virtual machines with a real kernel; ARGS=status, 'ssh node1', down, --help
	@$(RUN) -m lab.vm $(ARGS)

life-cycles: ready-for-test ## every recorded life cycle with the real drivers; ARGS="--system v7000 --only vm-deploy"
	@$(RUN) -m lab.life_cycles $(ARGS)

kill-table: ready-for-test ## every driver action killed at every remote step; SYSTEM=v7000 or iscsi, ARGS="tm/clone -v" or --quick
	@$(RUN) -m lab.killing --system $(or $(SYSTEM),all) $(ARGS)

soak: ready-for-test ## random operations with random faults, then all is compared; N=500 SEED=number SYSTEM=iscsi
	@$(RUN) -m lab.soak -n $(or $(N),500) $(if $(SEED),--seed $(SEED)) $(if $(SYSTEM),--system $(SYSTEM)) $(ARGS)

test: lint check ## set up what is missing, then lint, types and all tests

lint: ready-for-test ## format, lint and types
	$(RUN) -m ruff format --check --quiet --diff .
	$(RUN) -m ruff check --quiet .
	$(RUN) -m mypy

check: ready-for-check ## the tests alone; ARGS="-k name -x" goes to pytest, SPREAD= runs them one by one, SLOW=1 all
	$(RUN) -m pytest $(SPREAD) $(if $(SLOW),-m "long or not long") $(ARGS)

kernel: ready-for-check ## attach and detach on a real kernel, also what waits for its time-outs; ARGS= as for check
	$(RUN) -m pytest -m "long or not long" $(ARGS) tests/kernel

bench: ready-for-demo ## what each action costs: round trips, connections, CPU and seconds
	@$(RUN) -m bench

format: environment ## format the code and mend what ruff can mend
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean: ## remove what was set up in the checkout, and what tools left
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis remotes/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

ready-for-demo:
	@$(PYTHON) lab/prepare.py demo

ready-for-lab:
	@$(PYTHON) lab/prepare.py lab

ready-for-test:
	@$(PYTHON) lab/prepare.py test

ready-for-check:
	@$(PYTHON) lab/prepare.py check

environment:
	@$(PYTHON) lab/prepare.py environment
