// From logits to the next token, as gptexport_runtime/generate/sampling.py does it: temperature, top-k, top-p.

/** @typedef {{temperature: number, topK: number, topP: number, seed: number}} Options topK 0: all of them */

/**
 * The tokens that the options leave, by id, with the probabilities that they are drawn with.
 * @param {Float32Array} logits (V)
 * @param {Options} options
 * @returns {{ids: number[], probabilities: number[]}}
 */
export function tokensLeft(logits, { temperature, topK, topP }) {
  if (temperature === 0) return { ids: [argmax(logits)], probabilities: [1] };
  const kept = topK > 0 && topK < logits.length ? ascending(logits)[logits.length - topK] : -Infinity;
  const most = logits[argmax(logits)];
  const weights = Float64Array.from(logits, (logit) => (logit >= kept ? Math.exp((logit - most) / temperature) : 0));
  const least = topP < 1 ? lightestOfNucleus(weights, topP) : Number.MIN_VALUE;
  /** @type {number[]} */ const ids = [];
  weights.forEach((weight, id) => weight >= least && ids.push(id));
  const total = ids.reduce((sum, id) => sum + weights[id], 0);
  return { ids, probabilities: ids.map((id) => weights[id] / total) };
}

/**
 * The least weight of the fewest tokens, the heaviest, that together reach `topP` of the sum.
 * @param {Float64Array} weights
 * @param {number} topP
 */
function lightestOfNucleus(weights, topP) {
  const ordered = ascending(weights).reverse();
  let missing = topP * ordered.reduce((sum, weight) => sum + weight, 0);
  return ordered.find((weight) => (missing -= weight) <= 0) ?? ordered[ordered.length - 1];
}

/**
 * The ids of the largest values, the largest first.
 * @param {Float32Array} values
 * @param {number} count
 */
export function largest(values, count) {
  const least = ascending(values)[Math.max(0, values.length - count)];
  /** @type {number[]} */ const ids = [];
  values.forEach((value, id) => value >= least && ids.push(id));
  return ids.sort((a, b) => values[b] - values[a] || a - b).slice(0, count);
}

/**
 * Typed arrays sort their numbers themselves: 50257 of them in 3 ms, ten times as fast as ids by a function.
 * @template {Float32Array | Float64Array} Values
 * @param {Values} values
 * @returns {Values}
 */
function ascending(values) {
  return /** @type {Values} */ (values.slice().sort());
}

/**
 * The next token of a text.
 * @param {Float32Array} logits (V)
 * @param {Options} options
 * @param {number} position of the token in the text: a seed and a position give one draw, whatever was chosen before
 * @throws {Error} the logits hold NaN or infinity
 */
export function choose(logits, options, position) {
  const best = argmax(logits);
  if (!Number.isFinite(logits[best])) throw new Error("The logits hold NaN or infinity, so no token can be chosen.");
  const { ids, probabilities } = tokensLeft(logits, options);
  let left = uniform(options.seed, position);
  const at = probabilities.findIndex((probability) => (left -= probability) < 0);
  return ids[at < 0 ? ids.length - 1 : at];
}

/**
 * The probability of every token.
 * @param {Float32Array} logits (V)
 * @param {number} temperature 1: as the model says it
 */
export function softmax(logits, temperature = 1) {
  const most = logits[argmax(logits)];
  const weights = Float64Array.from(logits, (logit) => Math.exp((logit - most) / temperature));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

/**
 * The first of the largest. NaN counts as the largest, as in numpy.
 * @param {Float32Array} logits
 */
export function argmax(logits) {
  let best = 0;
  for (let id = 1; id < logits.length; id += 1) {
    if (Number.isNaN(logits[best])) break;
    if (!(logits[id] <= logits[best])) best = id;
  }
  return best;
}

/**
 * A number from [0, 1) for a seed and a position: two rounds of MurmurHash3's finalizer (Appleby, 2011).
 * @param {number} seed
 * @param {number} position
 */
export function uniform(seed, position) {
  const mixed = mix(mix(seed) ^ Math.imul(position + 1, 0x9e3779b9));
  return mixed / 2 ** 32;
}

/** @param {number} value */
function mix(value) {
  let h = value >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
