/* The file of entropy tables: checked, then laid out for coding. The counterpart of codec/bitstream/tables.py. */
#include <string.h>

#include "internal.h"

enum { START = 12, MOST_MEAN = (1 << 20) - 1, MOST_ACTIVATION = (1 << 16) - 1, LINEAR = 1 << 16 };

/* Words that are read from the front; `bad` tells that there were too few, or one that no tables hold. */
typedef struct {
    const uint8_t *data;
    uint64_t left;
    int bad;
} source;

/* The next words; where there are too few, one that must not be used. */
static const uint8_t *words_of(source *from, uint64_t count) {
    static const uint8_t nothing[4] = {0};
    if (count > from->left / 4) {
        from->bad = 1;
        from->left = 0;
        return nothing;
    }
    from->data += 4 * count;
    from->left -= 4 * count;
    return from->data - 4 * count;
}

static uint32_t word_of(source *from) {
    return word_at(words_of(from, 1));
}

/* The next words, which must lie in least .. most. */
static const uint8_t *numbers_of(source *from, uint64_t count, int32_t least, int32_t most) {
    const uint8_t *words = words_of(from, count);
    for (uint64_t i = 0; !from->bad && i < count; i++)
        from->bad = at(words, i) < least || at(words, i) > most;
    return words;
}

arena arena_in(void *memory) {
    uint8_t *base = memory;
    return (arena){base ? base + (64 - (uintptr_t)base % 64) % 64 : NULL, 0};
}

uint64_t counted(const arena *of) {
    return of->used ? of->used + 63 : 0;
}

void *take(arena *from, uint64_t count, size_t size) {
    void *found = from->base ? from->base + from->used : NULL;
    from->used += (count * size + 63) / 64 * 64;
    return found;
}

void crc_tables_of(crc_tables *made) {
    uint32_t(*table)[256] = made->of;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
        table[0][i] = value;
    }
    for (uint32_t i = 0; i < 256; i++) /* of the byte with one, two and three zeros behind it */
        for (int far = 1; far < 4; far++)
            table[far][i] = table[0][table[far - 1][i] & 255] ^ table[far - 1][i] >> 8;
}

uint32_t crc32_of(const crc_tables *tables, uint32_t before, const uint8_t *data, size_t length) {
    const uint32_t(*table)[256] = tables->of;
    uint32_t crc = ~before;
    for (; length >= 4; length -= 4, data += 4) {
        crc ^= word_at(data);
        crc = table[3][crc & 255] ^ table[2][crc >> 8 & 255] ^ table[1][crc >> 16 & 255] ^ table[0][crc >> 24];
    }
    for (; length > 0; length--, data++)
        crc = table[0][(crc ^ *data) & 255] ^ crc >> 8;
    return ~crc;
}

static int rises(const uint8_t *words, uint32_t count, int32_t least) {
    for (uint32_t i = 1; i < count; i++)
        if (at(words, i) - (int64_t)at(words, i - 1) < least)
            return 0;
    return 1;
}

