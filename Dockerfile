# The worker's image, with and without weights. Build it with docker-bake.hcl; see docs/image.md.
#
#   runtime     base of every final image: Python, tini, a user, entrypoint and health check
#   hardened    runtime with Debian's updates and without setuid bits
#   build       runtime with pip and git, which no final image contains
#   torch       /opt/torch, several gigabytes that rarely change, so in a separate layer
#   python      /opt/venv, the locked packages of ComfyUI and the worker
#   comfyui     /opt/comfyui with its custom nodes, at the commits of snapshot.json
#   app         /app, this repository's code
#   weights     /opt/models, one layer for each file, below all layers that change more often
#   worker, worker-flux1-dev-fp8, simulator    the final images
#
# Bytecode is compiled at build time: serverless containers start without a bytecode cache. It halves ComfyUI's boot time.

ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS runtime
# Package versions are those of the base image's suite; harden_image updates them.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/*.log \
    && useradd --uid 1000 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin worker
# The CUDA libraries are part of torch, and the driver comes from the host: the NVIDIA container toolkit reads these two.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    DO_NOT_TRACK=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    COMFYUI_DIR=/opt/comfyui \
    COMFYUI_DATA_DIR=/tmp/comfyui \
    WORKER_MODELS_DIR=/opt/models
ARG BASE_IMAGE
LABEL org.opencontainers.image.base.name=$BASE_IMAGE \
      org.opencontainers.image.title="Flux.1-dev on ComfyUI, a RunPod serverless worker" \
      org.opencontainers.image.description="Text and images in, PNGs out: handler.py, ComfyUI and the models of Flux.1-dev" \
      org.opencontainers.image.licenses="MIT AND GPL-3.0-only"
WORKDIR /app
EXPOSE 8000
STOPSIGNAL SIGTERM
# A boot that downloads models can take long, so failures in the first 30 minutes do not count.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30m --start-interval=5s --retries=3 \
    CMD ["/opt/venv/bin/python", "-m", "worker.health"]
# tini reaps orphaned child processes and forwards signals to the worker, which stops ComfyUI itself.
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/venv/bin/python", "/app/handler.py"]


FROM runtime AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore


# The updates are not part of `runtime`, because each new update would then rebuild and push torch and the weights again. BuildKit takes
# this layer from its cache until UPDATED or the base image changes.
FROM runtime AS hardened
# The day of the updates.
ARG UPDATED=
RUN --mount=type=bind,source=scripts/release/harden_image,target=/harden_image /harden_image


FROM build AS torch
# cuda: PyPI's build, which also runs on a CPU. none: for the simulator.
ARG TORCH=cuda
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/torch.txt,target=/torch.txt \
    mkdir /opt/torch && case "$TORCH" in \
      cuda) pip install --quiet --no-deps --require-hashes --target /opt/torch --requirement /torch.txt ;; \
      none) ;; \
      *) echo "TORCH must be cuda or none, not $TORCH" >&2 && exit 1 ;; \
    esac


FROM build AS python
# Name of the file in requirements/: comfyui, or simulator for an image whose ComfyUI is the simulator.
ARG REQUIREMENTS=comfyui
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements,target=/requirements \
    python3 -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --quiet --no-deps --require-hashes \
         --requirement "/requirements/$REQUIREMENTS.txt" \
    && echo /opt/torch > "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"


# Three stages can be replaced by a folder at build time: snapshot (--build-context snapshot=FOLDER), model-list, licences.
FROM scratch AS snapshot
COPY snapshot.json /


FROM scratch AS restorer
COPY comfy_core/__init__.py comfy_core/command_line.py comfy_core/contract.py comfy_core/error_codes.py comfy_core/errors.py /comfy_core/
COPY worker/__init__.py /worker/
COPY worker/snapshot /worker/snapshot


# A node's install.py may call pip, so pip is installed while the snapshot is restored.
FROM python AS comfyui
ARG COMFYUI_REPO=https://github.com/Comfy-Org/ComfyUI
# A commit to use instead of snapshot.json's.
ARG COMFYUI_REF=
ARG REQUIREMENTS=comfyui
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements,target=/requirements \
    --mount=type=bind,from=torch,source=/opt/torch,target=/opt/torch \
    --mount=type=bind,from=restorer,target=/restorer \
    --mount=type=bind,from=snapshot,target=/snapshot \
    pip --python /opt/venv/bin/python install --quiet --no-index /usr/share/python-wheels/pip-*.whl \
    && PYTHONPATH=/restorer python3 -m worker.snapshot --snapshot /snapshot/snapshot.json --to /opt/comfyui \
         --comfyui-repo "$COMFYUI_REPO" --comfyui-ref "$COMFYUI_REF" --python /opt/venv/bin/python \
         --constraints "/requirements/$REQUIREMENTS.txt" --constraints /requirements/torch.txt \
    && PYTHONPATH=/restorer /opt/venv/bin/python -m worker.snapshot.requirements /opt/comfyui/requirements.txt \
         --overrides /requirements/image-overrides.txt \
    && pip --python /opt/venv/bin/python uninstall --quiet --yes pip \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/comfyui \
    && chmod -R go-w /opt/comfyui


FROM build AS app
COPY handler.py models.txt test_input.json LICENSE /app/
COPY workflows /app/workflows
COPY worker /app/worker
COPY comfy_core /app/comfy_core
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /app && chmod -R u=rwX,go=rX /app


