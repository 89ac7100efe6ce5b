# The tested set of packages on Debian's Python 3.11. The CUDA libraries come with the torch wheels, so the image needs
# no CUDA base. The host needs an NVIDIA driver (580 or newer) and the NVIDIA container toolkit.
#
#     docker build -t seresnext .
#     docker run --rm --gpus all --ipc=host -v /path/to/imagenet:/data:ro -v "$PWD/runs":/app/runs seresnext \
#         torchrun --nproc_per_node=8 train.py --recipe seresnext50 --data /data
FROM python:3.11-slim-bookworm

# A C++ compiler for torch.compile; without one the framework runs eager.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
# The packages come first: they have 7 GB and rarely change.
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY seresnext/__init__.py seresnext/
RUN mkdir -p recipes/_base \
    && pip install --no-cache-dir --constraint constraints.txt --editable ".[demo,fast,remote,report,export]"
COPY . .

# There is no entry point, so that `docker run ... seresnext python validate.py --checkpoint ...` works as well.
CMD ["python", "train.py", "--help"]
