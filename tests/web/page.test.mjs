// The page's own code, without a browser: `node --test tests/web`.

import assert from "node:assert/strict";
import { test } from "node:test";

import { argmax, choose, largest, softmax, tokensLeft, uniform } from "../../gptexport/web/page/sampling.js";
import { bytes, characters, pieces, tokenizerJson } from "../../gptexport/web/page/tokenizer.js";

const logits = Float32Array.from([1, 3, 2, 3, -1]);
const all = { temperature: 1, topK: 0, topP: 1, seed: 0 };

test("the most likely token is the first of equals", () => {
  assert.equal(argmax(logits), 1);
  assert.equal(choose(logits, { ...all, temperature: 0 }, 5), 1);
});

test("probabilities are those of the logits over the temperature", () => {
  const { ids, probabilities } = tokensLeft(logits, { ...all, temperature: 2 });
  assert.deepEqual(ids, [0, 1, 2, 3, 4]);
  const weights = [0.5, 1.5, 1, 1.5, -0.5].map(Math.exp);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  probabilities.forEach((found, at) => assert.ok(Math.abs(found - weights[at] / total) < 1e-12));
  assert.ok(Math.abs(softmax(logits).reduce((sum, p) => sum + p, 0) - 1) < 1e-12);
});

test("top-k and top-p keep those that are as likely as the last", () => {
  assert.deepEqual(tokensLeft(logits, { ...all, topK: 1 }).ids, [1, 3]);
  assert.deepEqual(tokensLeft(logits, { ...all, topK: 3 }).ids, [1, 2, 3]);
  assert.deepEqual(tokensLeft(logits, { ...all, topP: 0.1 }).ids, [1, 3]);
  assert.deepEqual(tokensLeft(logits, { ...all, topP: 0.9 }).ids, [1, 2, 3]);
});

test("the largest come first, and equals by their ids", () => {
  assert.deepEqual(largest(logits, 3), [1, 3, 2]);
  assert.deepEqual(largest(logits, 9), [1, 3, 2, 0, 4]);
});

test("a seed and a position give one number, evenly from [0, 1)", () => {
  assert.equal(uniform(7, 3), uniform(7, 3));
  assert.notEqual(uniform(7, 3), uniform(8, 3));
  const drawn = Array.from({ length: 20000 }, (_, at) => uniform(at % 20, Math.floor(at / 20)));
  assert.ok(drawn.every((number) => number >= 0 && number < 1));
  for (let tenth = 0; tenth < 10; tenth += 1) {
    const share = drawn.filter((number) => Math.floor(number * 10) === tenth).length / drawn.length;
    assert.ok(Math.abs(share - 0.1) < 0.01, `${tenth}: ${share}`);
  }
});

test("tokens are drawn as often as they are likely", () => {
  const counts = new Map();
  for (let position = 0; position < 20000; position += 1) {
    const id = choose(logits, all, position);
    counts.set(id, (counts.get(id) ?? 0) + 1);
  }
  softmax(logits).forEach((p, id) => assert.ok(Math.abs((counts.get(id) ?? 0) / 20000 - p) < 0.01));
});

test("NaN is refused", () => {
  assert.throws(() => choose(Float32Array.from([0, NaN]), all, 0), /NaN or infinity/);
});

test("bytes are UTF-8, and half a character belongs to the id that ends it", () => {
  const words = bytes();
  const ids = words.encode("aé€");
  assert.deepEqual(ids, [97, 0xc3, 0xa9, 0xe2, 0x82, 0xac]);
  assert.equal(words.decode(ids), "aé€");
  assert.deepEqual(pieces(words, ids, 0), ["a", "", "é", "", "", "€"]);
  assert.deepEqual(pieces(words, ids, 2), ["é", "", "", "€"]);
  assert.equal(words.show(0xc3), "\\xc3");
});

test("characters that the table does not have are named", () => {
  const words = characters(["b", "a"]);
  assert.deepEqual(words.encode("abba"), [1, 0, 0, 1]);
  assert.equal(words.decode([1, 0, 7]), "ab\ufffd");
  assert.throws(() => words.encode("abc"), /does not know the character "c"/);
});

test("special tokens before a text are kept, those after it are not", () => {
  /** Stands in for @huggingface/tokenizers: [1] before, [2] after. */
  class Tokenizer {
    encode(text, { add_special_tokens = true } = {}) {
      const ids = Array.from(text, (character) => character.charCodeAt(0));
      return { ids: add_special_tokens ? [1, ...ids, 2] : ids };
    }
    id_to_token = (id) => (id < 128 ? String.fromCharCode(id) : undefined);
    decode = (ids) => String.fromCharCode(...ids);
  }
  const words = tokenizerJson({ Tokenizer }, {});
  assert.deepEqual(words.encode("ab"), [1, 97, 98]);
  assert.deepEqual(words.encode(""), [1]);
  assert.equal(words.decode([97, 200]), "a");
  assert.equal(words.show(200), "\ufffd");
});
