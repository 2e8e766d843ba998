import { ask } from "./api.js";
import { complain } from "./app.js";
import { choice, field, h } from "./dom.js";
import { t } from "./texts.js";

const TASKS = ["", "sentiment", "classification", "ner", "qa", "summarization", "translation"];

export function tasks(view, state, kept) {
  const text = h("textarea", { rows: 2 }), context = h("textarea", { rows: 4 });
  const labels = h("input", { value: kept.labels ?? "positive,negative" });
  text.value = kept.text ?? "服务很好，下次还来。";
  context.value = kept.context ?? "";
  const about = field(t("context"), context), named = field(t("labels"), labels);
  const label = document.createTextNode("");
  const which = choice(TASKS, kept.task ?? "", fit);
  which.options[0].textContent = t("tuned");
  const found = h("div", { "aria-live": "polite" });
  const go = h("button", { class: "main", type: "button", onclick: look }, t("find"));

  function kind() {
    return state.models.find(({ name }) => name === state.model)?.task_type;
  }

  function fit() {
    const tuned = kind() && kind() !== "CAUSAL_LM";
    const question = which.value === "qa" || kind() === "QUESTION_ANS";
    about.hidden = !question;
    named.hidden = tuned || !["sentiment", "classification", "ner"].includes(which.value);
    label.data = question ? t("question") : t("text");
  }

  async function look() {
    Object.assign(kept, { text: text.value, context: context.value, task: which.value, labels: labels.value });
    const body = { model: state.model, text: text.value, task: which.value };
    if (!about.hidden) body.context = context.value;
    if (!named.hidden) body.labels = labels.value.split(",").map((each) => each.trim()).filter(Boolean);
    go.disabled = true;
    try {
      found.replaceChildren(...shown(await ask("/page/task", body), text.value, context.value));
    } catch (error) {
      complain(error);
    }
    go.disabled = false;
  }

  view.append(h("p", { class: "note" }, t("tasksNote")), h("label", {}, label, text), about,
    h("div", { class: "row" }, field(t("task"), which), named, go), found);
  fit();
}

function shown(result, text, context) {
  if (result.task === "ner") return [marked(text, result.predicted.map(([, kind, start, end]) => [start, end, kind]))];
  if (result.task === "qa") {
    if (!result.predicted) return [h("p", {}, t("nothing"))];
    const span = [result.start, result.start + [...result.predicted].length, ""];
    return [h("p", {}, h("strong", {}, result.predicted)), marked(context, [span])];
  }
  if (result.text !== undefined && result.confidence === undefined) return [h("div", { class: "out" }, result.predicted)];
  const label = Array.isArray(result.predicted) ? result.predicted.join(", ") : result.predicted;
  return [h("p", {}, h("strong", {}, label || t("nothing"))), ...confidence(result)];
}

function confidence({ confidence: sure }) {
  if (sure === undefined) return [];
  const part = h("div");
  part.style.width = `${(100 * sure).toFixed(1)}%`;
  return [h("div", { class: "row" }, h("div", { class: "bar", "aria-hidden": "true" }, part),
    h("span", {}, `${t("confidence")} ${sure.toFixed(3)}`))];
}

// Spans count characters as Python does, not the halves of them that JavaScript counts.
function marked(text, spans) {
  const letters = [...text], out = h("div", { class: "out" });
  const kinds = [...new Set(spans.map(([, , kind]) => kind))];
  let end = 0;
  for (const [start, behind, kind] of [...spans].sort((a, b) => a[0] - b[0])) {
    out.append(letters.slice(end, start).join(""));
    const mark = h("mark", { class: `k${kinds.indexOf(kind) % 5}` }, letters.slice(start, behind).join(""));
    if (kind) mark.append(h("b", {}, kind));
    out.append(mark);
    end = behind;
  }
  out.append(letters.slice(end).join(""));
  return out;
}
