"""Opening the data of a run: a blend of 44 sets, its index built (cold) and found again (warm), beside megatron-core's
own builder for one such set.

Every measurement is a process of its own, which has imported what it needs before the clock starts, and memory is the
peak beyond what the imports took. The very first start reads all .bin files, to hold them against their passports; it
is told apart. Cold: these are known, but the cache folder holds no index. Warm: the same start once more. Each is all
that a run does with its data before the first step. Three sizes give a slope in tokens, which is written out to the
paper's run.

The sets are made of documents of log-normal lengths; their .bin files are holes, which take no room on a disk.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_yuan.config.schema import DataConfig
from megatron_yuan.data.index_file import HEADER_BYTES, MAGIC
from megatron_yuan.errors import ConfigError

SETS = 44  # as many as the paper's corpus has (Yuan 2.0-M32, section 3.1)
SIZES = 4, 2, 1  # parts of the documents asked for
SEQUENCE_LENGTH = 4096
MEAN_TOKENS = 700  # a document, about what Chinese and English web pages have
PAPER_TOKENS = 3400e9  # to be trained on
SEED = 1234


def report(documents: int, rounds: int, folder: str | None) -> dict[str, Any]:
    """Measure on the disk of `folder` (unset, the temporary one), print, and return for JSON."""
    if folder is not None and not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"save is {folder}, but the benchmark needs a folder there that it may write into.")
    found: list[dict[str, Any]] = []
    for part in SIZES:
        with tempfile.TemporaryDirectory(dir=folder, prefix="blend-benchmark-") as scratch:
            found.append(_measure(documents // part, rounds, Path(scratch), with_megatron=part == 1))
        _print_size(found[-1])
    measures = ("cold_best", "warm_best", "cold_gib", "warm_gib", "index_bytes")
    slopes = {name: _slope(found, name) for name in measures}
    result = {"sets": SETS, "sequence_length": SEQUENCE_LENGTH, "sizes": found, "slopes": slopes}
    _print_slopes(slopes)
    return result


def _measure(documents: int, rounds: int, scratch: Path, with_megatron: bool) -> dict[str, Any]:
    config, tokens = _make_sets(documents, scratch)
    cache = Path(str(config.data_cache_path))
    reading = _apart(_open, config, tokens)["seconds"]  # leaves stamps, which hold for the files as they are
    colds = []
    for _ in range(rounds):
        for file in cache.iterdir():
            if file.name != "stamps":
                file.unlink()
        colds.append(_apart(_open, config, tokens))
    warms = [_apart(_open, config, tokens) for _ in range(rounds)]
    found: dict[str, Any] = {
        "documents": documents,
        "tokens": tokens,
        "samples": tokens // SEQUENCE_LENGTH,
        "data_bytes": 2 * tokens,
        "first_seconds": reading,
        **_medians("cold", colds),
        **_medians("warm", warms),
        "index_bytes": sum(file.stat().st_size for file in cache.iterdir() if file.is_file()),
    }
    if with_megatron:
        prefix = config.data_path[1]
        found["megatron"] = [_apart(_open_megatron, prefix, tokens // SETS, scratch / "theirs") for _ in range(2)]
        shutil.rmtree(scratch / "theirs")
        alone = DataConfig(data_path=(prefix,), data_cache_path=str(scratch / "ours"), **_COMMON)
        _apart(_open, alone, tokens // SETS)
        for file in (scratch / "ours").glob("*.*"):
            file.unlink()
        found["one_set"] = [_apart(_open, alone, tokens // SETS) for _ in range(2)]
    return found


def _medians(name: str, measured: list[dict[str, float]]) -> dict[str, float]:
    medians = {f"{name}_{what}": statistics.median(each[what] for each in measured) for what in ("seconds", "gib")}
    # A slope is taken of the fastest: what else the machine does only adds.
    return {**medians, f"{name}_best": min(each["seconds"] for each in measured)}


_COMMON: Mapping[str, Any] = {"split": "1,0,0", "seq_length": SEQUENCE_LENGTH, "eod_id": 0}


def _make_sets(documents: int, folder: Path) -> tuple[DataConfig, int]:
    """A blend of SETS sets, weighted by a power law; and its tokens."""
    random, entries, tokens = np.random.default_rng(SEED), [], 0
    for number in range(SETS):
        count = (number + 1) * documents // SETS - number * documents // SETS
        lengths = np.ceil(random.lognormal(np.log(MEAN_TOKENS) - 0.5, 1.0, count)).astype(np.int32)
        prefix = folder / f"set{number:02d}_text_document"
        write_holes(prefix, lengths)
        entries += [f"{1 / (number + 3):.4f}", str(prefix)]
        tokens += int(lengths.sum(dtype=np.int64))
    time.sleep(0.2)  # a file that was written within the clock's last tick is not remembered
    cache = folder / "cache"
    return DataConfig(data_path=tuple(entries), data_cache_path=str(cache), **_COMMON), tokens


def write_holes(prefix: Path, lengths: np.ndarray) -> None:
    """A .bin/.idx pair of documents of these lengths, int32; the .bin is a hole of zeros, uint16."""
    ends = np.cumsum(lengths, dtype=np.int64)
    with open(f"{prefix}.idx", "wb") as index:
        index.write(MAGIC + np.uint64(1).tobytes() + bytes([8]))
        index.write(np.array([len(lengths), len(lengths) + 1], np.uint64).tobytes())
        assert index.tell() == HEADER_BYTES
        for array in (lengths, 2 * (ends - lengths), np.arange(len(lengths) + 1)):
            index.write(array.tobytes())
    with open(f"{prefix}.bin", "wb") as data:
        data.truncate(2 * int(ends[-1]))


def _open(config: DataConfig, tokens: int) -> Callable[[], object]:
    """What a run does with its data before the first step, ready to be timed."""
    from megatron_yuan.data import datasets
    from megatron_yuan.data.verify import verify_sources
    from megatron_yuan.mcore import datasets as _  # noqa: F401  imported late otherwise

    def action() -> object:
        sources = datasets.open_sources(config, 65536)
        verify_sources(sources, config, 65536, lambda text: None)
        train = datasets.build_training_samples(sources, config, tokens // SEQUENCE_LENGTH, SEED)
        held_out = datasets.build_validation_samples, datasets.build_test_samples
        return train, [build(sources, config, SEED) for build in held_out]

    return action


def _open_megatron(prefix: str, tokens: int, cache: Path) -> Callable[[], object]:
    from megatron_yuan.mcore.own_builder import build_with_megatron

    cache.mkdir(exist_ok=True)
    return lambda: build_with_megatron([prefix], [1.0], tokens // SEQUENCE_LENGTH, SEQUENCE_LENGTH, SEED, cache)


def _apart(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> dict[str, float]:
    """Seconds and peak GiB of `prepare(*arguments)()`, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_timed, args=(theirs, prepare, arguments))
    process.start()
    theirs.close()
    try:
        return json.loads(ours.recv())
    finally:
        process.join()


