// What the page asks the server. A key that the server wants is asked for once and kept for this tab.
import { t } from "./texts.js";

let key = sessionStorage.getItem("key") ?? "";

async function send(path, body, { method, signal } = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method: method ?? (body === undefined ? "GET" : "POST"), headers, signal,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.status === 401) {
    const given = prompt(t("key"));
    if (given) {
      key = given.trim();
      sessionStorage.setItem("key", key);
      return send(path, body, { method, signal });
    }
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    throw new Error(told?.error?.message ?? `${answer.status} ${answer.statusText}`);
  }
  return answer;
}

export async function ask(path, body, options) {
  return (await send(path, body, options)).json();
}

// The chunks of a stream as they come.
export async function* stream(path, body, signal) {
  const reader = (await send(path, { ...body, stream: true }, { signal })).body.getReader();
  const decoder = new TextDecoder();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error(t("broken"));
    held += decoder.decode(value, { stream: true });
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}
