"use strict";
// The explorer. Names, labels and titles are strangers' text: they reach the page by textContent and attributes only.
(() => {
  const about = JSON.parse(document.getElementById("about").textContent);
  const N = about.count, at = (id) => document.getElementById(id), two = about.maps.length > 1;

  // ---- data: scripts beside the page, each loaded once ----
  const arrived = new Map(), loading = new Map();
  window.explorer = (name, value) => arrived.set(name, value);
  const load = (name) => {
    if (!loading.has(name)) loading.set(name, new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onload = () => { script.remove(); done(arrived.get(name)); arrived.delete(name); };
      script.onerror = () => { say(`data/${name}.js cannot be read: it belongs beside this page.`, true); failed(new Error(name)); };
      document.head.append(script);
    }));
    return loading.get(name);
  };
  const numbers = (text, Kind) => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Kind(bytes.buffer);
  };
  const decoded = new Map();
  const column = (place) => once(`column${place}`, async (name) => numbers(await load(name), about.columns[place].classes ? Uint16Array : Float32Array));
  const once = (key, make) => { if (!decoded.has(key)) decoded.set(key, make(key)); return decoded.get(key); };
  const nameOf = async (row) => (await load(`names-${Math.floor(row / about.part)}`))[row % about.part];
  const nearOf = async (map, row) => {
    const found = await once(`near${map}-${Math.floor(row / about.part)}`, async (key) => {
      const part = await load(key);
      return { rows: numbers(part.rows, Int32Array), cosines: numbers(part.cosines, Float32Array) };
    });
    const k = about.maps[map].k, first = (row % about.part) * k;
    return Array.from({ length: k }, (_, i) => ({ row: found.rows[first + i], cosine: found.cosines[first + i] }));
  };
  const valueOf = async (place, row) => {
    const value = (await column(place))[row], { classes } = about.columns[place];
    return classes ? classes[value] : String(Number(value.toPrecision(4)));
  };
  const labelled = about.columns.findIndex((one) => one.classes && one.name === "label");
  const wordsOf = async (row) => (await nameOf(row)) + (labelled < 0 ? "" : `, ${await valueOf(labelled, row)}`);

  // ---- elements ----
  const make = (tag, attributes = {}, ...parts) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (value !== null && value !== false) element.setAttribute(key, value);
    }
    element.append(...parts.filter((part) => part !== null));
    return element;
  };
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const count = (number) => number.toLocaleString("en");
  const images = (number) => `${count(number)} image${number === 1 ? "" : "s"}`;
  const say = (words, loud) => { at("said").textContent = words; if (loud) at("count").textContent = words; };

  // ---- what is looked at; all of it is in the address ----
  const fresh = () => ({ row: -1, colour: Math.max(0, labelled), query: "", hidden: new Map(), tab: "image", page: 0, order: -1, cosine: 0.97, side: about.maps.length - 1, thumbs: true, views: about.maps.map(() => [0.5, 0.5, 1]) });
  let state = fresh(), slots = null, cursor = -1, pickedCount = 0, shownCount = N;
  const picked = new Uint8Array(N), matching = new Uint8Array(N).fill(1), inFilter = new Uint8Array(N).fill(1);
  const shows = (row) => matching[row] && inFilter[row];
  const MOST_IN_ADDRESS = 500;

  const address = () => {
    const words = new URLSearchParams();
    if (state.row >= 0) words.set("row", state.row);
    if (state.colour !== fresh().colour) words.set("colour", about.columns[state.colour].name);
    if (state.query) words.set("q", state.query);
    for (const [place, hidden] of state.hidden) if (hidden.size) {
      const kinds = about.columns[place].classes.length, few = hidden.size > kinds / 2;
      const those = few ? [...Array(kinds).keys()].filter((kind) => !hidden.has(kind)) : [...hidden];
      words.append("filter", `${place}${few ? "+" : "-"}${those.join(".")}`);
    }
    if (state.tab !== "image") words.set("tab", state.tab);
    if (state.page) words.set("page", state.page + 1);
    if (state.order >= 0) words.set("order", about.columns[state.order].name);
    if (state.cosine !== 0.97) words.set("similar", state.cosine);
    if (state.side !== fresh().side) words.set("map", state.side);
    if (!state.thumbs) words.set("thumbs", "no");
    if (state.views.some(([x, y, zoom]) => x !== 0.5 || y !== 0.5 || zoom !== 1)) words.set("view", state.views.map((view) => view.map((one) => +one.toFixed(5)).join(",")).join(";"));
    if (pickedCount && pickedCount <= MOST_IN_ADDRESS) words.set("picked", pickedRows().join("."));
    return words.toString();
  };
  let written = null, writing = 0;
  const remember = () => {
    clearTimeout(writing);
    writing = setTimeout(() => { written = `#${address()}`; history.replaceState(null, "", written); }, 120);
  };
  const whole = (text, low, high, otherwise) => (/^\d+$/.test(text ?? "") && +text >= low && +text <= high ? +text : otherwise);
  const readAddress = () => {
    const words = new URLSearchParams(location.hash.slice(1)), named = (key) => about.columns.findIndex((one) => one.name === words.get(key));
    state = fresh();
    state.row = whole(words.get("row"), 0, N - 1, -1);
    if (named("colour") >= 0) state.colour = named("colour");
    state.query = words.get("q") ?? "";
    for (const text of words.getAll("filter")) {
      const found = /^(\d+)([+-])([\d.]*)$/.exec(text), kinds = found && about.columns[+found[1]]?.classes;
      if (!kinds) continue;
      const those = new Set(found[3].split(".").map(Number));
      state.hidden.set(+found[1], found[2] === "-" ? those : new Set([...kinds.keys()].filter((kind) => !those.has(kind))));
    }
    if (panels[words.get("tab")]) state.tab = words.get("tab");
    state.page = whole(words.get("page"), 1, N, 1) - 1;
    state.order = named("order");
    const cosine = parseFloat(words.get("similar"));
    if (cosine >= -1 && cosine <= 1) state.cosine = cosine;
    state.side = whole(words.get("map"), 0, about.maps.length - 1, state.side);
    state.thumbs = words.get("thumbs") !== "no";
    (words.get("view") ?? "").split(";").forEach((text, map) => {
      const view = text.split(",").map(Number);
      if (map < about.maps.length && view.length === 3 && view.every(Number.isFinite) && view[2] > 0) state.views[map] = view;
    });
    picked.fill(0); pickedCount = 0;
    for (const text of (words.get("picked") ?? "").split(".")) { const row = whole(text, 0, N - 1, -1); if (row >= 0) pick(row, true); }
  };
  const pick = (row, on) => { if (picked[row] !== +on) { picked[row] = +on; pickedCount += on ? 1 : -1; } };
  const pickedRows = () => { const rows = []; for (let row = 0; row < N; row++) if (picked[row]) rows.push(row); return rows; };

  // ---- colours ----
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const bytesOf = (colour) => [1, 3, 5].map((place) => parseInt(colour.slice(place, place + 2), 16));
  const HUES = 8, dark = matchMedia("(prefers-color-scheme: dark)");
  const RAMP = [[68, 60, 132], [52, 105, 142], [33, 145, 140], [94, 190, 96], [222, 190, 36]], RAMP_DARK = [[96, 84, 190], [72, 132, 196], [44, 172, 166], [112, 208, 116], [250, 222, 60]];
  const classColour = (kind) => {
    if (kind < HUES) return bytesOf(css(`s${kind}`));
    const hue = (kind * 137.508 + 20) % 360, light = (dark.matches ? 0.66 : 0.42) + ((kind >> 3) % 3) * 0.06, amount = 0.55 * Math.min(light, 1 - light);
    return [0, 8, 4].map((n) => { const k = (n + hue / 30) % 12; return Math.round(255 * (light - amount * Math.max(-1, Math.min(k - 3, 9 - k, 1)))); });
  };
  const rampColour = (share) => {
    const stops = dark.matches ? RAMP_DARK : RAMP, place = Math.max(0, Math.min(0.9999, share)) * (stops.length - 1), i = Math.floor(place);
    return stops[i].map((low, part) => Math.round(low + (stops[i + 1][part] - low) * (place - i)));
  };
  const rgb = (colour) => `rgb(${colour.join(" ")})`;
  let palette = [], shareOf = null; // of the column that points are coloured by
  const colourOf = (row) => palette[shareOf ? shareOf(row) : 0];
  const repaint = async () => {
    const place = state.colour, told = about.columns[place];
    if (told) {
      const values = await column(place);
      if (place !== state.colour) return;
      if (told.classes) { palette = told.classes.map((_, kind) => classColour(kind)); shareOf = (row) => values[row]; }
      else {
        const span = told.high - told.low || 1;
        palette = Array.from({ length: 256 }, (_, step) => rampColour(step / 255));
        shareOf = (row) => Math.min(255, Math.floor(((values[row] - told.low) / span) * 256));
      }
    } else { palette = [classColour(0)]; shareOf = null; }
    const ink = bytesOf(css("ink")), soft = bytesOf(css("soft"));
    for (let i = 0; i < N; i++) {
      const row = shuffled(i), place = 4 * i;
      const colour = picked[row] ? ink : matching[row] ? colourOf(row) : soft;
      paint[place] = colour[0]; paint[place + 1] = colour[1]; paint[place + 2] = colour[2];
      paint[place + 3] = !inFilter[row] ? 0 : picked[row] ? 255 : matching[row] ? 220 : 40;
    }
    for (const map of maps) map.painted();
    say_count();
  };
  // Points are drawn in an order that mixes all rows: no class lies on top, and the first of them are a sample of all.
  const step = (() => { const divides = (a, b) => (b ? divides(b, a % b) : a); let s = Math.max(1, Math.round(N * 0.618)); while (divides(N, s) > 1) s++; return s; })();
  const shuffled = (i) => (i * step) % N;
  const paint = new Uint8Array(4 * N), paint32 = new Uint32Array(paint.buffer);

  // ---- drawing points: WebGL, or pixel by pixel where there is no graphics hardware ----
  const forced = new URLSearchParams(location.search).get("draw");
  const glPainter = (canvas) => {
    const gl = canvas.getContext("webgl", { antialias: false, premultipliedAlpha: false, failIfMajorPerformanceCaveat: forced !== "webgl" });
    if (!gl) return null;
    const told = gl.getExtension("WEBGL_debug_renderer_info"), by = told ? gl.getParameter(told.UNMASKED_RENDERER_WEBGL) : "";
    if (forced !== "webgl" && /swiftshader|llvmpipe|software|basic render/i.test(by)) return null; // no hardware: pixel by pixel is faster
    const shader = (kind, text) => { const one = gl.createShader(kind); gl.shaderSource(one, text); gl.compileShader(one); return one; };
    const program = gl.createProgram();
    gl.attachShader(program, shader(gl.VERTEX_SHADER, `
      attribute vec2 spot; attribute vec4 colour; uniform vec2 centre, scale; uniform mediump float size; varying vec4 shade;
      void main() {
        vec2 p = (spot - centre) * scale;
        float chosen = step(0.99, colour.a), faint = step(colour.a, 0.5);
        gl_Position = colour.a == 0.0 ? vec4(2.0, 2.0, 2.0, 1.0) : vec4(p.x, -p.y, 0.4 * faint - 0.4 * chosen, 1.0);
        gl_PointSize = size + 3.0 * chosen; shade = colour;
      }`));
    gl.attachShader(program, shader(gl.FRAGMENT_SHADER, `
      precision mediump float; varying vec4 shade; uniform mediump float size;
      void main() { if (size > 3.0 && length(gl_PointCoord - 0.5) > 0.5) discard; gl_FragColor = shade; }`));
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
    gl.useProgram(program);
    gl.enable(gl.DEPTH_TEST); gl.depthFunc(gl.LEQUAL); gl.enable(gl.BLEND); gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    const buffer = (name, size, kind) => {
      const one = gl.createBuffer(), place = gl.getAttribLocation(program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, one); gl.enableVertexAttribArray(place); gl.vertexAttribPointer(place, size, kind, true, 0, 0);
      return (values) => { gl.bindBuffer(gl.ARRAY_BUFFER, one); gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW); };
    };
    const spots = buffer("spot", 2, gl.UNSIGNED_SHORT), colours = buffer("colour", 4, gl.UNSIGNED_BYTE);
    const uniform = (name) => gl.getUniformLocation(program, name);
    const centre = uniform("centre"), scale = uniform("scale"), size = uniform("size");
    return {
      name: "webgl", spots, colours,
      draw(view, points, side) {
        gl.viewport(0, 0, canvas.width, canvas.height);
        gl.clearColor(0, 0, 0, 0); gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
        gl.uniform2f(centre, view.x, view.y); gl.uniform2f(scale, (2 * view.scale) / canvas.width, (2 * view.scale) / canvas.height);
        gl.uniform1f(size, side); gl.drawArrays(gl.POINTS, 0, points);
      },
    };
  };
  const disc = (size) => Array.from({ length: size }, (_, down) => Math.round(size / 2 - Math.sqrt((size / 2) ** 2 - Math.min(size / 2, Math.abs(down + 0.5 - size / 2)) ** 2))); // what a disc leaves empty of each line
  const pixelPainter = (canvas) => {
    const context = canvas.getContext("2d");
    let image = null, pixels = null, spots = null;
    return {
      name: "2d", spots: (values) => { spots = values; }, colours: () => {},
      draw(view, points, side) {
        const { width, height } = canvas;
        if (!image || image.width !== width || image.height !== height) { image = new ImageData(width, height); pixels = new Uint32Array(image.data.buffer); }
        pixels.fill(0);
        const scale = view.scale / 65535, left = width / 2 - view.x * view.scale, top = height / 2 - view.y * view.scale;
        const usual = Math.max(1, Math.round(side)), discs = [usual, usual + 3].map(disc);
        let faint = false, chosen = false;
        const pass = (wanted) => {
          for (let i = 0; i < points; i++) {
            const colour = paint32[i], alpha = colour >>> 24;
            if (alpha === 0) continue;
            const kind = alpha === 255 ? 2 : alpha < 128 ? 0 : 1;
            if (kind !== wanted) { if (kind) chosen = true; else faint = true; continue; }
            const size = kind === 2 ? usual + 3 : usual, half = size >> 1;
            const x = ((spots[2 * i] * scale + left) | 0) - half, y = ((spots[2 * i + 1] * scale + top) | 0) - half;
            if (x < 0 || y < 0 || x + size > width || y + size > height) continue;
            for (let down = 0; down < size; down++) {
              const cut = (kind === 2 ? discs[1] : discs[0])[down], line = (y + down) * width + x;
              for (let right = cut; right < size - cut; right++) pixels[line + right] = colour;
            }
          }
        };
        if (dimmed) pass(0);
        pass(1);
        if (chosen || pickedCount) pass(2);
        context.putImageData(image, 0, 0);
      },
    };
  };
  let dimmed = false; // whether some points are faint

  // ---- thumbnails ----
  const sheets = new Map(), MOST_SHEETS = 40;
  const sheetOf = (number) => {
    let image = sheets.get(number);
    if (image) { sheets.delete(number); sheets.set(number, image); return image; } // the one used last is let go last
    image = new Image();
    image.onload = () => maps.forEach((map) => map.request());
    image.src = `sheets/${number}.jpg`;
    sheets.set(number, image);
    if (sheets.size > MOST_SHEETS) sheets.delete(sheets.keys().next().value);
    return image;
  };
  const perSheet = about.sheet * about.sheet;
  const tileOf = (row) => {
    const slot = slots[row], place = slot % perSheet;
    return { sheet: Math.floor(slot / perSheet), left: (place % about.sheet) * about.side, top: Math.floor(place / about.sheet) * about.side };
  };
  const thumb = (row, size, words) => {
    const element = make("span", { class: "thumb", role: "img", "aria-label": words });
    element.style.width = element.style.height = `${size}px`;
    if (!slots) return element;
    const tile = tileOf(row), scale = size / about.side;
    element.style.backgroundImage = `url("sheets/${tile.sheet}.jpg")`;
    element.style.backgroundSize = `${about.sheet * size}px auto`;
    element.style.backgroundPosition = `-${tile.left * scale}px -${tile.top * scale}px`;
    if (size > 1.6 * about.side) element.classList.add("coarse");
    return element;
  };

  // ---- maps ----
  const MOVING = 300000; // points that are drawn while a map moves
  const GRID = Math.max(16, Math.min(512, Math.ceil(Math.sqrt(N / 4))));
  const maps = [];
  class PointMap {
    constructor(box, number, spots) {
      this.box = box; this.number = number; this.spots = spots; // uint16 (x, y) of every row
      this.over = box.querySelector(".over"); this.context = this.over.getContext("2d");
      const mixed = new Uint16Array(2 * N);
      for (let i = 0; i < N; i++) { const row = shuffled(i); mixed[2 * i] = spots[2 * row]; mixed[2 * i + 1] = spots[2 * row + 1]; }
      this.mixed = mixed;
      this.start(forced === "2d" ? null : glPainter);
      this.sorted();
      this.placed = []; this.lasso = null; this.pointers = new Map();
      new ResizeObserver(() => this.resize()).observe(box);
      this.resize(); this.listen();
    }
    start(painter) {
      const canvas = this.box.querySelector(".points");
      this.painter = painter && painter(canvas);
      if (this.painter) canvas.addEventListener("webglcontextlost", () => { this.start(null); this.resize(); });
      else {
        const fresh = canvas.cloneNode(); // a canvas that had WebGL gives no other
        canvas.replaceWith(fresh);
        this.painter = pixelPainter(fresh);
      }
      this.points = this.box.querySelector(".points");
      this.box.dataset.draw = this.painter.name;
      this.painter.spots(this.mixed); this.painter.colours(paint);
    }
    sorted() { // rows by the cells of a grid
      const cell = (row) => Math.min(GRID - 1, Math.floor((this.spots[2 * row] / 65536) * GRID)) + GRID * Math.min(GRID - 1, Math.floor((this.spots[2 * row + 1] / 65536) * GRID));
      const starts = new Uint32Array(GRID * GRID + 1);
      for (let row = 0; row < N; row++) starts[cell(row) + 1]++;
      for (let i = 0; i < GRID * GRID; i++) starts[i + 1] += starts[i];
      const next = starts.slice(), rows = new Uint32Array(N);
      for (let row = 0; row < N; row++) rows[next[cell(row)]++] = row;
      this.cells = { starts, rows };
    }
    inside(x0, y0, x1, y1, most = Infinity) { // rows in a box of the unit square; null when they are more
      const clip = (value) => Math.max(0, Math.min(GRID - 1, Math.floor(value * GRID))), found = [];
      const { starts, rows } = this.cells;
      for (let y = clip(y0); y <= clip(y1); y++) for (let x = clip(x0); x <= clip(x1); x++) {
        for (let i = starts[y * GRID + x]; i < starts[y * GRID + x + 1]; i++) {
          const row = rows[i], px = this.x(row), py = this.y(row);
          if (px < x0 || px > x1 || py < y0 || py > y1 || !shows(row)) continue;
          if (found.length >= most) return null;
          found.push(row);
        }
      }
      return found;
    }
    x(row) { return this.spots[2 * row] / 65535; }
    y(row) { return this.spots[2 * row + 1] / 65535; }
    get view() { return state.views[this.number]; }
    get scale() { return Math.min(this.width, this.height) * 0.92 * this.view[2]; } // CSS pixels of the unit
    screen(row) { const [x, y] = this.view; return [(this.x(row) - x) * this.scale + this.width / 2, (this.y(row) - y) * this.scale + this.height / 2]; }
    world(left, top) { const [x, y] = this.view; return [x + (left - this.width / 2) / this.scale, y + (top - this.height / 2) / this.scale]; }
    corners() { return [...this.world(0, 0), ...this.world(this.width, this.height)]; }
    resize() {
      this.width = Math.max(1, this.box.clientWidth); this.height = Math.max(1, this.box.clientHeight);
      this.ratio = Math.min(2, devicePixelRatio || 1);
      for (const canvas of [this.points, this.over]) { canvas.width = Math.round(this.width * this.ratio); canvas.height = Math.round(this.height * this.ratio); }
      this.draw();
    }
    painted() { this.painter.colours(paint); this.request(); }
    request(moving = false) {
      if (moving) { this.moving = true; clearTimeout(this.rest); this.rest = setTimeout(() => { this.moving = false; this.request(); }, 150); }
      if (!this.waiting) { this.waiting = true; requestAnimationFrame(() => { this.waiting = false; this.draw(); }); }
    }
    draw() {
      const zoom = this.view[2], crowd = Math.max(1.6, Math.min(6, 900 / Math.sqrt(N))), size = Math.min(8, crowd * Math.pow(zoom, 0.35));
      const [x, y] = this.view;
      this.painter.draw({ x, y, scale: this.scale * this.ratio }, this.moving ? Math.min(N, MOVING) : N, size * this.ratio);
      this.drawOver();
    }
    drawOver() {
      const pen = this.context, card = css("card"), ink = css("ink");
      pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
      pen.clearRect(0, 0, this.width, this.height);
      this.placed = [];
      if (slots && state.thumbs) this.drawThumbs(pen);
      if (state.row >= 0) {
        const [x, y] = this.screen(state.row);
        for (const row of this.nearRows ?? []) {
          const [a, b] = this.screen(row);
          for (const [width, colour] of [[4, card], [1.5, ink]]) { pen.lineWidth = width; pen.strokeStyle = colour; pen.beginPath(); pen.moveTo(x, y); pen.lineTo(a, b); pen.stroke(); }
          this.ring(pen, row, 6);
        }
        this.ring(pen, state.row, 10);
      }
      if (cursor >= 0) this.ring(pen, cursor, 8);
      if (this.lasso) {
        pen.beginPath(); this.lasso.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y))); pen.closePath();
        pen.globalAlpha = 0.12; pen.fillStyle = ink; pen.fill(); pen.globalAlpha = 1;
        pen.setLineDash([5, 4]); pen.lineWidth = 1.5; pen.strokeStyle = ink; pen.stroke(); pen.setLineDash([]);
      }
    }
    ring(pen, row, radius) {
      const [x, y] = this.screen(row);
      for (const [width, colour] of [[5, css("card")], [2, css("ink")]]) { pen.lineWidth = width; pen.strokeStyle = colour; pen.beginPath(); pen.arc(x, y, radius, 0, 2 * Math.PI); pen.stroke(); }
    }
    drawThumbs(pen) {
      const corners = this.corners(), all = this.inside(...corners, 3000), few = all && all.length < 400;
      const size = few ? Math.min(64, Math.max(40, about.side)) : 34, gap = few ? 1.12 : 2.1;
      const cell = (gap * size) / (Math.pow(2, Math.round(Math.log2(this.scale) * 2) / 2)), taken = new Map();
      for (const row of all ?? overviewRows()) {
        if (!all && (!shows(row) || this.x(row) < corners[0] || this.y(row) < corners[1] || this.x(row) > corners[2] || this.y(row) > corners[3])) continue;
        const key = `${Math.floor(this.x(row) / cell)},${Math.floor(this.y(row) / cell)}`;
        if (!taken.has(key) || shuffled(row) < shuffled(taken.get(key))) taken.set(key, row); // not the first of sorted classes
      }
      let asked = 0;
      pen.imageSmoothingEnabled = about.side > 40;
      for (const row of [...taken.values()].sort((a, b) => shuffled(a) - shuffled(b))) {
        const [x, y] = this.screen(row);
        if (this.placed.some((one) => Math.max(Math.abs(one.x - x), Math.abs(one.y - y)) < size + 3)) continue;
        const tile = tileOf(row);
        if (!sheets.has(tile.sheet) && ++asked > MOST_SHEETS / 2) continue;
        const image = sheetOf(tile.sheet);
        if (!image.complete || !image.naturalWidth) continue;
        this.placed.push({ row, x, y, half: size / 2 });
        pen.fillStyle = picked[row] ? css("ink") : rgb(colourOf(row));
        pen.fillRect(x - size / 2 - 2, y - size / 2 - 2, size + 4, size + 4);
        pen.drawImage(image, tile.left, tile.top, about.side, about.side, x - size / 2, y - size / 2, size, size);
      }
    }
    under(left, top) { // the row under the pointer, or -1
      for (const one of this.placed) if (Math.abs(one.x - left) <= one.half && Math.abs(one.y - top) <= one.half) return one.row;
      const [x, y] = this.world(left, top), reach = 12 / this.scale;
      let best = -1, least = reach * reach;
      for (const row of this.inside(x - reach, y - reach, x + reach, y + reach)) {
        const far = (this.x(row) - x) ** 2 + (this.y(row) - y) ** 2;
        if (far <= least) { least = far; best = row; }
      }
      return best;
    }
    zoomBy(factor, left = this.width / 2, top = this.height / 2) {
      const [x, y] = this.world(left, top), zoom = Math.max(0.5, Math.min(2000, this.view[2] * factor));
      this.view[2] = zoom;
      this.view[0] = x - (left - this.width / 2) / this.scale; this.view[1] = y - (top - this.height / 2) / this.scale;
      this.moved();
    }
    moveBy(right, down) { this.view[0] -= right / this.scale; this.view[1] -= down / this.scale; this.moved(); }
    moved() { hideTip(); this.request(true); remember(); }
    reveal(row) {
      const [left, top] = this.screen(row), edge = 30;
      if (left < edge || top < edge || left > this.width - edge || top > this.height - edge) { this.view[0] = this.x(row); this.view[1] = this.y(row); this.moved(); }
    }
    listen() {
      const place = (event) => { const box = this.box.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
      this.box.addEventListener("wheel", (event) => { event.preventDefault(); this.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...place(event)); }, { passive: false });
      this.box.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        this.box.setPointerCapture(event.pointerId);
        this.pointers.set(event.pointerId, place(event)); this.travelled = 0;
        if (this.pointers.size === 1 && (lassoing || event.shiftKey)) this.lasso = [place(event)];
        hideTip();
      });
      this.box.addEventListener("pointermove", (event) => {
        const [left, top] = place(event), before = this.pointers.get(event.pointerId);
        if (!before) return this.hover(left, top);
        this.travelled += Math.abs(left - before[0]) + Math.abs(top - before[1]);
        if (this.lasso) { const last = this.lasso.at(-1); if (Math.hypot(left - last[0], top - last[1]) > 3) { this.lasso.push([left, top]); this.request(); } this.pointers.set(event.pointerId, [left, top]); return; }
        if (this.pointers.size === 2) {
          const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
          const apart = (a) => Math.max(10, Math.hypot(a[0] - other[0], a[1] - other[1]));
          this.zoomBy(apart([left, top]) / apart(before), (left + other[0]) / 2, (top + other[1]) / 2);
        } else if (this.travelled > 4) this.moveBy(left - before[0], top - before[1]);
        this.pointers.set(event.pointerId, [left, top]);
      });
      const ended = (event) => {
        if (!this.pointers.delete(event.pointerId)) return;
        if (this.lasso) { const drawn = this.lasso; this.lasso = null; if (drawn.length > 2 && event.type === "pointerup") select(this.within(drawn), "in the lasso"); this.request(); return; }
        if (event.type === "pointerup" && this.travelled <= 4) { const row = this.under(...place(event)); if (row >= 0) choose(row); else letGo(); }
      };
      this.box.addEventListener("pointerup", ended); this.box.addEventListener("pointercancel", ended);
      this.box.addEventListener("pointerleave", () => { if (this.pointers.size === 0) { hideTip(); if (document.activeElement !== this.box) { cursor = -1; redraw(); } } });
      this.box.addEventListener("keydown", (event) => this.key(event));
      this.box.addEventListener("focus", () => { active = this; });
      this.box.addEventListener("pointerdown", () => { active = this; });
      this.box.addEventListener("blur", () => { cursor = -1; hideTip(); redraw(); });
    }
    hover(left, top) {
      const row = this.under(left, top);
      if (row === cursor && (row < 0 || !at("tip").hidden)) return;
      cursor = row; redraw();
      if (row < 0) hideTip(); else this.tip(row);
    }
    tip(row) { showTip(row, this.box.getBoundingClientRect(), this.screen(row)); }
    within(drawn) {
      const spots = drawn.map(([left, top]) => this.world(left, top)), xs = spots.map(([x]) => x), ys = spots.map(([, y]) => y);
      return this.inside(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)).filter((row) => {
        const x = this.x(row), y = this.y(row);
        let inside = false;
        for (let i = 0, j = spots.length - 1; i < spots.length; j = i++) {
          const [ax, ay] = spots[i], [bx, by] = spots[j];
          if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
        }
        return inside;
      });
    }
    key(event) {
      const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }, arrow = arrows[event.key];
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const acts = {
        "+": () => this.zoomBy(1.5), "=": () => this.zoomBy(1.5), "-": () => this.zoomBy(1 / 1.5),
        0: () => { this.view.splice(0, 3, 0.5, 0.5, 1); this.moved(); },
        Enter: () => this.here() >= 0 && choose(this.here()), " ": () => this.here() >= 0 && choose(this.here()),
        n: () => this.nextNeighbour(),
        s: () => { const row = this.here(); if (row >= 0) { pick(row, !picked[row]); changedPicks(); say(picked[row] ? "selected" : "no longer selected"); } },
        Escape: () => letGo(),
      };
      if (arrow) { if (event.shiftKey) this.moveBy(-60 * arrow[0], -60 * arrow[1]); else this.walk(arrow); }
      else if (acts[event.key]) acts[event.key]();
      else return;
      event.preventDefault();
    }
    here() { return cursor >= 0 ? cursor : state.row; }
    async walk([right, down]) {
      let from = this.here(), origin = from >= 0 ? [this.x(from), this.y(from)] : [this.view[0], this.view[1]];
      const least = from >= 0 ? 10 / this.scale : 0;
      let best = -1, nearest = Infinity;
      for (const distance of [least, 0]) { // first those that are apart on the screen
        for (let row = 0; row < N; row++) {
          if (row === from || !shows(row)) continue;
          const x = this.x(row) - origin[0], y = this.y(row) - origin[1], along = x * right + y * down, aside = Math.abs(x * down + y * right);
          if (from >= 0 && (along <= 0 || aside > along)) continue;
          const far = Math.hypot(x, y) + aside;
          if (far < nearest && Math.hypot(x, y) >= distance) { nearest = far; best = row; }
        }
        if (best >= 0) break;
      }
      if (best < 0) return say("no image in that direction");
      await this.goTo(best);
    }
    async goTo(row) {
      cursor = row; this.reveal(row); redraw(); this.tip(row);
      say(`${await wordsOf(row)}${picked[row] ? ", selected" : ""}`);
    }
    async nextNeighbour() {
      if (state.row < 0) return this.here() >= 0 ? choose(this.here()) : undefined;
      const near = await nearOf(this.number, state.row), place = near.findIndex((one) => one.row === cursor);
      const next = near[(place + 1) % near.length];
      await this.goTo(next.row);
      say(`neighbour ${((place + 1) % near.length) + 1} of ${near.length}, similarity ${next.cosine.toFixed(3)}: ${await wordsOf(next.row)}`);
    }
  }
  let active = null, lassoing = false, overview = null;
  const overviewRows = () => {
    if (!overview) { overview = []; for (let row = 0; row < N; row++) if (slots[row] < about.overview) overview.push(row); }
    return overview;
  };
  const redraw = () => maps.forEach((map) => map.request());

  // ---- under the pointer ----
  const hideTip = () => { at("tip").hidden = true; };
  const showTip = async (row, box, [left, top]) => {
    const [name, value] = [await nameOf(row), about.columns.length ? `${about.columns[state.colour].name}: ${await valueOf(state.colour, row)}` : ""];
    if (cursor !== row) return;
    const tip = at("tip");
    tip.replaceChildren(...(slots ? [thumb(row, 96, name)] : []), make("span", { class: "words" }, make("strong", {}, name), make("br"), value));
    tip.hidden = false;
    tip.style.left = `${Math.max(4, Math.min(box.left + left + 16, document.documentElement.clientWidth - tip.offsetWidth - 8)) + scrollX}px`;
    tip.style.top = `${Math.max(4, Math.min(box.top + top + 16, innerHeight - tip.offsetHeight - 8)) + scrollY}px`;
  };

  // ---- choosing, selecting, filtering ----
  const choose = async (row) => {
    state.row = row; state.tab = "image";
    maps.forEach((map) => map.reveal(row));
    remember(); await showPanel();
    say(`opened ${await wordsOf(row)}`);
  };
  const letGo = () => { state.row = -1; cursor = -1; hideTip(); maps.forEach((map) => { map.nearRows = []; map.request(); }); remember(); if (state.tab === "image") showPanel(); };
  const select = (rows, where) => { for (const row of rows) pick(row, true); changedPicks(); if (state.tab !== "image") showPanel(); say(`${images(rows.length)} ${where} selected, ${count(pickedCount)} in all`); };
  const changedPicks = () => { repaint(); remember(); at("tab-picked").textContent = pickedCount ? `Selection (${count(pickedCount)})` : "Selection"; if (state.tab === "picked") showPanel(); };
  const say_count = () => {
    shownCount = 0;
    for (let row = 0; row < N; row++) if (shows(row)) shownCount++;
    at("count").textContent = `${shownCount < N ? `${count(shownCount)} of ` : ""}${images(N)} shown${pickedCount ? `, ${count(pickedCount)} selected` : ""}`;
  };
  const refilter = async () => {
    inFilter.fill(1);
    for (const [place, hidden] of state.hidden) if (hidden.size) {
      const values = await column(place);
      for (let row = 0; row < N; row++) if (hidden.has(values[row])) inFilter[row] = 0;
    }
    await repaint();
  };
  let searches = 0;
  const search = async () => {
    const number = ++searches, wanted = state.query.toLowerCase();
    if (!wanted) matching.fill(1);
    else {
      say("searching");
      const parts = await Promise.all(Array.from({ length: Math.ceil(N / about.part) }, (_, part) => load(`names-${part}`)));
      if (number !== searches) return;
      parts.forEach((names, part) => names.forEach((name, place) => { matching[part * about.part + place] = +name.toLowerCase().includes(wanted); }));
    }
    dimmed = Boolean(wanted);
    await repaint();
    if (wanted) say(`${images(shownCount)} found`);
  };
  const shownRows = () => { const rows = []; for (let row = 0; row < N; row++) if (shows(row)) rows.push(row); return rows; };

  // ---- the legend, by which labels are filtered ----
  const drawLegend = () => {
    const told = about.columns[state.colour], box = at("legend");
    if (!told) { box.replaceChildren(); at("legend-title").textContent = "No labels: give features with labels, or a table"; return; }
    at("legend-title").textContent = told.classes ? `${told.name}: what is ticked is shown` : told.name;
    if (!told.classes) {
      const bar = make("span", { class: "ramp" });
      bar.style.backgroundImage = `linear-gradient(to right, ${Array.from({ length: 9 }, (_, i) => rgb(rampColour(i / 8))).join(",")})`;
      box.replaceChildren(make("span", {}, String(+told.low.toPrecision(3))), bar, make("span", {}, String(+told.high.toPrecision(3))));
      return;
    }
    const hidden = state.hidden.get(state.colour) ?? new Set(), place = state.colour;
    const change = (act) => { act(hidden); state.hidden.set(place, hidden); state.page = 0; remember(); refilter().then(showPanel); };
    const entries = told.classes.map((name, kind) => {
      const box = make("input", { type: "checkbox", onchange: () => change(() => (box.checked ? hidden.delete(kind) : hidden.add(kind))) });
      box.checked = !hidden.has(kind);
      const dot = make("span", { class: "dot", "aria-hidden": "true" });
      dot.style.background = rgb(classColour(kind));
      return make("label", {}, box, dot, make("span", { class: "name" }, name), make("span", { class: "many" }, count(told.counts[kind])));
    });
    const all = make("button", { type: "button", onclick: () => { change((one) => one.clear()); drawLegend(); } }, "All");
    const none = make("button", { type: "button", onclick: () => { change((one) => told.classes.forEach((_, kind) => one.add(kind))); drawLegend(); } }, "None");
    box.replaceChildren(make("div", { class: "buttons" }, all, none), ...entries);
  };

  // ---- panels ----
  const entry = async (row, note, size = 56) => {
    const words = await wordsOf(row), [name] = [await nameOf(row)];
    const label = labelled >= 0 ? await valueOf(labelled, row) : null;
    const button = make("button", { type: "button", class: "entry", "data-row": row, onclick: () => choose(row) },
      slots ? thumb(row, size, "") : null,
      make("span", { class: "words" }, make("span", { class: "name" }, name), label === null ? null : make("span", { class: "label" }, label), note ? make("span", { class: "note" }, note) : null));
    button.querySelector(".thumb")?.setAttribute("aria-hidden", "true"); // its words stand beside it
    button.querySelector(".thumb")?.removeAttribute("role");
    button.title = words;
    return make("li", {}, button);
  };
  const listed = (items, name) => {
    const list = make("ul", { class: "entries", "aria-label": name }, ...items);
    list.addEventListener("keydown", (event) => { // up and down through what can be opened
      const move = { ArrowDown: 1, ArrowUp: -1 }[event.key], all = [...list.querySelectorAll("button")];
      if (!move) return;
      all[Math.max(0, Math.min(all.length - 1, all.indexOf(document.activeElement) + move))]?.focus();
      event.preventDefault();
    });
    return list;
  };
  const PAGE = 40;
  const paged = async (rows, name) => {
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const turn = (by) => async () => { state.page += by; remember(); await showPanel(); at(`panel-${state.tab}`).focus(); };
    const before = make("button", { type: "button", onclick: turn(-1) }, "Previous"), after = make("button", { type: "button", onclick: turn(1) }, "Next");
    before.disabled = state.page === 0; after.disabled = state.page >= pages - 1;
    const items = await Promise.all(rows.slice(state.page * PAGE, (state.page + 1) * PAGE).map((row) => entry(row, picked[row] ? "selected" : "")));
    return [make("div", { class: "buttons" }, before, make("span", { class: "soft" }, `Page ${count(state.page + 1)} of ${count(pages)}`), after), listed(items, name)];
  };
  const panels = {
    async image() {
      if (state.row < 0) return [make("p", { class: "soft" }, "No image is open. Click one on the map, or choose one from the list.")];
      const row = state.row, name = await nameOf(row), facts = make("dl", { class: "facts" });
      for (const place of about.columns.keys()) facts.append(make("div", {}, make("dt", {}, about.columns[place].name), make("dd", {}, await valueOf(place, row))));
      facts.append(make("div", {}, make("dt", {}, "row"), make("dd", {}, count(row))));
      const parts = [make("div", { class: "open" }, slots ? thumb(row, 168, await wordsOf(row)) : null, make("div", {}, make("h2", {}, name), facts))];
      const toggle = make("button", { type: "button", onclick: () => { pick(row, !picked[row]); changedPicks(); showPanel(); } }, picked[row] ? "Take from the selection" : "Add to the selection");
      const seek = make("button", { type: "button", onclick: () => maps.forEach((map) => { map.view.splice(0, 3, map.x(row), map.y(row), Math.max(map.view[2], 8)); map.moved(); }) }, "Show it on the map");
      parts.push(make("div", { class: "buttons" }, toggle, seek));
      for (const map of maps) {
        const near = await nearOf(map.number, row), own = labelled >= 0 ? (await column(labelled))[row] : null;
        map.nearRows = near.map((one) => one.row); map.request();
        const same = async (one) => (own !== null && (await column(labelled))[one.row] === own ? " ✓ same label" : "");
        const items = await Promise.all(near.map(async (one) => entry(one.row, `${one.cosine.toFixed(3)}${await same(one)}`)));
        const title = two ? `Nearest neighbours, ${about.maps[map.number].title}` : "Nearest neighbours";
        parts.push(make("h3", {}, title), listed(items, title));
      }
      return parts;
    },
    async list() {
      const order = make("select", { onchange: () => { state.order = +order.value; state.page = 0; remember(); showPanel(); } }, make("option", { value: -1 }, "their order"));
      about.columns.forEach((one, place) => { if (!one.classes) order.append(make("option", { value: place }, `${one.name}, highest first`)); });
      order.value = about.columns[state.order]?.classes ? -1 : state.order;
      let rows = shownRows();
      if (state.order >= 0) { const values = await column(state.order); rows.sort((a, b) => values[b] - values[a] || a - b); }
      const all = make("button", { type: "button", onclick: () => select(rows, "that are shown") }, `Select all ${count(rows.length)}`);
      return [make("div", { class: "buttons" }, make("label", {}, "Order ", order), all), ...(await paged(rows, "Images"))];
    },
    async copies() { return copiesPanel(); },
    async picked() {
      if (!pickedCount) return [make("p", { class: "soft" }, "Nothing is selected. Draw a lasso around images (or Shift + drag), press s on the map, or select what is listed, in view, or in a group of near-duplicates.")];
      const rows = pickedRows();
      const take = make("button", { type: "button", class: "main", onclick: () => download(rows) }, "Download the list");
      const clear = make("button", { type: "button", onclick: () => { picked.fill(0); pickedCount = 0; changedPicks(); } }, "Select none");
      return [make("p", {}, `${images(rows.length)} selected.`), make("div", { class: "buttons" }, take, clear), ...(await paged(rows, "Selected images"))];
    },
  };
  const download = async (rows) => {
    const names = await Promise.all(rows.map(nameOf));
    const link = make("a", { href: URL.createObjectURL(new Blob([names.join("\n") + "\n"], { type: "text/plain" })), download: "selection.txt" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  let panelNumber = 0;
  const showPanel = async () => {
    const number = ++panelNumber, tab = state.tab, parts = await panels[tab]();
    if (number !== panelNumber) return;
    for (const name of Object.keys(panels)) {
      const button = at(`tab-${name}`), on = name === tab;
      button.setAttribute("aria-selected", on); button.tabIndex = on ? 0 : -1; at(`panel-${name}`).hidden = !on;
    }
    at(`panel-${tab}`).replaceChildren(...parts);
    redraw();
  };

  // ---- near-duplicates ----
  const pairsOf = (map) => once(`pairs${map}`, async (key) => {
    const found = await load(key);
    return { a: numbers(found.a, Int32Array), b: numbers(found.b, Int32Array), cosines: numbers(found.cosines, Float32Array) };
  });
  const groupsOf = (pairs, least) => { // chains of images that are at least so similar, the largest first
    const parent = new Map(), find = (row) => { while (parent.get(row) !== row) { parent.set(row, parent.get(parent.get(row))); row = parent.get(row); } return row; };
    for (let i = 0; i < pairs.a.length && pairs.cosines[i] >= least - 1e-6; i++) {
      for (const row of [pairs.a[i], pairs.b[i]]) if (!parent.has(row)) parent.set(row, row);
      const [a, b] = [find(pairs.a[i]), find(pairs.b[i])];
      if (a !== b) parent.set(Math.max(a, b), Math.min(a, b));
    }
    const groups = new Map();
    for (const row of parent.keys()) { const root = find(row); if (!groups.has(root)) groups.set(root, []); groups.get(root).push(row); }
    return [...groups.values()].map((rows) => rows.sort((a, b) => a - b)).sort((a, b) => b.length - a.length || a[0] - b[0]);
  };
  const histogram = (map) => {
    const { low, counts } = about.maps[map].histogram, WIDTH = 360, HEIGHT = 92, most = Math.max(...counts), wide = WIDTH / counts.length;
    const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + 18}`, class: "histogram", role: "img" });
    counts.forEach((many, place) => {
      const tall = many ? Math.max(2, (Math.sqrt(many) / Math.sqrt(most)) * HEIGHT) : 0, from = low + (place / counts.length) * (1 - low);
      drawing.append(svg("rect", { x: place * wide + 0.5, y: HEIGHT - tall, width: wide - 1, height: tall, class: from >= state.cosine - 1e-9 ? "above" : "below" }));
    });
    const x = ((state.cosine - low) / (1 - low || 1)) * WIDTH;
    drawing.append(svg("line", { x1: x, x2: x, y1: 0, y2: HEIGHT, class: "at" }));
    for (const [value, place, anchor] of [[low, 0, "start"], [1, WIDTH, "end"]]) { const text = svg("text", { x: place, y: HEIGHT + 14, "text-anchor": anchor }); text.textContent = value.toFixed(2); drawing.append(text); }
    drawing.setAttribute("aria-label", `Histogram: how many images have their nearest neighbour at a similarity from ${low.toFixed(2)} to 1. The threshold is ${state.cosine}.`);
    return drawing;
  };
  const GROUPS = 12, MEMBERS = 8;
  const copiesPanel = async () => {
    const map = state.side, told = about.maps[map], pairs = await pairsOf(map), low = Math.max(told.floor, told.histogram.low);
    state.cosine = Math.max(state.cosine, Math.ceil(low * 1000) / 1000);
    const drawing = make("div"), result = make("div");
    const slider = make("input", { type: "range", min: Math.ceil(low * 1000) / 1000, max: 1, step: 0.001, value: state.cosine, "aria-label": "Similarity from", id: "similar" });
    const output = make("output", { for: "similar" });
    const show = async () => {
      const groups = groupsOf(pairs, state.cosine), all = groups.reduce((sum, rows) => sum + rows.length, 0);
      output.textContent = state.cosine.toFixed(3);
      slider.setAttribute("aria-valuetext", `${state.cosine.toFixed(3)}: ${count(groups.length)} groups of ${images(all)}`);
      drawing.replaceChildren(histogram(map));
      const extra = groups.flatMap((rows) => rows.slice(1));
      const button = make("button", { type: "button", onclick: () => select(extra, "beside the first of their groups") }, "Select all but the first of each");
      const parts = [make("p", { role: "status", id: "groups" }, groups.length ? `${count(groups.length)} group${groups.length > 1 ? "s" : ""} of ${images(all)} in all.` : "No two images are that similar.")];
      if (extra.length) parts.push(make("div", { class: "buttons" }, button));
      for (const rows of groups.slice(0, GROUPS)) {
        const items = await Promise.all(rows.slice(0, MEMBERS).map((row) => entry(row, "")));
        parts.push(make("h3", {}, `${images(rows.length)}${rows.length > MEMBERS ? `, the first ${MEMBERS}` : ""}`), listed(items, "Group of near-duplicates"));
      }
      if (groups.length > GROUPS) parts.push(make("p", { class: "soft" }, `The ${GROUPS} largest groups are shown.`));
      result.replaceChildren(...parts);
    };
    let due = 0;
    slider.addEventListener("input", () => { state.cosine = +slider.value; remember(); clearTimeout(due); due = setTimeout(show, 40); });
    const parts = [make("p", { class: "soft" }, "How similar each image is to its nearest neighbour (heights by square root). Choose from where on two images count as copies.")];
    if (two) {
      const which = make("select", { onchange: () => { state.side = +which.value; remember(); showPanel(); } }, ...about.maps.map((one, place) => make("option", { value: place }, one.title)));
      which.value = map;
      parts.unshift(make("label", {}, "By ", which));
    }
    await show();
    return [...parts, drawing, make("label", { class: "slider" }, "Similarity from ", output, slider), result];
  };

  // ---- what can be pressed ----
  at("search").addEventListener("input", () => { state.query = at("search").value; state.page = 0; remember(); clearTimeout(search.due); search.due = setTimeout(async () => { await search(); if (state.tab === "list") showPanel(); }, 200); });
  about.columns.forEach((one, place) => at("colour").append(make("option", { value: place }, one.name)));
  at("colour").disabled = about.columns.length === 0;
  at("colour").addEventListener("change", () => { state.colour = +at("colour").value; remember(); repaint(); drawLegend(); });
  const each = (act) => () => (two ? maps : [active ?? maps[0]]).forEach(act);
  at("zoom-in").addEventListener("click", each((map) => map.zoomBy(1.5)));
  at("zoom-out").addEventListener("click", each((map) => map.zoomBy(1 / 1.5)));
  at("whole").addEventListener("click", each((map) => { map.view.splice(0, 3, 0.5, 0.5, 1); map.moved(); }));
  at("select-seen").addEventListener("click", () => { const map = active ?? maps[0]; select(map.inside(...map.corners()), "in view"); });
  at("lasso").addEventListener("click", () => { lassoing = !lassoing; at("lasso").setAttribute("aria-pressed", lassoing); document.body.classList.toggle("lassoing", lassoing); });
  at("thumbs").addEventListener("change", () => { state.thumbs = at("thumbs").checked; remember(); redraw(); });
  const tabs = Object.keys(panels), turnTo = (tab) => { state.tab = tab; state.page = 0; remember(); return showPanel(); };
  tabs.forEach((name, place) => {
    at(`tab-${name}`).addEventListener("click", () => turnTo(name));
    at(`tab-${name}`).addEventListener("keydown", (event) => {
      const to = { ArrowRight: place + 1, ArrowLeft: place - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      turnTo(tabs[to % tabs.length]).then(() => at(`tab-${tabs[to % tabs.length]}`).focus());
    });
  });
  dark.addEventListener("change", () => { repaint(); drawLegend(); });
  const apply = async () => {
    readAddress();
    at("search").value = state.query; at("colour").value = state.colour; at("thumbs").checked = state.thumbs;
    maps.forEach((map) => { map.nearRows = []; });
    drawLegend();
    await search(); await refilter(); changedPicks(); await showPanel();
  };
  addEventListener("hashchange", () => { if (location.hash !== written) apply(); });

  // ---- the beginning: points first, then all else ----
  (async () => {
    readAddress();
    const boxes = [...document.querySelectorAll(".map")];
    const [spots] = await Promise.all([Promise.all(boxes.map((_, map) => load(`map${map}`))), about.columns.length ? column(state.colour) : null]);
    boxes.forEach((box, map) => { maps.push(new PointMap(box, map, numbers(spots[map], Uint16Array))); });
    await repaint();
    drawLegend();
    requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("first picture")));
    if (about.side) { slots = numbers(await load("slots"), Int32Array); redraw(); }
    await apply();
    document.documentElement.dataset.ready = "yes";
  })();
})();
