// Tokens against FPS, both axes logarithmic. value: {title, series: [{name, points: [[fps, tokens], ...]}]}.
const NS = "http://www.w3.org/2000/svg";
const holder = () => element.querySelector(".vt-plot");

function ticks(low, high) {
  const out = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    for (const m of [1, 2, 5]) { const v = m * 10 ** e; if (v >= low * 0.999 && v <= high * 1.001) out.push(v); }
  }
  return out.length > 8 ? out.filter((v) => /^1/.test(String(v))) : out;
}

function draw() {
  const value = props.value, box = holder();
  if (!box) return;
  element.classList.toggle("vt-has-clip", Boolean(value && value.series));
  box.textContent = "";
  if (!value || !value.series) return;
  const width = Math.max(300, box.clientWidth), height = Math.min(430, Math.max(280, width * 0.55));
  const longest = Math.max(...value.series.map((s) => s.name.length));
  const below = width < 620; // names stand in a legend where there is no room beside the lines
  const edge = { left: 56, right: below ? 14 : Math.min(280, 24 + longest * 7.2), top: 34, bottom: 46 + (below ? 22 * value.series.length : 0) };
  const all = value.series.flatMap((s) => s.points);
  const xs = all.map((p) => p[0]), ys = all.map((p) => Math.max(1, p[1]));
  let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys) * 0.8, Math.max(...ys) * 1.25];
  if (x0 === x1) { x0 /= 2; x1 *= 2; }
  const X = (v) => edge.left + (Math.log(v / x0) / Math.log(x1 / x0)) * (width - edge.left - edge.right);
  const Y = (v) => height - edge.bottom - (Math.log(Math.max(1, v) / y0) / Math.log(y1 / y0)) * (height - edge.top - edge.bottom);
  const style = getComputedStyle(element), css = (name) => style.getPropertyValue(name).trim();
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${value.title}; the table below has the numbers`);
  const add = (name, attributes, text) => {
    const node = document.createElementNS(NS, name);
    for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
    if (text !== undefined) node.textContent = text;
    svg.append(node);
    return node;
  };
  const font = { "font-family": "Inter, Segoe UI, Helvetica, Arial, sans-serif", "font-size": 12 };
  add("rect", { width, height, fill: css("--vt-surface") });
  add("text", { x: edge.left, y: 20, ...font, "font-size": 13, "font-weight": 600, fill: css("--vt-ink") }, value.title);
  for (const v of ticks(y0, y1)) {
    add("line", { x1: edge.left, x2: width - edge.right, y1: Y(v), y2: Y(v), stroke: css("--vt-line") });
    add("text", { x: edge.left - 8, y: Y(v) + 4, ...font, "text-anchor": "end", fill: css("--vt-muted") }, v.toLocaleString("en"));
  }
  const floor = height - edge.bottom;
  for (const v of [...new Set(xs)]) {
    add("text", { x: X(v), y: floor + 20, ...font, "text-anchor": "middle", fill: css("--vt-muted") }, String(Math.round(v * 100) / 100));
  }
  add("text", { x: (edge.left + width - edge.right) / 2, y: floor + 38, ...font, "text-anchor": "middle", fill: css("--vt-muted") }, "frames a second");
  let free = Infinity;
  const ends = [];
  value.series.forEach((s, i) => {
    const full = s.name === "none", colour = css(full ? "--vt-muted" : `--vt-series-${(i % 7) + 1}`);
    const points = s.points.map(([x, y]) => [X(x), Y(y)]).sort((a, b) => a[0] - b[0]);
    add("path", { d: "M" + points.map((p) => p.map((v) => v.toFixed(1)).join(" ")).join("L"), fill: "none", stroke: colour, "stroke-width": 2.2, "stroke-dasharray": full ? "6 4" : "none" });
    s.points.forEach(([x, y]) => {
      const dot = add("circle", { cx: X(x), cy: Y(y), r: 4.5, fill: colour });
      const tip = document.createElementNS(NS, "title");
      tip.textContent = `${s.name}: ${y.toLocaleString("en")} tokens at ${x} frames a second`;
      dot.append(tip);
    });
    ends.push({ name: full ? "full tokens" : s.name, colour, y: points[points.length - 1][1] });
  });
  ends.sort((a, b) => b.y - a.y).forEach((end, i) => {
    if (below) {
      const y = floor + 58 + 22 * i;
      add("rect", { x: edge.left, y: y - 10, width: 12, height: 12, rx: 3, fill: end.colour });
      add("text", { x: edge.left + 20, y, ...font, fill: css("--vt-ink") }, end.name);
    } else {
      free = Math.min(end.y, free - 17);
      add("text", { x: width - edge.right + 12, y: free + 4, ...font, "font-weight": 600, fill: end.colour }, end.name);
    }
  });
  box.append(svg);
}

// The chart as a PNG of twice its size; nothing leaves the browser.
function save() {
  const svg = element.querySelector("svg");
  if (!svg) return;
  const image = new Image(), text = new XMLSerializer().serializeToString(svg);
  image.onload = () => {
    const canvas = document.createElement("canvas");
    canvas.width = 2 * svg.width.baseVal.value;
    canvas.height = 2 * svg.height.baseVal.value;
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    const link = document.createElement("a");
    link.download = "vtoken-tokens-vs-fps.png";
    link.href = canvas.toDataURL("image/png");
    link.click();
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
}

element.addEventListener("click", (event) => { if (event.target.closest(".vt-save")) save(); });
new ResizeObserver(draw).observe(element);
new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
watch("value", draw);
draw();
