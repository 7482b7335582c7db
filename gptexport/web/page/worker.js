// Runs the graphs of a bundle with onnxruntime-web, away from the page, which stays responsive meanwhile.

import { fetchFile, secure } from "./files.js";

const LIBRARIES = { wasm: "./ort/ort.wasm.bundle.min.mjs", webgpu: "./ort/ort.webgpu.bundle.min.mjs" };
const SMALLEST = 64; // tokens that a new cache takes
const ZEROS = { float32: Float32Array, float16: Uint16Array, int8: Int8Array };

/** @type {any} */ let ort;
/** @type {any} */ let manifest;
/** @type {URL} */ let folder;
/** @type {"wasm" | "webgpu"} */ let backend;
/** @type {Map<string, Promise<any>>} sessions by head */ const opened = new Map();
/** @type {Map<number, Cache>} */ const caches = new Map();
let made = 0;

/** @typedef {{capacity: number, tensors: Map<string, any>}} Cache of one text */

/** What the page calls. */
const calls = {
  /**
   * @param {{folder: string, backend: "wasm" | "webgpu", threads: number, head: string}} options
   * @returns what runs now
   */
  async open(options) {
    folder = new URL(options.folder);
    backend = options.backend;
    ort = await import(LIBRARIES[backend]);
    ort.env.wasm.numThreads = options.threads;
    manifest = await manifestOf(folder);
    await session(options.head);
    return { manifest, version: ort.env.versions.web, threads: ort.env.wasm.numThreads, secure };
  },

  /** @param {{ids: number[][]}} input rows of one length: logits (B,T,V) of all positions */
  async logits({ ids }) {
    const results = await (await session("logits")).run({ input_ids: ints(ids.flat(), [ids.length, ids[0].length]) });
    return await floats(results.logits);
  },

  /** An empty cache; its number. */
  async allocate() {
    caches.set(++made, { capacity: 0, tensors: new Map() });
    return made;
  },

  /**
   * Append tokens (T) to a cache that holds `past` of them: logits (V) after the last of `length`, the others padding.
   * @param {{cache: number, ids: number[], length: number, past: number}} input see docs/bundle.md, `decode`
   */
  async decode({ cache, ids, length, past }) {
    const held = /** @type {Cache} */ (caches.get(cache));
    const graph = await session("decode");
    await grow(held, graph, past + ids.length);
    const results = await graph.run({
      input_ids: ints(ids, [1, ids.length]),
      lengths: ints([length], [1]),
      past_lengths: ints([past], [1]),
      ...Object.fromEntries(held.tensors),
    });
    for (const [name, old] of held.tensors) {
      held.tensors.set(name, results[name.replace("past_", "present_")]);
      old.dispose();
    }
    return await floats(results.logits);
  },
};

/** @param {URL} where */
async function manifestOf(where) {
  const response = await fetch(new URL("gptexport.json", where), { cache: "no-cache" }).catch(() => null);
  if (response === null || !response.ok) throw new Error("gptexport.json is missing. Copy the site again.");
  return response.json();
}

/** @param {string} head */
function session(head) {
  let found = opened.get(head);
  if (found === undefined) opened.set(head, (found = create(head)));
  return found;
}

/** @param {string} head */
async function create(head) {
  const tell = (/** @type {string} */ file, /** @type {number} */ done, /** @type {number} */ total) =>
    postMessage({ progress: { file, done, total } });
  const graph = await fetchFile(folder, manifest.graphs[head]);
  const weights = manifest.weights === null ? null : await fetchFile(folder, manifest.weights, tell);
  return ort.InferenceSession.create(graph, {
    executionProviders: [backend],
    externalData: weights === null ? [] : [{ path: manifest.weights.file, data: weights }],
    ...(backend === "webgpu" && head === "decode" ? { preferredOutputLocation: "gpu-buffer" } : {}), // caches stay there
  }).catch((/** @type {Error} */ error) => {
    throw new Error(`${manifest.graphs[head].file} cannot be opened: ${error.message}`);
  });
}

/**
 * Make room for `length` tokens. A cache doubles: each step copies all of it.
 * @param {Cache} held
 * @param {any} graph
 * @param {number} length
 */
async function grow(held, graph, length) {
  if (length <= held.capacity) return;
  let capacity = Math.max(SMALLEST, held.capacity);
  while (capacity < length) capacity *= 2;
  capacity = Math.min(capacity, manifest.model.block_size);
  for (const { name, type, shape } of graph.inputMetadata) {
    if (!name.startsWith("past_") || name === "past_lengths") continue;
    const [, heads, , size] = shape;
    const data = new ZEROS[/** @type {keyof typeof ZEROS} */ (type)](heads * capacity * size);
    const old = await held.tensors.get(name)?.getData(true);
    for (let head = 0; old !== undefined && head < heads; head += 1) {
      const from = head * held.capacity * size;
      data.set(old.subarray(from, from + held.capacity * size), head * capacity * size);
    }
    held.tensors.set(name, new ort.Tensor(type, data, [1, heads, capacity, size]));
  }
  held.capacity = capacity;
}

/**
 * @param {number[]} values
 * @param {number[]} shape
 */
function ints(values, shape) {
  return new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
}

/**
 * The logits of a tensor, without what rows have behind the vocabulary (`--pad-vocab`).
 * @param {any} tensor
 * @returns {Promise<Float32Array>}
 */
async function floats(tensor) {
  const V = manifest.model.vocab_size;
  const row = tensor.dims.at(-1);
  if (tensor.type !== "float32" || row < V) {
    throw new Error(`The logits are ${tensor.type} in rows of ${row}; expected float32 in rows of ${V}.`);
  }
  const data = await tensor.getData(true);
  if (row === V) return data;
  const kept = new Float32Array((data.length / row) * V);
  for (let at = 0; at * row < data.length; at += 1) kept.set(data.subarray(at * row, at * row + V), at * V);
  return kept;
}

onmessage = async ({ data: { call, name, input } }) => {
  try {
    const value = await calls[/** @type {keyof typeof calls} */ (name)](input);
    postMessage({ call, value });
  } catch (error) {
    postMessage({ call, error: error instanceof Error ? error.message : String(error) });
  }
};
