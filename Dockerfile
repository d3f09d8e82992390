# syntax=docker/dockerfile:1
# The commands of this project with what they need, for an NVIDIA GPU or none (docs/install.md):
#
#   docker build --tag ibot .
#   docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" --env HOME=/work --volume "$PWD:/work" ibot python -m probes.knn --help
#
# torch's packages bring CUDA's libraries with them: of the base image only what hands the driver through is used.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04

FROM ${BASE} AS build
# Words of tools/setup.sh: extras, --cpu.
ARG EXTRAS="gpu export tensorboard"
ENV DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/ibot
# Only what decides the packages, so that a change of the code does not fetch them again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY tools/setup.sh tools/install.sh tools/broken_packages.py tools/downloads.txt tools/
COPY checkpoints/__init__.py checkpoints/version.py checkpoints/
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache UV_LINK_MODE=copy tools/setup.sh ${EXTRAS}

FROM ${BASE}
ENV DEBIAN_FRONTEND=noninteractive
# Triton compiles what starts its kernels: a C compiler and Python's headers.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev python3 python3-dev && \
    rm -rf /var/lib/apt/lists/* && useradd --create-home --uid 10001 ibot && mkdir /work && chown ibot /work
COPY --from=build /opt/ibot/.venv /opt/ibot/.venv
COPY . /opt/ibot
ENV VIRTUAL_ENV=/opt/ibot/.venv PATH=/opt/ibot/.venv/bin:/opt/ibot/tools:$PATH PYTHONPATH=/opt/ibot PYTHONSAFEPATH=1
USER 10001
WORKDIR /work
CMD ["python", "-m", "pretrain.train", "--help"]
