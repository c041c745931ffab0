# The demo in a container, on the CPU:
#   docker build -t arvid .
#   docker run --rm -v "$PWD/runs:/arvid/runs" arvid                 # arvid demo
#   docker run --rm -v "$PWD/runs:/arvid/runs" arvid --scale quick   # about three minutes
#   docker run --rm --entrypoint arvid arvid doctor                  # any other command
FROM python:3.12-slim
WORKDIR /arvid
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 ARVID_CACHE=/arvid/runs/cache
# The default wheel of torch on Linux brings gigabytes of CUDA. For a small image without GPUs build with
# --build-arg TORCH_INDEX=URL: PyTorch's installation page names the URL for CPUs.
ARG TORCH_INDEX=""
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt torch torchvision
COPY . .
RUN pip install -c constraints.txt -e .
VOLUME /arvid/runs
ENTRYPOINT ["arvid", "demo"]
