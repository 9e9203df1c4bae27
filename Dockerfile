# Gossamer, with Envoy and nftables: one image for the control plane, the redirection and the sidecars.
# The base image is named by digest (Python 3.13.15 on Debian 13.6), packages are installed by hash. For a newer base:
#   docker buildx imagetools inspect python:3.13-slim-trixie
# prints its digest; put it here, or build with --build-arg PYTHON_IMAGE=...
ARG PYTHON_IMAGE=python:3.13-slim-trixie@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285
FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY requirements.lock ./
RUN python -m venv /opt/gossamer \
    && /opt/gossamer/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY xds xds
RUN /opt/gossamer/bin/pip install --no-cache-dir --no-index --no-deps --no-build-isolation .

FROM ${PYTHON_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends nftables && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home --uid 5677 gossamer && useradd --system --no-create-home --uid 5678 envoy
COPY --from=build /opt/gossamer /opt/gossamer
ENV PATH=/opt/gossamer/bin:$PATH PYTHONUNBUFFERED=1
USER gossamer
CMD ["gossamer", "serve", "--help"]