FROM app AS simulator-app
COPY simulators/__init__.py snapshot.json /app/simulators/
COPY simulators/comfyui /app/simulators/comfyui
COPY comfy_client /app/comfy_client
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /app/simulators /app/comfy_client && chmod -R u=rwX,go=rX /app


FROM scratch AS model-list
COPY models.txt /


FROM scratch AS licences
COPY NOTICE.md /
ADD --chmod=644 --checksum=sha256:6f7b3d94ddd94380a4dc2d1211ed57883d320dea96f4393b34d4a454041029e1 \
    https://raw.githubusercontent.com/black-forest-labs/flux/802fb4713906133fcbd0d8dc5351620ca4773036/model_licenses/LICENSE-FLUX1-dev /


FROM build AS model-lines
RUN --mount=type=bind,from=model-list,target=/list \
    awk '/^[^#]/ { folder = "/lines/" (++number); system("mkdir -p " folder); print > (folder "/models.txt") }' /list/models.txt


# Contains only what the download needs, so that a new version of the worker does not invalidate the layers of weights.
FROM build AS downloader
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,source=requirements/simulator.txt,target=/lock.txt \
    awk '/^[^ #]/ { wanted = /^(requests|certifi|charset-normalizer|idna|urllib3|rich)==/ } wanted' /lock.txt > /wanted.txt \
    && pip install --quiet --no-compile --no-deps --require-hashes --target /downloader --requirement /wanted.txt \
    && rm -r /downloader/bin
# tests/release/test_dockerfile.py checks that these modules are enough.
COPY comfy_core/__init__.py comfy_core/backoff.py comfy_core/command_line.py comfy_core/contract.py comfy_core/environment.py comfy_core/error_codes.py comfy_core/errors.py comfy_core/files.py comfy_core/urls.py /downloader/comfy_core/
COPY comfy_core/models/__init__.py comfy_core/models/download.py comfy_core/models/files.py comfy_core/models/listing.py comfy_core/models/source.py /downloader/comfy_core/models/
COPY worker/__init__.py /downloader/worker/
COPY worker/models/__init__.py worker/models/__main__.py /downloader/worker/models/
COPY --chmod=755 scripts/release/bake_model /downloader/


FROM runtime AS weights
# One layer for each line of models.txt, by its number. A loop would make one layer of 17 GB, which is downloaded and pushed
# again if one model changes. HF_ENDPOINT is a mirror of https://huggingface.co. Pass a token as a secret:
# --secret id=hf_token,env=HF_TOKEN
ARG HF_ENDPOINT=
RUN --mount=type=bind,from=downloader,source=/downloader,target=/downloader --mount=type=secret,id=hf_token \
    --mount=type=bind,from=model-lines,source=/lines/1,target=/list /downloader/bake_model
# hadolint ignore=DL3059
RUN --mount=type=bind,from=downloader,source=/downloader,target=/downloader --mount=type=secret,id=hf_token \
    --mount=type=bind,from=model-lines,source=/lines/2,target=/list /downloader/bake_model
# hadolint ignore=DL3059
RUN --mount=type=bind,from=downloader,source=/downloader,target=/downloader --mount=type=secret,id=hf_token \
    --mount=type=bind,from=model-lines,source=/lines/3,target=/list /downloader/bake_model
# hadolint ignore=DL3059
RUN --mount=type=bind,from=downloader,source=/downloader,target=/downloader --mount=type=secret,id=hf_token \
    --mount=type=bind,from=model-lines,source=/lines/4,target=/list /downloader/bake_model
COPY --link --from=licences / /opt/models/licences/
LABEL org.opencontainers.image.licenses="MIT AND GPL-3.0-only AND Apache-2.0 AND LicenseRef-FLUX.1-dev-Non-Commercial" \
      org.opencontainers.image.description="Text and images in, PNGs out. The FLUX.1 [dev] Model is licensed by Black Forest Labs. Inc. under the FLUX.1 [dev] Non-Commercial License. Copyright Black Forest Labs. Inc."


FROM weights AS worker-flux1-dev-fp8
ARG UPDATED=
RUN --mount=type=bind,source=scripts/release/harden_image,target=/harden_image /harden_image
USER 1000:1000
COPY --link --from=torch /opt/torch /opt/torch
COPY --link --from=comfyui /opt/venv /opt/venv
COPY --link --from=comfyui /opt/comfyui /opt/comfyui
COPY --link --from=app /app /app
ARG VERSION=0 REVISION=unknown
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION


# Without GPU and ComfyUI: the simulator replaces ComfyUI, in another container of the same image (compose.yaml).
FROM hardened AS simulator
COPY --link --from=python /opt/venv /opt/venv
COPY --link --from=simulator-app /app /app
USER 1000:1000
ARG VERSION=0 REVISION=unknown
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION


FROM hardened AS worker
# Destination of model downloads at boot if there is no network volume.
RUN install --directory --owner=1000 --group=1000 /opt/models
USER 1000:1000
COPY --link --from=torch /opt/torch /opt/torch
COPY --link --from=comfyui /opt/venv /opt/venv
COPY --link --from=comfyui /opt/comfyui /opt/comfyui
COPY --link --from=app /app /app
ARG VERSION=0 REVISION=unknown
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION
