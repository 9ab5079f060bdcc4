/* The integer h_s: what z says of y, piece by piece. The counterpart of codec/bitstream/integer.py. */
#include <string.h>
#ifdef __wasm_simd128__
#include <wasm_simd128.h>
#endif

#include "internal.h"

enum { HALO = 2, AT_ONCE = 1 << 21, MOST_SYMBOL = 1 << 20, MOST_SCALE = (1 << 16) - 1, BLOCK = 32 };

/* Activations, channels last, with a border of zeros: value [row][column][channel] of the window lies at
 * ((row - top + 1) * pitch + column - left + 1) * each + channel. A wide channel has two numbers: half and rest. */
typedef struct {
    int16_t *values;
    window at;
    size_t each, pitch;
    int wide;
} plane;

static inline int16_t *place_in(const plane *of, int32_t row, int32_t column) {
    return of->values
           + ((size_t)(row - of->at.top + 1) * of->pitch + (size_t)(column - of->at.left + 1)) * of->each;
}

static inline void put_value(int16_t *place, uint32_t channel, int wide, int32_t value) {
    place[channel << wide] = (int16_t)(wide ? value / 2 : value);
    if (wide)
        place[2 * channel + 1] = (int16_t)(value % 2);
}

/* The inputs of a layer, all zero. */
static plane cleared(int16_t *values, window at, const layer *of) {
    plane made = {values, at, (size_t)of->padded << of->wide, (size_t)(at.right - at.left) + 2, of->wide};
    memset(values, 0, ((size_t)(at.bottom - at.top) + 2) * made.pitch * made.each * sizeof *values);
    return made;
}

/* Sums of products of 16 bits. gcc finds the instruction that adds them in pairs; clang has to be told. */
#ifdef __wasm_simd128__
typedef v128_t sums;
enum { LANES = 8 };

static inline sums plus(sums of, const int16_t *x, const int16_t *w) {
    return wasm_i32x4_add(of, wasm_i32x4_dot_i16x8(wasm_v128_load(x), wasm_v128_load(w)));
}

static inline int32_t total(sums of) {
    return wasm_i32x4_extract_lane(of, 0) + wasm_i32x4_extract_lane(of, 1) + wasm_i32x4_extract_lane(of, 2)
           + wasm_i32x4_extract_lane(of, 3);
}
#else
typedef int32_t sums;
enum { LANES = 1 };

static inline sums plus(sums of, const int16_t *x, const int16_t *w) {
    return of + (int32_t)*x * *w;
}

static inline int32_t total(sums of) {
    return of;
}
#endif

/* Adds products of n inputs, at two places, with the weights of four outputs, which lie `step` apart. */
static inline void add_products(int32_t to[2 * GROUP], const int16_t *x, const int16_t *other, const int16_t *w,
                                size_t step, size_t n) {
    sums own[2 * GROUP];
    memset(own, 0, sizeof own);
    for (size_t i = 0; i < n; i += LANES)
        for (int k = 0; k < 2 * GROUP; k++)
            own[k] = plus(own[k], (k < GROUP ? x : other) + i, w + (size_t)(k % GROUP) * step + i);
    for (int k = 0; k < 2 * GROUP; k++)
        to[k] += total(own[k]);
}

/* The weights of a group of outputs as the sums take them: of a wide channel first that of its half. */
static void widen(int16_t *to, const int8_t *weights, size_t count, int wide) {
    for (size_t i = 0; !wide && i < count; i++)
        to[i] = weights[i];
    for (size_t i = 0; wide && i < count; i++) {
        to[2 * i] = (int16_t)(2 * weights[i]);
        to[2 * i + 1] = weights[i];
    }
}

/* How a sum of an output becomes its value. */
typedef struct {
    int32_t bias, positive, negative, shift;
} rescaling;

static rescaling rescaling_of(const layer *of, uint32_t o) {
    int32_t multiplier = at(of->multiplier, o);
    return (rescaling){at(of->bias, o), multiplier, (int32_t)(((int64_t)multiplier * of->slope + (1 << 15)) >> 16),
                       at(of->shift, o)};
}

static inline int32_t rescaled(int32_t sum, const rescaling *by, int32_t least, int32_t most) {
    sum += by->bias;
    int64_t half = (int64_t)1 << (by->shift - 1);
    int64_t scaled = (int64_t)sum * (sum < 0 ? by->negative : by->positive) + half;
    return (int32_t)limited(floored(scaled, by->shift), least, most);
}

/* Where the values of a layer go: to the inputs of the next one or, if `last` is not NULL, to the piece. */
typedef struct {
    plane next;
    const nic_coder *coder;
    piece *last;
} target;

