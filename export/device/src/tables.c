/* The file of entropy tables: checked, then laid out for coding. The counterpart of codec/bitstream/tables.py. */
#include <string.h>

#include "internal.h"

enum { START = 12, MOST_MEAN = (1 << 20) - 1, MOST_ACTIVATION = (1 << 16) - 1, LINEAR = 1 << 16 };

/* Bytes that are read from the front; `short_of` tells that more were wanted than there are. */
typedef struct {
    const uint8_t *data;
    uint64_t left;
    int short_of;
} source;

static const uint8_t *bytes_of(source *from, uint64_t count) {
    static const uint8_t nothing[4] = {0};
    if (count > from->left) {
        from->short_of = 1;
        from->left = 0;
        return nothing;
    }
    const uint8_t *found = from->data;
    from->data += count;
    from->left -= count;
    return found;
}

static uint32_t word_of(source *from) {
    return word_at(bytes_of(from, 4));
}

static int32_t at(const uint8_t *words, uint64_t index) {
    return signed_of(word_at(words + 4 * index));
}

void *take(arena *from, uint64_t count, size_t size) {
    uint64_t bytes = (count * size + 15) / 16 * 16;
    void *found = from->base && bytes <= from->size - from->used ? from->base + from->used : NULL;
    if (from->base && !found)
        from->base = NULL; /* too small: from here on it counts */
    from->used += bytes;
    return found;
}

uint32_t least_bits(uint32_t count) {
    uint32_t whole = 15;
    while (!(count >> whole))
        whole--;
    uint64_t part = (uint64_t)count << (31 - whole), found = whole; /* the logarithm, rounded down */
    for (int bit = 0; bit < 16; bit++) {
        part = part * part >> 31;
        found = found << 1 | part >> 32;
        part >>= part >> 32;
    }
    return (16u << 16) - (uint32_t)found - 2;
}

static interval interval_from(uint32_t low, uint32_t count) {
    interval made = {0, low, (uint16_t)count, 0};
    while (count >> (made.shift + 1))
        made.shift++;
    /* 2^(63 + shift) / count, rounded up: exact for numbers below count * 2^40. */
    uint64_t high = (uint64_t)1 << (31 + made.shift);
    made.reciprocal = (high / count << 32) + (((high % count << 32) + count - 1) / count);
    return made;
}

void fill(model *made, interval *intervals, guess *guesses, const uint8_t *cdf, uint32_t n, int32_t offset) {
    uint32_t most = 0, likely = 0, next = 0;
    for (uint32_t i = 0; i + 1 < n; i++) {
        uint32_t low = (uint32_t)at(cdf, i), count = (uint32_t)at(cdf, i + 1) - low;
        intervals[i] = interval_from(low, count);
        if (count > most) {
            most = count;
            likely = i + 2 < n ? i : likely;
        }
        for (; next < 256 && next << 8 < low + count; next++)
            guesses[next] = (guess){(uint16_t)low, (uint16_t)count, (uint16_t)i};
    }
    made->intervals = intervals;
    made->guesses = guesses;
    made->offset = offset;
    made->last = n - 2;
    made->least = likely ? least_bits(most) : 0;
}

static int is_cdf(const uint8_t *cdf, uint32_t n) {
    if (at(cdf, 0) || at(cdf, n - 1) != 1 << 16)
        return 0;
    for (uint32_t i = 1; i < n; i++)
        if (at(cdf, i) <= at(cdf, i - 1))
            return 0;
    return 1;
}

