"""The sets of a run, opened and checked, and the samples made of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

import numpy as np

from megatron_yuan.config.schema import DataConfig
from megatron_yuan.data.blend import Source, cache_folder, names_of, open_entries, read_entries
from megatron_yuan.data.blend_file import read_blend_file
from megatron_yuan.data.dialogues import DialogueRows, NoAnswersError, marks_of
from megatron_yuan.data.index_file import read_index
from megatron_yuan.data.packing import OpenSet, PackedSet, Part, Plan, open_blend
from megatron_yuan.data.passport import Passport, read_passport
from megatron_yuan.data.passport_check import check_passport, common_eod, common_tokenizer
from megatron_yuan.data.sample import SampleSource
from megatron_yuan.data.stamp import Stamps
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError

TRAIN, VALID, TEST = 0, 1, 2
PART_NAMES = "training", "validation", "test"
WHOLE = "1,0,0", "0,1,0", "0,0,1"


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
    tokenizer_ids: int | None = None
    """How many --tokenizer-model has; None where none is given."""
    test: list[Source] = field(default_factory=list)
    test_split: str = WHOLE[TEST]
    passports: Mapping[str, Passport | None] = field(default_factory=dict)
    """Of each set, by prefix; None where it has none."""

    @property
    def train_names(self) -> list[str]:
        """Short names of the training sets, or prefixes where short ones are the same."""
        return names_of(self.train)

    @property
    def fim_sets(self) -> set[int]:
        """Numbers of the training sets that FIM is for: those that say so; where none does, all that do not say no."""
        said = [source.entry.fim for source in self.train]
        return {number for number, fim in enumerate(said) if fim or (fim is None and True not in said)}

    @property
    def languages(self) -> dict[str, dict[str, str]]:
        """Of the sets for "validation" and for "test", by name, where the blend tells."""
        return {
            PART_NAMES[which]: {
                name: source.entry.language
                for name, source in zip(names_of(sets), sets, strict=True)
                if source.entry.language is not None
            }
            for which, sets in ((VALID, self.valid), (TEST, self.test))
        }

    @property
    def distinct(self) -> list[Source]:
        """Each set once, whatever it is for."""
        return list({source.prefix: source for source in (*self.train, *self.valid, *self.test)}.values())


def open_sources(config: DataConfig, vocab_size: int) -> Sources:
    """Open and check every set named in the config, as far as that takes no time; nothing is built.

    What has to be read for it, the tokens themselves, is checked by `verify.verify_sources`.
    """
    sets, splits = _open_sets(config)
    distinct = {source.prefix: source for each in sets for source in each}
    tokenizer = _open_tokenizer(config, vocab_size)
    passports = {prefix: read_passport(prefix) for prefix in distinct}
    for prefix, passport in passports.items():
        if passport is not None:
            check_passport(distinct[prefix], passport, tokenizer, vocab_size)
    sources = Sources(
        train=sets[TRAIN],
        valid=sets[VALID],
        train_split=splits[TRAIN],
        valid_split=splits[VALID],
        eod_id=common_eod(config, tokenizer, passports),
        tokenizer_sha256=common_tokenizer(tokenizer, passports),
        tokenizer_ids=tokenizer and tokenizer.vocab_size,
        test=sets[TEST],
        test_split=splits[TEST],
        passports=passports,
    )
    for which, (found, split) in enumerate(zip(sets, splits, strict=True)):
        if which == TRAIN or split == WHOLE[which]:  # what a split leaves too short is left out; what is named must do
            for source in found:
                _check_length(source, split, which, config)
    for source in distinct.values():
        _check_cache(config, source)
    return sources


def _open_sets(config: DataConfig) -> tuple[list[list[Source]], list[str]]:
    """The sets to train on, to validate on and to test on, and which part of each is meant."""
    own = [
        (f"{part}_data_path", read_entries(f"{part}_data_path", entries))
        for part, entries in (
            ("train", config.train_data_path),
            ("valid", config.valid_data_path),
            ("test", config.test_data_path),
        )
    ]
    split_up = ("data_path", read_entries("data_path", config.data_path))
    if config.data_args_path is not None:
        setting = f"data_args_path {config.data_args_path}:"
        lists = read_blend_file(config.data_args_path)
        own = [(setting, each) for each in lists]
        if not lists[VALID] and not lists[TEST]:
            own[TRAIN], split_up = (setting, []), (setting, lists[TRAIN])
    if not own[TRAIN][1] and not split_up[1]:
        raise DataError("data_path is empty: there is nothing to train on. Fix: --data-path PREFIX (see --help).")
    divided = [] if own[TRAIN][1] else open_entries(*split_up, config.data_cache_path)
    sets, splits = [], []
    for which, (setting, entries) in enumerate(own):
        sets.append(open_entries(setting, entries, config.data_cache_path) if entries else divided)
        splits.append(WHOLE[which] if entries or not divided else config.split)
    return sets, splits


def _check_length(source: Source, split: str, which: int, config: DataConfig) -> None:
    tokens = split_tokens(source, split, which)
    if tokens < _fewest_tokens(config):
        raise DataError(
            f"seq_length {config.seq_length} needs {_fewest_tokens(config)} tokens a sample, but the "
            f"{PART_NAMES[which]} part of {source.prefix} (split {split}, in whole documents) has {tokens}. "
            "Fix: a shorter --seq-length, more data, or another --split."
        )


def split_tokens(source: Source, split: str, which: int) -> int:
    """Tokens in one part of a set."""
    return split_range(source, split, which)[2]


def split_range(source: Source, split: str, which: int) -> tuple[int, int, int]:
    """First document, end and tokens of one part: whole documents, bounds rounded as megatron's builder does it."""
    found = read_index(source.index)
    shares = np.array([float(share) for share in split.split(",")])
    bounds = list(accumulate((shares / shares.sum()).tolist(), initial=0.0))
    first, end = (round(bound * len(found.lengths)) for bound in bounds[which : which + 2])
    if end <= first:
        return first, first, 0
    stop = int(found.offsets[end]) if end < len(found.lengths) else source.tokens * source.dtype.itemsize
    return first, end, (stop - int(found.offsets[first])) // source.dtype.itemsize


