"""What a save consists of: every tensor is written once, by one replica of the one stage that owns it, in one file with
its layer's. `agree` with all ranks, `write_part` on each, `finish` on the main one; `saver.py` puts them in order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from megatron_yuan.checkpoint import commit, layout, store, strict_json
from megatron_yuan.checkpoint.agreement import Ranks, together
from megatron_yuan.checkpoint.commit import Pending, Retention
from megatron_yuan.checkpoint.manifest import FileRecord
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.checkpoint.store import Count, Pieces, TensorSpec
from megatron_yuan.checkpoint.work import Progress, on_threads, writing_threads
from megatron_yuan.errors import CheckpointError

Files = dict[str, dict[str, Tensor]]  # file -> name in the file -> tensor


@dataclass(frozen=True)
class Offer:
    """What one rank holds, told to all others before a save."""

    pp_rank: int
    dp_rank: int
    files: dict[str, dict[str, TensorSpec]]
    token: str


@dataclass(frozen=True)
class Plan:
    """Who writes what; the same on every rank."""

    writer: dict[str, int]
    """File -> rank that writes it."""
    shared: dict[str, list[int]]
    """Weight file held by several stages (a tied embedding) -> one rank of each; their values must agree."""
    specs: dict[str, dict[str, TensorSpec]]
    """File -> its tensors."""

    @property
    def tensor_bytes(self) -> int:
        """Of all files."""
        return sum(map(_nbytes, self.specs.values()))


@dataclass(frozen=True)
class Order:
    """A save that all ranks have agreed on, with this rank's share of it."""

    plan: Plan
    pending: Pending
    rank: int
    held: Files
    """The tensors of the files that this rank writes or compares, largest files first."""
    state_text: str
    config_text: str
    tokenizer: Path | None

    @property
    def what(self) -> str:
        """For errors."""
        return f"saving the checkpoint of step {self.pending.step}"

    @property
    def own(self) -> Files:
        """The files that this rank writes."""
        return {file: tensors for file, tensors in self.held.items() if self.plan.writer[file] == self.rank}

    @property
    def nbytes(self) -> int:
        """Bytes of tensors that this rank writes."""
        return sum(_nbytes(self.plan.specs[file]) for file in self.own)


@dataclass(frozen=True)
class Part:
    """What one rank has done: size and sha256 of each file it wrote, hashes of its copies of shared files' tensors."""

    written: dict[str, tuple[int, str]]
    digests: dict[str, dict[str, str]]

    def to_json(self) -> str:
        """As text, to be left for the main rank."""
        return strict_json.canonical({"written": self.written, "digests": self.digests})

    @classmethod
    def from_json(cls, text: str, source: str) -> Part:
        """The inverse, for a text that another rank has left a moment ago."""
        values = strict_json.parse(text, source)
        return cls({file: (size, sha256) for file, (size, sha256) in values["written"].items()}, values["digests"])


def agree(
    run_folder: Path,
    ranks: Ranks,
    run_state: RunState,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Mapping[str, Tensor]],
    config_text: str,
    tokenizer: Path | None = None,
) -> Order:
    """Share the writing out among all ranks and make the folder for it; see `save_checkpoint` for the arguments."""
    what = f"saving the checkpoint of step {run_state.step}"
    held: Files = {}

    def offer() -> tuple[Offer, str]:
        held.update(by_file(weights, optimizer))
        specs = {file: {name: TensorSpec.of(each) for name, each in tensors.items()} for file, tensors in held.items()}
        return Offer(ranks.pp_rank, ranks.dp_rank, specs, layout.new_token()), run_state.to_json()

    offers = [offer for offer, _ in together(ranks, what, offer)]
    plan = make_plan(offers)
    needed = commit.space_needed(plan.tensor_bytes, len(plan.writer))
    pending = Pending(layout.checkpoints_folder(run_folder), run_state.step, offers[0].token, needed)
    together(ranks, what, lambda: commit.begin(pending) if ranks.rank == 0 else None)
    mine = [file for file, writer in plan.writer.items() if writer == ranks.rank]
    mine += [file for file, holders in plan.shared.items() if ranks.rank in holders and file not in mine]
    mine.sort(key=lambda file: (-_nbytes(plan.specs[file]), file))
    share = {file: held[file] for file in mine}
    return Order(plan, pending, ranks.rank, share, run_state.to_json(), config_text, tokenizer)


def write_part(order: Order, progress: Progress) -> Part:
    """Do this rank's share of the writing, several files at once; nothing is left but to `finish`."""
    written: dict[str, tuple[int, str]] = {}
    digests: dict[str, dict[str, str]] = {}

    def write_small() -> None:
        written.update(commit.write_small(order.pending, order.state_text, order.config_text, order.tokenizer))

    def write(file: str, tensors: Mapping[str, Tensor]) -> None:
        written[file] = commit.write_file(order.pending, file, tensors, progress.count)
        progress.count(0)  # the disk has it

    def compare(file: str, tensors: Mapping[str, Tensor]) -> None:
        digests[file] = {name: _digest(tensor, progress.count) for name, tensor in tensors.items()}

    work: dict[str, Callable[[], None]] = {"small": write_small} if order.rank == 0 else {}
    for file, tensors in order.held.items():
        if order.plan.writer[file] == order.rank:
            work[file] = partial(write, file, tensors)
        if order.rank in order.plan.shared.get(file, ()):
            work[f"compare {file}"] = partial(compare, file, tensors)
    on_threads(work, progress, writing_threads())
    return Part(written, digests)


