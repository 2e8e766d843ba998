import { ask } from "./api.js";
import { complain } from "./app.js";
import { choice, field, h } from "./dom.js";
import { t } from "./texts.js";

export function lens(view, state, kept) {
  const text = h("textarea", { rows: 2 });
  text.value = kept.text ?? "The capital of France is";
  const layer = h("input", { type: "number", min: 0, step: 1, onchange: () => look() });
  layer.value = kept.layer ?? 0;
  const attention = h("section"), said = h("section");
  const go = h("button", { class: "main", type: "button", onclick: () => { look(); lensLook(); } }, t("show"));

  async function look() {
    kept.text = text.value;
    kept.layer = Number(layer.value);
    try {
      const found = await ask("/page/attention", { model: state.model, text: text.value, layer: kept.layer });
      layer.max = found.layers - 1;
      const heads = found.weights.map((_, i) => String(i));
      const table = h("div", { class: "scroll", tabIndex: 0 });
      const draw = (head) => table.replaceChildren(heat(found.pieces, head === "" ? mean(found.weights) :
        found.weights[Number(head)]));
      const head = choice(["", ...heads], "", draw);
      head.options[0].textContent = t("mean");
      attention.replaceChildren(h("h2", {}, t("attentionTitle")), h("p", { class: "note" }, t("attentionNote")),
        h("div", { class: "row" }, field(t("head"), head)), table);
      draw("");
    } catch (error) {
      complain(error);
    }
  }

  async function lensLook() {
    try {
      const found = await ask("/page/logit-lens", { model: state.model, text: text.value });
      const rows = found.said.map((row, i) => h("tr", {}, h("th", { scope: "row" }, `${t("layer")} ${i}`),
        ...row.map((best) => cell(best))));
      said.replaceChildren(h("h2", {}, t("lensTitle")), h("p", { class: "note" }, t("lensNote")),
        h("div", { class: "scroll", tabIndex: 0 }, h("table", { class: "said" },
          h("thead", {}, h("tr", {}, h("th", {}), ...found.pieces.map((piece) => h("th", { scope: "col" }, piece)))),
          h("tbody", {}, ...rows))));
    } catch (error) {
      complain(error);
    }
  }

  view.append(field(t("text"), text), h("div", { class: "row" }, field(t("layer"), layer), go), attention, said);
}

function cell(best) {
  const [piece, chance] = best[0];
  const td = h("td", { title: best.map(([each, p]) => `${each}  ${p.toFixed(3)}`).join("\n") }, piece);
  td.style.backgroundColor = `rgb(var(--heat) / ${(0.55 * chance).toFixed(3)})`;
  return td;
}

function mean(heads) {
  return heads[0].map((row, i) => row.map((_, j) => heads.reduce((sum, head) => sum + head[i][j], 0) / heads.length));
}

function heat(pieces, weights) {
  return h("table", { class: "heat" },
    h("thead", {}, h("tr", {}, h("th", {}), ...pieces.map((piece) => h("th", { scope: "col" }, piece)))),
    h("tbody", {}, ...weights.map((row, i) => h("tr", {}, h("th", { scope: "row" }, pieces[i]),
      ...row.map((weight, j) => {
        const td = h("td", { title: `${pieces[i]} → ${pieces[j]}: ${weight.toFixed(3)}` });
        td.style.setProperty("--w", weight.toFixed(3));
        return td;
      })))));
}
