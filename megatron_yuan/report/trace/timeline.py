"""A trace as one page of HTML that needs nothing else: a row a rank; one may zoom, move and point."""

from __future__ import annotations

import json
from html import escape

from megatron_yuan.parallel.trace import Span
from megatron_yuan.report.trace.findings import Findings
from megatron_yuan.report.trace.trace import KINDS, Trace, kind_of

# Okabe and Ito's colours, which the colour-blind tell apart; exchanges are shades of one, and what waits is drawn pale.
EXCHANGES = ("#F0B8D6", "#882255", "#CC79A7")
COLOURS = dict(zip(KINDS, ("#0072B2", "#E69F00", *EXCHANGES, "#009E73", "#D55E00", "#56B4E9", "#999999"), strict=True))

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 1.5rem; }
h1 { font-size: 1.4rem; margin: 0 0 .4rem; } p { margin: .2rem 0; max-width: 120ch; }
.legend span { display: inline-block; margin-right: 1.2rem; } 
.legend i { display: inline-block; width: .9em; height: .9em; margin-right: .35em; vertical-align: -.1em; }
#told { min-height: 1.6em; color: #333; font-variant-numeric: tabular-nums; }
canvas { display: block; width: 100%; cursor: grab; touch-action: none; }
button { font: inherit; }
"""

SCRIPT = """
(function () {
  const data = JSON.parse(document.getElementById("spans").textContent);
  const canvas = document.getElementById("timeline"), told = document.getElementById("told");
  const sharp = window.devicePixelRatio || 1, left = 250, top = 26, row = data.ranks.length > 24 ? 16 : 28;
  let from = 0, to = data.end, width = 0;

  function x(t) { return left + (t - from) / (to - from) * (width - left); }
  function unit(span) { return span < 2e-3 ? [1e6, "us"] : span < 2 ? [1e3, "ms"] : [1, "s"]; }
  function draw() {
    width = canvas.clientWidth || 1200;
    const height = top + row * data.ranks.length + 6;
    canvas.width = width * sharp; canvas.height = height * sharp; canvas.style.height = height + "px";
    const pen = canvas.getContext("2d");
    pen.scale(sharp, sharp); pen.font = "12px system-ui, sans-serif"; pen.textBaseline = "middle";
    const [scale, name] = unit(to - from);
    const raw = (to - from) * scale / 8, power = Math.pow(10, Math.floor(Math.log10(raw)));
    const tick = [1, 2, 5, 10].map(n => n * power).find(n => n >= raw);
    pen.fillStyle = "#555"; pen.strokeStyle = "#ddd";
    for (let t = Math.ceil(from * scale / tick) * tick; t <= to * scale; t += tick) {
      pen.beginPath(); pen.moveTo(x(t / scale), top - 4); pen.lineTo(x(t / scale), height); pen.stroke();
      pen.fillText(+t.toFixed(6) + " " + name, x(t / scale) + 3, 10);
    }
    data.ranks.forEach((rank, i) => {
      const y = top + i * row;
      pen.save(); pen.beginPath(); pen.rect(left, y, width - left, row); pen.clip();
      for (const [begin, seconds, kind, phase, microbatch, waits] of rank.spans) {
        if (begin + seconds < from || begin > to) continue;
        const start = x(begin), wide = Math.max(.5, x(begin + seconds) - start);
        pen.globalAlpha = waits ? .35 : kind === data.kinds.length - 1 ? .25 : 1;
        pen.fillStyle = data.colours[kind];
        pen.fillRect(start, y + 2, wide, row - 4);
        pen.globalAlpha = 1;
        if (microbatch && kind < 2 && wide > 16 && row > 20) {
          pen.fillStyle = "#fff"; pen.fillText(microbatch, start + 4, y + row / 2);
        }
      }
      pen.restore();
      pen.fillStyle = "#1a1a1a"; pen.fillText(rank.name, 2, y + row / 2, left - 8);
    });
  }
  function at(event) {
    const box = canvas.getBoundingClientRect();
    return { t: from + (event.clientX - box.left - left) / (width - left) * (to - from),
             rank: data.ranks[Math.floor((event.clientY - box.top - top) / row)] };
  }
  function show(event) {
    const { t, rank } = at(event);
    const span = rank && rank.spans.find(s => s[0] <= t && t < s[0] + s[1]);
    if (!span) { told.textContent = ""; return; }
    const [scale, name] = unit(span[1]);
    told.textContent = rank.name + ": step " + span[6] + ", " + span[3] +
      (span[4] ? " of microbatch " + span[4] : "") +
      (span[7] ? ", chunk " + span[7] : "") + ", " + (span[1] * scale).toPrecision(4) + " " + name +
      (span[5] ? " (waits)" : "");
  }
  let held = null;
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    const t = at(event).t, by = Math.exp(event.deltaY / 400), least = data.end / 1e6;
    if ((to - from) * by < least) return;
    from = Math.max(0, t - (t - from) * by); to = Math.min(data.end, t + (to - t) * by); draw();
  }, { passive: false });
  canvas.addEventListener("pointerdown", event => {
    held = { x: event.clientX, from, to };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", () => { held = null; });
  canvas.addEventListener("pointermove", event => {
    if (!held) { show(event); return; }
    let by = (held.x - event.clientX) / (width - left) * (held.to - held.from);
    by = Math.max(-held.from, Math.min(data.end - held.to, by));
    from = held.from + by; to = held.to + by; draw();
  });
  document.getElementById("whole").addEventListener("click", () => { from = 0; to = data.end; draw(); });
  window.addEventListener("resize", draw);
  draw();
  document.body.dataset.drawn = data.ranks.length;
})();
"""


def _numbers(span: Span, begin: float) -> list[float | str]:
    """As the script reads them."""
    kind, waits = KINDS.index(kind_of(span.phase)), int(span.waits)
    times = round(span.begin - begin, 7), round(span.seconds, 7)
    return [*times, kind, span.phase, span.microbatch or 0, waits, span.step, span.chunk or 0]


def to_page(trace: Trace, found: Findings) -> str:
    """The text of the page."""
    begin, named = trace.begin, trace.name
    ranks = [
        {
            "name": rank.name,
            "spans": [_numbers(span, begin) for span in rank.spans],
        }
        for rank in sorted(trace.ranks, key=lambda rank: (rank.replica, rank.stage))
    ]
    end = max((s.begin + s.seconds - begin for rank in trace.ranks for s in rank.spans), default=1.0)
    data = {"ranks": ranks, "end": end, "kinds": KINDS, "colours": [COLOURS[kind] for kind in KINDS]}
    legend = "".join(f'<span><i style="background:{COLOURS[kind]}"></i>{kind}</span>' for kind in KINDS)
    words = "".join(f"<p>{escape(line)}</p>" for line in found.lines())
    # "</" would end the script element that holds the data.
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<link rel="icon" href="data:,"><title>Trace of {named}</title><style>{STYLE}</style></head><body>'
        f"<h1>Every rank in {named}</h1>{words}"
        f'<p class="legend">{legend}<span>pale: waits for other ranks</span></p>'
        "<p>The wheel zooms, dragging moves, pointing tells. Numbers are microbatches. "
        '<button id="whole">All</button></p>'
        '<p id="told"></p><canvas id="timeline"></canvas>'
        f'<script type="application/json" id="spans">{text}</script><script>{SCRIPT}</script></body></html>\n'
    )