/* Rows of `count` offsets and lengths and CDFs of `longest` entries; 0 if they are none. */
static int read_rows(source *from, arena *memory, uint32_t count, uint32_t longest, models *made) {
    const uint8_t *offsets = bytes_of(from, 4 * (uint64_t)count), *lengths = bytes_of(from, 4 * (uint64_t)count);
    const uint8_t *cdfs = (uint64_t)count * longest >> 60 ? bytes_of(from, UINT64_MAX)
                                                          : bytes_of(from, 4 * (uint64_t)count * longest);
    if (from->short_of || !count)
        return 0;
    uint64_t total = 0;
    for (uint32_t r = 0; r < count; r++) {
        uint32_t n = word_at(lengths + 4 * (uint64_t)r);
        if (n < 3 || n > longest || !is_cdf(cdfs + 4 * (uint64_t)r * longest, n))
            return 0;
        total += n - 1;
    }
    model *found = take(memory, count, sizeof *found);
    interval *intervals = take(memory, total, sizeof *intervals);
    guess *guesses = take(memory, count, 256 * sizeof *guesses);
    made->each = found;
    made->count = count;
    for (uint32_t r = 0; memory->base && r < count; r++) {
        uint32_t n = word_at(lengths + 4 * (uint64_t)r);
        fill(found + r, intervals, guesses, cdfs + 4 * (uint64_t)r * longest, n, at(offsets, r));
        intervals += n - 1;
        guesses += 256;
    }
    return 1;
}

static int all_in(const uint8_t *words, uint32_t count, int32_t least, int32_t most) {
    for (uint32_t i = 0; i < count; i++)
        if (at(words, i) < least || at(words, i) > most)
            return 0;
    return 1;
}

static int rises(const uint8_t *words, uint32_t count) {
    for (uint32_t i = 1; i < count; i++)
        if (at(words, i) < at(words, i - 1))
            return 0;
    return 1;
}

/* A copy of words in memory. */
static int32_t *words_from(const uint8_t *words, arena *memory, uint64_t count) {
    int32_t *made = take(memory, count, sizeof *made);
    for (uint64_t i = 0; memory->base && i < count; i++)
        made[i] = at(words, i);
    return made;
}

/* The largest magnitude of inputs for which no sum leaves 32 bits. */
static int64_t most_input(const uint8_t *bias, const int8_t *weights, uint32_t outputs, uint64_t each) {
    int64_t least = INT64_MAX;
    for (uint32_t o = 0; o < outputs; o++) {
        int64_t sum = 0, own = at(bias, o);
        for (uint64_t i = 0; i < each; i++) {
            int value = weights[o * each + i];
            sum += value < 0 ? -value : value;
        }
        int64_t room = INT32_MAX - (own < 0 ? -own : own), most = room < 0 ? -1 : room / (sum ? sum : 1);
        least = most < least ? most : least;
    }
    return least;
}

/* The weights of a phase, in the order in which they are used. */
static const int16_t *phase(arena *memory, const layer *of, const int8_t *weights, int side, int ry, int rx) {
    int high = of->transposed ? 3 - ry : 3, across = of->transposed ? 3 - rx : 3, parts = of->wide ? 2 : 1;
    uint32_t inputs = of->inputs / (uint32_t)parts;
    int16_t *made = take(memory, (uint64_t)(of->outputs + 3) / 4 * 4 * (uint64_t)(high * across) * of->inputs,
                         sizeof *made), *next = made;
    for (uint32_t o = 0; memory->base && o < (of->outputs + 3) / 4 * 4; o++)
        for (int y = 0; y < high; y++)
            for (int x = 0; x < across; x++) {
                /* Output 2 i + r takes weight r + 2 - 2 d times input i + d; d starts at -1, or at 0 for r = 1. */
                int down = of->transposed ? ry + 2 - 2 * (y - !ry) : y, right = of->transposed ? rx + 2 - 2 * (x - !rx) : x;
                for (uint32_t i = 0; i < inputs; i++) {
                    uint64_t place = (((uint64_t)o * inputs + i) * (uint64_t)side + (uint64_t)down) * (uint64_t)side;
                    int16_t value = o < of->outputs ? weights[place + (uint64_t)right] : 0;
                    if (of->wide)
                        *next++ = (int16_t)(2 * value); /* of the input's half; then of the rest */
                    *next++ = value;
                }
            }
    return made;
}

