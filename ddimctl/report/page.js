"use strict";
const all = (what, within) => Array.from((within || document).querySelectorAll(what));
const one = (what, within) => (within || document).querySelector(what);

// Tables sort by the column whose name is pressed: numbers as numbers, what is no number last.
function sortable(table) {
  const heads = all("thead th", table), body = table.tBodies[0];
  const value = (row, i) => {
    const text = row.cells[i].textContent.trim(), number = parseFloat(text.replace(/,/g, ""));
    return { text, number };
  };
  heads.forEach((head, i) => {
    if (head.classList.contains("still")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = Array.from(body.rows), named = i === 0 || rows.every((r) => isNaN(value(r, i).number));
      rows.sort((p, q) => {
        const a = value(p, i), b = value(q, i);
        if (named) return (up ? 1 : -1) * a.text.localeCompare(b.text, undefined, { numeric: true });
        if (isNaN(a.number) || isNaN(b.number)) return isNaN(a.number) - isNaN(b.number);
        return (up ? 1 : -1) * (a.number - b.number);
      });
      body.append(...rows);
    });
  });
}

// The original over a reconstruction, with a divider between; all pictures are those of the table below.
function viewer(root) {
  const table = document.getElementById(root.dataset.of), stage = one(".stage", root), line = one(".line", root);
  const [row, way, what, zoom] = ["row", "way", "what", "zoom"].map((name) => one(`[data-choose=${name}]`, root));
  const slider = one("[type=range]", root), said = one(".said", root), back = one(".back", root), front = one(".front", root);
  const picture = (column) => one(`[data-row="${row.value}"][data-column="${column}"]`, table);
  function divide() {
    front.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`;
    line.style.left = `${slider.value}%`;
    slider.setAttribute("aria-valuetext", `${slider.value} % original`);
  }
  function show() {
    const column = 2 * Number(way.value), difference = what.value === "difference";
    const shown = picture(difference ? column + 2 : column + 1), original = picture(0);
    back.src = shown.src;
    back.alt = shown.alt;
    front.src = original.src;
    front.alt = original.alt;
    front.hidden = line.hidden = slider.hidden = difference;
    all(".side", root).forEach((side) => { side.hidden = difference; });
    for (const image of [back, front]) image.style.width = `${original.naturalWidth * zoom.value}px`;
    said.textContent = table.tHead.rows[0].cells[column + (difference ? 3 : 2)].textContent.replace(/\n/g, ", ");
    divide();
  }
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    slider.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    divide();
  };
  stage.addEventListener("pointerdown", (event) => {
    if (slider.hidden) return;
    stage.setPointerCapture(event.pointerId);
    follow(event);
    slider.focus();
    event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => { if (stage.hasPointerCapture(event.pointerId)) follow(event); });
  slider.addEventListener("input", divide);
  for (const choice of [row, way, what, zoom]) choice.addEventListener("change", show);
  table.addEventListener("click", (event) => {
    const at = event.target.dataset;
    if (at.row === undefined) return;
    row.value = at.row;
    if (at.column > 0) {
      way.value = Math.floor((at.column - 1) / 2);
      what.value = at.column % 2 ? "divider" : "difference";
    }
    show();
    root.scrollIntoView({ block: "nearest" });
  });
  const first = one("img", table);
  zoom.value = ["16", "12", "8", "4", "2", "1"].find((z) => first.naturalWidth * z <= 400) || "1";
  show();
}

// Frames one after the other: a slider, arrow keys, and play.
function film(root) {
  const frames = all(".frames img", root.parentNode), screen = one(".screen", root), slider = one("[type=range]", root);
  const play = one("button", root), said = one("output", root), every = 1000 / Number(root.dataset.fps);
  let timer = 0;
  function show(i) {
    slider.value = i;
    screen.src = frames[i].src;
    screen.alt = frames[i].alt;
    screen.style.width = `${frames[i].naturalWidth * Math.max(1, Math.floor(336 / frames[i].naturalWidth))}px`;
    said.textContent = `${i} of ${frames.length - 1}`;
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  }
  function toggle() {
    if (timer) return stop();
    play.textContent = "Pause";
    timer = setInterval(() => show((Number(slider.value) + 1) % frames.length), every);
  }
  play.addEventListener("click", toggle);
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, button, pre, summary") || event.altKey || event.ctrlKey || event.metaKey) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { stop(); show((Number(slider.value) + step + frames.length) % frames.length); }
    else if (event.key === " ") toggle();
    else return;
    event.preventDefault();
  });
  show(0);
}

function start() {
  all(".tool, .viewer, .film").forEach((part) => { part.hidden = false; });
  all("table.figures").forEach(sortable);
  all(".viewer").forEach(viewer);
  all(".film").forEach(film);
  const zoom = getComputedStyle(document.documentElement).getPropertyValue("--zoom").trim();
  all(".scale").forEach((choice) => { choice.value = zoom; });
  all(".scale").forEach((choice) => choice.addEventListener("input", () => {
    document.documentElement.style.setProperty("--zoom", choice.value);
    all(".scale").forEach((other) => { other.value = choice.value; });
  }));
  one("#json").textContent = JSON.stringify(JSON.parse(one("#record").textContent), null, 1);
  one("#copy").addEventListener("click", () => {
    const range = document.createRange(), done = (how) => { one("#copied").textContent = how; };
    range.selectNodeContents(one("#command"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    const chosen = () => done("Selected: press Ctrl+C");
    if (navigator.clipboard) navigator.clipboard.writeText(one("#command").textContent).then(() => done("Copied"), chosen);
    else chosen();
  });
}
window.addEventListener("load", start);
