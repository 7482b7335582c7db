// Reads a bundle with onnxruntime-node, as docs/bundle.md describes it. `npm ci --ignore-scripts`, then
//
//     node bundle.js BUNDLE logits 464,3797,3332 1169,3290,318       a line of T x V numbers for each row of ids
//     node bundle.js BUNDLE generate 20 464,3797,3332 1169,3290,318  the 20 most likely tokens after each row
//
// All rows have the same length.

import { createHash } from "node:crypto";
import { createReadStream, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import * as ort from "onnxruntime-node";

const CACHE_ARRAYS = { float32: Float32Array, float16: Uint16Array, int8: Int8Array };

export class Bundle {
  /** @param {string} folder */
  static async open(folder) {
    const manifest = JSON.parse(readFileSync(join(folder, "gptexport.json"), "utf-8"));
    if (manifest.format !== "gptexport-bundle" || manifest.format_version !== 1) {
      throw new Error(`${folder} is not a bundle of version 1.`);
    }
    const old = manifest.target === "cuda" && manifest.dtype !== "float32";
    const devices = manifest.runs_on ?? (old ? ["cuda"] : ["cpu", "cuda"]);
    if (!devices.includes("cpu")) throw new Error(`${folder} runs on ${devices.join(", ")}; expected a bundle for cpu.`);
    const weights = manifest.weights === null ? [] : [manifest.weights];
    for (const entry of [...Object.values(manifest.graphs), ...weights]) await check(folder, entry);
    return new Bundle(folder, manifest);
  }

  constructor(folder, manifest) {
    this.folder = folder;
    this.manifest = manifest;
  }

  /** (B,T) ids -> logits (B,T,V), flat */
  async logits(rows) {
    const session = await this.#open("logits");
    const { logits } = await session.run({ input_ids: this.#checked(rows, 0) });
    return logits;
  }

  /** (B,T) prompts -> the `count` most likely tokens after each */
  async generate(rows, count) {
    if (!(Number.isInteger(count) && count > 0)) throw new Error(`count is ${count}; expected an integer of 1 or more.`);
    let ids = this.#checked(rows, count - 1); // (B,T); the last token that is chosen is not fed
    const [B, T] = ids.dims;
    const session = await this.#open("decode");
    const cache = emptyCache(session, B, T + count - 1);
    const V = this.manifest.model.vocab_size;
    const chosen = rows.map(() => []);
    for (let past = 0; chosen[0].length < count; past = T + chosen[0].length - 1) {
      const feeds = { input_ids: ids, lengths: repeated(ids.dims[1], B), past_lengths: repeated(past, B) };
      const { logits } = await session.run({ ...feeds, ...cache.past }, { logits: null, ...cache.present });
      chosen.forEach((row, b) => row.push(argmax(logits.data.subarray(b * V, (b + 1) * V))));
      ids = int64(chosen.map((row) => row.at(-1)), [B, 1]);
    }
    return chosen;
  }

  #open(head) {
    const entry = this.manifest.graphs[head];
    if (entry === undefined) throw new Error(`the bundle has no graph ${head}: ${this.manifest.left_out?.[head]}.`);
    return ort.InferenceSession.create(join(this.folder, entry.file), { executionProviders: ["cpu"] });
  }

  #checked(rows, more) {
    const { block_size, vocab_size, input_vocab_size: ids = vocab_size } = this.manifest.model;
    const T = rows[0]?.length ?? 0;
    if (T < 1 || T + more > block_size || rows.some((row) => row.length !== T)) {
      throw new Error(`expected rows of one length, 1 to ${block_size - more} ids.`);
    }
    const wrong = rows.flat().find((id) => !Number.isInteger(id) || id < 0 || id >= ids);
    if (wrong !== undefined) throw new Error(`an id is ${wrong}; expected 0 to ${ids - 1}.`);
    return int64(rows.flat(), [rows.length, T]);
  }
}

/** The file is what the manifest says, by its SHA-256. */
async function check(folder, { file, bytes, sha256 }) {
  if (!file || /[/\\]/.test(file) || file.startsWith(".")) throw new Error(`${file} is not a plain file name.`);
  const path = join(folder, file);
  if (statSync(path).size !== bytes) throw new Error(`${path} is truncated; expected ${bytes} bytes.`);
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path)) hash.update(chunk);
  if (hash.digest("hex") !== sha256) throw new Error(`${path} was changed: its SHA-256 is not the manifest's.`);
}

/** Zeros for `S` tokens of `B` rows. Past and present are the same memory, so that a step copies nothing. */
function emptyCache(session, B, S) {
  const past = {}, present = {};
  for (const { name, type, shape } of session.inputMetadata) {
    if (!/^past_(key|value)_/.test(name)) continue;
    const dims = [B, shape[1], S, shape[3]];
    const data = new CACHE_ARRAYS[type](dims.reduce((a, b) => a * b));
    past[name] = present[name.replace("past_", "present_")] = new ort.Tensor(type, data, dims);
  }
  return { past, present };
}

const int64 = (numbers, dims) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), dims);
const repeated = (number, B) => int64(Array(B).fill(number), [B]);
const argmax = (row) => row.reduce((best, value, i) => (value > row[best] ? i : best), 0);

const [folder, command, ...rest] = process.argv.slice(2);
const count = command === "generate" ? Number(rest.shift()) : 0;
const rows = rest.map((row) => row.split(",").map(Number));
const bundle = await Bundle.open(folder);
if (command === "generate") {
  for (const row of await bundle.generate(rows, count)) console.log(row.join(","));
} else {
  const { data, dims } = await bundle.logits(rows);
  const size = dims[1] * dims[2];
  for (let at = 0; at < data.length; at += size) console.log(data.subarray(at, at + size).join(","));
}
