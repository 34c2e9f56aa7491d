"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("chart-data").textContent);
  const shown = (value, percent) => {
    const scaled = percent ? 100 * value : value;
    const text = Number.isInteger(scaled) && Math.abs(scaled) < 1e15 ? String(scaled) : String(Number(scaled.toPrecision(4)));
    return percent ? text + " %" : text;
  };
  const make = (name, attributes, parent) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    parent.append(element);
    return element;
  };

  charts.forEach((chart, number) => {
    const figure = document.getElementById("chart-" + number);
    const svg = figure.querySelector("svg");
    const readout = figure.querySelector("output");
    const hidden = new Set();
    const [left, top, right, bottom] = chart.box;
    const cursor = make("line", {class: "cursor", y1: top, y2: bottom, visibility: "hidden"}, svg);
    const dots = chart.lines.map((line, index) => {
      const color = svg.querySelector(`[data-line="${index}"]`).getAttribute("class").match(/color-\d+/)[0];
      return make("circle", {class: "dot " + color, r: 4, visibility: "hidden"}, svg);
    });
    let place = null;

    const stops = () => {
      const all = chart.lines.flatMap((line, index) => hidden.has(index) ? [] : line.places.map((spot) => spot[0]));
      return [...new Set(all)].sort((one, other) => one - other);
    };
    const leave = () => {
      place = null;
      [cursor, ...dots].forEach((element) => element.setAttribute("visibility", "hidden"));
      readout.textContent = "";
    };
    const show = (wanted) => {
      const known = stops();
      if (!known.length) return leave();
      place = known.reduce((best, x) => Math.abs(x - wanted) < Math.abs(best - wanted) ? x : best);
      cursor.setAttribute("x1", place);
      cursor.setAttribute("x2", place);
      cursor.setAttribute("visibility", "visible");
      let at = null;
      const words = [];
      chart.lines.forEach((line, index) => {
        const found = line.places.findIndex((spot) => spot[0] === place);
        dots[index].setAttribute("visibility", found < 0 || hidden.has(index) ? "hidden" : "visible");
        if (found < 0 || hidden.has(index)) return;
        dots[index].setAttribute("cx", line.places[found][0]);
        dots[index].setAttribute("cy", line.places[found][1]);
        at = line.points[found][0];
        words.push(line.name + " " + shown(line.points[found][1], chart.percent));
      });
      readout.textContent = chart.x + " " + shown(at, false) + ": " + words.join(" · ");
    };
    const move = (by) => {
      const known = stops();
      if (!known.length) return;
      const now = place === null ? (by > 0 ? -1 : known.length) : known.indexOf(place);
      show(known[Math.max(0, Math.min(known.length - 1, now + by))]);
    };

    svg.addEventListener("pointermove", (event) => {
      const frame = svg.getBoundingClientRect();
      show((event.clientX - frame.left) / frame.width * svg.viewBox.baseVal.width);
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const keys = {ArrowLeft: () => move(-1), ArrowRight: () => move(1), PageUp: () => move(-10), PageDown: () => move(10),
        Home: () => show(left), End: () => show(right), Escape: leave};
      if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
      event.preventDefault();
      keys[event.key]();
    });
    figure.querySelectorAll(".legend button").forEach((button) => button.addEventListener("click", () => {
      const index = Number(button.dataset.line);
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      on ? hidden.delete(index) : hidden.add(index);
      svg.querySelectorAll(`[data-line="${index}"]`).forEach((part) => part.setAttribute("visibility", on ? "visible" : "hidden"));
      leave();
    }));
  });

  document.querySelectorAll("thead button").forEach((button) => button.addEventListener("click", () => {
    const header = button.parentElement;
    const column = [...header.parentElement.children].indexOf(header);
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentElement.children) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = header.closest("table").tBodies[0];
    const key = (row) => row.cells[column].textContent;
    const number = /^-?[\d.,]+(e[+-]?\d+)?(\s|$)/;  // a name that begins with a date is none
    const amount = (text) => number.test(text) ? parseFloat(text.replaceAll(",", "")) : NaN;
    const rows = [...body.rows].sort((one, other) => {
      const numbers = [amount(key(one)), amount(key(other))];
      const absent = numbers.map(Number.isNaN);
      if (absent[0] !== absent[1]) return absent[0] ? 1 : -1;
      const order = absent[0] ? key(one).localeCompare(key(other)) : numbers[0] - numbers[1];
      return ascending ? order : -order;
    });
    body.append(...rows);
  }));

  document.querySelectorAll(".picture").forEach((figure) => {
    const frame = figure.querySelector(".frame");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Full size";
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const full = frame.classList.toggle("full");
      full ? frame.setAttribute("tabindex", "0") : frame.removeAttribute("tabindex");
      button.setAttribute("aria-expanded", String(full));
      button.textContent = full ? "Fit to page" : "Full size";
    });
    figure.append(button);
  });

  document.querySelectorAll(".reel").forEach((reel) => {
    const figures = [...reel.querySelectorAll(".picture")];
    if (figures.length < 2) return;
    const label = document.createElement("label");
    const slider = document.createElement("input");
    Object.assign(slider, {type: "range", min: 0, max: figures.length - 1, value: figures.length - 1});
    const turn = () => figures.forEach((figure, index) => { figure.hidden = index !== Number(slider.value); });
    slider.addEventListener("input", turn);
    label.append(`${figures.length} pictures in the order of training `, slider);
    reel.prepend(label);
    turn();
  });
})();
