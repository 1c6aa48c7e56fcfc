"""From text to token ids on disk: PREFIX_KEY_document.bin and .idx for each key, and a passport beside them.

Order out is order in, and the bytes are the same for any number of workers. Files get their names when all is written;
broken off at any moment, the work can go on from its journal.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_yuan.data.encode import Encoder, encode_in_order
from megatron_yuan.data.inputs import REJECTS, Input, find_inputs
from megatron_yuan.data.journal import (
    Journal,
    PairCounts,
    hidden,
    journal_path,
    read_journal,
    sync_folder,
    write_journal,
)
from megatron_yuan.data.pair import ENDINGS, PairWriter, commit_pair, discard_pair
from megatron_yuan.data.parse import rejected
from megatron_yuan.data.passport import VERSION, Passport, passport_path, read_passport
from megatron_yuan.data.readers import BATCH_BYTES, Batch
from megatron_yuan.data.rejects import Rejects
from megatron_yuan.data.tasks import check_unchanged, tasks_of, unread_batches
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError
from megatron_yuan.version import __version__

JOURNAL_SECONDS = 5.0  # between journals: what a kill costs at most
ON_ERROR = ("stop", "skip")
Report = Callable[["Progress"], None]


@dataclass(frozen=True)
class Progress:
    """How far preprocessing has come; tokens and documents are those of the first key."""

    documents: int = 0
    rejects: int = 0
    """Documents left out."""
    tokens: int = 0
    input_bytes: int = 0
    """Of rows, unpacked."""
    disk_bytes: int = 0
    """Of the input files as they lie on the disk."""
    disk_bytes_total: int = 0
    seconds: float = 0.0
    """Of this session."""


def preprocess(
    inputs: Sequence[str | Path],
    output_prefix: str | Path,
    tokenizer: Tokenizer,
    append_eod: bool,
    keys: Sequence[str] = ("text",),
    workers: int = 1,
    overwrite: bool = False,
    report: Report = lambda progress: None,
    on_error: str = "stop",
    resume: bool = False,
) -> list[Passport]:
    """Encode every document of `inputs`; returns a passport for each key.

    `on_error`: "stop" at a document that cannot be used, or "skip" it, count it and list it in PREFIX_rejects.jsonl.
    `resume`: go on with a run that was broken off. `report` is called at the start, after each batch and at the end.
    Raises DataError; no file under a final name is then changed, and what a journal tells of can be resumed.
    """
    sources = find_inputs(inputs, keys)
    if workers < 1:
        raise DataError(f"workers is {workers}; at least 1 is needed. Fix: --workers 1 or more.")
    if on_error not in ON_ERROR:
        raise DataError(f"on_error is {on_error!r}, but must be one of {', '.join(ON_ERROR)}.")
    if os.path.basename(output_prefix) in ("", ".", ".."):
        raise DataError(
            f'output_prefix is "{output_prefix}", but must end in a name, which the files\' names begin with. '
            "Fix: --output-prefix FOLDER/NAME."
        )
    try:
        return _Run(sources, Path(output_prefix), tokenizer, append_eod, keys, on_error).run(
            workers, overwrite, resume, report
        )
    except OSError as error:
        raise DataError(
            f"output_prefix {output_prefix} cannot be written ({error.strerror}). "
            "Fix: see to the folder and its free space, or another --output-prefix."
        ) from None


class _Run:
    """One run of preprocessing, or what is left of it."""

    def __init__(
        self,
        sources: Sequence[Input],
        output: Path,
        tokenizer: Tokenizer,
        append_eod: bool,
        keys: Sequence[str],
        on_error: str,
    ) -> None:
        self.sources, self.output, self.keys, self.on_error = sources, output, list(keys), on_error
        self.tokenizer, self.append_eod = tokenizer, append_eod
        self.prefixes = [output.with_name(f"{output.name}_{key}_document") for key in keys]
        self.rejects_path = output.with_name(output.name + REJECTS)
        self.journal_path = journal_path(output)
        self._owner = False
        self.sizes = [source.path.stat().st_size for source in sources]

    def run(self, workers: int, overwrite: bool, resume: bool, report: Report) -> list[Passport]:
        """All of it."""
        journal = self._begin(overwrite, resume)
        if journal is None:
            return self._passports()
        with ExitStack() as files:
            try:
                if not journal.complete:
                    self._write(journal, workers, report, files)
                for prefix in self.prefixes:
                    commit_pair(prefix)
                self._commit_rejects()
                sync_folder(self.output.parent)
                self.journal_path.unlink()
                return self._passports()
            except BaseException:
                if self._owner and not self.journal_path.exists():
                    files.callback(self._discard)
                raise

    def _begin(self, overwrite: bool, resume: bool) -> Journal | None:
        """Where to go on, or the beginning; None where all is done already."""
        made_by = {
            "tool": _tool(),
            "batch_bytes": BATCH_BYTES,
            "tokenizer_sha256": self.tokenizer.sha256,
            "json_keys": self.keys,
            "append_eod": self.append_eod,
            "inputs": [[source.name, size] for source, size in zip(self.sources, self.sizes, strict=True)],
        }
        found = read_journal(self.journal_path) if resume else None
        if found is not None:
            self._check_same(found, made_by)
            return found
        if resume and self._is_done():
            self._check_untouched()
            return None
        self._check_new(overwrite)
        if not resume and not overwrite and self.journal_path.exists():
            raise DataError(
                f"output_prefix {self.output} was begun and broken off. Fix: --resume to go on, or --overwrite to "
                "begin anew."
            )
        self.output.parent.mkdir(parents=True, exist_ok=True)
        return Journal(made_by, overwrite, [PairCounts() for _ in self.keys])

    def _check_new(self, overwrite: bool) -> None:
        for file in self._outputs():
            if not overwrite and file.exists():
                raise DataError(f"output {file} exists already. Fix: another --output-prefix, or --overwrite.")

    def _check_same(self, journal: Journal, made_by: dict[str, Any]) -> None:
        anew = "or begin anew, with --overwrite and without --resume"
        for name, now in made_by.items():
            before = journal.made_by.get(name)
            if before != now:
                raise DataError(
                    f"resume: {name} {_difference(before, now)}, so the output would be neither the one nor the other. "
                    f"Fix: as before; {anew}."
                )
        if self.on_error == "stop" and journal.rejects:
            raise DataError(
                f"resume: on_error is stop, but {sum(journal.rejects.values())} documents were skipped already. "
                f"Fix: --on-error skip; {anew}."
            )

    def _write(self, journal: Journal, workers: int, report: Report, files: ExitStack) -> None:
        encoder = Encoder(self.tokenizer, self.keys, self.append_eod)
        pairs: list[PairWriter] = []
        for prefix, counts in zip(self.prefixes, journal.pairs, strict=True):
            pairs.append(PairWriter(prefix, encoder.segments.dtype, counts))
            files.callback(pairs[-1].close)
            self._owner = True  # no other process has this output in the making
            self._check_new(journal.overwrite)  # but one may have been making it when this one began
            if not journal.files and not journal.batches:
                self.journal_path.unlink(missing_ok=True)  # of a run that is given up
        rejects = Rejects(self.rejects_path, journal)
        files.callback(rejects.close)
        self._encode(journal, encoder, pairs, rejects, workers, report)
        passport = partial(self._passport, journal)
        for key, pair in zip(self.keys, pairs, strict=True):
            pair.finish(partial(passport, key))
        rejects.sync()
        journal.complete = True
        write_journal(self.journal_path, journal)

    def _encode(
        self,
        journal: Journal,
        encoder: Encoder,
        pairs: Sequence[PairWriter],
        rejects: Rejects,
        workers: int,
        report: Report,
    ) -> None:
        started = journaled = time.monotonic()
        tell = partial(self._progress, journal, started)
        report(tell(0))
        tasks = tasks_of(unread_batches(self.sources, self.keys, journal), encoder)
        for batch, done, result in encode_in_order(tasks, encoder, self.append_eod, workers):
            for reject in result.rejects:
                if self.on_error == "stop":
                    raise rejected(batch.source, reject)
                rejects.add(batch.source, reject)
            for i, encoded in result.encoded.items():
                pairs[i].add(encoded)
            if not done:
                continue
            self._note(journal, batch)
            report(tell(0 if batch.last else batch.taken))
            if time.monotonic() - journaled > JOURNAL_SECONDS:
                for file in (*pairs, rejects):
                    file.sync()
                write_journal(self.journal_path, journal)
                journaled = time.monotonic()
        if not pairs[0].counts.tokens:
            where = ", ".join(str(source.path) for source in self.sources[:5])
            skipped = f" that can be used ({_in_words(journal.rejects)})" if journal.rejects else ""
            raise DataError(f"input {where} holds no text{skipped}. Fix: name files with some.")

    def _note(self, journal: Journal, batch: Batch) -> None:
        journal.input_bytes += batch.size
        if not batch.last:
            journal.batches, journal.sha256 = batch.index + 1, batch.sha256
            return
        if batch.taken != self.sizes[batch.number]:
            raise DataError(f"input {batch.source.path} was changed while it was read. Fix: leave it alone meanwhile.")
        journal.files.append(batch.sha256)
        journal.disk_bytes += batch.taken
        journal.batches, journal.sha256 = 0, ""

    def _progress(self, journal: Journal, started: float, taken: int) -> Progress:
        return Progress(
            documents=journal.pairs[0].documents,
            rejects=sum(journal.rejects.values()),
            tokens=journal.pairs[0].tokens,
            input_bytes=journal.input_bytes,
            disk_bytes=journal.disk_bytes + taken,
            disk_bytes_total=sum(self.sizes),
            seconds=time.monotonic() - started,
        )

    def _passport(self, journal: Journal, key: str, **found: Any) -> Passport:
        return Passport(
            version=VERSION,
            tool=_tool(),
            tokenizer_sha256=self.tokenizer.sha256,
            vocab_size=self.tokenizer.vocab_size,
            eod_id=self.tokenizer.eod_id,
            special_ids=self.tokenizer.special_ids,
            append_eod=self.append_eod,
            json_key=key,
            json_keys=self.keys,
            on_error=self.on_error,
            rejects=journal.rejects,
            inputs=[
                {"name": source.name, "bytes": size, "sha256": sha256}
                for source, size, sha256 in zip(self.sources, self.sizes, journal.files, strict=True)
            ],
            **found,
        )

    def _passports(self) -> list[Passport]:
        found = [read_passport(prefix) for prefix in self.prefixes]
        return [passport for passport in found if passport is not None]

    def _is_done(self) -> bool:
        """Whether a run like this one has ended already; the files' contents are not read for it."""
        if not all(Path(f"{prefix}{ending}").exists() for prefix in self.prefixes for ending in ENDINGS):
            return False
        for passport in self._passports():
            files = [(each.get("name"), each.get("bytes")) for each in passport.inputs]
            wanted = [(source.name, size) for source, size in zip(self.sources, self.sizes, strict=True)]
            if files != wanted or (
                passport.tool,
                passport.tokenizer_sha256,
                passport.append_eod,
                passport.json_keys,
                passport.on_error,
            ) != (_tool(), self.tokenizer.sha256, self.append_eod, self.keys, self.on_error):
                return False
        return True

    def _check_untouched(self) -> None:
        """DataError for an input that was written after it was read; only one newer than the output is hashed."""
        made = passport_path(self.prefixes[0]).stat().st_ctime_ns
        for source, said in zip(self.sources, self._passports()[0].inputs, strict=True):
            if source.path.stat().st_ctime_ns >= made:
                check_unchanged(source, said.get("sha256"))

    def _outputs(self) -> list[Path]:
        pairs = [Path(f"{prefix}{ending}") for prefix, ending in itertools.product(self.prefixes, ENDINGS)]
        return [*pairs, self.rejects_path]

    def _commit_rejects(self) -> None:
        part = hidden(self.rejects_path)
        if part.exists() and part.stat().st_size:
            part.replace(self.rejects_path)
        elif part.exists():
            self.rejects_path.unlink(missing_ok=True)
            part.unlink()

    def _discard(self) -> None:
        for prefix in self.prefixes:
            discard_pair(prefix)
        hidden(self.rejects_path).unlink(missing_ok=True)


def _tool() -> str:
    return f"megatron_yuan {__version__}"


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, list) and isinstance(now, list):
        place = next(
            (i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now))
        )
        if len(before) != len(now):
            return f"are {len(now)} files or keys now, and were {len(before)}"
        before, now = before[place], now[place]
    return f"is {now} now, and was {before}"


def _in_words(rejects: dict[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in rejects.items())
