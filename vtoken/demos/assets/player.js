// The clip with what became of every cell. value: see vtoken/demos/overlay.py.
const STATES = ["skipped", "dropped", "merged", "kept", "held"];
const WORDS = ["left out", "dropped", "merged", "sent", "shown again"];
const one = (name) => element.querySelector(name);
let clip = null, at = 0, playing = null, images = [];

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function load() {
  stop();
  const value = props.value;
  element.classList.toggle("vt-has-clip", Boolean(value && value.images));
  if (!value || !value.images) { clip = null; return; }
  clip = {
    ...value,
    states: bytes(value.states),
    references: new Int32Array(bytes(value.reference).buffer),
  };
  images = value.images.map((source) => Object.assign(new Image(), { src: source }));
  const slider = one(".vt-scrub");
  slider.max = value.images.length - 1;
  slider.value = 0;
  for (const item of element.querySelectorAll(".vt-legend li")) item.hidden = !value.counts[item.dataset.state];
  // "as last encoded" needs the picture of every step
  const seen = one("[name=vt-mode][value=seen]");
  seen.disabled = value.every > 1;
  Promise.all(images.map((image) => image.decode().catch(() => null))).then(() => { timeline(); show(0); });
}

function stepOf(picture) {
  return Math.min(picture * clip.every, clip.times.length - 1);
}

function show(picture) {
  if (!clip) return;
  at = Math.max(0, Math.min(picture, images.length - 1));
  const step = stepOf(at), canvas = one(".vt-picture"), image = images[at];
  const scale = Math.max(1, Math.round(760 / image.naturalWidth));
  canvas.width = image.naturalWidth * scale;
  canvas.height = image.naturalHeight * scale;
  const paint = canvas.getContext("2d");
  const mode = one("[name=vt-mode]:checked").value;
  if (mode === "seen" && clip.every === 1) seen(paint, step);
  else paint.drawImage(image, 0, 0, canvas.width, canvas.height);
  const counts = cells(mode === "cells" ? paint : null, step);
  one(".vt-scrub").value = at;
  one(".vt-scrub").setAttribute("aria-valuetext", `${clip.times[step].toFixed(2)} seconds`);
  const total = counts.reduce((a, b) => a + b), others = [4, 2, 1, 0].filter((state) => counts[state]);
  one(".vt-now").textContent = [`${clip.times[step].toFixed(2)} s`, `${counts[3]} of ${total} cells sent`,
    ...others.map((state) => `${counts[state]} ${WORDS[state]}`)].join(" · ");
  cursor(step);
}

// Every cell as it was when it was last encoded.
function seen(paint, step) {
  const [rows, columns] = clip.gate, { width, height } = paint.canvas;
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const image = images[Math.max(0, clip.references[(step * rows + r) * columns + c])];
      const w = image.naturalWidth / columns, h = image.naturalHeight / rows;
      paint.drawImage(image, c * w, r * h, w, h, (c * width) / columns, (r * height) / rows,
        width / columns + 0.5, height / rows + 0.5);
    }
  }
}

function cells(paint, step) {
  const [, rows, columns] = clip.shape, counts = STATES.map(() => 0);
  const style = getComputedStyle(element), colour = (name) => style.getPropertyValue(`--vt-${name}`).trim();
  const w = paint ? paint.canvas.width / columns : 0, h = paint ? paint.canvas.height / rows : 0;
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const state = clip.states[(step * rows + r) * columns + c];
      counts[state] += 1;
      if (!paint) continue;
      const x = c * w, y = r * h;
      if (state === 3) {
        paint.strokeStyle = colour("kept");
        paint.lineWidth = 3;
        paint.strokeRect(x + 1.5, y + 1.5, w - 3, h - 3);
      } else {
        paint.globalAlpha = [0.72, 0.55, 0.55, 0, 0.38][state]; // what the model sees stays the clearest
        paint.fillStyle = colour(STATES[state]);
        paint.fillRect(x, y, w + 0.5, h + 0.5);
        paint.globalAlpha = 1;
      }
    }
  }
  return counts;
}

