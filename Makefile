# make demo    watch the main job on this machine
# make test    run every test; PYTHON=python3.13 runs them on another Python
# make lint    ruff, mypy, import contracts
# make docs    build the documentation into build/docs, warnings being errors
# make bench   measure, and rewrite docs/performance.md
# make kubernetes  run the story on a one-node Kubernetes; HOLD=1 leaves it running
# make fuzz    send generated requests to the decoders, and generated config entries to real Envoys, for minutes
# make protos  generate xds/wire from protos/

.PHONY: demo-setup setup consul docker demo test lint docs bench kubernetes fuzz protos
# Another Python than python3 has a virtual environment of its own.
export VENV := .venv$(if $(PYTHON),-$(notdir $(PYTHON)))
export PYTHON
bin := $(VENV)/bin

demo-setup:
	@scripts/setup

setup:
	@scripts/setup work

docker:
	@scripts/fetch-docker

demo: demo-setup
	@$(bin)/gossamer demo

consul:
	@scripts/fetch-consul

test: setup consul docker
	@$(bin)/python -m pytest -q -n 2 tests/unit --cov --cov-report=term:skip-covered
	@$(bin)/python -m pytest -q -n 2 --dist loadfile tests/integration

lint: setup
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy
	@$(bin)/lint-imports

docs: setup
	@$(bin)/sphinx-build -q -W --keep-going docs build/docs
	@echo "open build/docs/index.html"

bench: setup consul
	@$(bin)/python -m benchmarks

# HOLD=1 leaves the cluster running after the tests, until Ctrl-C.
kubernetes: setup consul docker
	@scripts/fetch-kubernetes
	@$(bin)/python -m tests.kubernetes.images .cache/docker/images.tar
	@GOSSAMER_IMAGES=$(CURDIR)/.cache/docker/images.tar unshare --mount --pid --fork --kill-child --mount-proc --net \
	    $(bin)/python -m pytest -q $(if $(HOLD),-s) tests/kubernetes; passed=$$?; \
	    find /sys/fs/cgroup -depth -type d -path '*/gossamer-node*' -exec rmdir {} + ; exit $$passed

fuzz: setup consul
	@GOSSAMER_EXAMPLES=50000 $(bin)/python -m pytest -q tests/unit/ads/test_misbehaving.py -k decoders --timeout 600
	@GOSSAMER_EXAMPLES=5000 $(bin)/python -m pytest -q tests/integration/test_generated.py

protos: setup
	@$(bin)/python scripts/generate_wire.py
