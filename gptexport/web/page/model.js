// A GPT in the browser: the page's side of worker.js.

import { choose } from "./sampling.js";
import { bytes, characters, tokenizerJson } from "./tokenizer.js";
import { fetchFile } from "./files.js";

const MOST_THREADS = 8; // a step of generation waits for memory, not for more cores: a guess, to be measured

/** @typedef {"wasm" | "webgpu"} Backend */

/** The threads that WebAssembly may use: one, unless the server isolates the page from others. */
export const threads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1;

/** Whether the browser has a GPU for us. */
export async function hasWebGPU() {
  const gpu = /** @type {any} */ (navigator).gpu;
  return gpu !== undefined && (await gpu.requestAdapter().catch(() => null)) !== null;
}

export class Model {
  /** @type {Worker} */ #worker;
  /** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */ #waiting = new Map();
  #calls = 0;
  #progress;
  /** @type {{cache: number, ids: number[]} | null} */ #text = null;
  /** @type {any} the bundle's manifest */ manifest;
  /** @type {{version: string, threads: number, secure: boolean}} */ info = { version: "", threads: 1, secure: false };

  /** @param {import("./files.js").Progress} progress is told how much of the weights has come */
  constructor(progress = () => {}) {
    this.#progress = progress;
    this.#worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }) => this.#hear(data);
    this.#worker.onerror = (event) => {
      const error = new Error(event.message || "The page's worker could not start. Copy the site again.");
      for (const { reject } of this.#waiting.values()) reject(error);
      this.#waiting.clear();
    };
  }

  /**
   * @param {URL} folder of the bundle
   * @param {Backend} backend
   * @param {string} head whose graph is opened at once
   * @throws {Error} a file is missing or damaged, or the browser cannot run it
   */
  async open(folder, backend, head = "decode") {
    this.info = await this.#call("open", { folder: folder.href, backend, threads, head });
    this.manifest = /** @type {any} */ (this.info).manifest;
  }

  close() {
    this.#worker.terminate();
  }

  /** @param {number[][]} ids rows of one length; returns logits (B,T,V) */
  logits(ids) {
    return this.#call("logits", { ids });
  }

  /** @returns {Promise<number>} an empty cache, of one text */
  allocate() {
    return this.#call("allocate", {});
  }

  /** @param {{cache: number, ids: number[], length: number, past: number}} input see worker.js */
  decode(input) {
    return this.#call("decode", input);
  }

  /**
   * What comes after a text. What the last call computed of the same text is not computed again.
   * @param {number[]} ids
   * @returns {Promise<Float32Array>} logits (V)
   */
  async next(ids) {
    const text = (this.#text ??= { cache: await this.allocate(), ids: [] });
    const differs = ids.findIndex((id, at) => id !== text.ids[at]);
    const past = Math.min(differs < 0 ? ids.length - 1 : differs, ids.length - 1);
    const fresh = ids.slice(past);
    text.ids = ids.slice(0, past); // should the run fail, this much is still right
    const logits = await this.decode({ cache: text.cache, ids: fresh, length: fresh.length, past });
    text.ids = ids.slice();
    return logits;
  }

  /** @param {number} id whether it ends a text: the checkpoint says so, or the model does not take it */
  ends(id) {
    const { model, text } = this.manifest;
    return (text?.eos_token_ids ?? []).includes(id) || id >= (model.input_vocab_size ?? model.vocab_size);
  }

  /**
   * Continue a text, token by token, until it ends.
   * @param {number[]} ids the prompt
   * @param {number} count of new tokens, at most
   * @param {() => import("./sampling.js").Options} options are asked for at every step
   */
  async *generate(ids, count, options) {
    const text = ids.slice();
    while (text.length < Math.min(this.manifest.model.block_size, ids.length + count)) {
      const logits = await this.next(text);
      const id = choose(logits, options(), text.length);
      if (this.ends(id)) return;
      text.push(id);
      yield { id, logits };
    }
  }

  /**
   * The bundle's tokenizer; null: it has none, and takes ids.
   * @returns {Promise<import("./tokenizer.js").Words | null>}
   */
  async tokenizer(/** @type {URL} */ folder) {
    const entry = this.manifest.tokenizer;
    if (entry === null) return null;
    if (entry.file === null) return bytes();
    const json = JSON.parse(new TextDecoder().decode(await fetchFile(folder, entry.file)));
    return Array.isArray(json) ? characters(json) : tokenizerJson(await import("./tokenizers.min.mjs"), json);
  }

  /**
   * @param {string} name
   * @param {object} input
   * @returns {Promise<any>}
   */
  #call(name, input) {
    const call = ++this.#calls;
    return new Promise((resolve, reject) => {
      this.#waiting.set(call, { resolve, reject });
      this.#worker.postMessage({ call, name, input });
    });
  }

  /** @param {any} data */
  #hear({ call, value, error, progress }) {
    if (progress !== undefined) return this.#progress(progress.file, progress.done, progress.total);
    const waiting = this.#waiting.get(call);
    this.#waiting.delete(call);
    if (error !== undefined) waiting?.reject(new Error(error));
    else waiting?.resolve(value);
  }
}
