// The tokenizers of a bundle (docs/bundle.md): bytes, characters, and tokenizer.json by @huggingface/tokenizers.

/**
 * @typedef {object} Words
 * @property {(text: string) => number[]} encode
 * @property {(ids: number[]) => string} decode bytes that are no UTF-8 become U+FFFD
 * @property {(id: number) => string} show one id for people
 */

const UNKNOWN = "\ufffd";

/** @returns {Words} ids are the UTF-8 bytes */
export function bytes() {
  const decoder = new TextDecoder();
  const decode = (/** @type {number[]} */ ids) => decoder.decode(Uint8Array.from(ids.filter((id) => id < 256)));
  return {
    encode: (text) => Array.from(new TextEncoder().encode(text)),
    decode,
    show: (id) => (id < 128 ? String.fromCharCode(id) : id < 256 ? `\\x${id.toString(16)}` : UNKNOWN),
  };
}

/**
 * @param {string[]} table the character of each id
 * @returns {Words}
 */
export function characters(table) {
  const ids = new Map(table.map((character, id) => [character, id]));
  const show = (/** @type {number} */ id) => table[id] ?? UNKNOWN;
  const encode = (/** @type {string} */ text) =>
    Array.from(text, (character) => {
      const id = ids.get(character);
      if (id === undefined) throw new Error(`The model does not know the character ${JSON.stringify(character)}.`);
      return id;
    });
  return { encode, decode: (found) => found.map(show).join(""), show };
}

/**
 * A text is encoded with the special tokens that the file puts before it, and without those after it.
 * @param {{Tokenizer: any}} library @huggingface/tokenizers
 * @param {object} json tokenizer.json
 * @returns {Words}
 */
export function tokenizerJson({ Tokenizer }, json) {
  const made = new Tokenizer(json, {});
  const options = { skip_special_tokens: false, clean_up_tokenization_spaces: false };
  const known = (/** @type {number} */ id) => made.id_to_token(id) !== undefined;
  const decode = (/** @type {number[]} */ ids) => made.decode(ids.filter(known), options);
  return {
    encode(text) {
      const whole = made.encode(text).ids;
      const plain = made.encode(text, { add_special_tokens: false }).ids;
      const before = startOf(whole, plain);
      return plain.length > 0 ? whole.slice(0, before + plain.length) : whole.slice(0, 1);
    },
    decode,
    show(id) {
      if (!known(id)) return UNKNOWN;
      const text = decode([id]);
      return text.includes(UNKNOWN) ? made.id_to_token(id) : text;
    },
  };
}

/**
 * Where `part` begins in `whole`.
 * @param {number[]} whole
 * @param {number[]} part
 */
function startOf(whole, part) {
  const fits = (/** @type {number} */ at) => part.every((id, i) => whole[at + i] === id);
  return Math.max(0, Array.from({ length: whole.length - part.length + 1 }, (_, at) => at).findIndex(fits));
}

/**
 * The text of each id, so that together they are the text of all: half a character belongs to the id that ends it.
 * @param {Words} words
 * @param {number[]} ids
 * @param {number} from the first id whose text is asked for
 */
export function pieces(words, ids, from) {
  const context = ids.slice(Math.max(0, from - 16), from); // so that a word's beginning is known as such
  const whole = (/** @type {string} */ text) => text.replace(/\ufffd{1,3}$/, "");
  let before = whole(words.decode(context));
  return ids.slice(from).map((_, at) => {
    const text = words.decode([...context, ...ids.slice(from, from + at + 1)]);
    const told = at === ids.length - from - 1 ? text : whole(text);
    const piece = told.slice(before.length);
    before = told.length > before.length ? told : before;
    return piece;
  });
}
