// Tabs, model and language. A view is a function that fills an element, and returns what ends it.
import { ask } from "./api.js";
import { h } from "./dom.js";
import { currentLanguage, switchLanguage, t } from "./texts.js";
import { chat } from "./chat.js";
import { generate } from "./generate.js";
import { tasks } from "./tasks.js";
import { tokens } from "./tokens.js";
import { lens } from "./lens.js";
import { trace } from "./trace.js";
import { training } from "./training.js";
import { inspect } from "./inspect.js";

const VIEWS = { chat, generate, tasks, tokens, lens, trace, training, inspect };
const state = { model: "", models: [], tokenizers: [], kept: {} };    // kept: what each view remembers
const at = (id) => document.getElementById(id);
let leave = () => {};

export function complain(error) {
  if (error?.name === "AbortError") return;
  at("alert").textContent = error?.message ?? String(error);
  setTimeout(() => { at("alert").textContent = ""; }, 8000);
}

// What there is to choose from; a run may have made a new adapter.
export async function refresh() {
  const found = await ask("/page/models");
  Object.assign(state, { models: found.models, tokenizers: found.tokenizers, model: state.model || found.default });
  at("model").replaceChildren(...state.models.map(({ name, task_type: kind }) => h("option", {
    value: name, selected: name === state.model,
  }, kind && kind !== "CAUSAL_LM" ? `${name} (${kind})` : name)));
}

function shown() {
  const name = location.hash.slice(1);
  return name in VIEWS ? name : "chat";
}

function show() {
  leave();
  const name = shown();
  for (const tab of at("tabs").children) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  const view = at("panel");
  view.replaceChildren();
  view.setAttribute("aria-labelledby", `tab-${name}`);
  state.kept[name] ??= {};
  leave = VIEWS[name](view, state, state.kept[name]) ?? (() => {});
}

function frame() {
  document.documentElement.lang = currentLanguage() === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  at("language").textContent = t("other");
  at("language").lang = currentLanguage() === "zh" ? "en" : "zh-CN";
  const names = Object.keys(VIEWS);
  at("tabs").replaceChildren(...names.map((name, i) => h("button", {
    role: "tab", id: `tab-${name}`, type: "button", "aria-controls": "panel",
    onclick: () => { location.hash = name; },
    onkeydown: (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move) return;
      const next = names[(i + move + names.length) % names.length];
      location.hash = next;
      at(`tab-${next}`).focus();
    },
  }, t(name))));
  show();
}

at("language").addEventListener("click", () => { switchLanguage(); frame(); });
at("model").addEventListener("change", () => { state.model = at("model").value; show(); });
addEventListener("hashchange", show);
addEventListener("unhandledrejection", (event) => complain(event.reason));
refresh().catch(complain).finally(frame);
