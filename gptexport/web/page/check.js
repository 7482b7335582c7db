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
    return texts.map((/** @type {string} */ text) => words?.encode(text) ?? null);
  },
};

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
