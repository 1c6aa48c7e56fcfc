"""Training and validation samples of a run, through megatron-core's blended builder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from megatron_yuan.config.schema import DataConfig
from megatron_yuan.data.blend import Source, check_token_ids, parse_blend, read_index
from megatron_yuan.data.passport import Passport, check_passport, is_outdated, read_passport
from megatron_yuan.data.sample import Sample, SampleSource
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError

TRAIN, VALID = 0, 1
WHOLE = {TRAIN: "1,0,0", VALID: "0,1,0"}


@dataclass(frozen=True)
class Sources:
    """The checked sets of a run."""

    train: list[Source]
    valid: list[Source]
    train_split: str
    """Which part of each training set is trained on, as --split writes it."""
    valid_split: str
    eod_id: int
    """The token that ends a document."""
    tokenizer_sha256: str | None = None
    """Of the tokenizer that made the data; None where neither a passport nor --tokenizer-model tells."""

    @property
    def train_names(self) -> list[str]:
        """Short names of the training sets, or prefixes where short ones are the same."""
        return _names(self.train)


class Packed:
    """megatron's samples as ours."""

    def __init__(self, samples: Sequence[Mapping[str, np.ndarray]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; a blend says which of its sets it is from."""
        found = self.samples[index]
        return Sample(found["tokens"], set_id=int(found.get("dataset_id", 0)))


def open_sources(config: DataConfig, vocab_size: int) -> Sources:
    """Open and check every set named in the config; nothing is built or written."""
    if config.train_data_path:
        train, valid = parse_blend("train_data_path", config.train_data_path), []
        if config.valid_data_path:
            valid = parse_blend("valid_data_path", config.valid_data_path)
        splits = WHOLE[TRAIN], WHOLE[VALID]
    elif config.data_path:
        train = parse_blend("data_path", config.data_path)
        valid = train  # where the split leaves it nothing, no samples are built
        splits = config.split, config.split
        if config.valid_data_path:
            valid, splits = parse_blend("valid_data_path", config.valid_data_path), (config.split, WHOLE[VALID])
    else:
        raise DataError("data_path is empty: there is nothing to train on. Fix: --data-path PREFIX (see --help).")
    distinct = list({source.prefix: source for source in (*train, *valid)}.values())
    tokenizer = _open_tokenizer(config, vocab_size)
    passports = {source.prefix: read_passport(source.prefix) for source in distinct}
    for source in distinct:
        passport = passports[source.prefix]
        if passport is not None:
            check_passport(source.prefix, passport, tokenizer)
        # To look at every token takes long where there are many, so a passport's word is taken where it can be.
        if passport is None or passport.vocab_size > vocab_size or is_outdated(source.prefix):
            check_token_ids("data_path", source, vocab_size)
    known = [passport for passport in passports.values() if passport is not None]
    tokenizer_sha256 = _tokenizer_sha256(tokenizer, passports)
    sources = Sources(train, valid, *splits, _eod_id(config, tokenizer, known), tokenizer_sha256)
    for source in sources.train:
        _check_length(source, sources.train_split, TRAIN, config.seq_length)
    if config.valid_data_path:
        for source in sources.valid:
            _check_length(source, sources.valid_split, VALID, config.seq_length)
    for source in distinct:
        _check_cache(config, source)
    return sources


def _check_length(source: Source, split: str, which: int, seq_length: int) -> None:
    tokens = split_tokens(source, split, which)
    if tokens < seq_length + 1:
        part = ("training", "validation")[which]
        raise DataError(
            f"seq_length {seq_length} needs {seq_length + 1} tokens a sample, but the {part} part "
            f"of {source.prefix} (split {split}, in whole documents) has {tokens}. "
            "Fix: a shorter --seq-length, more data, or another --split."
        )


def _names(sources: Sequence[Source]) -> list[str]:
    names = [source.name for source in sources]
    return [s.name if names.count(s.name) == 1 else s.prefix for s in sources]


def split_tokens(source: Source, split: str, which: int) -> int:
    """Tokens in one part of a set. A part is whole documents; its bounds are rounded as megatron's builder does it."""
    _, lengths, _ = read_index(Path(source.prefix + ".idx"))
    shares = np.array([float(share) for share in split.split(",")])
    bounds = list(accumulate((shares / shares.sum()).tolist(), initial=0.0))
    first, end = (round(bound * len(lengths)) for bound in bounds[which : which + 2])
    return int(lengths[first:end].sum(dtype=np.int64))


def build_training_samples(sources: Sources, config: DataConfig, num_samples: int, seed: int) -> SampleSource:
    """`num_samples` samples of the weighted blend. Called by all ranks together: rank 0 writes the index files."""
    weights = None if len(sources.train) == 1 else [source.weight for source in sources.train]
    return Packed(_build(sources.train, weights, sources.train_split, TRAIN, num_samples, config, seed, sources.eod_id))


def build_validation_samples(sources: Sources, config: DataConfig, seed: int) -> dict[str, SampleSource]:
    """By name of the set: each of its validation samples once, in an order of their own."""
    found: dict[str, SampleSource] = {}
    for name, source in zip(_names(sources.valid), sources.valid, strict=True):
        if split_tokens(source, sources.valid_split, VALID) < config.seq_length + 1:
            continue  # too short for one sample: there is nothing to measure on
        samples = _build([source], None, sources.valid_split, VALID, None, config, seed, sources.eod_id)
        if len(samples):
            found[name] = Packed(samples)
    return found


def _cache(config: DataConfig, source: Source) -> Path:
    """Where index files of a blend that begins with `source` are kept."""
    return Path(config.data_cache_path) if config.data_cache_path else Path(source.prefix).parent / "index-cache"


def _check_cache(config: DataConfig, source: Source) -> None:
    folder = _cache(config, source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if folder.is_dir() and any(folder.iterdir()):
            return  # filled before: it may hold all that this run needs
        raise DataError(
            f"data_cache_path {folder} cannot be written ({error.strerror}), and index files must go somewhere. "
            "Fix: --data-cache-path FOLDER, which all machines of the run see."
        ) from None


def _build(
    sources: list[Source],
    weights: list[float] | None,
    split: str,
    which: int,
    num_samples: int | None,
    config: DataConfig,
    seed: int,
    eod_id: int,
) -> Sequence[Mapping[str, np.ndarray]]:
    from megatron_yuan.mcore.datasets import build_split  # seconds to import; checks come first

    samples = build_split(
        ([source.prefix for source in sources], weights),
        split,
        which,
        num_samples,
        config.seq_length,
        seed,
        eod_id,
        str(_cache(config, sources[0])),
        {source.prefix: source.fingerprint for source in sources},
    )
    assert samples is not None, "every part was seen to hold tokens"
    return samples


def _open_tokenizer(config: DataConfig, vocab_size: int) -> Tokenizer | None:
    if config.tokenizer_model is None:
        return None
    tokenizer = Tokenizer(config.tokenizer_model)
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"tokenizer_model {config.tokenizer_model} has {tokenizer.vocab_size} ids, but vocab_size is {vocab_size}. "
            f"Fix: --vocab-size {tokenizer.vocab_size}."
        )
    return tokenizer


def _tokenizer_sha256(tokenizer: Tokenizer | None, passports: Mapping[str, Passport | None]) -> str | None:
    made_by: dict[str, str] = {} if tokenizer is None else {tokenizer.sha256: str(tokenizer.path)}
    for prefix, passport in passports.items():
        if passport is not None:
            made_by.setdefault(passport.tokenizer_sha256, prefix)
    if len(made_by) > 1:
        (one, first), (other, second) = list(made_by.items())[:2]
        raise DataError(
            f"data_path {first} and {second} were made by different tokenizers (sha256 {one[:12]}... and "
            f"{other[:12]}...), so the same id means different text. Fix: preprocess them with one tokenizer."
        )
    return next(iter(made_by), None)


def _eod_id(config: DataConfig, tokenizer: Tokenizer | None, passports: Sequence[Passport]) -> int:
    known = {passport.eod_id for passport in passports} | ({tokenizer.eod_id} if tokenizer is not None else set())
    if config.eod_id is not None and known - {config.eod_id}:
        raise DataError(
            f"eod_id is {config.eod_id}, but the data's tokenizer ends a document with {known.pop()}. "
            "Fix: drop --eod-id."
        )
    if config.eod_id is not None:
        return config.eod_id
    if len(known) == 1:
        return known.pop()
    raise DataError(
        "the id of <eod> is not known: there is no tokenizer_model, no eod_id, and no passport that all sets agree on. "
        "Fix: --tokenizer-model FILE, the one that made the data, or --eod-id ID."
    )