def build_training_samples(sources: Sources, config: DataConfig, num_samples: int, seed: int) -> SampleSource:
    """`num_samples` samples of the weighted blend, or more. Builds the index files that the cache folder lacks."""
    plan = _plan(sources, config, sources.train[0], seed)
    parts = [_part(source, sources.train_split, TRAIN, config) for source in sources.train]
    if len(parts) == 1:
        return _open_set(config)(parts[0], num_samples, plan)
    return open_blend(parts, [source.weight for source in sources.train], num_samples, plan, _open_set(config))


def build_validation_samples(sources: Sources, config: DataConfig, seed: int) -> dict[str, SampleSource]:
    """By name of the set: each of its validation samples once, in an order of their own."""
    return _build_apart(sources, sources.valid, sources.valid_split, VALID, config, seed)


def build_test_samples(sources: Sources, config: DataConfig, seed: int) -> dict[str, SampleSource]:
    """By name of the set: each of its test samples once, in an order of their own."""
    return _build_apart(sources, sources.test, sources.test_split, TEST, config, seed)


def _build_apart(
    sources: Sources, sets: Sequence[Source], split: str, which: int, config: DataConfig, seed: int
) -> dict[str, SampleSource]:
    found: dict[str, SampleSource] = {}
    for name, source in zip(names_of(sets), sets, strict=True):
        part = _part(source, split, which, config)
        if part.tokens < _fewest_tokens(config):
            continue  # too short for one sample: there is nothing to measure on
        try:
            samples = _open_set(config)(part, None, _plan(sources, config, source, seed))
        except NoAnswersError:
            if split == WHOLE[which]:
                raise
            continue  # a split that happens to hold no answer has nothing to measure on either
        if len(samples):
            found[name] = samples
    return found


def _open_set(config: DataConfig) -> OpenSet:
    """How documents become samples."""
    if not config.sft:
        return PackedSet
    assert config.tokenizer_model is not None, "validate_run asks for it"
    return partial(DialogueRows, marks=marks_of(Tokenizer(config.tokenizer_model)))


def _fewest_tokens(config: DataConfig) -> int:
    """That make a sample; rows of dialogues are padded."""
    return 1 if config.sft else config.seq_length + 1


def _part(source: Source, split: str, which: int, config: DataConfig) -> Part:
    content = Stamps(cache_folder(source.prefix, config.data_cache_path)).sha256(source.index)
    return Part(source.prefix, content, *split_range(source, split, which))


def _plan(sources: Sources, config: DataConfig, source: Source, seed: int) -> Plan:
    return Plan(config.seq_length, seed, sources.eod_id, cache_folder(source.prefix, config.data_cache_path))


def _check_cache(config: DataConfig, source: Source) -> None:
    folder = cache_folder(source.prefix, config.data_cache_path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if folder.is_dir() and any(folder.iterdir()):
            return  # filled before: it may hold all that this run needs
        raise DataError(
            f"data_cache_path {folder} cannot be written ({error.strerror}), and index files must go somewhere. "
            "Fix: --data-cache-path FOLDER."
        ) from None


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