static inline void put_output(const target *to, int32_t row, int32_t column, uint32_t o, int32_t value) {
    piece *of = to->last;
    if (!of) {
        put_value(place_in(&to->next, row, column), o, to->next.wide, value);
        return;
    }
    size_t across = (size_t)(of->place.right - of->place.left);
    size_t each = (size_t)(of->place.bottom - of->place.top) * across;
    size_t place = (size_t)(row - of->place.top) * across + (size_t)(column - of->place.left);
    uint32_t channels = to->coder->info.channels;
    if (o >= channels) {
        of->means[(o - channels) * each + place] = value;
        return;
    }
    uint64_t scale = (uint64_t)limited(value, 0, MOST_SCALE);
    if (of->at.fixed)
        scale = (scale * of->at.fixed[o] + (1 << 15)) >> 16;
    of->indexes[o * each + place] = to->coder->network.indexes[scale];
}

/* Computes the window `seen` of a layer's outputs. */
FOR_EACH_CPU static void convolve(const layer *of, const plane *x, window seen, const target *to, int16_t *w) {
    int32_t step = of->transposed ? 2 : 1, least = of->slope ? -of->most : 0;
    const int8_t *weights = of->weights;
    for (int phase = 0; phase < step * step; phase++) {
        int32_t ry = phase / 2, rx = phase % 2; /* the phase of rows and columns; 0 without steps */
        size_t rows = (size_t)(3 - ry), n = (size_t)(3 - rx) * x->each, each = rows * n;
        int32_t top = seen.top + ((seen.top ^ ry) & (step - 1)), left = seen.left + ((seen.left ^ rx) & (step - 1));
        for (uint32_t o = 0; o < of->outputs; o += GROUP, weights += GROUP * each >> of->wide) {
            uint32_t count = of->outputs - o < GROUP ? of->outputs - o : GROUP;
            rescaling by[GROUP];
            for (uint32_t i = 0; i < count; i++)
                by[i] = rescaling_of(of, o + i);
            widen(w, weights, GROUP * each >> of->wide, of->wide);
            for (int32_t row = top; row < seen.bottom; row += step)
                for (int32_t column = left; column < seen.right; column += BLOCK * step) {
                    int32_t found[BLOCK][GROUP] = {{0}}, places = (seen.right - column + step - 1) / step;
                    places = places < BLOCK ? places : BLOCK;
                    for (size_t y = 0; y < rows; y++) { /* so much of the weights stays in the cache */
                        const int16_t *first = place_in(x, row / step - !ry + (int32_t)y, column / step - !rx);
                        for (int32_t i = 0; i < places; i += 2, first += 2 * x->each)
                            add_products(found[i], first, i + 1 < places ? first + x->each : first, w + y * n, each, n);
                    }
                    for (int32_t i = 0; i < places; i++)
                        for (uint32_t k = 0; k < count; k++)
                            put_output(to, row, column + i * step, o + k,
                                       rescaled(found[i][k], by + k, least, of->most));
                }
        }
    }
}

/* The window of the input, of this many rows and columns, that a window of the output depends on. */
static window needed(const layer *of, window seen, uint32_t rows, uint32_t columns) {
    int step = of->transposed ? 2 : 1;
    int32_t bottom = (seen.bottom + step - 1) / step + 1, right = (seen.right + step - 1) / step + 1;
    return (window){(int32_t)limited(seen.top / step - 1, 0, rows), (int32_t)limited(bottom, 0, rows),
                    (int32_t)limited(seen.left / step - 1, 0, columns), (int32_t)limited(right, 0, columns)};
}

/* A symbol of z as an input of h_s. */
static int32_t input_of(const network *h_s, const scaling *of, uint32_t channel, int32_t symbol) {
    int64_t value = limited(symbol, -MOST_SYMBOL, MOST_SYMBOL), half = (int64_t)1 << (16 - h_s->fraction) >> 1;
    if (!of->inverse_z)
        value *= (int64_t)1 << h_s->fraction;
    else
        value = limited(floored(value * of->inverse_z[channel] + half, 16 - h_s->fraction), -MOST_MEDIAN, MOST_MEDIAN);
    return (int32_t)limited(value + at(h_s->medians, channel), -h_s->most, h_s->most);
}

