import { ask } from "./api.js";
import { complain } from "./app.js";
import { choice, field, h, later } from "./dom.js";
import { t } from "./texts.js";

export function pieceList(pieces, ids, mark = () => "") {
  return h("ul", { class: "pieces" }, ...pieces.map((piece, i) =>
    h("li", { class: `k${i % 5} ${mark(i)}` }, h("span", {}, piece), h("small", {}, ids[i]))));
}

export function tokens(view, state, kept) {
  const text = h("textarea", { rows: 3, oninput: later(150, look) });
  text.value = kept.text ?? "The quick brown fox, 敏捷的棕色狐狸 🦊";
  const which = choice(["", ...state.tokenizers], kept.tokenizer ?? "", look);
  which.options[0].textContent = t("served");
  const found = h("div", {}), note = h("p", { class: "note", role: "status" });
  let asked = 0;

  async function look() {
    kept.text = text.value;
    kept.tokenizer = which.value;
    const number = ++asked;
    try {
      const answer = await ask("/page/tokens", { tokenizer: which.value, text: text.value });
      if (number !== asked) return;                                   // a later one is under way
      found.replaceChildren(pieceList(answer.pieces, answer.ids));
      note.textContent = t("tokensNote", answer.ids.length, [...text.value].length, answer.vocab_size);
    } catch (error) {
      complain(error);
    }
  }

  view.append(field(t("text"), text), h("div", { class: "row" }, field(t("tokenizer"), which)), note, found);
  look();
}