def _timed(out: Any, prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> None:
    action = prepare(*arguments)
    before = _forget_peak()
    started = time.perf_counter()
    kept = action()
    seconds = time.perf_counter() - started
    out.send(json.dumps({"seconds": seconds, "gib": _status("VmHWM") - before}))
    del kept


def _forget_peak() -> float:
    """Let the peak of this process's memory count from now; returns what is resident, in GiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> float:
    """A line of /proc/self/status, in GiB. Pages of mapped files count while they are mapped."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**20


def _slope(found: list[dict[str, Any]], name: str) -> dict[str, float]:
    """A straight line through the sizes: at no tokens, a trillion tokens, and for the paper's run."""
    per_token, at_none = np.polyfit([each["tokens"] for each in found], [each[name] for each in found], 1)
    return {
        "at_none": float(at_none),
        "per_trillion": float(per_token * 1e12),
        "paper": float(at_none + per_token * PAPER_TOKENS),
    }


def _print_size(found: dict[str, Any]) -> None:
    print(
        f"{SETS} sets, {found['documents']:,} documents, {found['tokens'] / 1e9:.2f}B tokens, "
        f"{found['samples']:,} samples of {SEQUENCE_LENGTH}: cold {found['cold_seconds']:.2f} s, "
        f"{1024 * found['cold_gib']:.0f} MiB; warm {found['warm_seconds']:.2f} s, {1024 * found['warm_gib']:.0f} MiB "
        f"(peak memory beyond imports); index files {found['index_bytes'] / 1e6:.1f} MB; "
        f"the very first start, which also reads all {found['data_bytes'] / 1e9:.1f} GB: {found['first_seconds']:.1f} s"
    )
    if "megatron" in found:
        (cold, warm), (our_cold, our_warm) = found["megatron"], found["one_set"]
        print(
            f"one such set, {found['documents'] // SETS:,} documents: megatron-core's own builder "
            f"{cold['seconds']:.2f} s cold, {warm['seconds']:.2f} s warm; ours {our_cold['seconds']:.2f} and "
            f"{our_warm['seconds']:.2f} s"
        )


def _print_slopes(slopes: dict[str, dict[str, float]]) -> None:
    paper = {name: max(0.0, slope["paper"]) for name, slope in slopes.items()}
    print(
        f"along the slope to {PAPER_TOKENS / 1e9:,.0f}B tokens: cold {paper['cold_best']:,.0f} s, "
        f"{paper['cold_gib']:,.1f} GiB; warm {paper['warm_best']:,.1f} s, {paper['warm_gib']:,.1f} GiB; index files "
        f"{paper['index_bytes'] / 1e9:,.1f} GB. Seconds of the fastest rounds: "
        + ", ".join(
            f"{name} {slope['at_none']:.2f} + {slope['per_trillion']:.0f} a trillion tokens"
            for name, slope in (("cold", slopes["cold_best"]), ("warm", slopes["warm_best"]))
        )
    )
