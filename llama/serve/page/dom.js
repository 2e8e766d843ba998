// Elements are made of names, properties and children; a child that is no element becomes text, never markup.
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";
export function svg(tag, properties = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function field(text, control, kind = "") {
  return h("label", { class: kind }, text, control);
}

export function choice(values, chosen, onchange) {
  const select = h("select", { onchange: () => onchange?.(select.value) });
  for (const value of values) select.append(h("option", { value, selected: value === chosen }, value || "–"));
  return select;
}

export function later(milliseconds, f) {
  let waiting;
  return (...given) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => f(...given), milliseconds);
  };
}
