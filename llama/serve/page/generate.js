import { stream } from "./api.js";
import { complain } from "./app.js";
import { field, h } from "./dom.js";
import { t } from "./texts.js";

const PARAMETERS = [
  ["temperature", "temperature", 0.7, { min: 0, step: 0.1 }], ["topP", "top_p", 0.9, { min: 0, max: 1, step: 0.05 }],
  ["topK", "top_k", 0, { min: 0, step: 1 }], ["minP", "min_p", 0, { min: 0, max: 1, step: 0.05 }],
  ["repetition", "repetition_penalty", 1, { min: 0, step: 0.05 }], ["maxTokens", "max_tokens", 64, { min: 1, step: 1 }],
  ["seed", "seed", 0, { min: 0, step: 1 }],
];

export function generate(view, state, kept) {
  kept.values ??= Object.fromEntries(PARAMETERS.map(([, name, value]) => [name, value]));
  const text = h("textarea", { rows: 3, oninput: () => { kept.text = text.value; } });
  text.value = kept.text ?? "The capital of France is";
  const inputs = PARAMETERS.map(([label, name, , limits]) => {
    const input = h("input", { type: "number", ...limits, oninput: () => { kept.values[name] = Number(input.value); } });
    input.value = kept.values[name];
    return field(t(label), input);
  });
  const end = h("input", { value: kept.end ?? "", oninput: () => { kept.end = end.value; } });
  const out = h("div", { class: "out", "aria-live": "polite" });
  const note = h("p", { class: "note" });
  let abort = null;
  const go = h("button", { class: "main", type: "button", onclick: write }, t("go"));
  const stop = h("button", { type: "button", disabled: true, onclick: () => abort?.abort() }, t("stop"));

  async function write() {
    abort = new AbortController();
    go.disabled = true;
    stop.disabled = false;
    const written = document.createTextNode("");
    out.replaceChildren(h("span", { class: "given" }, text.value), written);
    note.textContent = "";
    const begun = performance.now();
    const body = { model: state.model, prompt: text.value, ...kept.values, stream_options: { include_usage: true } };
    if (end.value) body.stop = [end.value];
    let reason = "";
    try {
      for await (const chunk of stream("/v1/completions", body, abort.signal)) {
        written.data += chunk.choices[0]?.text ?? "";
        reason = chunk.choices[0]?.finish_reason ?? reason;
        if (chunk.usage) {
          const count = chunk.usage.completion_tokens, seconds = (performance.now() - begun) / 1000;
          note.textContent = t("written", count, (count / seconds).toFixed(1), reason);
        }
      }
    } catch (error) {
      complain(error);
    }
    go.disabled = false;
    stop.disabled = true;
  }

  view.append(field(t("prompt"), text), h("div", { class: "row" }, ...inputs, field(t("stopText"), end)),
    h("div", { class: "row" }, go, stop), out, note);
  return () => abort?.abort();
}
