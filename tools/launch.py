"""torchrun, with its usual ends told in a line instead of a page: nobody joined, a signal, a process that failed.

    python tools/launch.py --nnodes 2 --nproc-per-node 8 --rdzv-endpoint node0:29400 pretrain_yuan_moe.py ...

Takes torchrun's options and does what it does. Ends with the exit code of the process that failed first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from signal import Signals

from torch.distributed import DistError  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousTimeoutError
from torch.distributed.run import main as torchrun

BOUNDS = "--rdzv-conf join_timeout=600 (with --master-addr: timeout=600) bounds the wait, in seconds"


def main(arguments: Sequence[str] | None = None, run: Callable[[Sequence[str] | None], object] = torchrun) -> int:
    """The exit code."""
    try:
        run(arguments)
    except SignalException as error:
        print(f"the launcher was ended by {Signals(error.sigval).name}, as were its processes", file=sys.stderr)
        return 128 + error.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = f"by {Signals(-failure.exitcode).name}" if failure.exitcode < 0 else f"with code {failure.exitcode}"
        print(f"error: rank {rank} ended {how} before all others; its words are above", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    except (RendezvousError, DistError) as error:
        print(f"error: {_in_words(error)}", file=sys.stderr)
        return 1
    return 0


def _in_words(error: Exception) -> str:
    if isinstance(error, RendezvousTimeoutError):
        what = "fewer nodes than --nnodes have joined in time"
    else:
        what = f"the nodes did not meet: {next(iter(str(error).splitlines()), type(error).__name__).rstrip('.')}"
    return (
        f"{what}; {BOUNDS}.\nFix: start the same command on every node, with the same --nnodes, --rdzv-id and "
        "--rdzv-endpoint (--master-addr and -port), on a host and port that all of them reach."
    )


if __name__ == "__main__":
    raise SystemExit(main())
