# syntax=docker/dockerfile:1
# CPU and CUDA from one file.  torch comes from the ordinary package index: for Linux on x86-64
# that is a CUDA build.  For another build, name its index (the page "Get started" of pytorch.org
# has them):
#   docker build --build-arg TORCH_INDEX=ADDRESS -t llmrec:local .
#   docker run --rm -v "$PWD:/work" llmrec:local run quickstart
# With a GPU: docker run --rm --gpus all -v "$PWD:/work" llmrec:local env
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm
# Extras by name, with commas: quantized,tensorboard
ARG EXTRAS=
ARG TORCH_INDEX=
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/tmp/constraints.txt \
    set -- /wheels/llmrec-*.whl && \
    python -m pip install --no-cache-dir --constraint /tmp/constraints.txt \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$1${EXTRAS:+[$EXTRAS]}" && \
    useradd --uid 1000 --create-home llmrec && \
    install --directory --owner 1000 /work
USER 1000
WORKDIR /work
ENTRYPOINT ["llmrec"]
CMD ["--help"]
