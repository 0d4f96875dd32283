# The program in an image, for CPUs, NVIDIA GPUs or TPUs: docker build --target cpu|cuda|tpu -t msm:cpu .
# Versions are those of constraints.txt, frozen on the Python that Debian 12 has, 3.11. Results belong in /data.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS base
ENV DEBIAN_FRONTEND=noninteractive PYTHONUNBUFFERED=1 PATH=/opt/venv/bin:$PATH
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/venv \
 && useradd --create-home --uid 1000 msm \
 && install -d -o msm -g msm /data
WORKDIR /opt/msm
COPY requirements.txt requirements-cloud.txt requirements-cuda.txt requirements-tpu.txt constraints.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-cloud.txt -c constraints.txt

FROM base AS cpu
COPY . .
RUN pip install --no-cache-dir --no-deps --editable .
USER msm
VOLUME /data
CMD ["bash", "deploy/demo.sh"]

# The driver comes with the host (NVIDIA container toolkit): docker run --gpus all.
FROM base AS cuda
RUN pip install --no-cache-dir -r requirements-cuda.txt -c constraints.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --editable .
USER msm
VOLUME /data
CMD ["bash", "deploy/demo.sh"]

FROM base AS tpu
RUN pip install --no-cache-dir -r requirements-tpu.txt -c constraints.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --editable .
USER msm
VOLUME /data
CMD ["bash", "deploy/demo.sh"]