/* A layer whose inputs have this magnitude at most; 0 if it is none. */
static int read_layer(source *from, arena *memory, uint32_t inputs, int64_t most, int transposed, layer *made) {
    uint32_t outputs = word_of(from), given = word_of(from), side = word_of(from), slope = word_of(from);
    uint32_t limit = word_of(from);
    const uint8_t *bias = bytes_of(from, 4 * (uint64_t)outputs), *multiplier = bytes_of(from, 4 * (uint64_t)outputs);
    const uint8_t *shift = bytes_of(from, 4 * (uint64_t)outputs);
    if (side != (transposed ? 5 : 3) || given != inputs || !inputs || !outputs || slope > LINEAR || !limit
        || limit > MOST_MEAN)
        return 0;
    uint64_t each = (uint64_t)inputs * side * side, size = outputs * each;
    const int8_t *weights = (const int8_t *)bytes_of(from, (size + 3) / 4 * 4);
    if (from->short_of || most > MOST_ACTIVATION || most > most_input(bias, weights, outputs, each)
        || !all_in(multiplier, outputs, 0, 1 << 16) || !all_in(shift, outputs, 1, 45))
        return 0;
    made->outputs = outputs;
    made->wide = most > INT16_MAX;
    made->inputs = inputs * (made->wide ? 2 : 1);
    made->transposed = transposed;
    made->slope = (int32_t)slope;
    made->most = (int32_t)limit;
    int32_t *positive = words_from(multiplier, memory, outputs);
    int32_t *negative = take(memory, outputs, sizeof *negative);
    uint8_t *shifts = take(memory, outputs, sizeof *shifts);
    for (uint32_t o = 0; memory->base && o < outputs; o++) {
        negative[o] = (int32_t)(((int64_t)positive[o] * made->slope + (1 << 15)) >> 16);
        shifts[o] = (uint8_t)at(shift, o);
    }
    made->bias = words_from(bias, memory, outputs);
    made->multiplier = positive;
    made->negative = negative;
    made->shift = shifts;
    for (int p = 0; p < (transposed ? 4 : 1); p++)
        made->weights[p] = phase(memory, made, weights, (int)side, p / 2, p % 2);
    return 1;
}

/* The integer h_s, from the medians of z on; the numbers before it are those of the header. 0 if it is none. */
static int read_network(source *from, arena *memory, uint32_t channels, uint32_t scales, nic_coder *made,
                        const uint32_t numbers[3]) {
    network *h_s = &made->network;
    uint32_t fraction = numbers[0], most = numbers[1], width = channels;
    int64_t limit = most;
    const uint8_t *medians = bytes_of(from, 4 * (uint64_t)channels);
    const uint8_t *thresholds = bytes_of(from, 4 * (uint64_t)(scales - 1));
    if (from->short_of || scales > MOST_ROWS || fraction > 10 || !most || most > MOST_ACTIVATION
        || numbers[2] != LAYERS || !all_in(medians, channels, -MOST_MEDIAN, MOST_MEDIAN)
        || !all_in(thresholds, scales - 1, 0, INT32_MAX) || !rises(thresholds, scales - 1))
        return 0;
    h_s->fraction = (int32_t)fraction;
    h_s->most = (int32_t)most;
    h_s->medians = words_from(medians, memory, channels);
    uint8_t *indexes = take(memory, 1 << 16, sizeof *indexes);
    for (uint32_t scale = 0, index = 0; memory->base && scale < 1 << 16; scale++) {
        while (index + 1 < scales && at(thresholds, index) <= (int32_t)scale)
            index++;
        indexes[scale] = (uint8_t)index;
    }
    h_s->indexes = indexes;
    for (int i = 0; i < LAYERS; i++) {
        if (!read_layer(from, memory, width, limit, i < 2, h_s->layers + i))
            return 0;
        width = h_s->layers[i].outputs;
        limit = h_s->layers[i].most;
    }
    h_s->has_means = made->info.architecture == 2;
    made->info.channels = h_s->has_means ? width / 2 : width;
    made->info.z_channels = channels;
    made->medians = take(memory, made->info.channels, sizeof *made->medians);
    for (uint32_t i = 0; memory->base && i < made->info.channels; i++)
        made->medians[i] = 0;
    return !(h_s->has_means && width % 2);
}

