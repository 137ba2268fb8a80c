// Under the pointer: the nearest measured values. All else on the page works without this.
for (const svg of document.querySelectorAll("svg[data-plot]")) {
  const plot = JSON.parse(svg.dataset.plot);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const tip = document.createElement("div");
  tip.className = "tip";
  line.setAttribute("class", "cross");
  const hide = () => { tip.remove(); line.remove(); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    if (at < plot.left - 8 || at > plot.right + 8) return hide();
    const [low, high] = plot.x;
    const epoch = low + ((at - plot.left) / (plot.right - plot.left)) * (high - low);
    const near = plot.runs.filter((run) => run.points.length).map((run) => ({
      name: run.name,
      point: run.points.reduce((a, b) => (Math.abs(b[0] - epoch) < Math.abs(a[0] - epoch) ? b : a)),
    }));
    if (!near.length) return hide();
    const x = plot.left + ((near[0].point[0] - low) / (high - low)) * (plot.right - plot.left);
    for (const [key, value] of Object.entries({ x1: x, x2: x, y1: plot.top, y2: plot.bottom })) line.setAttribute(key, value);
    tip.textContent = near.map(({ name, point }) => `${name ? name + ": " : ""}${point[1]}${plot.unit ? " " + plot.unit : ""} at epoch ${point[0]}`).join("\n");
    svg.append(line);
    document.body.append(tip);
    tip.style.left = Math.min(window.scrollX + event.clientX + 14, window.scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = window.scrollY + event.clientY + 14 + "px";
  });
  svg.addEventListener("pointerleave", hide);
}
