"use strict";
(function () {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const by = (id) => document.getElementById(id);
  const state = { slice: 0, kind: "image", frame: -1, timer: null };
  const titles = { image: "Image", error: "Error", std: "Standard deviation" };
  const kinds = ["image", "error", "std"].filter((kind) => data.panels.some((panel) => panel[kind]));
  const frames = Math.max(...data.panels.map((panel) => (panel.film || []).length));

  function made(tag, text, parent) {
    const element = document.createElement(tag);
    element.textContent = text;
    if (parent) parent.append(element);
    return element;
  }

  function button(text, parent, act) {
    const element = made("button", text, parent);
    element.type = "button";
    element.addEventListener("click", act);
    return element;
  }

  const views = data.panels.map((panel) => {
    const figure = made("figure", "", by("panels"));
    const caption = made("figcaption", "", figure);
    made("strong", panel.name, caption);
    const text = made("span", "", caption);
    const picture = made("div", "", figure);
    picture.className = "picture";
    picture.setAttribute("role", "img");
    picture.style.aspectRatio = String(data.aspect);
    const scale = made("div", "", figure);
    scale.className = "scale";
    const ends = made("div", "", figure);
    ends.className = "ends";
    return { panel, text, picture, scale, ends };
  });
  const kindButtons = kinds.map((kind) => button(titles[kind], by("kinds"), () => show({ kind })));
  for (const [reason, place] of Object.entries(data.jumps)) button(reason, by("jumps"), () => show({ slice: place }));
  if (kinds.length < 2) by("kinds").hidden = true;

  for (const kind of ["error", "std"]) {
    const functions = by("map-" + kind).firstElementChild.children;
    data.colours[kind].forEach((table, channel) => functions[channel].setAttribute("tableValues", table));
  }

  function place(element, layer, slice) {
    const perSheet = data.columns * data.rows;
    const sheet = data.layers[layer][Math.floor(slice / perSheet)];
    const inside = slice % perSheet;
    const share = (at, count) => (count > 1 ? (100 * at) / (count - 1) : 0) + "%";
    element.style.backgroundImage = `url("figures/${sheet}")`;
    element.style.backgroundSize = `${100 * data.columns}% ${100 * data.rows}%`;
    element.style.backgroundPosition =
      share(inside % data.columns, data.columns) + " " + share(Math.floor(inside / data.columns), data.rows);
  }

  function gradient(kind) {
    const [red, green, blue] = data.colours[kind].map((table) => table.split(" ").map((value) => Math.round(255 * value)));
    return `linear-gradient(to right, ${red.map((value, i) => `rgb(${value},${green[i]},${blue[i]})`).join(",")})`;
  }

  function drawWindow() {
    const upper = data.window[state.slice];
    const width = (upper * by("window").value) / 100;
    const level = (upper * by("level").value) / 100;
    for (const channel of by("map-grey").firstElementChild.children) {
      channel.setAttribute("slope", String(1 / width));
      channel.setAttribute("intercept", String(0.5 - level / width));
    }
  }

  function draw() {
    drawWindow();
    for (const { panel, text, picture, scale, ends } of views) {
      const kind = panel[state.kind] ? state.kind : "image";
      const film = kind === "image" && state.frame >= 0 && panel.film && panel.film.length > 0;
      const layer = film ? panel.film[state.frame % panel.film.length] : panel[kind];
      place(picture, layer, state.slice);
      const given = panel.image === "mask";
      picture.classList.toggle("exact", kind !== "image" || given);
      picture.style.filter = given ? "none" : `url("#map-${kind === "image" ? "grey" : kind}")`;
      const note = film ? `sample ${(state.frame % panel.film.length) + 1} of ${panel.film.length}` : panel.texts[state.slice] || "";
      text.textContent = kind === "image" ? note : kind === "error" ? "absolute error" : "standard deviation";
      picture.setAttribute("aria-label", `${panel.name}, ${kind}, ${data.slices[state.slice]}`);
      scale.hidden = ends.hidden = kind === "image";
      ends.style.display = kind === "image" ? "none" : "";
      if (kind !== "image") {
        scale.style.background = gradient(kind);
        ends.replaceChildren(made("span", "0"), made("span", String(data.ends[kind][state.slice])));
      }
    }
    by("slice").value = state.slice;
    by("name").textContent = `${data.slices[state.slice]} (${state.slice + 1} of ${data.slices.length})`;
    kindButtons.forEach((element, i) => element.setAttribute("aria-pressed", String(kinds[i] === state.kind)));
    by("play").setAttribute("aria-pressed", String(state.timer !== null));
  }

  function show(change) {
    Object.assign(state, change);
    state.slice = Math.min(Math.max(state.slice, 0), data.slices.length - 1);
    draw();
  }

  function play() {
    if (frames < 1) return;
    if (state.timer !== null) {
      clearInterval(state.timer);
      return show({ timer: null, frame: -1 });
    }
    show({ kind: "image", frame: 0, timer: setInterval(() => show({ frame: (state.frame + 1) % frames }), 400) });
  }

  function reset() {
    by("window").value = 100;
    by("level").value = 50;
    drawWindow();
  }

  by("slice").max = data.slices.length - 1;
  by("slice").addEventListener("input", (event) => show({ slice: Number(event.target.value) }));
  by("window").addEventListener("input", drawWindow);
  by("level").addEventListener("input", drawWindow);
  by("reset").addEventListener("click", reset);
  by("play").hidden = frames < 1;
  by("play").addEventListener("click", play);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.type === "range" && event.key.length > 1) return; // arrows there move that slider
    const acts = {
      ArrowLeft: () => show({ slice: state.slice - 1 }),
      ArrowRight: () => show({ slice: state.slice + 1 }),
      Home: () => show({ slice: 0 }),
      End: () => show({ slice: data.slices.length - 1 }),
      i: () => show({ kind: "image" }),
      e: () => kinds.includes("error") && show({ kind: "error" }),
      s: () => kinds.includes("std") && show({ kind: "std" }),
      f: play,
      r: reset,
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  });
  show({ slice: data.jumps.median ?? data.jumps.fixed ?? 0 });
})();
