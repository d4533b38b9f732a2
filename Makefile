# Developer commands. Users only need `pip install .`; see CONTRIBUTING.md for the setup.

PYTHON ?= python3
WARN    = -std=c11 -Wall -Wextra -Wshadow -Wconversion -Werror
SAN     = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -fno-var-tracking -O1
SANITIZED = LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc $(PYTHON) -m pytest --capture=sys -m 'not clock and not heavy'

# The core of the sanitized modules as a library: a test in C links the members it needs.
CORE    = $(patsubst csrc/%.c,build/asan/csrc/%.o,$(filter-out csrc/py_%.c,$(wildcard csrc/*.c)))
CTESTS  = $(patsubst tests/c/%.c,build/ctest/%,$(wildcard tests/c/test_*.c))
ENGINE  = -mavx2 -mfma -mf16c -fopenmp
ASAN_TESTS ?= $(patsubst %,tests/test_%.py,estimators losses select sample weights bad_input generate divergence hold int8)

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help build test ctest asan sanitized fuzz lint stubs docs bench clean

help:
	@echo "make build   compile the extensions in place, warnings are errors"
	@echo "make test    build, then the Python tests, doctests and stub checks"
	@echo "make ctest   the core alone (no Python), under ASan, UBSan and LSan"
	@echo "make asan    ASAN_TESTS with the extensions under ASan and UBSan"
	@echo "make fuzz    10 000 mutated model files, under ASan, UBSan and LSan"
	@echo "make lint    ruff"
	@echo "make stubs   build, then the .pyi files against the modules"
	@echo "make docs    the documentation site into build/docs, warnings are errors"
	@echo "make bench   the benchmarks (benchmarks/README.md)"
	@echo "make clean"

# One build folder per set of flags: setuptools rebuilds on newer sources, not on
# other flags, and would put sanitized objects into the next wheel.
build:
	@rm -f bonaware/*.so
	BON_DEV=1 $(PYTHON) setup.py -q build_ext --inplace \
		--build-temp build/dev --build-lib build/dev

test: build
	$(PYTHON) -m pytest

ctest: $(CTESTS:build/ctest/%=run-%)

run-%: build/ctest/%
	./$<

build/ctest/onednn:
	@mkdir -p $(@D)
	$(PYTHON) setup.py -q onednn > $@

build/ctest/libcore.a: build/asan/built
	@mkdir -p $(@D)
	@rm -f $@
	@$(AR) rcs $@ $(CORE)

# These make each allocation fail in turn.
build/ctest/test_engine build/ctest/test_hold build/ctest/test_int8 build/ctest/test_learner \
build/ctest/test_pages: WRAP = -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc,--wrap=mmap

build/ctest/%: tests/c/%.c $(wildcard tests/c/*.h) build/ctest/libcore.a build/ctest/onednn
	$(CC) $(WARN) $(SAN) $(ENGINE) -Icsrc $(WRAP) -o $@ $< build/ctest/libcore.a \
		@build/ctest/onednn -lm

# Python itself leaks by design at exit, so leaks are looked for in ctest.
# PYTHONMALLOC: inside Python's own arenas ASan is blind. --capture: the report goes
# to file descriptor 2, which pytest would swallow.
asan: sanitized
	$(SANITIZED) $(ASAN_TESTS)
	@rm -f bonaware/*.so

sanitized: build/asan/built
	@rm -rf bonaware/*.so bonaware/.libs
	@cp -r build/asan/bonaware/*.so build/asan/bonaware/.libs bonaware

build/asan/built: setup.py $(wildcard csrc/*.[ch])
	BON_DEV=1 BON_SANITIZE=1 $(PYTHON) setup.py -q build_ext \
		--build-temp build/asan --build-lib build/asan
	@touch $@

fuzz: build/ctest/fuzz_weights sanitized
	./build/ctest/fuzz_weights
	BON_FUZZ=10000 $(SANITIZED) tests/test_fuzz.py
	@rm -f bonaware/*.so

lint:
	$(PYTHON) -m ruff check .

stubs: build
	$(PYTHON) -m pytest tests/test_stubs.py

# Documents the package that is installed: -P keeps the working directory off sys.path. Pages of
# the reference are made anew, as those of names that are gone would stay.
docs:
	@rm -rf docs/reference/generated
	$(PYTHON) -P -m sphinx -q -E -W --keep-going -c docs . build/docs

# Figures belong into benchmarks/README.md, with the machine they were measured on.
bench: build build/bench/bench_gemm build/bench/llama-1b
	./build/bench/bench_gemm
	$(PYTHON) benchmarks/bench_estimators.py
	$(PYTHON) benchmarks/bench_train.py
	$(PYTHON) benchmarks/bench_decode.py build/bench/llama-1b

build/bench/bench_gemm: benchmarks/bench_gemm.c $(wildcard csrc/*.[ch]) build/ctest/onednn
	@mkdir -p $(@D)
	$(CC) -std=c11 -O3 $(ENGINE) -Icsrc -o $@ $< \
		$(filter-out csrc/py_%.c,$(wildcard csrc/*.c)) @build/ctest/onednn -lm

build/bench/llama-1b:
	@mkdir -p $(@D)
	$(PYTHON) benchmarks/make_checkpoint.py llama-1b $@

clean:
	rm -rf build docs/reference/generated *.egg-info bonaware/*.so bonaware/.libs
