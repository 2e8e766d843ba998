import { ask } from "./api.js";
import { complain, refresh } from "./app.js";
import { choice, field, h, svg } from "./dom.js";
import { t } from "./texts.js";

const WIDTH = 760, HEIGHT = 280, EDGE = 44, MOST = 600;               // MOST: points that are drawn

export function training(view, state, kept) {
  const runs = h("div", { class: "row" }), shown = h("div"), form = h("section");
  let timer = null, run = kept.run ?? "";

  async function list() {
    const { runs: found, data } = await ask("/page/runs");
    if (!found.some(({ name }) => name === run)) run = found[0]?.name ?? "";
    runs.replaceChildren(found.length ? field(t("run"), choice(found.map(({ name }) => name), run, follow)) :
      h("p", { class: "note" }, t("noRuns")));
    form.replaceChildren(...startForm(data));
    if (run) follow(run);
  }

  function follow(name) {
    run = kept.run = name;
    clearTimeout(timer);
    const steps = [], evals = [];
    let start = 0, watched = null, written = null, ran = false;
    const look = async () => {
      try {
        const path = name.split("/").map(encodeURIComponent).join("/");
        const found = await ask(`/page/runs/${path}?start=${start}`);
        start = found.end;
        for (const line of found.lines) {
          if (line.loss !== undefined) steps.push(line);
          if (line.eval?.loss !== undefined) evals.push([line.step, line.eval.loss]);
          watched = line.watched ?? watched;
          if (line.samples?.length) written = line;
        }
        if (ran && !found.running) refresh();                         // its adapter can be asked for now
        ran = found.running;
        if (run === name) draw(steps, evals, watched, written, found);
      } catch (error) {
        complain(error);
      }
      if (run === name) timer = setTimeout(look, 1500);
    };
    look();
  }

  function draw(steps, evals, watched, written, { running, said }) {
    const last = steps.at(-1), parts = [];
    if (last) {
      const recent = steps.at(-Math.min(steps.length, 20));
      const seconds = last.seconds - recent.seconds;
      const speed = seconds > 0 ? (last.tokens - recent.tokens) / seconds : last.tokens / last.seconds;
      const left = last.done ? Math.max((last.seconds * (1 - last.done)) / last.done, 0) : null;
      parts.push(figures([[t("step"), last.step], [t("loss"), last.loss.toFixed(4)],
        ...(evals.length ? [[t("evalLoss"), evals.at(-1)[1].toFixed(4)]] : []), [t("speed"), Math.round(speed)],
        ...(left === null ? [] : [[t("left"), clock(left)]]), [t("rate"), last.lr.toExponential(2)],
        [t("norm"), last.gradient_norm.toFixed(2)]]), curve(steps, evals));
    }
    if (written) parts.push(h("h2", {}, t("writes", written.step)), samples(written.samples));
    if (watched) parts.push(h("h2", {}, t("watched")), h("pre", {}, JSON.stringify(watched, null, 1)));
    if (running) parts.push(h("button", { type: "button", onclick: () => ask(`/page/runs/${run}`, undefined,
      { method: "DELETE" }).catch(complain) }, t("stop")));
    if (said) parts.push(h("h2", {}, t("said")), h("pre", {}, said));
    shown.replaceChildren(...parts);
  }

  function startForm(data) {
    if (!data.length) return [];
    const file = choice(data, data.includes("identity.jsonl") ? "identity.jsonl" : data[0]);
    const name = h("input", { value: "", placeholder: "my-adapter", pattern: "[A-Za-z0-9][A-Za-z0-9_-]*" });
    const minutes = h("input", { type: "number", min: 0.5, step: 0.5 });
    minutes.value = 5;
    const go = h("button", { class: "main", type: "button", onclick: async () => {
      try {
        const body = { data: file.value, name: name.value.trim(), minutes: Number(minutes.value) };
        run = (await ask("/page/runs", body)).name;
        await list();
        follow(run);
      } catch (error) {
        complain(error);
      }
    } }, t("start"));
    return [h("h2", {}, t("start")), h("p", { class: "note" }, t("trainingNote")), h("div", { class: "row" },
      field(t("data"), file), field(t("name"), name), field(t("minutes"), minutes), go)];
  }

  view.append(runs, shown, form);
  list().catch(complain);
  return () => {
    clearTimeout(timer);
    run = null;
  };
}

function figures(pairs) {
  return h("dl", { class: "figures" }, ...pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

// What the model writes after a text of the data, and what stands there.
function samples(texts) {
  return h("ol", { class: "samples" }, ...texts.map(({ prompt, text, gold }) => h("li", { class: "out" },
    h("span", { class: "given" }, prompt), text, h("small", {}, t("gold", gold.trim())))));
}

function clock(seconds) {
  const whole = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

function curve(steps, evals) {
  const thin = Math.ceil(steps.length / MOST);
  const points = steps.filter((_, i) => i % thin === 0 || i === steps.length - 1).map(({ step, loss }) => [step, loss]);
  const all = [...points, ...evals];
  const lows = all.map(([, loss]) => loss), low = Math.min(...lows), high = Math.max(...lows);
  const from = Math.min(...all.map(([step]) => step)), to = Math.max(...all.map(([step]) => step), from + 1);
  const x = (step) => EDGE + ((step - from) / (to - from)) * (WIDTH - EDGE - 12);
  const y = (loss) => HEIGHT - 28 - ((loss - low) / (high - low || 1)) * (HEIGHT - 44);
  const line = (kind, some) => svg("polyline", { class: kind, points: some.map(([s, l]) =>
    `${x(s).toFixed(1)},${y(l).toFixed(1)}`).join(" ") });
  const at = (value, anchor, px, py) => {
    const text = svg("text", { x: px, y: py, "text-anchor": anchor });
    text.textContent = value;
    return text;
  };
  return svg("svg", { class: "curve", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
    "aria-label": `${t("curve")}: ${low.toFixed(3)} – ${high.toFixed(3)}` },
  svg("line", { x1: EDGE, x2: WIDTH - 12, y1: HEIGHT - 28, y2: HEIGHT - 28 }),
  svg("line", { x1: EDGE, x2: EDGE, y1: 12, y2: HEIGHT - 28 }), line("train", points), line("eval", evals),
  ...points.slice(-1).map(([step, loss]) => svg("circle", { class: "last", cx: x(step), cy: y(loss), r: 3.5 })),
  ...evals.map(([step, loss]) => svg("circle", { cx: x(step), cy: y(loss), r: 3 })),
  at(high.toFixed(2), "end", EDGE - 6, y(high) + 5), at(low.toFixed(2), "end", EDGE - 6, y(low) + 5),
  at(from, "start", EDGE, HEIGHT - 8), at(to, "end", WIDTH - 12, HEIGHT - 8));
}
