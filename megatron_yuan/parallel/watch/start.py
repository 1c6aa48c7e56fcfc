"""From the settings and the ranks to a watch whose connections stand."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from megatron_yuan.config.schema import Config, ParallelConfig
from megatron_yuan.log import logger
from megatron_yuan.parallel.topology import Topology
from megatron_yuan.parallel.watch.identity import Identity
from megatron_yuan.parallel.watch.link import Hub, Link, Member
from megatron_yuan.parallel.watch.pulse import Pulse
from megatron_yuan.parallel.watch.stacks import Stacks
from megatron_yuan.parallel.watch.watch import Limits, Watch

BEFORE_COLLECTIVES_GIVE_UP = 0.8


def watch_over(config: Config, topology: Topology) -> Watch:
    """This rank's watch, not yet at work. Called by all ranks together."""
    save = config.checkpoint.save
    return connect(topology, limits_of(config.parallel, topology.world_size), None if save is None else Path(save))


def unwatched() -> Watch:
    """A watch that does nothing."""
    return Watch(Pulse(), 0, [], None, Limits(0.0, 0.0), Stacks(None, 0))


def limits_of(parallel: ParallelConfig, world_size: int) -> Limits:
    """In seconds. A hang is found before collectives give up for its sake and name nobody."""
    hang = 60 * parallel.hang_timeout_in_mins
    if world_size == 1:
        return Limits(liveness=0.0, hang=hang)
    give_up = 60 * parallel.distributed_timeout_minutes
    return Limits(parallel.liveness_timeout_in_secs, min(hang, BEFORE_COLLECTIVES_GIVE_UP * give_up), world_size)


def connect(topology: Topology, limits: Limits, run_folder: Path | None) -> Watch:
    """The connections between all ranks, for a watch with such limits. Called by all ranks together."""
    identities = topology.gather(Identity.here())
    link = _link(topology, identities) if limits.liveness or limits.hang else None
    speaks = topology.local_rank == 0 or topology.rank == 1
    stacks = Stacks(run_folder, topology.rank)
    return Watch(topology.pulse, topology.rank, identities, link, limits, stacks, speaks)


def _link(topology: Topology, identities: list[Identity]) -> Link | None:
    if topology.world_size == 1:
        return Link()
    loopback = all(identity.beside(identities[0]) for identity in identities)
    own = secrets.token_hex(16)
    hub = Hub(own, loopback) if topology.is_main else None
    port, token = topology.gather((hub.port, own) if hub else None)[0]
    hosts = ["127.0.0.1"] if loopback else [os.environ.get("MASTER_ADDR", "127.0.0.1"), identities[0].host]
    link, problem = hub, None
    if link is None:
        try:
            link = Member(hosts, port, token, topology.rank)
        except OSError as error:
            problem = f"rank {topology.rank} on {identities[topology.rank].host}: {error}"
    problems = [each for each in topology.gather(problem) if each is not None]
    if problems:
        if link is not None:
            link.close()
        logger.info(
            f"warning: {len(problems)} ranks cannot reach port {port} of {hosts[0]} ({problems[0]}), so nobody looks "
            "out for hangs and deaths; collectives end the run after distributed-timeout-minutes"
        )
        return None
    return link
