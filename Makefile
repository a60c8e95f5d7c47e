# Names for the commands that are used most; `make` lists them.

CARGO ?= cargo
# For example CARGO_FLAGS=--locked
CARGO_FLAGS ?=

HOST := $(shell rustc -vV | sed -n "s/^host: //p")
MUSL := $(HOST:-gnu=-musl)
HAS_MUSL := $(wildcard $(shell rustc --print sysroot)/lib/rustlib/$(MUSL)/lib)
# Another one than that of this machine, if its standard library and its linker are installed.
TARGET ?=
# The plugin is static: with musl where that target is installed, with glibc otherwise.
PLUGIN_TARGET := $(or $(TARGET),$(if $(HAS_MUSL),$(MUSL),$(HOST)))
# Most of its time is the kernel's, so the plugin is compiled for size.
PLUGIN_PROFILE := small
# So is the agent; its C takes a compiler of its own with musl. It resolves names either way: glibc
# does so by itself since 2.34, without loading a library.
AGENT_TARGET := $(or $(TARGET),$(if $(HAS_MUSL),$(if $(shell command -v musl-gcc),$(MUSL),$(HOST)),$(HOST)))
AGENT_FLAGS := $(if $(filter %-musl,$(AGENT_TARGET)),CC_$(subst -,_,$(MUSL))=musl-gcc)
STATIC := RUSTFLAGS='$(RUSTFLAGS) -C target-feature=+crt-static'
DIST := target/dist
TEST_IMAGE := target/debug/image
# 12 MiB, unpacked.
IMAGE_MAX := 12582912
# Seconds for each fuzz target.
TIME ?= 60

.DEFAULT_GOAL := help
.PHONY: help build plugin image test-image aarch64 demo test test-kubernetes lint bench fuzz sanitize requirements clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: plugin ## Build flanneld and the CNI plugin for release into target/dist
	$(STATIC) $(AGENT_FLAGS) $(CARGO) build $(CARGO_FLAGS) --release --target $(AGENT_TARGET) --target-dir target -p flanneld
	@cp -f target/$(AGENT_TARGET)/release/flanneld $(DIST)/
	@ls -l $(DIST)

plugin: ## Build the CNI plugin alone
	@tests/requirements.sh --check build
	$(STATIC) $(CARGO) build $(CARGO_FLAGS) --profile $(PLUGIN_PROFILE) --target $(PLUGIN_TARGET) --target-dir target -p cni-plugin
	@mkdir -p $(DIST)
	@cp -f target/$(PLUGIN_TARGET)/$(PLUGIN_PROFILE)/flannel $(DIST)/

image: build ## Build the container image into target/dist/flannel.tar, with podman but without root
	@tests/requirements.sh --check build image
	config/image.sh $(DIST) $(DIST)/flannel.tar
	@test $$(cat $(DIST)/flanneld $(DIST)/flannel | wc -c) -le $(IMAGE_MAX) || { echo "the image has more than $(IMAGE_MAX) bytes" >&2; exit 1; }
	@ls -l $(DIST)/flannel.tar

# What depends on how a processor holds numbers, and on no kernel.
AARCH64_TESTS := backend::udp::merge backend::udp::packet backend::udp::checksum backend::udp::peers backend::udp::icmp lease::flannel
AARCH64 := aarch64-unknown-linux-gnu
AARCH64_CC := CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc

aarch64: ## Build programs and image for aarch64 into target/dist/aarch64, and try them with an emulator; needs rustup
	@tests/requirements.sh build image aarch64
	rustup target add $(AARCH64)
	$(AARCH64_CC) $(MAKE) --no-print-directory build TARGET=$(AARCH64) DIST=$(DIST)/aarch64
	config/image.sh $(DIST)/aarch64 $(DIST)/aarch64/flannel.tar
	qemu-aarch64-static $(DIST)/aarch64/flanneld --version
	echo '{"cniVersion":"1.1.0"}' | CNI_COMMAND=VERSION qemu-aarch64-static $(DIST)/aarch64/flannel
	$(AARCH64_CC) CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64-static -L /usr/aarch64-linux-gnu' \
	    $(CARGO) test $(CARGO_FLAGS) --target $(AARCH64) -p flanneld --lib -- $(AARCH64_TESTS)

