# make demo   install what is needed, run scMamba from R on two data sets, write a picture   (start here)
# make test   install what is needed, run every test suite, R CMD check and the linters
# make help   the rest

SHELL := /bin/bash
PY := .venv/bin/python
export PYTHON
# R puts its own folders there; Python's subprocesses must not load libraries from them.
unexport LD_LIBRARY_PATH

.PHONY: help setup demo test test-lowest test-newest pytest testthat testthat5 interop5 vignettes5 check lint audit lock docs site package brain-mini brain-base clean distclean

help:
	@echo 'make demo       run scMamba from R on two data sets; picture and object in demo-output/'
	@echo 'make test       all test suites, R CMD check, linters'
	@echo 'make setup      install only (R, Seurat, Python packages, both scMamba packages)'
	@echo 'make pytest     Python tests            make testthat   R tests on this Seurat'
	@echo 'make testthat5  R tests on Seurat 5     make check      R CMD build and R CMD check'
	@echo 'make interop5   conversion tests (rpy2) on Seurat 5'
	@echo 'make vignettes5 R vignettes on Seurat 5  make site       documentation site of both languages, in dist/site'
	@echo 'make test-lowest  a reduced Python suite with the lowest declared versions, on Python 3.10'
	@echo 'make test-newest  the same with the newest of everything, on Python 3.13'
	@echo 'make lint       ruff, mypy, lintr, ...  make docs       help pages and NAMESPACE (roxygen2 7.2.3)'
	@echo 'make audit      known faults of the packages of the server image (pip-audit), of the code (bandit); hadolint, actionlint'
	@echo 'make lock       choose the packages of the server image anew, with hashes'
	@echo 'make brain-mini train the default model again (needs the real data sets; half an hour on 2 cores)'
	@echo 'make brain-base train the larger one (D 128 x 4, 6,000 steps; hours on two cores, less on a GPU)'
	@echo 'make package    wheel and sdist in dist/, checked by twine and pyroma'
	@echo 'make clean      remove what the commands above wrote, keep the installed packages'
	@echo 'make distclean  remove the installed packages as well'
	@echo 'PYTHON=/path/to/python3 chooses the Python for the virtual environment'

setup:
	@scripts/setup.sh demo

demo:
	@scripts/setup.sh demo
	@scripts/demo.sh

test:
	@scripts/setup.sh test
	@scripts/test.sh pytest testthat testthat5 interop5 vignettes5 check lint

test-lowest test-newest:
	@scripts/versions.sh $(@:test-%=%)

pytest testthat testthat5 interop5 vignettes5 check lint:
	@scripts/setup.sh test
	@scripts/test.sh $@

audit:
	@scripts/audit.sh check

lock:
	@scripts/audit.sh lock

docs:
	@scripts/setup.sh test
	@scripts/docs.sh

site:
	@scripts/setup.sh test
	@scripts/site.sh

# Needs build, twine and pyroma on the PATH.
package:
	rm -rf dist
	$${PYTHON:-python3} -m build
	unzip -l dist/*.whl | grep -q scmamba/cli/main.py # a wheel without its modules passes every other check
	$${PYTHON:-python3} -m twine check --strict dist/*
	pyroma --min 9 .

brain-mini brain-base:
	@scripts/setup.sh demo
	@$(PY) scripts/train_brain.py --name $@

clean:
	rm -rf demo-output build dist *.Rcheck scMamba_*.tar.gz .pytest_cache .mypy_cache .ruff_cache .cache/check
	find python tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .cache/rlib .cache/rlib-seurat5 .cache/stamps .cache/lowest .cache/newest .cache/uv .cache/uv-tools
