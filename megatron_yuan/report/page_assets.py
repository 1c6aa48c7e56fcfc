"""Style and script of the page, as text: a page that is one file needs them inside."""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 1.5rem auto; padding: 0 1.5rem;
  max-width: 1800px; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 0 0 .2rem; }
section { border-top: 1px solid #ccc; padding: 1rem 0; }
.note { color: #555; margin: 0 0 .6rem; max-width: 100ch; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.row figure { flex: 0 1 auto; max-width: 100%; }
.several .row figure { max-width: max(560px, calc(50% - .5rem)); }
.several .row figure.wide { max-width: 100%; }
figure { margin: 0; } figcaption { font-weight: 600; }
figure img { max-width: 100%; height: auto; display: block; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); gap: 0 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.missing, .skipped { color: #8a3c00; }
input[type=range] { width: min(60vw, 700px); vertical-align: middle; }
output { display: block; min-height: 1.5em; color: #333; }
.scale { display: flex; gap: .5rem; align-items: center; margin-bottom: .5rem; color: #333; font-size: .9rem; }
canvas { display: block; }
"""

# One slider for all runs: each shows its moment that holds the slider's step, or its last one.
SCRIPT = """
(function () {
  const text = document.getElementById("load-data");
  if (!text) return;
  const data = JSON.parse(text.textContent);
  const slider = document.getElementById("load-step"), told = document.getElementById("load-cell");
  const canvases = document.querySelectorAll("canvas.load"), sharp = window.devicePixelRatio || 1;
  const left = 46, below = 34;

  function colour(hundredths) {
    const last = data.colours.length - 1;
    return data.colours[Math.min(last, Math.round(last * hundredths / 100 / data.highest))];
  }
  function sized(canvas, width, height) {
    canvas.width = width * sharp; canvas.height = height * sharp;
    canvas.style.width = width + "px"; canvas.style.height = height + "px";
    const pen = canvas.getContext("2d");
    pen.scale(sharp, sharp);
    return pen;
  }
  function frameOf(run, step) {
    return run.frames.find(frame => step <= frame.last) || run.frames[run.frames.length - 1];
  }
  function cellsOf(run) {
    const layers = run.frames[0].load.length, experts = run.frames[0].load[0].length;
    const across = Math.max(4, Math.min(48, Math.floor(560 / experts)));
    const down = Math.max(4, Math.min(32, Math.floor(480 / layers)));
    return { layers, experts, across, down };
  }
  function draw(canvas, run, frame) {
    const { layers, experts, across, down } = cellsOf(run);
    const pen = sized(canvas, left + Math.max(90, experts * across) + 8, layers * down + below);
    pen.font = "11px system-ui, sans-serif"; pen.textBaseline = "middle";
    for (let layer = 0; layer < layers; layer++) {
      for (let expert = 0; expert < experts; expert++) {
        const value = frame.load[layer][expert];
        const x = left + expert * across, y = layer * down;
        pen.fillStyle = colour(value);
        pen.fillRect(x, y, across, down);
        if (value === 0) {
          pen.fillStyle = "#fff"; pen.textAlign = "center";
          pen.fillText("x", x + across / 2, y + down / 2);
        }
      }
    }
    pen.fillStyle = "#1a1a1a"; pen.textAlign = "right";
    const rows = Math.ceil(14 / down), columns = Math.ceil(22 / across);
    for (let layer = 0; layer < layers; layer += rows) pen.fillText(layer, left - 4, (layer + .5) * down);
    pen.textAlign = "center";
    for (let e = 0; e < experts; e += columns) pen.fillText(e, left + (e + .5) * across, layers * down + 9);
    pen.fillText("expert", left + experts * across / 2, layers * down + 25);
    pen.save(); pen.translate(9, Math.max(20, layers * down / 2)); pen.rotate(-Math.PI / 2);
    pen.fillText("layer", 0, 0); pen.restore();
    const span = frame.first === frame.last ? "step " + frame.last : "steps " + frame.first + " to " + frame.last;
    canvas.parentNode.querySelector(".steps").textContent = span;
  }
  function drawAll() {
    canvases.forEach((canvas, i) => draw(canvas, data.runs[i], frameOf(data.runs[i], +slider.value)));
  }
  canvases.forEach((canvas, i) => canvas.addEventListener("mousemove", event => {
    const run = data.runs[i], frame = frameOf(run, +slider.value), { layers, experts, across, down } = cellsOf(run);
    const expert = Math.floor((event.offsetX - left) / across), layer = Math.floor(event.offsetY / down);
    if (expert < 0 || expert >= experts || layer < 0 || layer >= layers) return;
    const relative = frame.load[layer][expert] / 100;
    told.textContent = run.name + ": layer " + layer + ", expert " + expert + ": " + relative.toFixed(2) +
      " x the mean, " + (100 * relative / experts).toFixed(2) + "% of the layer's load";
  }));
  const scale = document.getElementById("load-scale"), pen = sized(scale, 200, 14);
  for (let x = 0; x < 200; x++) { pen.fillStyle = colour(100 * data.highest * x / 199); pen.fillRect(x, 0, 1.5, 14); }
  const even = 200 / data.highest;
  pen.fillStyle = "#fff"; pen.fillRect(even - 2, 0, 4, 14); pen.fillStyle = "#000"; pen.fillRect(even - 1, 0, 2, 14);
  slider.addEventListener("input", drawAll);
  drawAll();
})();
"""
