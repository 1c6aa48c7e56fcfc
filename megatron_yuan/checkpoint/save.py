"""Save: every tensor is written once, by one replica of the one stage that owns it, in one file with its layer's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from megatron_yuan.checkpoint import commit, layout, store
from megatron_yuan.checkpoint.agreement import Ranks, together
from megatron_yuan.checkpoint.commit import Pending
from megatron_yuan.checkpoint.manifest import FileRecord
from megatron_yuan.checkpoint.state import RunState
from megatron_yuan.checkpoint.store import Pieces, TensorSpec
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
    tensor_bytes: int


@dataclass(frozen=True)
class Part:
    """What one rank has done: the files it wrote, and the hashes of its copies of shared files' tensors."""

    records: dict[str, FileRecord]
    digests: dict[str, dict[str, str]]


def save_checkpoint(
    run_folder: Path,
    ranks: Ranks,
    run_state: RunState,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Mapping[str, Tensor]],
    config_text: str,
    tokenizer: Path | None = None,
    retain: int | None = None,
) -> Path:
    """Write RUN/checkpoints/iter_STEP from all ranks together; returns its path once `latest` durably names it.

    weights: this rank's parameters by global name. optimizer: by name, then slot (master, exp_avg, exp_avg_sq), {} for
    weights alone; `master` is left out where the weights are fp32 themselves. Every replica of a stage passes the
    same. A tensor that two stages hold (the tied embedding) is written by the lower; where both pass it, both copies
    are compared. `retain` keeps that many of the newest checkpoints, None all.
    Any rank's failure is a CheckpointError on all; then nothing of this checkpoint remains, and others are intact.
    """
    what = f"saving the checkpoint of step {run_state.step}"
    held: Files = {}

    def offer() -> Offer:
        held.update(by_file(weights, optimizer))
        specs = {file: {name: TensorSpec.of(each) for name, each in tensors.items()} for file, tensors in held.items()}
        return Offer(ranks.pp_rank, ranks.dp_rank, specs, layout.new_token())

    offers = together(ranks, what, offer)
    plan = make_plan(offers)
    needed = commit.space_needed(plan.tensor_bytes, len(plan.writer))
    pending = Pending(layout.checkpoints_folder(run_folder), run_state.step, offers[0].token, needed)
    main = ranks.rank == 0
    try:
        small = together(
            ranks,
            what,
            lambda: commit.begin(pending, run_state, config_text, tokenizer) if main else dict[str, FileRecord](),
        )[0]
        parts = together(ranks, what, lambda: _write_part(pending, plan, held, ranks.rank))
        together(ranks, what, lambda: _finish(pending, plan, small, parts, retain) if main else None)
    except BaseException:
        if main:
            commit.abandon(pending)
        raise
    return pending.final


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
    token, records = layout.new_token(), dict[str, FileRecord]()
    pending = Pending(
        layout.checkpoints_folder(run_folder), run_state.step, token, commit.space_needed(tensor_bytes, files=1000)
    )
    small = commit.begin(pending, run_state, config_text, tokenizer)
    try:
        for piece in pieces:
            files: dict[str, dict[str, Tensor | Pieces]] = {}
            for name, tensor in piece.items():
                files.setdefault(layout.file_of(name), {})[name] = tensor
            for file, tensors in files.items():
                if file in records:
                    raise ValueError(f"{file} came in two pieces")
                records[file] = commit.write_file(pending, file, tensors)
        return commit.finish(pending, {**small, **records}, retain=None)
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
    return Plan(writer, shared, sum(_nbytes(offers[rank].files[file]) for file, rank in writer.items()))


def _nbytes(specs: Mapping[str, TensorSpec]) -> int:
    return sum(spec.nbytes for spec in specs.values())


def _write_part(pending: Pending, plan: Plan, held: Files, rank: int) -> Part:
    """This rank's share of the writing."""
    own = [file for file, writer in plan.writer.items() if writer == rank]
    records = {file: commit.write_file(pending, file, held[file]) for file in own}
    compared = [file for file, holders in plan.shared.items() if rank in holders]
    digests = {file: {name: _digest(tensor) for name, tensor in held[file].items()} for file in compared}
    return Part(records, digests)


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    for chunk in store.chunks(tensor):
        digest.update(chunk)
    return digest.hexdigest()


def _finish(pending: Pending, plan: Plan, small: dict[str, FileRecord], parts: list[Part], retain: int | None) -> None:
    """On the main rank: see that stages agree on what they share, then commit."""
    for file, holders in plan.shared.items():
        first = parts[holders[0]].digests[file]
        for rank in holders[1:]:
            for name, digest in parts[rank].digests[file].items():
                if digest != first[name]:
                    raise CheckpointError(
                        f"{name} has other values on rank {rank} than on rank {holders[0]}, which should share it: "
                        "the run has gone wrong, go back to the last checkpoint"
                    )
    records = {file: record for part in parts for file, record in part.records.items()}
    assert records.keys() == plan.writer.keys()
    commit.finish(pending, {**small, **records}, retain)
