/* The integer h_s: what z says of y, piece by piece. The counterpart of codec/bitstream/integer.py. */
#include <string.h>
#ifdef __wasm_simd128__
#include <wasm_simd128.h>
#endif

#include "internal.h"

enum { HALO = 2, AT_ONCE = 1 << 21, MOST_SYMBOL = 1 << 20, MOST_SCALE = (1 << 16) - 1 };

/* Activations, channels last, with a border of zeros: value [row][column][channel] of the window lies at
 * ((row - top + 1) * pitch + column - left + 1) * channels. */
typedef struct {
    int16_t *values;
    window at;
    size_t channels, pitch;
} plane;

static size_t place_in(const plane *of, int32_t row, int32_t column) {
    return ((size_t)(row - of->at.top + 1) * of->pitch + (size_t)(column - of->at.left + 1)) * of->channels;
}

static plane cleared(int16_t *values, window at, size_t channels) {
    plane made = {values, at, channels, (size_t)(at.right - at.left) + 2};
    memset(values, 0, ((size_t)(at.bottom - at.top) + 2) * made.pitch * channels * sizeof *values);
    return made;
}

#ifdef __wasm_simd128__
static int32_t lanes(v128_t of) {
    return wasm_i32x4_extract_lane(of, 0) + wasm_i32x4_extract_lane(of, 1) + wasm_i32x4_extract_lane(of, 2)
           + wasm_i32x4_extract_lane(of, 3);
}
#endif

/* Adds products of n inputs with the weights of four outputs, which lie `step` apart. gcc finds the instruction that
 * adds products of 16 bits in pairs; clang has to be told. */
static void add_products(int32_t sums[4], const int16_t *x, const int16_t *w, size_t step, size_t n) {
    const int16_t *w1 = w + step, *w2 = w1 + step, *w3 = w2 + step;
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    size_t i = 0;
#ifdef __wasm_simd128__
    v128_t a0 = wasm_i32x4_splat(0), a1 = a0, a2 = a0, a3 = a0;
    for (; i + 8 <= n; i += 8) {
        v128_t own = wasm_v128_load(x + i);
        a0 = wasm_i32x4_add(a0, wasm_i32x4_dot_i16x8(own, wasm_v128_load(w + i)));
        a1 = wasm_i32x4_add(a1, wasm_i32x4_dot_i16x8(own, wasm_v128_load(w1 + i)));
        a2 = wasm_i32x4_add(a2, wasm_i32x4_dot_i16x8(own, wasm_v128_load(w2 + i)));
        a3 = wasm_i32x4_add(a3, wasm_i32x4_dot_i16x8(own, wasm_v128_load(w3 + i)));
    }
    s0 = lanes(a0);
    s1 = lanes(a1);
    s2 = lanes(a2);
    s3 = lanes(a3);
#endif
    for (; i < n; i++) {
        s0 += (int32_t)x[i] * w[i];
        s1 += (int32_t)x[i] * w1[i];
        s2 += (int32_t)x[i] * w2[i];
        s3 += (int32_t)x[i] * w3[i];
    }
    sums[0] += s0;
    sums[1] += s1;
    sums[2] += s2;
    sums[3] += s3;
}

static int32_t rescaled(int32_t sum, const layer *of, uint32_t o) {
    int64_t scaled = (int64_t)sum * (sum < 0 ? of->negative[o] : of->multiplier[o]) + ((int64_t)1 << (of->shift[o] - 1));
    return (int32_t)limited(floored(scaled, of->shift[o]), of->slope ? -of->most : 0, of->most);
}

static void put_value(plane *to, size_t place, uint32_t channel, int wide, int32_t value) {
    if (wide) {
        to->values[place + 2 * channel] = (int16_t)(value / 2);
        to->values[place + 2 * channel + 1] = (int16_t)(value % 2);
    } else {
        to->values[place + channel] = (int16_t)value;
    }
}

/* Where the values of a layer go: to the plane of the next one, or from the last one to the piece. */
typedef struct {
    plane next;
    int wide;
    const network *of;
    uint32_t channels;      /* M */
    piece *last;            /* NULL for a layer before the last one */
} target;

