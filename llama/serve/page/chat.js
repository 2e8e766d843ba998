import { stream } from "./api.js";
import { field, h } from "./dom.js";
import { complain } from "./app.js";
import { t } from "./texts.js";

export function chat(view, state, kept) {
  kept.messages ??= [];
  const list = h("ol", { class: "talk", "aria-live": "polite" });
  const system = h("input", { value: kept.system ?? "", oninput: () => { kept.system = system.value; } });
  const text = h("textarea", { rows: 2, onkeydown: (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      say();
    }
  } });
  const send = h("button", { class: "main", type: "button", onclick: () => say() }, t("send"));
  const stop = h("button", { type: "button", disabled: true, onclick: () => kept.abort?.abort() }, t("stop"));
  const clear = h("button", { type: "button", onclick: () => {
    kept.abort?.abort();
    kept.messages = [];
    list.replaceChildren();
    text.focus();
  } }, t("clear"));

  function add(role, content) {
    const item = h("li", { class: role, "aria-label": t(role) }, content);
    list.append(item);
    return item;
  }

  async function say() {
    const content = text.value.trim();
    if (!content || kept.abort) return;
    text.value = "";
    const talk = kept.messages, answer = { role: "assistant", content: "" };
    talk.push({ role: "user", content });
    add("user", content);
    const before = system.value ? [{ role: "system", content: system.value }] : [];
    const messages = [...before, ...talk];
    const item = add("assistant", "");
    item.classList.add("writing");
    kept.abort = new AbortController();
    send.disabled = true;
    stop.disabled = false;
    list.setAttribute("aria-busy", "true");
    try {
      for await (const chunk of stream("/v1/chat/completions", { model: state.model, messages }, kept.abort.signal)) {
        answer.content += chunk.choices[0]?.delta?.content ?? "";
        item.textContent = answer.content;
        item.scrollIntoView({ block: "nearest" });
      }
    } catch (error) {
      complain(error);
    }
    if (answer.content) {
      talk.push(answer);
    } else {                                                          // nothing came: as if nothing had been asked
      talk.pop();
      item.previousSibling.remove();
      item.remove();
      text.value ||= content;
    }
    item.classList.remove("writing");
    kept.abort = null;
    list.setAttribute("aria-busy", "false");
    send.disabled = false;
    stop.disabled = true;
    text.focus();
  }

  for (const { role, content } of kept.messages) add(role, content);
  view.append(
    h("details", {}, h("summary", {}, t("system")), field(t("system"), system, "wide")), list,
    h("div", { class: "ask" }, field(t("yourMessage"), text),
      h("div", { class: "row" }, send, stop, clear, h("span", { class: "note" }, t("enterSends")))));
  return () => kept.abort?.abort();
}
