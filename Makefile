# The front door. Every target does its own set-up (packages by apt-get, Python in a venv, npm and Go modules under .cache/).
# Variables: BUILD=dir (default build), MODEL=id (demo with a real model; needs ANTHROPIC_API_KEY), TARGET= and TIME= for fuzz.
SHELL := /bin/bash
BUILD ?= build
ASAN ?= build-asan
MODEL ?=
TARGET ?= http
TIME ?= 60
NINJA_FLAGS ?=

.PHONY: help build demo test unit asan e2e sandbox bench lint format fuzz install clean

help:
	@echo 'make demo            build, start everything on loopback, run a scripted agent in the sandbox, check every step'
	@echo 'make test            every suite; ends with one summary line'
	@echo 'make build           build $(BUILD)/outwork'
	@echo 'make bench           side-by-side figures, each a ratio to a named reference in the same run'
	@echo 'make lint            layers, banned calls, sizes, formatting of new code, cppcheck'
	@echo 'make asan            unit and whole-program suites with AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make fuzz TARGET=http TIME=60    one fuzzer for that many seconds (clang)'
	@echo 'make install PREFIX=/usr/local   binary, man page, completion, systemd units'

build:
	@tools/setup build
	@tools/build $(BUILD)

demo: build
	@tools/setup demo
	@tools/demo $(BUILD)/outwork $(MODEL)

test:
	@tools/setup test
	@tools/build $(BUILD) all
	@tools/run-tests $(BUILD) $(ASAN)

asan:
	@tools/setup test
	@tools/run-tests --asan-only $(BUILD) $(ASAN)

bench: build
	@tools/setup bench
	@tools/build $(BUILD) all
	@.cache/venv/bin/python tests/bench/run.py $(BUILD)

lint:
	@tools/setup lint
	@tools/lint

fuzz:
	@tools/setup lint
	@tools/fuzz $(TARGET) $(TIME)

install: build
	@tools/install $(BUILD) $(PREFIX)

clean:
	rm -rf build build-asan build-clang build-fuzz
