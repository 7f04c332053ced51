# The service with its library and the shipped generator.
#
#   docker build -t llgbm .
#   docker run --rm -p 127.0.0.1:8000:8000 -v llgbm:/var/lib/llgbm llgbm
#
# On x86 the default package index gives a torch built for CUDA, which adds several GB to the image. For a machine
# without a GPU, give the address of PyTorch's CPU wheel index (its install page names it):
#
#   docker build --build-arg TORCH_INDEX_URL=ADDRESS -t llgbm .
#
# The frozen weights are fetched at the first start and kept in the volume /var/lib/llgbm, the only place that is
# written to besides /tmp, so the container runs with a read-only root.

ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build

ARG TORCH_INDEX_URL=""

ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /app

# The dependencies alone first: this layer stays until one of the two files changes.
COPY pyproject.toml constraints.txt ./
RUN python -m venv /opt/venv \
    && pip install --quiet --upgrade -c constraints.txt pip \
    && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/requirements.txt \
    && pip install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} -c constraints.txt -r /tmp/requirements.txt

# A clone that was made under a strict umask has files that only its owner may read.
COPY checkpoints /checkpoints
RUN chmod -R a+rX /checkpoints

# The packages run from /app, as in a clone, so that the shipped generator is found beside them.
COPY README.md LICENSE ./
COPY llgbm llgbm
COPY service service
COPY llgbm_cli llgbm_cli
RUN pip install --no-deps -e . && python -m compileall -q llgbm service llgbm_cli && chmod -R a+rX /app

FROM ${BASE_IMAGE}

# Platforms such as OpenShift run the image under a uid of their own choice, always with the group 0: what the service
# writes to belongs to that group, whose rights are those of the user.
RUN useradd --system --uid 10001 --gid 0 --home-dir /var/lib/llgbm --create-home llgbm \
    && chmod -R g=u /var/lib/llgbm

COPY --from=build /opt/venv /opt/venv
COPY --from=build /checkpoints /app/checkpoints
COPY --from=build /app /app

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/llgbm \
    USER=llgbm \
    HF_HOME=/var/lib/llgbm/huggingface \
    LLGBM_CACHE_DIR=/var/lib/llgbm/cache \
    LLGBM_STORE_DIR=/var/lib/llgbm/adapters \
    LLGBM_HOST=0.0.0.0 \
    LLGBM_PORT=8000

WORKDIR /app
USER 10001:0
VOLUME /var/lib/llgbm
EXPOSE 8000

# The first start may have to fetch half a gigabyte of weights: failures count only after the start period.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import os; from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open(f'http://127.0.0.1:{os.environ[\"LLGBM_PORT\"]}/livez', timeout=4)"]

# A file that one uid of the group has written can be replaced by the next one.
ENTRYPOINT ["sh", "-c", "umask 0002 && exec python -m service \"$@\"", "service"]
