"""Whether a set's passport fits the set, the tokenizer and the model: all that can be told without reading tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_yuan.config.schema import DataConfig
from megatron_yuan.data.blend import Source
from megatron_yuan.data.passport import Passport
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError


def check_passport(source: Source, passport: Passport, tokenizer: Tokenizer | None, vocab_size: int) -> None:
    """DataError, in one sentence and its fix, for a pair that is another, or that another tokenizer made."""
    prefix = source.prefix
    for ending, size in ((".bin", passport.bin_bytes), (".idx", passport.idx_bytes)):
        found = (source.data if ending == ".bin" else source.index).stat().st_size
        if found != size:
            raise DataError(
                f"data_path {prefix}: {ending} has {found} bytes, its passport says {size}. Fix: preprocess again."
            )
    for what, found, said in (
        ("documents", source.documents, passport.documents),
        ("tokens", source.tokens, passport.tokens),
    ):
        if found != said:
            raise DataError(
                f"data_path {prefix} has {found} {what}, its passport says {said}. Fix: preprocess again, so that "
                "both are of one making."
            )
    if tokenizer is not None and tokenizer.sha256 != passport.tokenizer_sha256:
        raise DataError(
            f"tokenizer_model {tokenizer.path} is not the one that made {prefix} (sha256 {tokenizer.sha256[:12]}..., "
            f"the data's is {passport.tokenizer_sha256[:12]}...). Fix: give the data's tokenizer, or preprocess again."
        )
    if tokenizer is not None and tokenizer.vocab_size != passport.vocab_size:
        raise DataError(
            f"data_path {prefix} was made with {passport.vocab_size} ids, but tokenizer_model {tokenizer.path} has "
            f"{tokenizer.vocab_size}. Fix: preprocess again."
        )
    if passport.vocab_size > vocab_size:
        raise DataError(
            f"data_path {prefix} was made with {passport.vocab_size} ids, but vocab_size is {vocab_size}. "
            f"Fix: --vocab-size {passport.vocab_size}."
        )
    if not 0 <= passport.eod_id < passport.vocab_size:
        raise DataError(
            f"data_path {prefix}: its passport says that {passport.eod_id} ends a document, but there are "
            f"{passport.vocab_size} ids. Fix: preprocess again."
        )


def common_tokenizer(tokenizer: Tokenizer | None, passports: Mapping[str, Passport | None]) -> str | None:
    """sha256 of the tokenizer that made all sets; None where nobody tells. DataError where there are two."""
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


def common_eod(config: DataConfig, tokenizer: Tokenizer | None, passports: Mapping[str, Passport | None]) -> int:
    """The id that ends a document in every set. DataError where they differ, or nobody tells."""
    said: list[tuple[int, str]] = []
    if config.eod_id is not None:
        said.append((config.eod_id, f"eod_id is {config.eod_id}"))
    if tokenizer is not None:
        said.append((tokenizer.eod_id, f"<eod> of tokenizer_model {tokenizer.path} is {tokenizer.eod_id}"))
    said += [(p.eod_id, f"in {prefix} a document ends with {p.eod_id}") for prefix, p in passports.items() if p]
    if not said:
        raise DataError(
            "the id of <eod> is not known: there is no tokenizer_model, no eod_id, and no set has a passport. "
            "Fix: --tokenizer-model FILE, the one that made the data, or --eod-id ID."
        )
    other = next((each for each in said if each[0] != said[0][0]), None)
    if other is not None:
        fix = "drop --eod-id" if config.eod_id is not None else "preprocess the data with one tokenizer"
        raise DataError(f"{said[0][1]}, but {other[1]}. Fix: {fix}.")
    return said[0][0]


def some_names(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
