# Two images from one file: `service` answers forecasts, `pipelines` trains, schedules and keeps the registry.
# To keep CUDA out of them, give PIP_EXTRA_INDEX_URL the address of PyTorch's index of CPU builds.

FROM python:3.11-slim-bookworm AS build-service
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/forecaster
ENV PATH=/opt/forecaster/bin:$PATH
WORKDIR /source
COPY pyproject.toml constraints.txt ./
# With empty stand-ins the dependencies become a layer of their own, which a change of code or text leaves alone.
RUN mkdir forecaster service pipelines \
 && touch README.md LICENSE forecaster/__init__.py service/__init__.py pipelines/__init__.py \
 && pip install --quiet --constraint constraints.txt '.[service,postgres]'

FROM build-service AS built-service
COPY README.md LICENSE ./
COPY forecaster forecaster
COPY service service
RUN pip install --quiet --no-deps --force-reinstall .

FROM python:3.11-slim-bookworm AS base
RUN useradd --uid 10001 --no-create-home --home-dir /tmp forecaster \
 && install -d -o forecaster -g forecaster /var/lib/forecaster /var/lib/forecaster/artifacts /var/lib/forecaster/dagster \
    /var/lib/forecaster/models
ENV PATH=/opt/forecaster/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MLFLOW_DISABLE_TELEMETRY=true GIT_PYTHON_REFRESH=quiet
WORKDIR /var/lib/forecaster
USER forecaster

FROM base AS service
COPY --from=built-service /opt/forecaster /opt/forecaster
ENV FORECASTER_HOST=0.0.0.0 FORECASTER_LOG_FORMAT=json FORECASTER_MODEL_CACHE=/var/lib/forecaster/models
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "service"]

FROM build-service AS built-pipelines
RUN pip install --quiet --constraint constraints.txt '.[service,pipelines,schedule,postgres]'
COPY README.md LICENSE ./
COPY forecaster forecaster
COPY service service
COPY pipelines pipelines
RUN pip install --quiet --no-deps --force-reinstall .

FROM base AS pipelines
COPY --from=built-pipelines /opt/forecaster /opt/forecaster
COPY pipelines/orchestration/dagster.yaml /etc/dagster/dagster.yaml
ENV DAGSTER_HOME=/etc/dagster DAGSTER_DISABLE_TELEMETRY=yes
CMD ["forecaster", "--help"]
