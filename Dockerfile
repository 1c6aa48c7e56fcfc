# GPU image: docker build -t megatron-yuan . && docker run --gpus all --ipc=host -v /data:/data -it megatron-yuan
#
# Release 26.03 of NVIDIA's PyTorch image: torch 2.11.0a0 (within the project's >=2.10,<2.14), NCCL, Transformer Engine and
# apex, which is what --use-apex-adam takes; the project itself needs neither of the two. Any image that has torch will do
# (--build-arg BASE=...): for CPUs one whose torch was built for them.
ARG BASE=nvcr.io/nvidia/pytorch:26.03-py3
FROM ${BASE}

# Give the number of the user outside (--build-arg USER_ID=$(id -u)) to write into mounted folders.
ARG USER_ID=1000
RUN useradd --create-home --non-unique --uid "$USER_ID" --shell /bin/bash yuan

WORKDIR /opt/megatron-yuan
COPY --chown=yuan . .

# The image's torch is NVIDIA's own build: pinned here, so that pip fails instead of replacing it.
RUN python -c 'import torch; print(f"torch=={torch.__version__}")' > /tmp/torch.txt \
    && pip install --no-cache-dir --constraint /tmp/torch.txt --editable '.[tensorboard,wandb]' \
    && python -c 'import importlib.util as u, torch, megatron.core, megatron_yuan; \
print("torch", torch.__version__, "| apex:", bool(u.find_spec("apex")), "| Transformer Engine:", bool(u.find_spec("transformer_engine")))' \
    && rm /tmp/torch.txt \
    && chown -R yuan: /opt/megatron-yuan

USER ${USER_ID}
CMD ["bash"]
