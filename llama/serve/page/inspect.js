import { ask } from "./api.js";
import { complain } from "./app.js";
import { choice, field, h } from "./dom.js";
import { pieceList } from "./tokens.js";
import { t } from "./texts.js";

export function inspect(view, state, kept) {
  const row = h("div", { class: "row" }), found = h("div");

  async function look(file) {
    kept.file = file;
    try {
      const seen = await ask("/page/inspect", { model: state.model, file });
      found.replaceChildren(h("p", { class: "note" }, t("counts", seen.count)), ...seen.samples.flatMap((sample) => [
        h("h2", {}, sample.place), pieceList(sample.pieces, sample.ids, (i) => (sample.learned[i] ? "learned" : ""))]),
      h("pre", {}, seen.report));
    } catch (error) {
      complain(error);
    }
  }

  view.append(h("p", { class: "note" }, t("inspectNote")), row, found);
  ask("/page/runs").then(({ data }) => {
    if (!data.length) return;
    const first = kept.file ?? (data.includes("identity.jsonl") ? "identity.jsonl" : data[0]);
    row.append(field(t("data"), choice(data, first, look)));
    look(first);
  }).catch(complain);
}
