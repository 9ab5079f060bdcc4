// Pictures to files and back: export/runtime/coding.py in JavaScript, with onnxruntime-web and the coder in C.

import { Coder, InputError } from "./coder.js";
import { tilesOf } from "./tiles.js";

const STRIDE = 16, ZERO = 128; // pixels a position of y; the zero point of symbols in 8 bits

export class Codec {
  /** @param description an entry of codecs.json  @param ort onnxruntime-web  @param program coder.wasm */
  static async open(description, ort, program) {
    const tables = await fetched(description.tables);
    const codec = new Codec(ort, await Coder.open(program, tables));
    for (const part of ["encoder", "h_a", "decoder"])
      if (description[part]) {
        const session = await ort.InferenceSession.create(description[part].file, { executionProviders: ["wasm"] });
        codec[part] = { ...description[part], session };
      }
    return codec;
  }

  constructor(ort, coder) {
    Object.assign(this, { ort, coder, encoder: null, h_a: null, decoder: null });
  }

  /** What encoding needs of a picture, the same at every rate. pixels: {width, height, data}, RGBA as of a canvas. */
  async analyse({ width, height, data }) {
    const y = await this.analysed(planes(data), height, width);
    return { width, height, y: y.values, z: this.h_a ? await this.hyperAnalysed(y) : null };
  }

  /** The file of an analysed picture at a rate. */
  encode({ width, height, y, z }, rate) {
    const ofZ = z && this.coder.roundZ(rate, height, width, z);
    const symbols = y instanceof Int32Array ? y : this.coder.round(rate, height, width, y, ofZ);
    return this.coder.encode(rate, height, width, symbols, ofZ);
  }

  /** The picture of a file: ImageData's parts. */
  async decode(file) {
    const { height, width, values } = this.coder.decode(file), graph = this.decoder;
    const y = { values, channels: this.coder.channels, rows: Math.ceil(height / STRIDE), columns: Math.ceil(width / STRIDE) };
    const data = new Uint8ClampedArray(4 * width * height).fill(255);
    for (const tile of tilesOf([y.rows, y.columns], graph.margins)) {
      const piece = pieceOf(y, tile, 1, false);
      if (graph.steps || !graph.bytes) {
        const { unit, medians } = this.coder;
        piece.values = Float32Array.from(piece.values, (v, i) => Math.fround(v) * unit + medians[channelOf(piece, i)]);
      }
      const input = graph.bytes ? this.toLevels(piece, graph) : piece;
      paint(data, width, height, await this.run(graph, input.values, input), tile);
    }
    return { width, height, data };
  }

  /** y of planes [3, H, W]: symbols, Int32Array, or y itself, Float32Array. */
  async analysed(pixels, height, width) {
    const graph = this.encoder, picture = { values: pixels, channels: 3, rows: height, columns: width };
    const y = { values: null, channels: 0, rows: Math.ceil(height / STRIDE), columns: Math.ceil(width / STRIDE) };
    for (const tile of tilesOf([y.rows, y.columns], graph.margins)) {
      const piece = pieceOf(picture, tile, STRIDE, false);
      const input = graph.bytes ? piece.values : Float32Array.from(piece.values, (byte) => byte / 255);
      const found = await this.run(graph, input, piece);
      keep(y, found.values instanceof Uint8Array ? this.fromLevels(found, graph) : found, tile);
    }
    return y;
  }

  /** z of y, less its medians, or its symbols or fifths of them: Float32Array. */
  async hyperAnalysed(y) {
    const graph = this.h_a, z = { values: null, channels: 0, rows: Math.ceil(y.rows / 4), columns: Math.ceil(y.columns / 4) };
    for (const tile of tilesOf([z.rows, z.columns], graph.margins)) {
      const piece = pieceOf(y, tile, 4, true);
      if (graph.magnitudes) piece.values = piece.values.map(Math.abs);
      let input = piece;
      if (!graph.bytes) input = { ...piece, values: Float32Array.from(piece.values) };
      else if (graph.magnitudes && !graph.steps) input = { ...piece, values: Uint8Array.from(piece.values) };
      else input = this.toLevels(piece, graph);
      const found = await this.run(graph, input.values, input);
      const inBytes = found.values instanceof Uint8Array;
      const values = inBytes ? Float32Array.from(found.values, (level) => (level - ZERO) * graph.unit) : found.values;
      keep(z, { ...found, values }, tile);
    }
    return z.values;
  }