/* The fields of version 2 from the architecture's number on; 0 if they are none. */
static int read_hyper(source *from, arena *memory, nic_coder *made) {
    uint32_t numbers[3];
    made->info.architecture = word_of(from);
    uint32_t channels = word_of(from), longest = word_of(from), scales = word_of(from), longest_y = word_of(from);
    for (int i = 0; i < 3; i++)
        numbers[i] = word_of(from);
    return read_rows(from, memory, channels, longest, &made->z) && read_rows(from, memory, scales, longest_y, &made->y)
           && read_network(from, memory, channels, scales, made, numbers);
}

/* Medians of y; 0 if one is not finite. */
static int read_medians(source *from, arena *memory, uint32_t channels, nic_coder *made) {
    const uint8_t *medians = bytes_of(from, 4 * (uint64_t)channels);
    for (uint32_t i = 0; !from->short_of && i < channels; i++)
        if ((word_at(medians + 4 * (uint64_t)i) & 0x7f800000) == 0x7f800000)
            return 0;
    made->info.channels = channels;
    made->medians = take(memory, channels, sizeof *made->medians);
    for (uint32_t i = 0; memory->base && !from->short_of && i < channels; i++) {
        uint32_t bits = word_at(medians + 4 * (uint64_t)i);
        memcpy(made->medians + i, &bits, 4);
    }
    return !from->short_of;
}

/* Exponents that fall from rate to rate, down to 0; 0 if they are not. */
static int read_gains(source *from, arena *memory, uint32_t rates, uint32_t channels, gains *made) {
    const uint8_t *words = bytes_of(from, 4 * (uint64_t)rates * channels);
    if (from->short_of || !all_in(words, rates * channels, 0, 12 * 256))
        return 0;
    for (uint64_t i = 0; i < (uint64_t)rates * channels; i++)
        if (at(words, i) < (i + channels < (uint64_t)rates * channels ? at(words, i + channels) : 0)
            || (i >= (uint64_t)(rates - 1) * channels && at(words, i)))
            return 0;
    made->exponents = words_from(words, memory, (uint64_t)rates * channels);
    made->channels = channels;
    return 1;
}

static int read_density(source *from, arena *memory, uint32_t channels, uint32_t points, density *made) {
    const uint8_t *first = bytes_of(from, 4 * (uint64_t)channels), *shift = bytes_of(from, 4 * (uint64_t)channels);
    const uint8_t *values = bytes_of(from, (uint64_t)channels * points >> 60 ? UINT64_MAX : 4 * (uint64_t)channels * points);
    if (from->short_of || !channels || points < 2 || !all_in(shift, channels, 0, 28)
        || !all_in(first, channels, 1 - (int32_t)points, 0))
        return 0;
    for (uint32_t c = 0; c < channels; c++) {
        const uint8_t *own = values + 4 * (uint64_t)c * points;
        if (at(own, 0) || at(own, points - 1) != 1 << 24 || !rises(own, points))
            return 0;
    }
    uint8_t *shifts = take(memory, channels, sizeof *shifts);
    for (uint32_t c = 0; memory->base && c < channels; c++)
        shifts[c] = (uint8_t)at(shift, c);
    made->first = words_from(first, memory, channels);
    made->values = words_from(values, memory, (uint64_t)channels * points);
    made->shift = shifts;
    made->channels = channels;
    made->points = points;
    return 1;
}

