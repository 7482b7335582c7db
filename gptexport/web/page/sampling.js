// From logits to the next token, as gptexport_runtime/generate/sampling.py does it: temperature, top-k, top-p.

/** @typedef {{temperature: number, topK: number, topP: number, seed: number}} Options topK 0: all of them */

/**
 * The tokens that the options leave, most likely first, with the probabilities that they are drawn with.
 * @param {Float32Array} logits (V)
 * @param {Options} options
 * @returns {{ids: number[], probabilities: number[]}}
 */
export function tokensLeft(logits, { temperature, topK, topP }) {
  if (temperature === 0) return { ids: [argmax(logits)], probabilities: [1] };
  const most = logits[argmax(logits)];
  const weights = Float64Array.from(logits, (logit) => Math.exp((logit - most) / temperature));
  let order = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a] || a - b);
  if (topK > 0 && topK < order.length) order = upTo(order, logits, topK - 1);
  if (topP < 1) {
    const missing = topP * order.reduce((sum, id) => sum + weights[id], 0);
    let sum = 0;
    const last = order.findIndex((id) => (sum += weights[id]) >= missing);
    order = upTo(order, weights, last < 0 ? order.length - 1 : last);
  }
  const total = order.reduce((sum, id) => sum + weights[id], 0);
  return { ids: order, probabilities: order.map((id) => weights[id] / total) };
}

/**
 * The first of them as far as `last`, and those that are as large as that.
 * @param {number[]} order descending by value
 * @param {ArrayLike<number>} values
 * @param {number} last
 */
function upTo(order, values, last) {
  let end = last + 1;
  while (end < order.length && values[order[end]] === values[order[last]]) end += 1;
  return order.slice(0, end);
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
 * The probability of every token, as the model says it.
 * @param {Float32Array} logits (V)
 */
export function softmax(logits) {
  const most = logits[argmax(logits)];
  const weights = Float64Array.from(logits, (logit) => Math.exp(logit - most));
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
