# Built in two steps so that the image holds no compiler, no package index settings and no source tree.
FROM python:3.12-slim AS build
WORKDIR /build
COPY requirements.lock ./
RUN python -m venv /opt/imgkeep \
    && /opt/imgkeep/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements.lock
COPY proxy ./proxy
RUN cp -r proxy "$(/opt/imgkeep/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/" \
    && /opt/imgkeep/bin/python -m compileall -q /opt/imgkeep \
    && printf '#!/bin/sh\nexec /opt/imgkeep/bin/python -m proxy "$@"\n' > /opt/imgkeep/bin/imgkeep \
    && chmod 755 /opt/imgkeep/bin/imgkeep

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/imgkeep --create-home imgkeep
COPY --from=build /opt/imgkeep /opt/imgkeep
ENV PATH=/opt/imgkeep/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    IMGKEEP_SERVER__HOST=0.0.0.0
USER imgkeep
WORKDIR /var/lib/imgkeep
RUN mkdir data
VOLUME /var/lib/imgkeep/data
EXPOSE 8080
# Liveness only: a degraded server still answers, and restarting it would not mend its disk.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", \
    "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('IMGKEEP_SERVER__PORT', '8080') + '/healthz', timeout=2)"]
ENTRYPOINT ["imgkeep"]
CMD ["serve"]
