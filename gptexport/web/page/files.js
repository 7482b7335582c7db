// The files of a bundle, over HTTP: streamed, checked, and kept for the next visit.

/**
 * @typedef {{file: string, bytes: number, sha256: string}} FileEntry
 * @typedef {(file: string, done: number, total: number) => void} Progress
 */

const KEPT = "gptexport-files";
/** A page that is not from HTTPS or localhost has neither SHA-256 nor a cache. */
export const secure = globalThis.isSecureContext;

/**
 * A file as its entry describes it.
 * @param {URL} folder of the bundle
 * @param {FileEntry} entry
 * @param {Progress} progress is told how many bytes have come
 * @returns {Promise<Uint8Array>}
 * @throws {Error} it is missing, or has another size or another SHA-256
 */
export async function fetchFile(folder, entry, progress = () => {}) {
  const url = new URL(entry.file, folder);
  const kept = await cacheOf(url, entry);
  const old = await kept?.match(keyOf(url, entry));
  if (old !== undefined) {
    const bytes = new Uint8Array(await old.arrayBuffer());
    if ((await why(entry, bytes)) === null) {
      progress(entry.file, entry.bytes, entry.bytes);
      return bytes;
    }
  }
  const bytes = await download(url, entry, progress);
  const wrong = await why(entry, bytes);
  if (wrong !== null) throw new Error(`${entry.file} is damaged: ${wrong}. Copy the site again.`);
  await kept?.put(keyOf(url, entry), new Response(bytes)).catch(() => {}); // no room: it is fetched again next time
  return bytes;
}

/**
 * @param {URL} url
 * @param {FileEntry} entry
 * @param {Progress} progress
 */
async function download(url, entry, progress) {
  const response = await fetch(url, { cache: "no-cache" }).catch(() => null);
  if (response === null) throw new Error(`${entry.file} cannot be fetched: the server does not answer.`);
  if (!response.ok || response.body === null) {
    throw new Error(`${entry.file} is missing: the server answers ${response.status}. Copy the site again.`);
  }
  const bytes = new Uint8Array(entry.bytes);
  let done = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { value } = await reader.read().catch(() => {
      throw new Error(`${entry.file} ended after ${done} of ${entry.bytes} bytes: the connection broke. Reload the page.`);
    });
    if (value === undefined) break;
    if (done + value.length > bytes.length) {
      throw new Error(`${entry.file} is damaged: it is longer than ${entry.bytes} bytes. Copy the site again.`);
    }
    bytes.set(value, done);
    done += value.length;
    progress(entry.file, done, entry.bytes);
  }
  return bytes.subarray(0, done);
}

/**
 * What is wrong with a file's bytes, in words; null: nothing.
 * @param {FileEntry} entry
 * @param {Uint8Array} bytes
 */
async function why(entry, bytes) {
  if (bytes.length !== entry.bytes) return `it has ${bytes.length} bytes, the manifest says ${entry.bytes}`;
  if (!secure) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const sha256 = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return sha256 === entry.sha256 ? null : `its SHA-256 is ${sha256}, the manifest says ${entry.sha256}`;
}

/**
 * Where files are kept, without what an earlier export left under this URL; null: this page can keep nothing.
 * @param {URL} url
 * @param {FileEntry} entry
 */
async function cacheOf(url, entry) {
  try {
    const cache = await caches.open(KEPT);
    for (const request of await cache.keys()) {
      const other = new URL(request.url);
      if (other.pathname === url.pathname && request.url !== keyOf(url, entry)) await cache.delete(request);
    }
    return cache;
  } catch {
    return null;
  }
}

/**
 * @param {URL} url
 * @param {FileEntry} entry
 */
function keyOf(url, entry) {
  return `${url.href}?sha256=${entry.sha256}`;
}
