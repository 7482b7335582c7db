// The page: a prompt, the tokens as they come, and what else could have come.

import { Model, hasWebGPU } from "./model.js";
import { largest, softmax, tokensLeft } from "./sampling.js";
import { pieces } from "./tokenizer.js";

const SHOWN = 12; // bars
const ALL = 101; // top-k's last place: every token
const folder = new URL("./model/", import.meta.url);

/** @typedef {{id: number, logits: Float32Array}} Token logits: what it was chosen from */

const byId = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const text = byId("text");

/** @type {Model} */ let model;
/** @type {import("./tokenizer.js").Words} */ let words;
/** @type {number[]} */ let given = []; // the prompt's ids
/** @type {Token[]} */ let tokens = [];
/** @type {Float32Array | null} */ let pending = null; // logits of the token that is not chosen yet
let selected = 0; // a token, or tokens.length: the one that is not chosen yet
let stopped = true;
let running = Promise.resolve();

/** Where there is no tokenizer: ids in, ids out. */
const numbers = {
  encode: (/** @type {string} */ typed) => typed.split(/[\s,]+/).filter(Boolean).map(Number),
  decode: (/** @type {number[]} */ ids) => ids.map((id) => ` ${id}`).join(""),
  show: String,
};

function options() {
  const number = (/** @type {string} */ id) => Number(byId(id).value);
  const k = number("top-k");
  return { temperature: number("temperature"), topP: number("top-p"), topK: k >= ALL ? 0 : k, seed: number("seed") };
}

// ---- the model ----------------------------------------------------------------------------------------------------

async function load() {
  const backend = byId("backend").value;
  model?.close();
  model = new Model((_file, done, total) => {
    byId("progress").value = done / total;
    byId("loading-text").textContent = `Loading the weights: ${megabytes(done)} of ${megabytes(total)} MB`;
  });
  enable(false);
  byId("problem").hidden = true;
  byId("loading").hidden = false;
  byId("progress").removeAttribute("value");
  try {
    await model.open(folder, backend);
    words = (await model.tokenizer(folder)) ?? numbers;
  } catch (error) {
    tell(error);
    return;
  } finally {
    byId("loading").hidden = true;
  }
  describe(backend);
  enable(true);
}

/** @param {string} backend */
function describe(backend) {
  const { manifest, info } = model;
  const { model: config } = manifest;
  const count = manifest.parameters.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
  const precision = manifest.quantize ?? manifest.dtype;
  const facts = [config.architecture, `${count} parameters`, precision, `${config.block_size} tokens of context`].filter(Boolean);
  byId("facts").textContent = `${facts.join(" · ")}. It runs in this page, and sends nothing anywhere.`;
  const many = info.threads > 1 ? `${info.threads} threads` : "one thread";
  const why = globalThis.crossOriginIsolated ? "" : ", because the server does not send the headers that give more";
  const where = backend === "webgpu" ? "on the GPU, by WebGPU" : `by WebAssembly on ${many}${why}`;
  const checked = info.secure ? "" : " The files' hashes are not checked: the page comes neither by HTTPS nor from localhost.";
  byId("machine").textContent = `onnxruntime-web ${info.version}, ${where}.${checked}`;
  if (words === numbers) {
    byId("ask").querySelector("label").textContent = `Prompt: ids from 0 to ${(config.input_vocab_size ?? config.vocab_size) - 1}`;
  }
  if (byId("prompt").value === "") byId("prompt").value = words === numbers ? "0" : "Once upon a time";
  byId("count").max = Math.min(512, config.block_size - 1);
  byId("count").value = Math.min(60, config.block_size - 1);
  tellOptions();
}

// ---- writing ------------------------------------------------------------------------------------------------------

/** Begin anew with the prompt. */
async function begin() {
  try {
    given = [...(model.manifest.text?.before_prompt ?? []), ...words.encode(byId("prompt").value)];
    const { block_size: longest, vocab_size: V, input_vocab_size: ids = V } = model.manifest.model;
    if (given.length === 0) throw new Error("The prompt is empty. Type a text to go on from.");
    if (given.length >= longest) throw new Error(`The prompt has ${given.length} tokens; the model takes ${longest}.`);
    const wrong = given.find((id) => !(Number.isInteger(id) && id >= 0 && id < (ids ?? V)));
    if (wrong !== undefined) throw new Error(`The prompt holds the id ${wrong}, which the model does not have.`);
  } catch (error) {
    tell(error);
    return;
  }
  tokens = [];
  text.dataset.given = given.join(" ");
  text.replaceChildren(element("span", "given", words === numbers ? given.join(" ") : byId("prompt").value));
  await goOn();
}

