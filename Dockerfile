# Built in two steps so that the image holds no installer, no package index settings and no source tree.
#
# A tag can be moved, a digest cannot. This is the index of python:3.12-slim of August 2026. Renew it here after a fix of
# Python or Debian, or for one build:
#   docker pull python:3.12-slim
#   docker build -t imgkeep --build-arg BASE="$(docker inspect --format '{{index .RepoDigests 0}}' python:3.12-slim)" .
ARG BASE=python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea

FROM ${BASE} AS build
WORKDIR /build
COPY requirements.lock ./
# pyvips is published as source alone, and is Python alone: libvips itself is the wheel pyvips-binary.
RUN python -m venv --without-pip /opt/imgkeep \
    && pip --python /opt/imgkeep/bin/python install --no-cache-dir --require-hashes --only-binary :all: \
        --no-binary pyvips -r requirements.lock
COPY proxy/imgkeep ./imgkeep
COPY docs/*.md ./imgkeep/docs/
RUN cp -r imgkeep "$(/opt/imgkeep/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/" \
    && /opt/imgkeep/bin/python -m compileall -q /opt/imgkeep \
    && printf '#!/bin/sh\nexec /opt/imgkeep/bin/python -m imgkeep "$@"\n' > /opt/imgkeep/bin/imgkeep \
    && chmod 755 /opt/imgkeep/bin/imgkeep

FROM ${BASE}
# A container installs nothing, and an intruder finds no installer.
RUN rm -rf "$(python -c 'import ensurepip; print(ensurepip.__path__[0])')" \
    && python -m pip uninstall --yes --no-input --root-user-action ignore pip setuptools wheel \
    && groupadd --system --gid 10001 imgkeep \
    && useradd --system --uid 10001 --gid imgkeep --home-dir /var/lib/imgkeep --create-home \
        --shell /usr/sbin/nologin imgkeep
COPY --from=build /opt/imgkeep /opt/imgkeep
ENV PATH=/opt/imgkeep/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    IMGKEEP_SERVER__HOST=0.0.0.0
# By number: Kubernetes' runAsNonRoot knows no names.
USER 10001:10001
WORKDIR /var/lib/imgkeep
RUN mkdir data
# The server writes below this folder and into /tmp alone: `docker run --read-only --tmpfs /tmp --cap-drop ALL
# --security-opt no-new-privileges -v imgkeep:/var/lib/imgkeep/data imgkeep`.
VOLUME /var/lib/imgkeep/data
EXPOSE 8080
# Reads the configuration for the address. A degraded server is healthy: a restart would not repair its disk.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --start-interval=2s CMD ["imgkeep", "health"]
ENTRYPOINT ["imgkeep"]
CMD ["serve"]
