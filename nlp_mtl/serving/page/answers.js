/* What the model says, as elements of the page. What people typed and what a model says enters it as text nodes, never
   as HTML. */

const BARS_SHOWN = 8;

export function make(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

const number = (value) => (typeof value === "number" ? value.toFixed(3) : "none");
export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const holds = (entry) => entry.holds ?? true; // without all scores, only those that hold are there

/* What a task's answer is, in brief, and what its bars show. */
export const KINDS = {
  spans: { meaning: "spans of the text", brief: (answer) => plural(answer.length, "span") },
  words: { meaning: "a label for each word", brief: (answer) => plural(answer.length, "word") },
  label: {
    meaning: "one label",
    brief: ({ label }) => label ?? "no label, as there is no word",
    bars: ({ label, score, scores }) =>
      Object.entries(scores ?? (label === null ? {} : { [label]: score })).map((one) => [...one, one[0] === label]),
  },
  labels: {
    meaning: "labels that hold",
    brief: (answer) => answer.filter(holds).map((entry) => entry.label).join(", ") || "no label holds",
    bars: (answer) => answer.map((entry) => [entry.label, entry.score, holds(entry)]),
  },
  value: { meaning: "a number", brief: ({ value }) => number(value), bars: () => [] },
};

/* Where both directions of writing meet, boxes (as words with labels under them are) would stand in the order of the
   line, not in that of its words. There, labels are beside words, kept at them by a mark of the word's direction. */
const RTL = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;
const LTR = new RegExp(`(?!${RTL.source})[\\p{L}\\p{N}]`, "u");
const directionMark = (text) => (RTL.test(text) ? "\u200f" : LTR.test(text) ? "\u200e" : "");

/* Goes over the text once, in code points as offsets are. */
export function block(text, predictions, spanTask, wordTask) {
  const points = Array.from(text);
  const spans = spanTask ? predictions[spanTask.name] : [];
  const words = wordTask ? predictions[wordTask.name] : [];
  const isMixed = RTL.test(text) && LTR.test(text);
  const written = make("div", points.length > 3000 ? "text long" : "text");
  if (wordTask) written.classList.add(isMixed ? "beside" : "under");
  const items = [];
  const plain = (from, to) => points.slice(from, to).join("");

  function item(tag, className, entry, task) {
    const made = make(tag, `item ${className}`);
    made.tabIndex = -1;
    made.title = `${entry.label} ${number(entry.score)}`;
    made.style.setProperty("--hue", hue(task, entry.label));
    items.push({ made, entry });
    return made;
  }

  let next = 0;
  function fill(parent, from, to) {
    let at = from;
    for (; words[next]?.start < to; next += 1) {
      const entry = words[next];
      const [start, end] = [Math.max(entry.start, at), Math.min(entry.end, to)];
      const made = item("span", "word", entry, wordTask);
      made.append(plain(start, end));
      made.dataset.label = isMixed ? `\u2068${entry.label}\u2069${directionMark(entry.text)}` : entry.label;
      parent.append(plain(at, start), made);
      at = end;
      if (entry.end > to) break; // its rest stands outside of this span
    }
    if (at < to) parent.append(plain(at, to));
  }

  let at = 0;
  for (const entry of spans) {
    fill(written, at, entry.start);
    const made = item("mark", "span", entry, spanTask);
    fill(made, entry.start, entry.end);
    const kind = make("bdi", "kind", entry.label, make("span", "unseen", ` ${number(entry.score)}`));
    made.append(make("span", "together", made.lastChild?.tagName ? made.lastChild : "", kind));
    made.dataset.direction = directionMark(entry.text);
    written.append(made);
    at = entry.end;
  }
  fill(written, at, points.length);
  written.dir = "auto"; // last, as browsers look for the direction again at each change
  written.lang = "";
  const named = [spanTask, wordTask].filter(Boolean).map((task) => task.name).join(" and ");
  written.setAttribute("role", "group");
  written.setAttribute("aria-label", `${named}; arrow keys go from label to label`);
  const detail = make("p", "detail hint", items.length ? "" : spanTask ? "No span was found." : "There is no word.");
  listen(written, items, detail);
  return make("section", "panel", make("h2", "", named), written, detail);
}

/* What is under the pointer or has the focus is told below the text, as neither touch nor keyboard shows titles. A text
   is one stop of the Tab key, and arrow keys go on from there, as it may hold thousands of labels. */
function listen(written, items, detail) {
  const places = new Map(items.map(({ made }, at) => [made, at]));
  if (items.length) items[0].made.tabIndex = 0;
  const told = ({ entry }) => {
    const best = Object.entries(entry.scores ?? {}).sort((a, b) => b[1] - a[1]).slice(0, 4);
    const scores = best.map(([label, score]) => `${label} ${number(score)}`).join(", ");
    return `${entry.text}: ${entry.label} ${number(entry.score)}${scores && ` (${scores})`}`;
  };
  const tell = (event) => {
    const inner = event.target.closest(".item");
    if (!inner) return;
    const outer = inner.parentElement.closest(".item");
    detail.textContent = [inner, outer].filter(Boolean).map((made) => told(items[places.get(made)])).join(" · ");
  };
  written.addEventListener("mouseover", tell);
  written.addEventListener("focusin", tell);
  written.addEventListener("keydown", (event) => {
    const forward = getComputedStyle(written).direction === "rtl" ? -1 : 1;
    const steps = { ArrowRight: forward, ArrowLeft: -forward, ArrowDown: 1, ArrowUp: -1, Home: -1e9, End: 1e9 };
    if (!(event.key in steps) || !places.has(event.target) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const to = Math.max(0, Math.min(items.length - 1, places.get(event.target) + steps[event.key]));
    event.target.tabIndex = -1;
    items[to].made.tabIndex = 0;
    items[to].made.focus();
  });
}

/* Hues far apart for neighbours, however many labels there are. */
const hue = (task, label) => ((task.labels.indexOf(label) * 137.508 + 250) % 360).toFixed(1);

export function card(task, answer) {
  const kind = KINDS[task.answer];
  const rows = kind.bars(answer).sort((a, b) => b[1] - a[1]).map(([label, score, isHeld]) => {
    const bar = make("div", "bar");
    bar.style.width = `${100 * score}%`;
    const name = make("span", "", make("bdi", "", label), make("span", "unseen", isHeld ? " (chosen)" : ""));
    return make("li", isHeld ? "held" : "", name, make("div", "track", bar), make("span", "number", number(score)));
  });
  const rest = rows.splice(BARS_SHOWN);
  const chosen = make("p", "chosen", make("bdi", "", kind.brief(answer)));
  const made = make("section", "panel card", make("h2", "", task.name), chosen);
  if (rows.length) made.append(make("ul", "bars", ...rows));
  if (rest.length) {
    made.append(make("details", "", make("summary", "", `${rest.length} more`), make("ul", "bars", ...rest)));
  }
  return made;
}