/** Add tokens to what is there. */
async function goOn() {
  stopped = false;
  pending = null;
  byId("problem").hidden = true;
  byId("legend").hidden = text.hidden = false;
  enable(false);
  byId("speed").textContent = "";
  const count = Number(byId("count").value);
  const before = tokens.length;
  try {
    let began = 0;
    for await (const token of model.generate(ids(), count, options)) {
      tokens.push(token);
      show(tokens.length - 1);
      const made = tokens.length - before;
      if (made === 1) began = performance.now(); // the first waits for the prompt
      else byId("speed").textContent = `${(((made - 1) * 1000) / (performance.now() - began)).toFixed(1)} tokens/s`;
      if (stopped || made === count) break;
    }
    if (ids().length < model.manifest.model.block_size) pending = await model.next(ids());
  } catch (error) {
    tell(error);
  }
  stopped = true;
  select(tokens.length - (pending === null ? 1 : 0));
  enable(true);
  byId("status").textContent = `${tokens.length - before} tokens came.`;
}

/**
 * Put another token at a place, and go on from there.
 * @param {number} at
 * @param {number} id
 */
async function pick(at, id) {
  await halt();
  const logits = tokens[at]?.logits ?? pending;
  if (logits === null) return;
  tokens = [...tokens.slice(0, at), { id, logits }];
  for (const node of [...text.querySelectorAll(".token")].slice(at)) node.remove();
  show(at);
  start(model.ends(id) ? async () => select(at) : goOn);
}

/** Stop what runs, and wait until it has. */
async function halt() {
  stopped = true;
  await running;
}

/** @param {() => Promise<void>} work */
function start(work) {
  running = work();
}

function ids() {
  return [...given, ...tokens.map(({ id }) => id)];
}

// ---- the text -----------------------------------------------------------------------------------------------------

/**
 * Show a token that has come. The ones before it may end the same character, so they are shown again.
 * @param {number} at
 */
function show(at) {
  text.querySelector(".caret")?.remove();
  const from = Math.max(0, at - 3);
  const nodes = text.querySelectorAll(".token");
  const all = ids().slice(0, given.length + at + 1);
  pieces(words, all, given.length + from).forEach((piece, offset) => {
    const index = from + offset;
    const node = nodes[index] ?? text.appendChild(tokenNode(index));
    const { id, logits } = tokens[index];
    node.dataset.id = String(id);
    node.textContent = piece === "" ? words.show(id) : piece.replaceAll("\n", "↵\n");
    node.classList.toggle("raw", piece === "" || piece.includes("\ufffd"));
    const probability = softmax(logits)[id];
    node.style.setProperty("--p", probability.toFixed(4));
    node.title = percent(probability);
    node.setAttribute("aria-label", `${named(id)}, ${percent(probability)}`);
  });
  select(at);
}

/** @param {number} index */
function tokenNode(index) {
  const node = element("span", "token", "");
  node.setAttribute("role", "button");
  node.dataset.at = String(index);
  return node;
}

/**
 * Show what a token was chosen from; tokens.length: what the next one will be.
 * @param {number} at
 */
function select(at) {
  selected = at;
  text.querySelector(".caret")?.remove();
  if (pending !== null && stopped) {
    const caret = tokenNode(tokens.length);
    caret.classList.add("caret");
    caret.textContent = "next";
    text.append(caret);
  }
  for (const node of text.querySelectorAll(".token")) {
    const here = Number(node.dataset.at) === at;
    node.setAttribute("aria-pressed", String(here));
    node.tabIndex = here ? 0 : -1;
  }
  draw();
}

// ---- what could come ----------------------------------------------------------------------------------------------

function draw() {
  const logits = tokens[selected]?.logits ?? pending;
  byId("next").hidden = logits === null;
  if (logits === null) return;
  const chosen = tokens[selected]?.id;
  const asked = options();
  const probability = softmax(logits, asked.temperature || 1);
  const left = new Set(tokensLeft(logits, asked).ids);
  const shown = largest(logits, SHOWN);
  if (chosen !== undefined && !shown.includes(chosen)) shown[shown.length - 1] = chosen;
  const before = words.decode(ids().slice(0, given.length + selected).slice(-24)).trim();
  byId("after").textContent = `after “${before.length > 60 ? `…${before.slice(-60)}` : before}”`;
  const widest = Math.max(...shown.map((id) => probability[id]));
  byId("bars").replaceChildren(...shown.map((id) => bar(id, probability[id], widest, id === chosen, !left.has(id))));
  const others = logits.length - shown.length;
  const rest = Math.max(0, 1 - shown.reduce((total, id) => total + probability[id], 0));
  byId("rest").textContent =
    (others > 0 ? `The other ${others.toLocaleString("en")} tokens share ${percent(rest)}. ` : "") +
    "Choose a token to go on with it.";
}

