/* The page asks what any program can ask: GET tasks, POST predict. Addresses are relative, as a proxy may serve it
   under a prefix. */

import { KINDS, block, card, make, plural } from "./answers.js";

const $ = (id) => document.getElementById(id);
const JSON_SHOWN = 200_000; // characters; more makes browsers slow
const ARGUMENT_SHOWN = 100_000; // bytes; Linux takes 128 KiB in one argument

let tasks = [];
let limits = {};
let token = "";
let running = null; // the AbortController of the request under way
let asking = null; // what is done again once there is a token
let shown = null; // the last answer, and what was asked

const refused = (message, status) => Object.assign(new Error(message), { status, isTold: true });

/* ---- asking ---- */

async function request(path, init) {
  const authorization = token && { Authorization: `Bearer ${token}` };
  const headers = { ...(init.body && { "Content-Type": "application/json" }), ...authorization };
  let response, body, told;
  try {
    response = await fetch(path, { ...init, headers, cache: "no-store" });
    body = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw refused("The server does not answer. Is it running, and is there a connection to it?");
  }
  try {
    told = JSON.parse(body);
  } catch {} // as where it holds nothing
  if (!response.ok || !told) throw refused(complaint(response, told?.detail), response.status);
  $("token-form").hidden = true;
  return told;
}

function complaint(response, detail) {
  const unread = `The server's answer could not be read (status ${response.status}).`;
  const message = typeof detail === "string" ? detail : detail ? JSON.stringify(detail) : unread;
  const wait = response.headers.get("Retry-After");
  const sentence = /[.!?]$/.test(message) ? message : `${message}.`;
  return wait ? `${sentence} Try again in ${plural(Number(wait), "second")}.` : message;
}

async function run(work) {
  running?.abort();
  const mine = (running = new AbortController());
  asking = work;
  const focused = document.activeElement;
  const busy = (is) => {
    $("send").disabled = is;
    $("results").setAttribute("aria-busy", is);
  };
  $("error").textContent = "";
  $("status").textContent = "Waiting for the server …";
  busy(true);
  try {
    await work(mine.signal);
  } catch (error) {
    if (!mine.signal.aborted) fail(error);
  } finally {
    if (running === mine) busy(false);
    // A button that was disabled and a field that is hidden now have lost the focus.
    const lost = focused !== document.body && document.activeElement === document.body;
    if (lost) (focused.offsetParent ? focused : $("text")).focus();
  }
}

function fail(error) {
  $("results").hidden = true;
  $("status").textContent = "";
  $("error").textContent = error.message;
  if (error.status === 401) {
    $("token-form").hidden = false;
    $("token").select();
  }
  if (!error.isTold) throw error;
}

async function load(signal) {
  const told = await request("tasks", { signal });
  ({ tasks, limits } = told);
  document.title = `${told.model}: predictions`;
  $("model").textContent = told.model;
  $("choices").replaceChildren(...tasks.map(choice));
  $("tasks").hidden = false;
  $("second-field").hidden = !tasks.some((task) => task.pairs);
  $("status").textContent = "";
  offer();
}

function choice(task) {
  task.box = Object.assign(make("input"), { type: "checkbox", checked: true });
  const about = make("small", "", KINDS[task.answer].meaning);
  task.choice = make("label", "choice", task.box, make("span", "", task.name, " ", about));
  return task.choice;
}

const readsPairs = () => tasks.every((task) => task.pairs) || $("second").value.trim() !== "";

function offer() {
  const pairs = readsPairs();
  for (const task of tasks) task.choice.hidden = task.pairs !== pairs;
  const length = Array.from($("text").value + (pairs ? $("second").value : "")).length;
  const most = limits.max_characters;
  $("count").textContent = `${length.toLocaleString("en")} of at most ${most.toLocaleString("en")} characters`;
  $("count").classList.toggle("over", length > most);
}

