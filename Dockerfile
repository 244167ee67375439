# One image for every service; the command chooses which. PyTorch is the CPU build.
FROM python:3.11-slim

ARG OLIVEPRESS_TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY requirements.lock scripts/install_torch.py ./
RUN mkdir scripts && mv install_torch.py scripts/ && python scripts/install_torch.py
COPY pyproject.toml README.md ./
COPY olivepress olivepress
COPY api api
COPY scheduler scheduler
COPY workers workers
RUN pip install --no-cache-dir --constraint requirements.lock '.[server,worker]' && rm -rf /src/*

# The store and the workspaces are volumes; an empty named one takes its owner from here.
RUN useradd --create-home --uid 10001 olivepress && mkdir -p /data/store /scratch && chown -R olivepress /data/store /scratch
USER olivepress
WORKDIR /tmp
ENV OLIVEPRESS_DATA_DIR=/data OLIVEPRESS_LOG_FORMAT=json PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["olivepress", "service"]