// Kept share over time as steps, scene cuts as dashed lines.
function timeline() {
  const svg = one(".vt-timeline"), width = 1000, height = 120;
  const first = clip.times[0], length = Math.max(clip.end - first, 1e-6);
  const x = (time) => ((time - first) / length) * width;
  let path = `M0 ${height}`;
  clip.times.forEach((time, i) => {
    const next = i + 1 < clip.times.length ? clip.times[i + 1] : clip.end;
    const y = height - clip.share[i] * (height - 6);
    path += `L${x(time).toFixed(1)} ${y.toFixed(1)}L${x(next).toFixed(1)} ${y.toFixed(1)}`;
  });
  const cuts = clip.cuts.map((time) => `<line class="vt-cut" x1="${x(time)}" x2="${x(time)}" y1="0" y2="${height}"><title>scene cut at ${time.toFixed(2)} s</title></line>`);
  svg.innerHTML = `<path class="vt-area" d="${path}L${width} ${height}Z"/>${cuts.join("")}<line class="vt-cursor" y1="0" y2="${height}"/>`;
  const mean = clip.share.reduce((a, b) => a + b, 0) / clip.share.length;
  svg.setAttribute("aria-label", `Share of the cells sent, over time: ${(100 * mean).toFixed(1)} % on average, ${clip.cuts.length} scene cuts`);
  one(".vt-axis").innerHTML = [0, 0.25, 0.5, 0.75, 1].map((p) => `<span>${(first + p * length).toFixed(1)} s</span>`).join("");
  one(".vt-mean").textContent = `${(100 * mean).toFixed(1)} % on average · ${clip.cuts.length} scene cut${clip.cuts.length === 1 ? "" : "s"}`;
}

function cursor(step) {
  const line = one(".vt-cursor");
  if (!line) return;
  const first = clip.times[0], x = ((clip.times[step] - first) / Math.max(clip.end - first, 1e-6)) * 1000;
  line.setAttribute("x1", x + 1);
  line.setAttribute("x2", x + 1);
}

function stop() {
  clearTimeout(playing);
  playing = null;
  const button = one(".vt-play");
  if (button) { button.textContent = "Play"; button.setAttribute("aria-pressed", "false"); }
}

function play() {
  one(".vt-play").textContent = "Pause";
  one(".vt-play").setAttribute("aria-pressed", "true");
  if (at >= images.length - 1) show(0);
  const next = () => {
    if (at >= images.length - 1) return stop();
    const wait = 1000 * (clip.times[stepOf(at + 1)] - clip.times[stepOf(at)]);
    playing = setTimeout(() => { show(at + 1); next(); }, Math.max(15, wait));
  };
  next();
}

element.addEventListener("click", (event) => {
  if (!clip || !event.target.closest(".vt-play")) return;
  if (playing === null) play(); else stop();
});
element.addEventListener("input", (event) => {
  if (!clip) return;
  if (event.target.matches(".vt-scrub")) { stop(); show(Number(event.target.value)); }
  if (event.target.matches("[name=vt-mode]")) show(at);
});
function point(event) {
  const svg = event.target.closest(".vt-timeline");
  if (!clip || !svg) return;
  const box = svg.getBoundingClientRect(), first = clip.times[0];
  const time = first + ((event.clientX - box.left) / box.width) * (clip.end - first);
  let step = clip.times.findIndex((t) => t > time);
  step = step < 0 ? clip.times.length - 1 : Math.max(0, step - 1);
  show(Math.floor(step / clip.every));
}
element.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") { if (event.target.closest(".vt-timeline")) stop(); point(event); } });
element.addEventListener("pointerdown", (event) => { if (event.target.closest(".vt-timeline")) stop(); point(event); });
watch("value", load);
if (props.value) load();
