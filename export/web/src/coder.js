// The entropy coder in C (export/device/src/nic.h), compiled to WebAssembly.

const ALIGNED = 16;

/** An error whose message is for the reader of the page. */
export class InputError extends Error {}

export class Coder {
  /** @param {ArrayBuffer} program coder.wasm  @param {ArrayBuffer} tables the content of a file of entropy tables */
  static async open(program, tables) {
    const { instance } = await WebAssembly.instantiate(program);
    return new Coder(instance.exports, tables);
  }

  constructor(c, tables) {
    this.c = c;
    this.top = c.__heap_base.value;
    const given = this.copied(new Uint8Array(tables)), out = this.take(28);
    this.check(c.nic_memory(given, tables.byteLength, out));
    const size = this.word(out), memory = this.take(size);
    this.check(c.nic_open(given, tables.byteLength, memory, size, out));
    this.coder = this.word(out);
    c.nic_about(out, this.coder);
    [, , this.channels, , this.most] = new Uint32Array(c.memory.buffer, out, 5); // most: the number of the highest rate
    this.unit = new Float32Array(c.memory.buffer, out + 20, 1)[0];
    this.medians = new Float32Array(c.memory.buffer, this.word(out + 24), this.channels).slice();
    this.bottom = this.top; // what lies below stays
  }

  /** The file of a picture at a rate: Uint8Array. y: Int32Array [M, h, w], z: Int32Array or null. */
  encode(rate, height, width, y, z) {
    return this.freed(() => {
      const symbols = this.copied(y), hyper = z ? this.copied(z) : 0, out = this.take(4);
      const room = this.c.nic_most(this.coder, height, width), file = this.take(room);
      const [work, bytes] = this.work(height, width);
      this.check(this.c.nic_encode(this.coder, rate, height, width, symbols, hyper, file, room, out, work, bytes));
      return new Uint8Array(this.c.memory.buffer, file, this.word(out)).slice();
    });
  }

  /** The size of a file's picture, and its values: Int32Array [M, h, w]. */
  decode(data) {
    return this.freed(() => {
      const file = this.copied(data), out = this.take(8);
      this.check(this.c.nic_size(this.coder, file, data.length, out, out + 4));
      const height = this.word(out), width = this.word(out + 4);
      const count = this.channels * Math.ceil(height / 16) * Math.ceil(width / 16), values = this.take(4 * count);
      const [work, bytes] = this.work(height, width);
      this.check(this.c.nic_decode(this.coder, file, data.length, values, count, work, bytes));
      return { height, width, values: new Int32Array(this.c.memory.buffer, values, count).slice() };
    });
  }

  /** The symbols of y at a rate; y: Float32Array [M, h, w]. */
  round(rate, height, width, y, z) {
    return this.freed(() => {
      const values = this.copied(y), hyper = z ? this.copied(z) : 0, symbols = this.take(4 * y.length);
      const [work, bytes] = this.work(height, width);
      this.check(this.c.nic_round(this.coder, rate, height, width, values, hyper, symbols, work, bytes));
      return new Int32Array(this.c.memory.buffer, symbols, y.length).slice();
    });
  }

  /** The symbols of z at a rate; z: Float32Array [N, h, w], less its medians. */
  roundZ(rate, height, width, z) {
    return this.freed(() => {
      const values = this.copied(z), symbols = this.take(4 * z.length);
      this.check(this.c.nic_round_z(this.coder, rate, height, width, values, symbols));
      return new Int32Array(this.c.memory.buffer, symbols, z.length).slice();
    });
  }

  work(height, width) {
    const out = this.take(4);
    this.check(this.c.nic_work(this.coder, height, width, out));
    const bytes = this.word(out);
    return [this.take(bytes), bytes];
  }

  freed(what) {
    try {
      return what();
    } finally {
      this.top = this.bottom;
    }
  }

  take(bytes) {
    const place = Math.ceil(this.top / ALIGNED) * ALIGNED, missing = place + bytes - this.c.memory.buffer.byteLength;
    if (missing > 0) this.c.memory.grow(Math.ceil(missing / 65536));
    this.top = place + bytes;
    return place;
  }

  copied(array) {
    const place = this.take(array.byteLength);
    new Uint8Array(this.c.memory.buffer, place).set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
    return place;
  }

  word(place) {
    return new DataView(this.c.memory.buffer).getUint32(place, true);
  }

  check(status) {
    if (status === 0) return;
    const bytes = new Uint8Array(this.c.memory.buffer, this.c.nic_message(status));
    throw new InputError(new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0))));
  }
}
