import { ask } from "./api.js";
import { complain } from "./app.js";
import { choice, field, h, later } from "./dom.js";
import { t } from "./texts.js";

export function trace(view, state, kept) {
  const text = h("textarea", { rows: 2 });
  text.value = kept.text ?? "The capital of France is";
  const go = h("button", { class: "main", type: "button", onclick: look }, t("show"));
  const said = h("p", { class: "note", role: "status" }), found = h("section");

  async function look() {
    kept.text = text.value;
    go.disabled = true;
    said.textContent = t("reading");
    found.replaceChildren();
    try {
      show(await ask("/page/trace", { model: state.model, text: text.value }));
    } catch (error) {
      said.textContent = "";
      complain(error);
    }
    go.disabled = false;
  }

  function show({ layers, tensors, parameters }) {
    const tables = h("div");
    const filter = h("input", { type: "search", oninput: later(150, draw) });
    filter.value = kept.filter ?? "";
    const layer = choice(["", ...layers.map(String)], kept.layer ?? "0", draw);
    layer.options[0].textContent = t("everyLayer");

    function draw() {
      Object.assign(kept, { layer: layer.value, filter: filter.value });
      const wanted = (record) => inLayer(record, kept.layer) &&
        record.name.toLowerCase().includes(kept.filter.trim().toLowerCase());
      const parts = [[t("tensors"), tensors.filter(wanted)], [t("parameters"), parameters.filter(wanted)]];
      said.textContent = t("traced", parts[0][1].length + parts[1][1].length, tensors.length + parameters.length);
      tables.replaceChildren(...parts.filter(([, records]) => records.length).flatMap(([title, records]) => [
        h("h2", {}, title), h("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": title },
          recordTable(records))]));
    }

    found.replaceChildren(h("p", { class: "note" }, t("traceLetters")),
      h("div", { class: "row" }, field(t("layer"), layer), field(t("filter"), filter, "wide")), tables);
    draw();
  }

  view.append(h("p", { class: "note" }, t("traceNote")), field(t("text"), text), h("div", { class: "row" }, go), said,
    found);
}

// What stands around the layers belongs to each of them.
function inLayer({ module }, layer) {
  const [first, number] = module.split(".");
  return layer === "" || first !== "layers" || number === layer;
}

// A group for each module, and another one when the pass comes back to it.
function recordTable(records) {
  const numbers = [t("average"), t("std"), t("least"), t("most"), t("gradient"), t("notFinite")];
  const head = [t("name"), t("shape"), t("sizes"), "dtype", ...numbers, t("place"), t("code")];
  const groups = [];
  for (const record of records) {
    if (groups.at(-1)?.module !== record.module) groups.push({ module: record.module, rows: [] });
    groups.at(-1).rows.push(recordRow(record));
  }
  return h("table", { class: "traced" },
    h("thead", {}, h("tr", {}, ...head.map((each) =>
      h("th", { scope: "col", class: numbers.includes(each) ? "number" : "" }, each)))),
    ...groups.map(({ module, rows }) => h("tbody", {},
      h("tr", {}, h("th", { scope: "rowgroup", colSpan: head.length }, h("span", {}, module || t("outside")))), ...rows)));
}

function recordRow(record) {
  const own = record.module ? record.name.slice(record.module.length + 1) : record.name;
  const numbers = [record.mean, record.std, record.min, record.max, record.gradient_norm, record.others || null];
  return h("tr", {}, h("th", { scope: "row", class: "mono" }, own), h("td", {}, record.letters.join(" ")),
    h("td", {}, record.shape.join(" × ")), h("td", {}, record.dtype),
    ...numbers.map((each) => h("td", { class: "number" }, digits(each))),
    h("td", { class: "mono" }, `${record.file}:${record.line}`), h("td", { class: "mono" }, record.code));
}

// Three digits that count; nothing for what there is none of.
function digits(number) {
  return typeof number === "number" ? String(Number(number.toPrecision(3))) : number ?? "";
}