async function predict(signal) {
  if (!tasks.length) await load(signal);
  const [text, second] = [$("text").value, $("second").value];
  const pairs = readsPairs();
  const asked = tasks.filter((task) => task.pairs === pairs && task.box.checked);
  if (!text.trim()) throw refused("There is no text. Type or paste one first.");
  if (pairs && !second.trim()) throw refused("There is no second text. These tasks read two.");
  if (!asked.length) throw refused("No task is ticked. Tick at least one.");
  const all_scores = $("all-scores").checked;
  const body = { texts: text, ...(pairs && { text_pair: second }), tasks: asked.map((task) => task.name), all_scores };
  const started = performance.now();
  const answer = await request("predict", { method: "POST", body: JSON.stringify(body), signal });
  const seconds = (performance.now() - started) / 1000;
  shown = { text, body, answer, asked, withToken: token !== "" };
  show();
  const brief = asked.map((task) => `${task.name}: ${KINDS[task.answer].brief(said(task))}`);
  $("status").textContent = `Answered in ${seconds.toFixed(2)} s. ${brief.join("; ")}.`;
}

/* ---- showing ---- */

const said = (task) => shown.answer.predictions[task.name];

function show() {
  const wanted = shown.asked.filter((task) => task.box.checked);
  const [spans, words] = ["spans", "words"].map((kind) => wanted.filter((task) => task.answer === kind));
  const others = wanted.filter((task) => KINDS[task.answer].bars);
  const under = spans.length ? words.shift() : undefined;
  const drawn = (spanTask, wordTask) => block(shown.text, shown.answer.predictions, spanTask, wordTask);
  const blocks = spans.map((task, at) => drawn(task, at === 0 ? under : undefined));
  $("blocks").replaceChildren(...blocks, ...words.map((task) => drawn(undefined, task)));
  $("cards").replaceChildren(...others.map((task) => card(task, said(task))));
  $("curl-text").textContent = curl();
  $("curl-hint").hidden = !shown.withToken;
  $("results").hidden = false;
  showJson();
}

/* ---- JSON and curl ---- */

const pretty = () => JSON.stringify(shown.answer, null, 2);

function showJson() {
  const all = $("json").open ? pretty() : "";
  $("json-text").textContent = all.slice(0, JSON_SHOWN);
  $("json-hint").textContent = all.length > JSON_SHOWN ? "Only the beginning is shown here; Copy takes all." : "";
}

function curl() {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  // JSON leaves these control characters as they are; they would act on the terminal that they are pasted into.
  const escaped = (control) => `\\u00${control.charCodeAt(0).toString(16)}`;
  const body = JSON.stringify(shown.body).replace(/[\u007f-\u009f]/g, escaped);
  const address = new URL("predict", document.baseURI).href;
  const lines = [`curl -sS ${quoted(address)}`, "-H 'Content-Type: application/json'"];
  if (shown.withToken) lines.push('-H "Authorization: Bearer $TOKEN"');
  const isLong = new Blob([quoted(body)]).size > ARGUMENT_SHOWN;
  lines.push(isLong ? `--data-binary @- <<'END'\n${body}\nEND` : `--data-raw ${quoted(body)}`);
  return lines.join(" \\\n  ");
}

async function copy({ currentTarget: button }) {
  const text = button.dataset.copies === "json" ? pretty() : curl();
  let isCopied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  if (!isCopied) {
    // Over plain http, browsers give a clipboard to pages of localhost only.
    const box = make("textarea", "unseen", text);
    button.after(box);
    box.select();
    isCopied = document.execCommand("copy");
    box.remove();
    button.focus();
  }
  $("status").textContent = isCopied ? "Copied." : "The browser did not let the page copy.";
}

/* ---- what happens when ---- */

const send = (event) => {
  event.preventDefault();
  run(predict);
};
$("ask").addEventListener("submit", send);
$("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.repeat && (event.ctrlKey || event.metaKey)) send(event);
});
for (const id of ["text", "second"]) $(id).addEventListener("input", () => tasks.length && offer());
$("choices").addEventListener("change", () => {
  if ($("results").hidden) return;
  show();
  const isNew = (task) => task.box.checked && !task.choice.hidden && !shown.asked.includes(task);
  if (tasks.some(isNew)) $("status").textContent = "Predict asks the tasks that were ticked now.";
});
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  run(asking);
});
$("json").addEventListener("toggle", () => shown && showJson());
for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", copy);

run(load);
