"""A trace in the format of ui.perfetto.dev and chrome://tracing: JSON of complete events, times in microseconds."""

from __future__ import annotations

import json
from typing import Any

from megatron_yuan.report.trace.trace import Trace, kind_of


def to_perfetto(trace: Trace) -> str:
    """The text of the file: a process a rank, named by stage and replica."""
    events: list[dict[str, Any]] = []
    begin = trace.begin
    for rank in trace.ranks:
        named = {"ph": "M", "pid": rank.rank, "tid": 0}
        events.append({**named, "name": "process_name", "args": {"name": f"{rank.name} on {rank.host}"}})
        events.append(
            {**named, "name": "process_sort_index", "args": {"sort_index": rank.replica * trace.stages + rank.stage}}
        )
        for span in rank.spans:
            microbatch = "" if span.microbatch is None else f" {span.microbatch}"
            chunk = "" if span.chunk is None else f", chunk {span.chunk}"
            events.append(
                {
                    "ph": "X",
                    "pid": rank.rank,
                    "tid": 0,
                    "name": f"{span.phase}{microbatch}{chunk}",
                    "cat": kind_of(span.phase),
                    "ts": round(1e6 * (span.begin - begin), 3),
                    "dur": round(1e6 * span.seconds, 3),
                    "args": {
                        "step": span.step,
                        "microbatch": span.microbatch,
                        "chunk": span.chunk,
                        "waits": span.waits,
                    },
                }
            )
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n"
