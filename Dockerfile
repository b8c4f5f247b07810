# docker build -t feedmono .
# docker run -v feedmono:/var/lib/feedmono feedmono
FROM python:3.13-slim AS build
# For the native extension; the image itself needs no compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
WORKDIR /src
COPY . .
RUN python -m pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.13-slim
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir --no-index --find-links /wheels feedmono
RUN useradd --system --uid 10001 --home-dir /var/lib/feedmono --create-home feedmono
USER feedmono
WORKDIR /var/lib/feedmono
# A container's /dev/shm has 64 MB: the rings lie on the volume, and outlive the container there.
ENV FEEDMONO_STATE_DIR=/var/lib/feedmono/state \
    FEEDMONO_RING_DIR=/var/lib/feedmono/rings \
    FEEDMONO_FILES_DIR=/var/lib/feedmono/data
VOLUME /var/lib/feedmono
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["feedmono", "status"]
ENTRYPOINT ["feedmono"]
CMD ["run"]