static void predict(const nic_coder *coder, const extent *size, const int32_t *z, piece *of) {
    const layer *layers = coder->network.layers;
    window seen[LAYERS + 1];
    seen[LAYERS] = of->place;
    for (int i = LAYERS; i-- > 0;) /* the input of layer i is 1, 2 or 4 times as large as z */
        seen[i] = needed(layers + i, seen[i + 1], size->z_rows << i, size->z_columns << i);
    plane x = cleared(of->buffers[0], seen[0], layers);
    for (uint32_t channel = 0; channel < coder->info.z_channels; channel++)
        for (int32_t row = seen[0].top; row < seen[0].bottom; row++)
            for (int32_t column = seen[0].left; column < seen[0].right; column++) {
                size_t place = ((size_t)channel * size->z_rows + (size_t)row) * size->z_columns + (size_t)column;
                put_value(place_in(&x, row, column), channel, x.wide,
                          input_of(&coder->network, &of->at, channel, z[place]));
            }
    for (int i = 0; i < LAYERS; i++) {
        target to = {x, coder, of};
        if (i + 1 < LAYERS)
            to = (target){cleared(of->buffers[i + 1], seen[i + 1], layers + i + 1), coder, NULL};
        convolve(layers + i, &x, seen[i + 1], &to, of->weights);
        x = to.next;
    }
}

/* Rows and columns of z in a piece, at most. */
static void size_of_pieces(const nic_coder *coder, const extent *size, uint32_t *down, uint32_t *across) {
    uint64_t each = (uint64_t)coder->info.channels * SIDE * SIDE;
    *across = (uint32_t)limited((int64_t)(AT_ONCE / each), 1, size->z_columns);
    *down = (uint32_t)limited((int64_t)(AT_ONCE / (each * *across)), 1, size->z_rows);
}

void take_piece(const nic_coder *coder, const extent *size, arena *work, piece *of) {
    uint32_t down, across;
    uint64_t most = 0;
    size_of_pieces(coder, size, &down, &across);
    uint64_t values = (uint64_t)coder->info.channels * down * across * SIDE * SIDE;
    of->indexes = take(work, values, sizeof *of->indexes);
    of->order = take(work, values, sizeof *of->order);
    of->means = coder->network.has_means ? take(work, values, sizeof *of->means) : NULL;
    for (uint32_t i = 0; i < LAYERS; i++) { /* a halo on each side, or of a later plane less, and a border */
        uint64_t rows = ((uint64_t)down << i) + 2 * HALO + 2, columns = ((uint64_t)across << i) + 2 * HALO + 2;
        uint64_t each = (uint64_t)coder->network.layers[i].padded << coder->network.layers[i].wide;
        of->buffers[i] = take(work, rows * columns * each, sizeof *of->buffers[i]);
        most = each > most ? each : most;
    }
    of->weights = take(work, GROUP * 9 * most, sizeof *of->weights);
    of->z = take(work, (uint64_t)coder->info.z_channels * size->z_rows * size->z_columns, sizeof *of->z);
}

/* Sorts the places of a piece by their rows of the tables, those of a row in the order [M][rows][columns]. */
static void sort(const nic_coder *coder, const extent *size, piece *of) {
    uint32_t counts[MOST_ROWS] = {0}, end = 0;
    uint32_t top = (uint32_t)of->place.top, rows = (uint32_t)of->place.bottom - top;
    uint32_t left = (uint32_t)of->place.left, columns = (uint32_t)of->place.right - left;
    for (uint32_t i = 0; i < coder->info.channels * rows * columns; i++)
        counts[of->indexes[i]]++;
    for (uint32_t r = 0; r < coder->y.count; r++) {
        of->ends[r] = end + counts[r];
        counts[r] = end;
        end = of->ends[r];
    }
    const uint8_t *index = of->indexes;
    for (uint32_t channel = 0; channel < coder->info.channels; channel++)
        for (uint32_t row = 0; row < rows; row++) {
            uint32_t place = (channel * size->rows + top + row) * size->columns + left;
            for (uint32_t column = 0; column < columns; column++)
                of->order[counts[*index++]++] = place + column;
        }
}

int set_piece(const nic_coder *coder, const extent *size, uint32_t number, const int32_t *z, piece *of) {
    of->place = (window){0, (int32_t)size->rows, 0, (int32_t)size->columns};
    if (!coder->info.architecture) {
        of->means = NULL;
        return !number;
    }
    uint32_t down, across;
    size_of_pieces(coder, size, &down, &across);
    uint32_t in_row = (size->z_columns + across - 1) / across;
    uint32_t top = number / in_row * down * SIDE, left = number % in_row * across * SIDE;
    if (top >= size->rows)
        return 0;
    of->place = (window){(int32_t)top, (int32_t)limited(top + (int64_t)down * SIDE, 0, size->rows), (int32_t)left,
                         (int32_t)limited(left + (int64_t)across * SIDE, 0, size->columns)};
    if (z) {
        predict(coder, size, z, of);
        sort(coder, size, of);
    }
    return 1;
}