  /** y, y_hat or symbols as the graph's levels, or symbols, in 8 bits. */
  toLevels(piece, graph) {
    const { values } = piece, each = piece.rows * piece.columns, splits = graph.splits ?? new Array(piece.channels).fill(1);
    const channels = splits.reduce((sum, count) => sum + count), found = new Uint8Array(channels * each);
    let next = 0;
    splits.forEach((count, c) => {
      for (let place = 0; place < count; place++)
        for (let i = c * each; i < (c + 1) * each; i++) {
          const level = graph.steps ? even(Math.fround(Math.fround(values[i]) / graph.steps[c])) : values[i];
          found[next++] = Math.min(255, Math.max(0, Math.floor((level + place) / count) + ZERO));
        }
    });
    return { ...piece, values: found, channels };
  }

  /** Symbols, Int32Array, or y, Float32Array, from the graph's 8 bits: a level is the sum of its splits. */
  fromLevels(found, graph) {
    const each = found.rows * found.columns, splits = graph.splits ?? new Array(found.channels).fill(1);
    const channels = splits.length, levels = new Int32Array(channels * each);
    let next = 0;
    splits.forEach((count, c) => {
      for (let place = 0; place < count; place++)
        for (let i = c * each; i < (c + 1) * each; i++) levels[i] += found.values[next++] - ZERO;
    });
    const values = graph.steps ? Float32Array.from(levels, (level, i) => level * graph.steps[Math.floor(i / each)]) : levels;
    return { ...found, values, channels };
  }

  async run(graph, input, { channels, rows, columns }) {
    const tensor = new this.ort.Tensor(graph.bytes ? "uint8" : "float32", input, [1, channels, rows, columns]);
    const [output] = Object.values(await graph.session.run({ [graph.input]: tensor }));
    const [, depth, high, wide] = output.dims;
    if (output.data instanceof Float32Array && !output.data.every(Number.isFinite))
      throw new InputError("the model gives values that are not finite; export a checkpoint that has not diverged");
    return { values: output.data, channels: depth, rows: high, columns: wide };
  }
}

export async function fetched(name) {
  const response = await fetch(name);
  if (!response.ok) throw new InputError(`${name} cannot be loaded: ${response.status}`);
  return response.arrayBuffer();
}

function channelOf({ rows, columns }, i) {
  return Math.floor(i / (rows * columns));
}

/** Rounded half to even. */
function even(value) {
  const low = Math.floor(value), rest = value - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 !== 0) ? low + 1 : low;
}

/** RGBA to planes [3, H, W]. */
function planes(data) {
  const each = data.length / 4, found = new Uint8Array(3 * each);
  for (let i = 0; i < each; i++) for (let c = 0; c < 3; c++) found[c * each + i] = data[4 * i + c];
  return found;
}

/** What a tile sees; beyond the last row and column they are repeated, or with `cut` nothing is. */
function pieceOf({ values, channels, rows, columns }, tile, unit, cut) {
  const [top, left] = tile.place.map((place) => place * unit), [high, wide] = tile.size.map((side) => side * unit);
  const down = cut ? Math.min(high, rows - top) : high, across = cut ? Math.min(wide, columns - left) : wide;
  const found = new values.constructor(channels * down * across);
  let next = 0;
  for (let c = 0; c < channels; c++)
    for (let r = 0; r < down; r++) {
      const line = (c * rows + Math.min(top + r, rows - 1)) * columns;
      for (let k = 0; k < across; k++) found[next++] = values[line + Math.min(left + k, columns - 1)];
    }
  return { values: found, channels, rows: down, columns: across };
}

/** Puts the part of a tile's output that is kept into the whole. */
function keep(whole, found, tile) {
  whole.channels = found.channels;
  whole.values ??= new found.values.constructor(whole.channels * whole.rows * whole.columns);
  for (let c = 0; c < found.channels; c++)
    for (let r = tile.first[0]; r < tile.end[0]; r++) {
      const from = (c * found.rows + r - tile.place[0]) * found.columns - tile.place[1];
      const part = found.values.subarray(from + tile.first[1], from + tile.end[1]);
      whole.values.set(part, (c * whole.rows + r) * whole.columns + tile.first[1]);
    }
}

/** Puts the kept part of a tile's x_hat into RGBA of the picture's size. */
function paint(data, width, height, x_hat, tile) {
  const isBytes = x_hat.values instanceof Uint8Array, each = x_hat.rows * x_hat.columns;
  const [top, left] = tile.place.map((place) => place * STRIDE);
  for (let r = tile.first[0] * STRIDE; r < Math.min(height, tile.end[0] * STRIDE); r++)
    for (let k = tile.first[1] * STRIDE; k < Math.min(width, tile.end[1] * STRIDE); k++)
      for (let c = 0; c < 3; c++) {
        const value = x_hat.values[c * each + (r - top) * x_hat.columns + k - left];
        data[4 * (r * width + k) + c] = isBytes ? value : even(Math.fround(Math.min(1, Math.max(0, value)) * 255));
      }
}
