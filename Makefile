# Everything runs in .venv, which is made from the pinned, hashed requirements when it is missing or out of date.
# Choose another Python with `make test PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The stamps carry the Python's version, so that another PYTHON makes a new environment.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
READY := $(VENV)/.ready-$(VERSION)
RUN := $(VENV)/.run-$(VERSION)
DEV := $(VENV)/.dev-$(VERSION)
BENCH := $(VENV)/.bench-$(VERSION)
LOG := $(VENV)/install.log
# Options for pytest: `make test ARGS="-k expiry"`.
ARGS ?=
# How many tests run at once. Files stay whole and in their order: the long ones come first, the short ones fill up.
JOBS ?= auto
# How often `make crash` kills, and what it begins its random choices with (left out: anything).
N ?= 25
SEED ?=
# Where `make install` puts the program; not below a home folder, which the service can't see.
PREFIX := /opt/dlr-buffer
# Whether `make uninstall` removes what cannot be brought back: yes or no.
PURGE := no

PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
COMPILE := $(BIN)/python -m piptools compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	--no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

# The build backend is pinned as all else is: pip would fetch one of its own, unchecked, for an isolated build.
# $(call install,REQUIREMENTS): quiet if it works; else the end of what pip said, and what to do.
define install
	@echo "installing $(1) into $(VENV) (Python $(VERSION)) ..."
	@{ $(PIP) install --require-hashes -r requirements-build.txt -r $(1) \
		&& $(PIP) install --no-deps --no-build-isolation -e .; } >$(LOG) 2>&1 || { \
		tail -n 15 $(LOG); \
		echo; \
		echo "Installing $(1) failed; the whole log is in $(LOG)."; \
		echo "If the package index could not be reached, mend the network or pip's settings and run make again."; \
		echo "If a hash did not match, the index serves other files than were reviewed: do not install them."; \
		exit 1; }
endef

.PHONY: help demo test test-long crash bench bench-full check format lock clean install uninstall deb
.DEFAULT_GOAL := help

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F '\t' '{ printf "make %-10s %s\n", $$1, $$2 }'

demo: $(RUN) ## run the daemon and a stand-in for Smartswitch on a throwaway queue
	@$(BIN)/dlr-buffer demo

test: $(DEV) ## run the whole test suite
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# The seed of a campaign is printed; give it again to repeat it, as far as time lets it.
crash: $(DEV) ## kill a daemon under load N times (25) and prove that nothing is lost (SEED=…)
	@$(BIN)/python -m tests.crash --kills $(N) $(if $(SEED),--seed $(SEED))

test-long: $(DEV) ## run it with more of the same: more lives of a queue, more points to kill at (an hour and more)
	@DLR_BUFFER_TESTS_LONG=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

bench: $(BENCH) ## measure in under ten minutes and rewrite the tables of docs/performance.md
	@$(BIN)/python -m benchmarks

bench-full: $(BENCH) ## measure at full length
	@$(BIN)/python -m benchmarks --full

check: $(DEV) ## check style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(DEV) ## format the code, mending what can be mended by itself
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Markers are resolved for the Python that runs this: the oldest one asks for all that the newer ones do, and more.
lock: $(DEV) ## pin the requirements anew from pyproject.toml (UPGRADE=--upgrade takes newer versions)
	@test "$(VERSION)" = 3.11 || { echo "the locks are made with Python 3.11: make lock PYTHON=python3.11"; exit 1; }
	@$(COMPILE) $(UPGRADE) -o requirements.txt pyproject.toml
	@$(COMPILE) $(UPGRADE) --extra dev -c requirements.txt -o requirements-dev.txt pyproject.toml
	@$(BIN)/python -c 'import tomllib; asked = tomllib.load(open("pyproject.toml", "rb")); \
		print(*asked["build-system"]["requires"], *asked["dependency-groups"]["build"], sep="\n")' \
		| $(COMPILE) $(UPGRADE) -c requirements-dev.txt -o requirements-build.txt -
	@$(COMPILE) $(UPGRADE) --extra bench -c requirements-dev.txt -o requirements-bench.txt pyproject.toml

clean: ## remove the environment and every cache
	@rm -rf $(VENV) dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find dlr_buffer tests -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment of its own, apart from .venv: the service must not change with the work tree.
install: ## install the program and its service on this machine (as root)
	@PYTHON="$(PYTHON)" PREFIX="$(PREFIX)" sh systemd/install.sh

uninstall: ## remove them (as root); PURGE=yes takes the queue, the configuration and the user along
	@PREFIX="$(PREFIX)" PURGE="$(PURGE)" sh systemd/uninstall.sh

deb: ## build dist/dlr-buffer_VERSION_ARCH.deb for this Debian or Ubuntu (no root needed)
	@sh debian/build.sh

# Older Pythons are refused before anything is made. Where the venv module cannot install pip (Debian without
# python3-venv), the system's own pip installs one; where there is none either, say which package to get.
$(READY):
	@test -n "$(VERSION)" || { \
		echo "$(PYTHON) does not run. Install Python 3.11 or newer, or name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is Python $(VERSION), but 3.11 or newer is needed. Name one: make PYTHON=python3.12"; exit 1; }
	@if [ "$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$(VERSION)" ] \
		|| ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "making $(VENV) with $(PYTHON) (Python $(VERSION)) ..."; \
		rm -rf $(VENV); \
		if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
			$(PYTHON) -m venv $(VENV); \
		else \
			$(PYTHON) -m venv --without-pip $(VENV) && \
			awk '/^[a-z]/ { pip = /^pip==/ } pip' requirements-dev.txt >$(VENV)/pip.txt && \
			$(PYTHON) -m pip --python $(BIN)/python install --quiet --require-hashes -r $(VENV)/pip.txt; \
		fi || { \
			rm -rf $(VENV); \
			echo "$(PYTHON) could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv"; \
			exit 1; }; \
	fi
	@touch $@

$(RUN): requirements.txt requirements-build.txt pyproject.toml | $(READY)
	$(call install,requirements.txt)
	@touch $@

# The pins of requirements.txt are part of requirements-dev.txt, so this serves `make demo` as well.
$(DEV): requirements-dev.txt requirements.txt requirements-build.txt pyproject.toml | $(READY)
	$(call install,requirements-dev.txt)
	@touch $@ $(RUN)

# What is measured beside the daemon; its pins agree with the other two, so that all three fit into one environment.
$(BENCH): requirements-bench.txt requirements.txt requirements-build.txt pyproject.toml | $(READY)
	$(call install,requirements-bench.txt)
	@touch $@ $(RUN)
