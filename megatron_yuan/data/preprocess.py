"""From text to token ids on disk: PREFIX_KEY_document.bin and .idx for each key, and a passport beside them.

Order out is order in, and the bytes are the same for any number of workers. Files get their names when all is written.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from megatron_yuan.data.encode import encode_in_order
from megatron_yuan.data.pair import ENDINGS, PairWriter
from megatron_yuan.data.passport import Passport
from megatron_yuan.data.readers import check_inputs, read_lines
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError


@dataclass(frozen=True)
class Progress:
    """How far preprocessing has come; tokens and documents are those of the first key."""

    documents: int = 0
    left_out: int = 0
    """Documents without any text: they leave nothing in the output."""
    tokens: int = 0
    input_bytes: int = 0
    """Of text, unpacked."""
    disk_bytes: int = 0
    """Of the input files as they lie on the disk."""
    disk_bytes_total: int = 0
    seconds: float = 0.0


def preprocess(
    inputs: Sequence[str | Path],
    output_prefix: str | Path,
    tokenizer: Tokenizer,
    append_eod: bool,
    keys: Sequence[str] = ("text",),
    workers: int = 1,
    overwrite: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[Passport]:
    """Encode every document of `inputs`; returns a passport for each key.

    `report` is called after each batch, and once more at the end. Raises DataError; then no file is left or changed.
    """
    paths = check_inputs(inputs, keys)
    if workers < 1:
        raise DataError(f"workers is {workers}; at least 1 is needed. Fix: --workers 1 or more.")
    if not str(output_prefix):
        raise DataError('output_prefix is "", a name is needed. Fix: --output-prefix FOLDER/NAME.')
    prefixes = [Path(f"{output_prefix}_{key}_document") for key in keys]
    for prefix, ending in itertools.product(prefixes, ENDINGS):
        if not overwrite and Path(f"{prefix}{ending}").exists():
            raise DataError(f"output {prefix}{ending} exists already. Fix: another --output-prefix, or --overwrite.")
    with ExitStack() as cleanup:
        try:
            prefixes[0].parent.mkdir(parents=True, exist_ok=True)
            pairs: list[PairWriter] = []
            for prefix in prefixes:
                pairs.append(PairWriter(prefix, tokenizer, append_eod))
                cleanup.callback(pairs[-1].discard)
            _encode_all(pairs, paths, keys, tokenizer, append_eod, workers, report)
            passports = [pair.finish() for pair in pairs]
            for pair in pairs:
                pair.commit()
        except OSError as error:
            raise DataError(
                f"output_prefix {output_prefix} cannot be written ({error.strerror}). "
                "Fix: see to the folder and its free space, or another --output-prefix."
            ) from None
    return passports


def _encode_all(
    pairs: Sequence[PairWriter],
    paths: Sequence[Path],
    keys: Sequence[str],
    tokenizer: Tokenizer,
    append_eod: bool,
    workers: int,
    report: Callable[[Progress], None],
) -> None:
    started = time.monotonic()
    total = sum(path.stat().st_size for path in paths)
    input_bytes = 0

    def progress(disk_bytes: int) -> Progress:
        first = pairs[0]
        seconds = time.monotonic() - started
        return Progress(first.documents, first.left_out, first.tokens, input_bytes, disk_bytes, total, seconds)

    for batch, encoded in encode_in_order(read_lines(paths), tokenizer.path, keys, append_eod, workers):
        for pair, part in zip(pairs, encoded, strict=True):
            pair.add(part)
        input_bytes += batch.size
        report(progress(batch.position))
    for pair, key in zip(pairs, keys, strict=True):
        if pair.tokens == 0:
            where = ", ".join(map(str, paths))
            raise DataError(f"input {where} holds no text under {key!r}. Fix: name files with some.")
    report(progress(total))