static void put_output(target *to, window at, int32_t row, int32_t column, uint32_t o, int32_t value) {
    if (!to->last) {
        put_value(&to->next, place_in(&to->next, row, column), o, to->wide, value);
        return;
    }
    size_t place = (size_t)(row - at.top) * (size_t)(at.right - at.left) + (size_t)(column - at.left);
    size_t each = (size_t)(at.bottom - at.top) * (size_t)(at.right - at.left);
    if (o < to->channels) {
        uint64_t scale = (uint64_t)limited(value, 0, MOST_SCALE);
        if (to->last->at.fixed)
            scale = (scale * to->last->at.fixed[o] + (1 << 15)) >> 16;
        to->last->indexes[o * each + place] = to->of->indexes[scale];
    }
    else
        to->last->means[(o - to->channels) * each + place] = value;
}

/* Computes the window `at` of a layer's outputs. */
static void convolve(const layer *of, const plane *x, window at, target *to) {
    int step = of->transposed ? 2 : 1;
    for (int phase = 0; phase < step * step; phase++) {
        int ry = phase / 2, rx = phase % 2; /* the phase of rows and columns; 0 without steps */
        int32_t up = ry ? 0 : 1, left = rx ? 0 : 1;
        size_t rows = (size_t)(2 + up), n = (size_t)(2 + left) * of->inputs, each = rows * n;
        int32_t top = at.top + (step == 2 && ((at.top ^ ry) & 1)), first = at.left + (step == 2 && ((at.left ^ rx) & 1));
        for (uint32_t o = 0; o < of->outputs; o += 4) {
            const int16_t *weights = of->weights[phase] + o * each;
            uint32_t count = of->outputs - o < 4 ? of->outputs - o : 4;
            for (int32_t row = top; row < at.bottom; row += step)
                for (int32_t column = first; column < at.right; column += step) {
                    int32_t sums[4] = {0, 0, 0, 0};
                    for (size_t y = 0; y < rows; y++) {
                        size_t place = place_in(x, row / step - up + (int32_t)y, column / step - left);
                        add_products(sums, x->values + place, weights + y * n, each, n);
                    }
                    for (uint32_t i = 0; i < count; i++)
                        put_output(to, at, row, column, o + i, rescaled(of->bias[o + i] + sums[i], of, o + i));
                }
        }
    }
}

/* The window of the input, of this many rows and columns, that a window of the output depends on. */
static window needed(const layer *of, window at, int32_t rows, int32_t columns) {
    int step = of->transposed ? 2 : 1;
    window found = {at.top / step - 1, (at.bottom + step - 1) / step + 1, at.left / step - 1,
                    (at.right + step - 1) / step + 1};
    found.top = found.top < 0 ? 0 : found.top;
    found.left = found.left < 0 ? 0 : found.left;
    found.bottom = found.bottom > rows ? rows : found.bottom;
    found.right = found.right > columns ? columns : found.right;
    return found;
}

/* A symbol of z in units of 2^-fraction. */
static int64_t input_of(const network *h_s, const scaling *at, uint32_t channel, int32_t symbol) {
    int64_t value = limited(symbol, -MOST_SYMBOL, MOST_SYMBOL), unit = (int64_t)1 << (16 - h_s->fraction);
    if (!at->inverse_z)
        return value * ((int64_t)1 << h_s->fraction);
    return limited(floored(value * at->inverse_z[channel] + unit / 2, 16 - h_s->fraction), -MOST_MEDIAN, MOST_MEDIAN);
}

static void run(const nic_coder *coder, const int32_t *z, int32_t zh, int32_t zw, piece *of) {
    const network *h_s = &coder->network;
    window at[LAYERS + 1];
    at[LAYERS] = of->place;
    for (int i = LAYERS; i-- > 0;) /* the input of layer i is 1, 2 or 4 times as large as z */
        at[i] = needed(h_s->layers + i, at[i + 1], zh << i, zw << i);
    plane x = cleared(of->buffers[0], at[0], h_s->layers[0].inputs);
    for (uint32_t channel = 0; channel < coder->info.z_channels; channel++)
        for (int32_t row = at[0].top; row < at[0].bottom; row++)
            for (int32_t column = at[0].left; column < at[0].right; column++) {
                int32_t symbol = z[((size_t)channel * (size_t)zh + (size_t)row) * (size_t)zw + (size_t)column];
                int64_t value = input_of(h_s, &of->at, channel, symbol) + h_s->medians[channel];
                put_value(&x, place_in(&x, row, column), channel, h_s->layers[0].wide,
                          (int32_t)limited(value, -h_s->most, h_s->most));
            }
    for (int i = 0; i < LAYERS; i++) {
        target to = {{NULL, {0, 0, 0, 0}, 0, 0}, 0, h_s, coder->info.channels, i + 1 == LAYERS ? of : NULL};
        if (!to.last) {
            to.next = cleared(of->buffers[i + 1], at[i + 1], h_s->layers[i + 1].inputs);
            to.wide = h_s->layers[i + 1].wide;
        }
        convolve(h_s->layers + i, &x, at[i + 1], &to);
        x = to.next;
    }
}