/**
 * @param {number} id
 * @param {number} probability
 * @param {number} widest probability of those that are shown
 * @param {boolean} chosen
 * @param {boolean} cut by top-k or top-p, or by temperature 0
 */
function bar(id, probability, widest, chosen, cut) {
  const button = /** @type {HTMLButtonElement} */ (element("button", cut ? "bar cut" : "bar", ""));
  button.type = "button";
  button.setAttribute("aria-pressed", String(chosen));
  button.setAttribute("aria-label", `${named(id)}, ${percent(probability)}${cut ? ", never drawn" : ""}`);
  const word = element("span", "word", "");
  for (const part of words.show(id).split(/([ \n\t])/)) {
    const sign = /** @type {Record<string, string>} */ ({ " ": "␣", "\n": "↵", "\t": "⇥" })[part];
    if (part !== "") word.append(element("span", sign ? "space" : "", sign ?? part));
  }
  const length = element("span", "length", "");
  length.style.setProperty("--p", (probability / (widest || 1)).toFixed(4));
  button.append(word, length, element("span", "percent", percent(probability)));
  const at = selected;
  button.onclick = () => pick(at, id);
  const item = document.createElement("li");
  item.append(button);
  return item;
}

// ---- small things -------------------------------------------------------------------------------------------------

/**
 * @param {string} name
 * @param {string} kind
 * @param {string} content
 */
function element(name, kind, content) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  made.textContent = content;
  return made;
}

/** @param {number} id */
function named(id) {
  const shown = words.show(id);
  return { " ": "space", "\n": "line break" }[shown] ?? shown;
}

/** @param {number} probability */
function percent(probability) {
  const value = 100 * probability;
  return value > 0 && value < 0.01 ? "< 0.01 %" : `${value.toFixed(value < 0.995 ? 2 : 1)} %`;
}

/** @param {number} bytes */
function megabytes(bytes) {
  return (bytes / 1e6).toLocaleString("en", { maximumFractionDigits: bytes < 1e7 ? 1 : 0 });
}

/** @param {unknown} error */
function tell(error) {
  byId("problem").textContent = error instanceof Error ? error.message : String(error);
  byId("problem").hidden = false;
}

/** @param {boolean} ready */
function enable(ready) {
  byId("generate").disabled = !ready;
  byId("more").disabled = !ready || pending === null;
  byId("backend").disabled = !ready;
  byId("stop").disabled = stopped;
  text.classList.toggle("busy", !stopped);
}

function tellOptions() {
  const { temperature, topP, topK } = options();
  byId("temperature-value").textContent = temperature === 0 ? "0: the most likely" : temperature.toFixed(2);
  byId("top-p-value").textContent = topP === 1 ? "1: all" : topP.toFixed(2);
  byId("top-k-value").textContent = topK === 0 ? "all" : String(topK);
  byId("count-value").textContent = byId("count").value;
}

byId("ask").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  start(begin);
});
byId("prompt").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || byId("generate").disabled) return;
  event.preventDefault();
  start(begin);
});
byId("more").onclick = () => start(goOn);
byId("stop").onclick = () => halt();
byId("controls").addEventListener("input", () => {
  tellOptions();
  if (!byId("next").hidden) draw();
});
byId("new-seed").onclick = () => {
  byId("seed").value = crypto.getRandomValues(new Uint16Array(1))[0];
};
byId("backend").onchange = load;
text.addEventListener("click", (/** @type {MouseEvent} */ event) => {
  const node = /** @type {HTMLElement} */ (event.target);
  if (node.dataset.at !== undefined) select(Number(node.dataset.at));
});
text.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  const steps = /** @type {Record<string, number>} */ ({ ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 });
  if (steps[event.key] === undefined) return;
  event.preventDefault();
  const last = tokens.length - (pending === null ? 1 : 0);
  select(Math.max(0, Math.min(last, selected + steps[event.key])));
  text.querySelector('[aria-pressed="true"]')?.focus();
});

tellOptions();
// not waited for: some browsers take long to answer, or do not
hasWebGPU().then((there) => there && byId("backend").append(new Option("WebGPU", "webgpu")));
await load();
