# One entry for people and CI. `make help` lists what there is.
PROFILE ?= standalone
FORMATS ?= qcow2,raw
CHASI_BOD_CACHE ?= $(HOME)/.cache/chasi-bod
export CHASI_BOD_CACHE

CARGO_TARGET := x86_64-unknown-linux-gnu
BIN  := target/release/chasi-bod
NODE := target/node/$(CARGO_TARGET)/node/chasi-bod-node
# Static, as an initramfs has no libraries; without paths of this machine, so that images do not carry them.
NODE_FLAGS := -C target-feature=+crt-static --remap-path-prefix=$(HOME)/.cargo/registry/src=/crates --remap-path-prefix=$(CURDIR)=/src
# Tests always ask cargo for the whole workspace: another selection has other features, and compiles every crate below them once more.
COMPILE ?= -p builder --bin chasi-bod
test lint unit vm uml images soak: export COMPILE := --workspace --all-targets
TEST := cargo test --locked --release --workspace

.PHONY: help setup tools image minimal standalone run test lint unit uml vm images soak fuzz bench bench-formats bench-boot bench-install pictures clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## install what building needs (apt, as root or with sudo)
	@scripts/setup image

tools: setup ## compile the chasi-bod command and the node's programs
	@RUSTFLAGS="$(NODE_FLAGS)" cargo build --quiet --locked --profile node -p firstboot --bins --target $(CARGO_TARGET) --target-dir target/node
	@cargo build --quiet --locked --release $(COMPILE)

image: tools ## build PROFILE (default standalone) in FORMATS (default qcow2,raw) into output/
	@$(BIN) build profiles/$(PROFILE).yaml --format $(FORMATS) --node-binary $(NODE)

# What tests boot and look into, without and with a cluster.
minimal: tools
	@$(BIN) build profiles/minimal.yaml --format qcow2,raw,iso,pxe.tar --node-binary $(NODE)

standalone: tools
	@$(BIN) build profiles/standalone.yaml --format qcow2,raw --node-binary $(NODE)

run: tools ## build PROFILE and boot it here with serial console and forwarded ssh port
	@$(BIN) run profiles/$(PROFILE).yaml --node-binary $(NODE)

test: ## all set-up and all tests that CI runs
	@scripts/stage setup scripts/setup test
	@scripts/stage compile $(MAKE) --no-print-directory tools
	@scripts/stage minimal $(MAKE) --no-print-directory minimal
	@scripts/stage standalone $(MAKE) --no-print-directory standalone
	@scripts/stage lint $(MAKE) --no-print-directory lint
	@scripts/stage native $(MAKE) --no-print-directory unit
	@scripts/stage images $(MAKE) --no-print-directory images
	@scripts/stage uml-kernel scripts/uml-kernel
	@scripts/stage uml $(MAKE) --no-print-directory uml
	@scripts/stage tcg $(MAKE) --no-print-directory vm

lint: ## formatting, clippy without warnings, licences and advisories of dependencies
	@cargo fmt --all --check
	@cargo clippy --quiet --locked --release --workspace --all-targets -- -D warnings
	@scripts/deny

unit: minimal standalone ## native tests, some of them on the built images' packages and programs
	@CHASI_BOD_NODE=$(CURDIR)/$(NODE) CHASI_BOD_IMAGE_DIR=$(CURDIR)/output $(TEST) --quiet --no-fail-fast --exclude qemu-tests

vm: minimal standalone ## tests in QEMU (TCG)
	@CHASI_BOD_NODE=$(CURDIR)/$(NODE) $(TEST) --test serial --test grub --test init -- --test-threads=2
	@CHASI_BOD_IMAGE_DIR=$(CURDIR)/output $(TEST) --test boot --test medium --test cluster -- --nocapture --test-threads=1 --skip uml_

uml: minimal standalone ## tests under User-Mode Linux: the images' own userland without emulation, a node a core
	@CHASI_BOD_IMAGE_DIR=$(CURDIR)/output $(TEST) --test uml --test power_cuts -- --nocapture --test-threads=2
	@CHASI_BOD_IMAGE_DIR=$(CURDIR)/output $(TEST) --test cluster -- --nocapture --test-threads=2 uml_

images: standalone ## the standalone image's own containerd with images of its root, natively (as root)
	@CHASI_BOD_IMAGE_DIR=$(CURDIR)/output $(TEST) --test containerd

soak: minimal standalone ## proofs too long for CI (tests named soak_…): run before resolving an issue
	@scripts/setup test
	@CHASI_BOD_NODE=$(CURDIR)/$(NODE) CHASI_BOD_IMAGE_DIR=$(CURDIR)/output $(TEST) --no-fail-fast -- --ignored --test-threads=1 soak_

fuzz: ## fuzz each parser of foreign bytes for FUZZ_SECONDS (default 60); needs a nightly compiler
	@scripts/fuzz

bench: minimal ## measure against mmdebstrap in one run (JSON and a table in output/bench/), and a Go program against plain go build
	@scripts/setup test
	@scripts/bench
	@scripts/bench-go

bench-formats: standalone ## seconds for each output format of `standalone`, for all at once, and of qemu-img and xorriso on the same disk
	@scripts/setup test
	@scripts/bench-formats

bench-boot: standalone ## seconds from power-on to a Ready cluster, ours and the usual way, in emulation; wants a quiet machine
	@scripts/setup test
	@scripts/bench-boot

bench-install: minimal ## seconds to install from the ISO beside zstd and sha256sum of the same root, in emulation; wants a quiet machine
	@scripts/setup test
	@CHASI_BOD_IMAGE_DIR=$(CURDIR)/output cargo run --quiet --locked --release -p qemu-tests --bin install-times

pictures: minimal ## screenshots of menu, installer and status screen from QEMU's display, to output/pictures
	@scripts/setup test
	@CHASI_BOD_IMAGE_DIR=$(CURDIR)/output cargo run --quiet --locked --release -p qemu-tests --bin pictures -- output/pictures

clean: ## remove build results; the store in CHASI_BOD_CACHE stays
	@cargo clean
	@find output -mindepth 1 -maxdepth 1 ! -name .gitkeep -exec rm -rf {} +