/* Rows and columns of z in a piece, at most. */
static void size_of_pieces(const nic_coder *coder, uint32_t zh, uint32_t zw, uint32_t *down, uint32_t *across) {
    uint64_t each = (uint64_t)coder->info.channels * SIDE * SIDE, columns = AT_ONCE / each;
    *across = columns < 1 ? 1 : columns < zw ? (uint32_t)columns : zw;
    uint64_t fit = AT_ONCE / (each * *across);
    *down = fit < 1 ? 1 : fit < zh ? (uint32_t)fit : zh;
}

int window_of_piece(const nic_coder *coder, uint32_t height, uint32_t width, uint32_t number, window *in_z) {
    uint32_t zh = (height + SIDE - 1) / SIDE, zw = (width + SIDE - 1) / SIDE, down, across;
    size_of_pieces(coder, zh, zw, &down, &across);
    uint32_t in_row = (zw + across - 1) / across, top = number / in_row * down, left = number % in_row * across;
    if (top >= zh)
        return 0;
    in_z->top = (int32_t)top;
    in_z->bottom = (int32_t)(top + down < zh ? top + down : zh);
    in_z->left = (int32_t)left;
    in_z->right = (int32_t)(left + across < zw ? left + across : zw);
    return 1;
}

void take_piece(const nic_coder *coder, uint32_t height, uint32_t width, arena *work, piece *of) {
    uint32_t zh = (height + SIDE - 1) / SIDE, zw = (width + SIDE - 1) / SIDE, down, across;
    size_of_pieces(coder, zh, zw, &down, &across);
    uint64_t values = (uint64_t)coder->info.channels * down * across * SIDE * SIDE;
    of->indexes = take(work, values, sizeof *of->indexes);
    of->order = take(work, values, sizeof *of->order);
    of->means = coder->network.has_means ? take(work, values, sizeof *of->means) : NULL;
    for (uint32_t i = 0; i < LAYERS; i++) { /* two positions of z on each side, or of a later plane less, and a border */
        uint64_t rows = ((uint64_t)down << i) + 2 * HALO + 2, columns = ((uint64_t)across << i) + 2 * HALO + 2;
        of->buffers[i] = take(work, rows * columns * coder->network.layers[i].inputs, sizeof *of->buffers[i]);
    }
    of->z = take(work, (uint64_t)coder->info.z_channels * zh * zw, sizeof *of->z);
}

/* Sorts the places of a piece by their rows, those of a row in the order [M][rows][columns]. */
static void sort(const nic_coder *coder, uint32_t height, uint32_t width, piece *of) {
    uint32_t counts[MOST_ROWS] = {0}, end = 0;
    uint32_t rows = (uint32_t)(of->place.bottom - of->place.top), columns = (uint32_t)(of->place.right - of->place.left);
    uint32_t total = coder->info.channels * rows * columns;
    for (uint32_t i = 0; i < total; i++)
        counts[of->indexes[i]]++;
    for (uint32_t r = 0; r < coder->y.count; r++) {
        uint32_t start = end;
        end += counts[r];
        counts[r] = start;
        of->ends[r] = end;
    }
    const uint8_t *index = of->indexes;
    for (uint32_t channel = 0; channel < coder->info.channels; channel++)
        for (uint32_t row = 0; row < rows; row++) {
            uint32_t place = (channel * height + (uint32_t)of->place.top + row) * width + (uint32_t)of->place.left;
            for (uint32_t column = 0; column < columns; column++)
                of->order[counts[*index++]++] = place + column;
        }
}

void predict(const nic_coder *coder, const int32_t *z, uint32_t height, uint32_t width, window in_z, piece *of) {
    int32_t zh = (int32_t)((height + SIDE - 1) / SIDE), zw = (int32_t)((width + SIDE - 1) / SIDE);
    of->place.top = in_z.top * SIDE;
    of->place.left = in_z.left * SIDE;
    of->place.bottom = (int32_t)limited((int64_t)in_z.bottom * SIDE, 0, height);
    of->place.right = (int32_t)limited((int64_t)in_z.right * SIDE, 0, width);
    run(coder, z, zh, zw, of);
    sort(coder, height, width, of);
}
