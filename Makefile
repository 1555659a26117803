# One environment for everything: .venv, made once from pyproject.toml and constraints.txt.
#
#   make demo       sample scenes from a real photograph into demo_output/
#   make test       the tests, some minutes
#   make test-all   the slow tests too
#   make lint       style and types
#   make clean      remove what the targets above made, but for the environment
#   make distclean  remove the environment too

# The first Python that the dependencies have wheels for; make PYTHON=... chooses another
PYTHON ?= $(firstword $(foreach name,python3 python3.12 python3.11 python3.10,$(shell $(name) -c \
  'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' >/dev/null 2>&1 && echo $(name))))
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint clean distclean

help:
	@sed -n 's/^#   make/make/p' Makefile

$(READY): pyproject.toml constraints.txt
	@.ci/environment '$(PYTHON)' .venv
	@touch $@

# A photograph that ships inside scikit-image's wheel: a cup on a table, CC0, by Rachel Michetti
demo: $(READY)
	@$(BIN)/scenediff sample "$$($(BIN)/python -c 'import skimage; print(skimage.__path__[0])')/data/coffee.png" \
	  -o demo_output -n 4 --overwrite
	@echo "Look at demo_output/contact_sheet.png, sample_00/video.mp4 and sample_00/mesh.glb beside it."

test: $(READY)
	@.ci/test_tools
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(READY)
	@.ci/test_tools .venv
	$(BIN)/python -m pytest -n 2

# mypy reads a plain installation: only there are the folders one package
lint: $(READY)
	$(BIN)/ruff check .
	@rm -rf build .venv/installed
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation --target .venv/installed .
	@rm -rf build
	cd .venv/installed && MYPYPATH=. ../bin/mypy --config-file ../../pyproject.toml

clean:
	rm -rf build dist demo_output *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf .venv