/* The fields of version 3 from the architecture's number on; 0 if they are none. */
static int read_rated(source *from, arena *memory, nic_coder *made) {
    made->info.architecture = word_of(from);
    uint32_t channels = word_of(from), rates = word_of(from), coded = word_of(from), points = word_of(from);
    uint32_t scales = 0, longest = 0, numbers[3] = {0, 0, 0}, has_z = made->info.architecture != 0;
    if (has_z) {
        scales = word_of(from);
        longest = word_of(from);
        for (int i = 0; i < 3; i++)
            numbers[i] = word_of(from);
    }
    for (uint32_t i = 0; i < 256; i++) {
        made->powers[i] = word_of(from);
        if (made->powers[i] != (uint32_t)(65536 * power_of_two(i) + 0.5))
            return 0;
    }
    if (rates < 2 || rates > 64 || !read_gains(from, memory, rates, channels, &made->y_gains)
        || (has_z ? !read_gains(from, memory, rates, coded, &made->z_gains) : coded != channels)
        || !read_density(from, memory, coded, points, &made->density))
        return 0;
    made->info.most_rate = highest_rate(rates);
    if (!(has_z ? read_rows(from, memory, scales, longest, &made->y)
                      && read_network(from, memory, coded, scales, made, numbers)
                : read_medians(from, memory, channels, made)))
        return 0;
    if (memory->base)
        count_intervals(made);
    return made->info.channels == channels;
}

/* The fields of version 1 from the number of channels on; 0 if they are none. */
static int read_factorized(source *from, arena *memory, nic_coder *made) {
    uint32_t channels = word_of(from), longest = word_of(from);
    return read_medians(from, memory, channels, made) && read_rows(from, memory, channels, longest, &made->y);
}

/* Reads tables into memory, or counts the memory that they take. */
static nic_status load(const uint8_t *data, size_t length, arena *memory, nic_coder **coder) {
    crc_tables crc;
    if (length < 28 || memcmp(data, "NICT", 4))
        return NIC_NO_TABLES;
    uint32_t version = word_at(data + 4);
    if (version < 1 || version > 3 || word_at(data + START + 4) != 16)
        return NIC_NO_TABLES;
    crc_tables_of(&crc);
    if (crc32_of(&crc, 0, data + START, length - START) != word_at(data + 8))
        return NIC_BAD_TABLES;
    source from = {data + START + 8, length - START - 8, 0};
    uint32_t architecture = version == 1 ? 0 : word_at(data + START + 8);
    if (architecture > 2 || (version == 2 && !architecture))
        return NIC_NO_TABLES;
    nic_coder made;
    memset(&made, 0, sizeof made);
    nic_coder *place = take(memory, 1, sizeof *place);
    made.info.fingerprint = word_at(data + START);
    int (*read)(source *, arena *, nic_coder *) = version == 1 ? read_factorized : version == 2 ? read_hyper : read_rated;
    if (!read(&from, memory, &made) || from.short_of || from.left)
        return NIC_BAD_TABLES;
    made.info.unit = made.network.has_means || made.info.most_rate ? 1.0f / (1 << MEAN_BITS) : 1;
    if (!memory->base)
        return NIC_MEMORY;
    made.crc = crc;
    made.info.medians = made.medians;
    *place = made;
    *coder = place;
    return NIC_OK;
}

nic_status nic_memory(const void *tables, size_t length, size_t *bytes) {
    arena counted = {NULL, 0, 0};
    nic_status status = load(tables, length, &counted, NULL);
    *bytes = (size_t)counted.used;
    return status == NIC_MEMORY ? (counted.used > SIZE_MAX ? NIC_MEMORY : NIC_OK) : status;
}

nic_status nic_open(const void *tables, size_t length, void *memory, size_t bytes, nic_coder **coder) {
    arena from = {memory, 0, bytes};
    *coder = NULL;
    return load(tables, length, &from, coder);
}

nic_info nic_about(const nic_coder *coder) {
    return coder->info;
}
