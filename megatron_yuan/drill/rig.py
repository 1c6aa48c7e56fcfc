"""What every run of the drill trains: data of its own, a model of milliseconds a step, and the layouts it takes."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

STEPS = 50
SAVE_INTERVAL = 5
_WORDS, _DOCUMENTS, _VOCABULARY = 40, 400, 420


@dataclass(frozen=True)
class Layout:
    """Stages x replicas, and virtual stages."""

    stages: int = 1
    replicas: int = 1
    virtual: int = 1

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.stages * self.replicas

    def __str__(self) -> str:
        return f"{self.stages}x{self.replicas}" + (f"x{self.virtual}" if self.virtual > 1 else "")


LAYOUTS = (Layout(2), Layout(1, 2), Layout(2, 1, 2))


@dataclass(frozen=True)
class Rig:
    """Data on the disk, and the flags of a run on it."""

    data: Path
    """Prefix of the indexed data."""
    tokenizer: Path
    steps: int = STEPS

    def flags(self, layout: Layout, save: Path) -> list[str]:
        """Flags of the training program: bfloat16, dropout and fill-in-the-middle, so that a resume has much to get
        wrong."""
        return f"""--preset tiny --num-layers {2 * layout.virtual} --hidden-size 32 --num-attention-heads 2
            --kv-channels 16 --ffn-hidden-size 32 --num-experts 4 --vocab-size {_VOCABULARY + 16} --seq-length 48
            --attention-dropout 0.1 --hidden-dropout 0.1 --bf16 --lr-warmup-iters 5 --lr 1e-3
            --data-path {self.data} --tokenizer-model {self.tokenizer} --split 1,0,0 --fim-rate 0.5
            --pipeline-model-parallel-size {layout.stages} --virtual-pipeline-model-parallel-size {layout.virtual}
            --micro-batch-size 1 --global-batch-size 2 --train-iters {self.steps} --eval-interval 0
            --save {save} --save-interval {SAVE_INTERVAL} --save-retain 3 --peak-tflops 1 --log-experts-interval 0
            """.split()


def make_rig(folder: Path, steps: int = STEPS) -> Rig:
    """Write text, train a tokenizer on it and encode it: all of it the same every time."""
    from megatron_yuan.data.preprocess import preprocess
    from megatron_yuan.data.tokenizer import Tokenizer
    from megatron_yuan.data.train_tokenizer import train_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    text, model = folder / "text.jsonl", folder / "tokenizer.model"
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 7))) for _ in range(200)]
    documents = [" ".join(draw.choices(words, k=draw.randint(5, _WORDS))) for _ in range(_DOCUMENTS)]
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
    train_tokenizer([text], model, _VOCABULARY)
    preprocess([text], folder / "set", Tokenizer(model), append_eod=True, overwrite=True)
    return Rig(folder / "set_text_document", model, steps)