def finish(order: Order, parts: Sequence[Part], retention: Retention) -> Path:
    """On the main rank, with all ranks' parts in their order: see that stages agree on what they share, then commit."""
    for file, holders in order.plan.shared.items():
        first = parts[holders[0]].digests[file]
        for rank in holders[1:]:
            for name, digest in parts[rank].digests[file].items():
                if digest != first[name]:
                    raise CheckpointError(
                        f"{name} has other values on rank {rank} than on rank {holders[0]}, which should share it: "
                        "the run has gone wrong, go back to the last checkpoint"
                    )
    written = {file: found for part in parts for file, found in part.written.items()}
    assert written.keys() >= order.plan.writer.keys()
    records = {file: FileRecord(*found, order.plan.specs.get(file, {})) for file, found in written.items()}
    return commit.finish(order.pending, records, retention)


def save_in_pieces(
    run_folder: Path,
    run_state: RunState,
    pieces: Iterable[Mapping[str, Tensor | Pieces]],
    tensor_bytes: int,
    config_text: str,
    tokenizer: Path | None = None,
) -> Path:
    """Write a checkpoint of weights alone from one process, holding one piece in memory at a time.

    A piece holds all tensors of one file or of several (a layer; the embedding; final norm and head): a file that comes
    back in a later piece is an error. A tensor may come as `store.Pieces`, made while it is written. `tensor_bytes` is
    the sum over all pieces, for the check of free space.
    """
    pending = Pending(
        layout.checkpoints_folder(run_folder),
        run_state.step,
        layout.new_token(),
        commit.space_needed(tensor_bytes, files=1000),
    )
    commit.begin(pending)
    try:
        small = commit.write_small(pending, run_state.to_json(), config_text, tokenizer)
        records = {file: FileRecord(*found) for file, found in small.items()}
        for piece in pieces:
            files: dict[str, dict[str, Tensor | Pieces]] = {}
            for name, tensor in piece.items():
                files.setdefault(layout.file_of(name), {})[name] = tensor
            for file, tensors in files.items():
                if file in records:
                    raise ValueError(f"{file} came in two pieces")
                specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
                records[file] = FileRecord(*commit.write_file(pending, file, tensors), specs)
        return commit.finish(pending, records)
    except BaseException:
        commit.abandon(pending)
        raise


def by_file(weights: Mapping[str, Tensor], optimizer: Mapping[str, Mapping[str, Tensor]]) -> Files:
    """Tensors sorted into the files that they belong to; optimizer tensors are called NAME.SLOT there."""
    files: Files = {}
    for name, tensor in weights.items():
        files.setdefault(layout.file_of(name), {})[name] = tensor
    for name, slots in optimizer.items():
        for slot, tensor in slots.items():
            files.setdefault(layout.file_of(name, "optimizer"), {})[f"{name}.{slot}"] = tensor
    return files


def make_plan(offers: list[Offer]) -> Plan:
    """Share the files out: the lowest stage that holds a file owns it, its replicas take turns, largest files first."""
    stages: dict[int, list[int]] = {}
    for rank, offer in enumerate(offers):
        stages.setdefault(offer.pp_rank, []).append(rank)
    writer: dict[str, int] = {}
    holders: dict[str, list[int]] = {}
    for _, members in sorted(stages.items()):
        members.sort(key=lambda rank: offers[rank].dp_rank)
        files = offers[members[0]].files
        for rank in members:
            if offers[rank].files != files:
                raise CheckpointError(f"ranks {members[0]} and {rank}, replicas of one stage, hold different tensors")
        owned = [file for file in files if file not in writer]
        owned.sort(key=lambda file: (-_nbytes(files[file]), file))
        writer.update({file: members[turn % len(members)] for turn, file in enumerate(owned)})
        for file in files:
            holders.setdefault(file, []).append(members[0])
            if offers[holders[file][0]].files[file] != files[file]:
                raise CheckpointError(f"ranks {holders[file][0]} and {members[0]} hold different tensors of {file}")
    shared = {file: held for file, held in holders.items() if len(held) > 1 and file.startswith("model/")}
    return Plan(writer, shared, {file: offers[rank].files[file] for file, rank in writer.items()})


def _nbytes(specs: Mapping[str, TensorSpec]) -> int:
    return sum(spec.nbytes for spec in specs.values())


def _digest(tensor: Tensor, count: Count) -> str:
    digest = hashlib.sha256()
    for chunk in store.chunks(tensor):
        digest.update(chunk)
        count(0)  # nothing more on the disk, but work that goes on
    return digest.hexdigest()
