// Answers what `gptexport web --check` asks: the same model and the same code that the page generates with.

import { Model, threads } from "./model.js";

const told = /** @type {HTMLElement} */ (document.getElementById("told"));
const folder = new URL("./model/", import.meta.url);
const backend = new URLSearchParams(location.search).get("backend") === "webgpu" ? "webgpu" : "wasm";
const model = new Model();
const greedy = { temperature: 0, topK: 0, topP: 1, seed: 0 };

/** @type {Record<string, (input: any) => Promise<any>>} */
const answers = {
  async open() {
    await model.open(folder, backend, "logits");
    return { onnxruntime: model.info.version, threads, agent: navigator.userAgent };
  },
  logits: ({ ids }) => model.logits(ids),
  allocate: () => model.allocate(),
  decode: (input) => model.decode(input),
  async greedy({ ids, count }) {
    const found = [];
    for await (const { id } of model.generate(ids, count, () => greedy)) found.push(id);
    return found;
  },
  async encode({ texts }) {
    const words = await model.tokenizer(folder);
    return texts.map((/** @type {string} */ text) => {
      try {
        return words?.encode(text) ?? null;
      } catch {
        return null; // a character that the model does not know
      }
    });
  },
  /** Milliseconds of each step but the first, which reads the prompt. */
  async speed({ ids, count }) {
    const times = [];
    for await (const _ of model.generate(ids, count, () => greedy)) times.push(performance.now());
    return times.slice(1).map((time, at) => time - times[at]);
  },
  write,
};

/**
 * Fill in the page's own form, as a person does: the ids that it made of the prompt, and those that it wrote.
 * @param {{prompt: string, count: number}} input
 */
async function write({ prompt, count }) {
  const frame = document.createElement("iframe");
  frame.src = "index.html";
  document.body.append(frame);
  await new Promise((resolve) => frame.addEventListener("load", resolve, { once: true }));
  const at = (/** @type {string} */ id) => /** @type {any} */ (frame.contentDocument?.getElementById(id));
  await until(() => !at("generate").disabled || !at("problem").hidden);
  for (const [id, value] of Object.entries({ prompt, count, temperature: 0 })) at(id).value = value;
  at("generate").click();
  await until(() => at("stop").disabled);
  if (!at("problem").hidden) throw new Error(at("problem").textContent);
  const numbers = (/** @type {string[]} */ ids) => ids.map(Number);
  const given = numbers(at("text").dataset.given.split(" "));
  const nodes = [...at("text").querySelectorAll(".token[data-id]")];
  frame.remove();
  return { given, ids: numbers(nodes.map((node) => node.dataset.id)) };
}

/** @param {() => boolean} reached */
async function until(reached) {
  while (!reached()) await new Promise((resolve) => setTimeout(resolve, 20));
}

for (;;) { // until the browser is closed
  const response = await fetch("ask", { cache: "no-store" });
  if (response.status === 204) continue; // nothing yet
  const { name, input } = await response.json();
  told.textContent += `${name}\n`;
  let headers = {};
  let body;
  try {
    const value = await answers[name](input);
    body = value instanceof Float32Array ? value : JSON.stringify(value ?? null);
  } catch (error) {
    headers = { "X-Error": "1" };
    body = error instanceof Error ? error.message : String(error);
  }
  await fetch("answer", { method: "POST", headers, body });
}