/* Rows of `count` offsets and lengths and CDFs of `longest` entries. */
static void read_rows(source *from, arena *memory, uint32_t count, uint32_t longest, models *made) {
    const uint8_t *offsets = words_of(from, count), *lengths = numbers_of(from, count, 3, INT32_MAX);
    const uint8_t *cdfs = words_of(from, (uint64_t)count * longest);
    uint64_t total = 0;
    from->bad |= !count;
    for (uint32_t r = 0; !from->bad && r < count; r++) {
        const uint8_t *cdf = cdfs + 4 * (uint64_t)r * longest;
        uint32_t n = word_at(lengths + 4 * (uint64_t)r);
        from->bad = n > longest || at(cdf, 0) || at(cdf, n - 1) != 1 << 16 || !rises(cdf, n, 1);
        total += n - 1;
    }
    model *found = take(memory, count, sizeof *found);
    interval *intervals = take(memory, total, sizeof *intervals);
    guess *guesses = take(memory, count, 256 * sizeof *guesses);
    *made = (models){found, count};
    for (uint32_t r = 0; memory->base && r < count; r++) {
        row own = {.cdf = cdfs + 4 * (uint64_t)r * longest, .count = at(lengths, r) - 2, .lowest = at(offsets, r)};
        fill(found + r, intervals, guesses + 256 * (size_t)r, &own);
        intervals += own.count + 1;
    }
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

/* The row, or column, of the weights at place i of an output of phase r.
 * Output 2 i + r of a transposed layer takes weight r + 2 - 2 d times input i + d; d is from -1, or from 0 for r = 1. */
static uint32_t weight_at(const layer *of, int r, int i) {
    return (uint32_t)(of->transposed ? r + 2 - 2 * (i - !r) : i);
}

/* Writes the weights [outputs][inputs][side][side] of a layer in the order in which they are used. */
static void arrange(const layer *of, const int8_t *weights, uint32_t side, int8_t *next) {
    for (int phase = 0; phase < (of->transposed ? 4 : 1); phase++)
        for (uint32_t o = 0; o < (of->outputs + GROUP - 1) / GROUP * GROUP; o++)
            for (int y = 0; y < 3 - phase / 2; y++)
                for (int x = 0; x < 3 - phase % 2; x++) {
                    uint32_t place = weight_at(of, phase / 2, y) * side + weight_at(of, phase % 2, x);
                    for (uint32_t i = 0; i < of->padded; i++)
                        *next++ = o < of->outputs && i < of->inputs
                                      ? weights[((uint64_t)o * of->inputs + i) * side * side + place] : 0;
                }
}

/* A layer whose inputs have this magnitude at most. */
static void read_layer(source *from, arena *memory, uint32_t inputs, int64_t most, int transposed, layer *made) {
    uint32_t outputs = word_of(from), given = word_of(from), side = word_of(from), slope = word_of(from);
    uint32_t limit = word_of(from), wanted = transposed ? 5 : 3;
    const uint8_t *bias = words_of(from, outputs), *multiplier = numbers_of(from, outputs, 0, 1 << 16);
    const uint8_t *shift = numbers_of(from, outputs, 1, 45);
    uint64_t each = (uint64_t)inputs * wanted * wanted;
    from->bad |= side != wanted || given != inputs || !inputs || !outputs || slope > LINEAR || !limit
                 || limit > MOST_MEAN;
    const int8_t *weights = (const int8_t *)words_of(from, from->bad ? 0 : (outputs * each + 3) / 4);
    from->bad = from->bad || most > MOST_ACTIVATION || most > most_input(bias, weights, outputs, each);
    *made = (layer){outputs, inputs, (inputs + 7) / 8 * 8, transposed, most > INT16_MAX, (int32_t)slope,
                    (int32_t)limit, bias, multiplier, shift, NULL};
    int8_t *arranged = take(memory, ((uint64_t)outputs + GROUP - 1) / GROUP * GROUP * made->padded, wanted * wanted);
    made->weights = arranged;
    if (arranged)
        arrange(made, weights, side, arranged);
}

/* The integer h_s, from the medians of z on; the numbers before it are those of the header. */
static void read_network(source *from, arena *memory, uint32_t channels, uint32_t scales, nic_coder *made,
                         const uint32_t numbers[3]) {
    network *h_s = &made->network;
    uint32_t width = channels;
    int64_t limit = numbers[1];
    h_s->fraction = (int32_t)numbers[0];
    h_s->most = (int32_t)numbers[1];
    h_s->medians = numbers_of(from, channels, -MOST_MEDIAN, MOST_MEDIAN);
    const uint8_t *thresholds = numbers_of(from, (uint64_t)scales - 1, 0, INT32_MAX);
    from->bad = from->bad || scales > MOST_ROWS || numbers[0] > 10 || !limit || limit > MOST_ACTIVATION
                || numbers[2] != LAYERS || !rises(thresholds, scales - 1, 0);
    uint8_t *indexes = take(memory, 1 << 16, sizeof *indexes);
    for (uint32_t scale = 0, index = 0; indexes && scale < 1 << 16; scale++) {
        while (index + 1 < scales && at(thresholds, index) <= (int32_t)scale)
            index++;
        indexes[scale] = (uint8_t)index;
    }
    h_s->indexes = indexes;
    for (int i = 0; i < LAYERS; i++) {
        read_layer(from, memory, width, limit, i < 2, h_s->layers + i);
        width = h_s->layers[i].outputs;
        limit = h_s->layers[i].most;
    }
    h_s->has_means = made->info.architecture == 2;
    from->bad |= h_s->has_means && width % 2;
    made->info.channels = h_s->has_means ? width / 2 : width;
    made->info.z_channels = channels;
    float *medians = take(memory, made->info.channels, sizeof *medians);
    for (uint32_t i = 0; medians && i < made->info.channels; i++)
        medians[i] = 0;
    made->info.medians = medians;
}

/* Medians of y, which must be finite. */
static void read_medians(source *from, arena *memory, uint32_t channels, nic_coder *made) {
    const uint8_t *words = words_of(from, channels);
    float *medians = take(memory, channels, sizeof *medians);
    for (uint32_t i = 0; !from->bad && i < channels; i++) {
        uint32_t bits = word_at(words + 4 * (uint64_t)i);
        from->bad = (bits & 0x7f800000) == 0x7f800000;
        if (medians)
            memcpy(medians + i, &bits, sizeof bits);
    }
    made->info.channels = channels;
    made->info.medians = medians;
}

/* Exponents that fall from rate to rate, down to 0. */
static void read_gains(source *from, uint32_t rates, uint32_t channels, gains *made) {
    uint64_t count = (uint64_t)rates * channels;
    *made = (gains){numbers_of(from, count, 0, 12 * 256), channels};
    for (uint64_t i = 0; !from->bad && i < count; i++) {
        int last = i + channels >= count, own = at(made->exponents, i);
        from->bad = last ? own != 0 : own < at(made->exponents, i + channels);
    }
}

static void read_density(source *from, uint32_t channels, uint32_t points, density *made) {
    const uint8_t *first = numbers_of(from, channels, 1 - (int32_t)(points & INT32_MAX), 0);
    const uint8_t *shift = numbers_of(from, channels, 0, 28), *values = words_of(from, (uint64_t)channels * points);
    *made = (density){first, shift, values, channels, points};
    from->bad |= !channels || points < 2;
    for (uint32_t c = 0; !from->bad && c < channels; c++) {
        const uint8_t *own = values + 4 * (uint64_t)c * points;
        from->bad = at(own, 0) || at(own, points - 1) != 1 << 24 || !rises(own, points, 0);
    }
}

/* The fields of version 1 from the number of channels on. */
static void read_factorized(source *from, arena *memory, nic_coder *made) {
    uint32_t channels = word_of(from), longest = word_of(from);
    read_medians(from, memory, channels, made);
    read_rows(from, memory, channels, longest, &made->y);
}

/* The fields of version 2 from the architecture's number on. */
static void read_hyper(source *from, arena *memory, nic_coder *made) {
    uint32_t numbers[3];
    made->info.architecture = word_of(from);
    uint32_t channels = word_of(from), longest = word_of(from), scales = word_of(from), longest_y = word_of(from);
    for (int i = 0; i < 3; i++)
        numbers[i] = word_of(from);
    read_rows(from, memory, channels, longest, &made->z);
    read_rows(from, memory, scales, longest_y, &made->y);
    read_network(from, memory, channels, scales, made, numbers);
}

/* The fields of version 3 from the architecture's number on. */
static void read_rated(source *from, arena *memory, nic_coder *made) {
    made->info.architecture = word_of(from);
    uint32_t channels = word_of(from), rates = word_of(from), coded = word_of(from), points = word_of(from);
    uint32_t has_z = made->info.architecture != 0, numbers[5]; /* with z: rows of y, their length, those of h_s */
    for (uint32_t i = 0; i < 5; i++)
        numbers[i] = has_z ? word_of(from) : 0;
    for (uint32_t i = 0; i < 256; i++) {
        made->powers[i] = word_of(from);
        from->bad |= made->powers[i] != (uint32_t)(65536 * power_of_two(i) + 0.5);
    }
    from->bad |= rates < 2 || rates > 64 || (!has_z && coded != channels);
    read_gains(from, rates, channels, &made->y_gains);
    if (has_z)
        read_gains(from, rates, coded, &made->z_gains);
    read_density(from, coded, points, &made->density);
    made->info.most_rate = highest_rate(rates);
    if (has_z) {
        read_rows(from, memory, numbers[0], numbers[1], &made->y);
        read_network(from, memory, coded, numbers[0], made, numbers + 2);
    } else {
        read_medians(from, memory, channels, made);
    }
    from->bad |= made->info.channels != channels;
    if (!from->bad)
        count_intervals(made);
}

/* Checks tables, and reads them into memory or counts the memory that they take. */
static nic_status load(const uint8_t *data, size_t length, arena *memory, nic_coder **coder) {
    static void (*const readers[])(source *, arena *, nic_coder *) = {read_factorized, read_hyper, read_rated};
    nic_coder made = {0};
    if (length < 28 || memcmp(data, "NICT", 4))
        return NIC_NO_TABLES;
    uint32_t version = word_at(data + 4), architecture = version == 1 ? 0 : word_at(data + START + 8);
    if (version < 1 || version > 3 || word_at(data + START + 4) != 16)
        return NIC_NO_TABLES;
    crc_tables_of(&made.crc);
    if (crc32_of(&made.crc, 0, data + START, length - START) != word_at(data + 8))
        return NIC_BAD_TABLES;
    if (architecture > 2 || (version == 2 && !architecture))
        return NIC_NO_TABLES;
    nic_coder *place = take(memory, 1, sizeof *place);
    uint8_t *copy = take(memory, length, 1);
    source from = {data + START + 8, length - START - 8, 0};
    if (copy)
        from.data = (uint8_t *)memcpy(copy, data, length) + START + 8;
    made.info.fingerprint = word_at(data + START);
    readers[version - 1](&from, memory, &made);
    if (from.bad || from.left)
        return NIC_BAD_TABLES;
    made.info.unit = made.network.has_means || made.info.most_rate ? 1.0f / (1 << MEAN_BITS) : 1;
    if (coder) {
        *place = made;
        *coder = place;
    }
    return NIC_OK;
}

nic_status nic_memory(const void *tables, size_t length, size_t *bytes) {
    arena counts = arena_in(NULL);
    nic_status status = load(tables, length, &counts, NULL);
    *bytes = (size_t)counted(&counts);
    return status == NIC_OK && counted(&counts) > SIZE_MAX ? NIC_MEMORY : status;
}

nic_status nic_open(const void *tables, size_t length, void *memory, size_t bytes, nic_coder **coder) {
    size_t needed;
    arena from = arena_in(memory);
    nic_status status = nic_memory(tables, length, &needed);
    *coder = NULL;
    return status != NIC_OK ? status : needed > bytes ? NIC_MEMORY : load(tables, length, &from, coder);
}

nic_info nic_about(const nic_coder *coder) {
    return coder->info;
}
