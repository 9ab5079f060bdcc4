// Runs the codecs beside the page, so that it stays alive while they compute.

import * as ort from "./ort.wasm.min.mjs";
import { Codec, fetched } from "./codec.js";

ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
ort.env.logLevel = "error";

const codecs = new Map();
let program = null, analysed = null;

async function codecOf(description) {
  program ??= await fetched("coder.wasm");
  if (!codecs.has(description.name)) codecs.set(description.name, await Codec.open(description, ort, program));
  return codecs.get(description.name);
}

const tasks = {
  async open({ description }) {
    return { most: (await codecOf(description)).coder.most };
  },
  async analyse({ description, picture }) {
    analysed = null;
    analysed = await (await codecOf(description)).analyse(picture);
    return {};
  },
  async encode({ description, rate }) {
    return { file: (await codecOf(description)).encode(analysed, rate) };
  },
  async decode({ description, file }) {
    return { picture: await (await codecOf(description)).decode(file) };
  },
};

async function answer({ id, task, ...given }) {
  const start = performance.now();
  try {
    const found = await tasks[task](given);
    self.postMessage({ id, ...found, seconds: (performance.now() - start) / 1000 });
  } catch (error) {
    self.postMessage({ id, error: error.message ?? String(error) });
  }
}

let last = Promise.resolve(); // one task after the other: they share what was analysed
self.onmessage = ({ data }) => {
  last = last.then(() => answer(data));
};