demo: ## Run a three-node pod network in a sandbox; KEEP=1 leaves a shell, STORE=etcd uses etcd
	@tests/requirements.sh --check build demo
	@$(CARGO) build $(CARGO_FLAGS) --quiet --workspace
	@$(CARGO) run $(CARGO_FLAGS) --quiet --bin lab

test: ## Run all tests; as root on Debian this installs the programs that they need
	@tests/requirements.sh build demo test
	@$(MAKE) --no-print-directory test-image
	$(CARGO) build $(CARGO_FLAGS) --workspace
	$(CARGO) test $(CARGO_FLAGS) --workspace

# The image that tests run. The agent in it is only linked anew, so that this costs little; it has
# the place of the one that other tests run, and goes before that is built.
test-image: plugin
	@mkdir -p $(TEST_IMAGE)
	$(CARGO) rustc $(CARGO_FLAGS) -p flanneld --bin flanneld -- -C target-feature=+crt-static -C strip=symbols
	cp -f target/debug/flanneld $(DIST)/flannel $(TEST_IMAGE)/
	config/image.sh $(TEST_IMAGE) $(TEST_IMAGE)/flannel.tar

# Where the programs of Kubernetes are built, once.
KUBERNETES ?= $(CURDIR)/target/kubernetes
# Those about Kubernetes itself, and those about clusters, whose leases are there then too.
KUBERNETES_TESTS := kube kube_connection kubernetes \
    direct_routing families host_gw ipv6 lifecycle live_changes peers pod_network restarts \
    rules self_healing udp underlay_changes

test-kubernetes: ## Run the tests of Kubernetes against a real one, built from Debian's sources; as root
	@tests/requirements.sh build test
	tests/build-kubernetes.sh $(KUBERNETES)
	$(CARGO) build $(CARGO_FLAGS) --workspace
	KUBERNETES=$(KUBERNETES) TEST_STORE=kube $(CARGO) test $(CARGO_FLAGS) --no-fail-fast \
	    -p flannel-tests --features kubernetes \
	    $(addprefix --test ,$(KUBERNETES_TESTS)) -- --test-threads=2

lint: ## Check formatting, run clippy and build the documentation, warnings denied
	@tests/requirements.sh --check build
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc $(CARGO_FLAGS) --workspace --no-deps

bench: build ## Measure the plugin against the Go plugins of a stock node, alone, in bursts and on a full bridge, 4,000 peers against ip -batch, and udp
	@tests/requirements.sh --check bench
	$(CARGO) build $(CARGO_FLAGS) --release --target-dir target -p flannel-tests
	TEST_FLANNEL=$(DIST)/flannel target/release/bench_cni
	TEST_FLANNEL=$(DIST)/flannel TEST_FLANNELD=$(DIST)/flanneld target/release/bench_peers
	TEST_FLANNELD=$(DIST)/flanneld target/release/bench_kube
	TEST_FLANNEL=$(DIST)/flannel TEST_FLANNELD=$(DIST)/flanneld target/release/bench_udp

fuzz: ## Fuzz what reads foreign bytes, TIME=seconds each; needs a nightly Rust and cargo-fuzz
	@cargo +nightly fuzz --version >/dev/null 2>&1 || \
	    { echo "missing: rustup toolchain install nightly; cargo install --locked cargo-fuzz" >&2; exit 1; }
	@for target in $$(cargo +nightly fuzz list --fuzz-dir tests/fuzz); do \
	    echo "== $$target"; \
	    cargo +nightly fuzz run --fuzz-dir tests/fuzz $$target -- -max_total_time=$(TIME) -timeout=10 || exit 1; \
	done

sanitize: ## Run the udp data path under load and the address sanitizer for TIME=seconds; needs a nightly Rust
	@cargo +nightly --version >/dev/null 2>&1 || \
	    { echo "missing: rustup toolchain install nightly" >&2; exit 1; }
	ASAN_OPTIONS=detect_leaks=0 LOAD_SECONDS=$(TIME) RUSTFLAGS=-Zsanitizer=address \
	    cargo +nightly test --target $(HOST) --target-dir target/sanitize -p flanneld --lib backend::udp

requirements: ## Install the programs that building, testing and measuring need (Debian, as root)
	@tests/requirements.sh build demo test bench

clean: ## Remove everything that was built
	$(CARGO) clean
