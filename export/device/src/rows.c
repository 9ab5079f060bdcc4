/* Symbols on an ANS stack, coded with the rows of CDF tables: the counterpart of codec/bitstream/rows.py. */
#include "internal.h"

enum { MOST_NIBBLES = 9 };

static inline uint64_t quotient(uint64_t twice, interval of) {
#if defined(__SIZEOF_INT128__) && !defined(__wasm__) /* which divides faster than it multiplies so wide */
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)((wide)twice * of.reciprocal >> 64) >> of.shift;
#else
    return (twice >> 1) / of.count;
#endif
}

static inline void put(writer *to, uint32_t word) {
    if (to->words == to->room) {
        to->full = 1;
        return;
    }
    put_word(to->bytes + 4 * to->words++, word);
}

/* Pushes values[start .. end) or, with an order, those at its places.
 *
 * A push makes state = (quotient << 24) + low + remainder, in numbers of 24 bits. Those of the tables are multiples of
 * 256, so the state's lowest byte does not change; the loop keeps twice the other bytes. */
static inline void push_all(writer *to, const model *with, const int32_t *values, const uint32_t *order, uint32_t start,
                            uint32_t end) {
    uint64_t twice = to->state >> 8 << 1, lowest = to->state & 255;
    for (uint32_t k = end; k-- > start;) {
        uint32_t found = (uint32_t)values[order ? order[k] : k] - (uint32_t)with->offset;
        interval of = with->intervals[found < with->last ? found : with->last];
        if (twice >> 41 >= of.count) {
            uint64_t state = twice << 7 | lowest;
            put(to, (uint32_t)state);
            twice = state >> 40 << 1;
            lowest = state >> 32 & 255;
        }
        twice = twice + 2 * of.low + quotient(twice, of) * (2 * (65536u - of.count));
    }
    to->state = twice << 7 | lowest;
}

static void push_nibble(writer *to, uint32_t nibble) {
    if (to->state >> 60) {
        put(to, (uint32_t)to->state);
        to->state >>= 32;
    }
    to->state = to->state >> 20 << 24 | (uint64_t)nibble << 20 | (to->state & 0xfffff);
}

static inline void refill(reader *from) {
    if (from->state >> 32 == 0 && from->words)
        from->state = from->state << 32 | word_at(from->bytes + 4 * --from->words);
}

/* Takes intervals off into values[start .. end) or, with an order, into those at its places; returns how many of them
 * are the last interval. */
static inline uint32_t pop_all(reader *from, const model *with, int32_t *values, const uint32_t *order, uint32_t start,
                               uint32_t end) {
    reader own = *from; /* nothing else knows it, so it stays in registers */
    uint32_t outside = 0;
    for (uint32_t k = start; k < end; k++) {
        uint32_t low = (uint32_t)own.state & 0xffffff, slot = low >> 8;
        guess of = with->guesses[slot >> 8];
        uint32_t first = of.low, count = of.count, found = of.index;
        while (slot - first >= count) {
            first += count;
            count = with->intervals[++found].count;
        }
        own.state = (own.state >> 24) * (count << 8) + (low - (first << 8));
        refill(&own);
        outside += found == with->last;
        values[order ? order[k] : k] = (int32_t)found;
    }
    *from = own;
    return outside;
}

static uint32_t pop_nibble(reader *from) {
    uint32_t low = (uint32_t)from->state & 0xffffff;
    from->state = (from->state >> 24 << 20) + (low & 0xfffff);
    refill(from);
    return low >> 20;
}

reader reader_of(const uint8_t *payload, size_t length) {
    reader found = {0, payload, length / 4};
    for (size_t i = length; i > length / 4 * 4; i--)
        found.state = found.state << 8 | payload[i - 1];
    refill(&found);
    refill(&found);
    return found;
}

static inline uint32_t end_of(const group *of, uint32_t number) {
    return of->ends ? of->ends[number] : (number + 1) * of->each;
}

static inline uint32_t start_of(const group *of, uint32_t number) {
    return number ? end_of(of, number - 1) : 0;
}

static inline uint32_t place_of(const group *of, uint32_t k) {
    return of->order ? of->order[k] : k;
}

/* The number that stands for a symbol outside its table. */
static uint64_t distance_of(int32_t symbol, const model *of) {
    int64_t beyond = (int64_t)symbol - of->offset;
    return beyond < 0 ? (uint64_t)(-2 * beyond - 1) : (uint64_t)(2 * (beyond - of->last));
}

static uint32_t nibbles_of(uint64_t distance) {
    uint32_t used = 0;
    for (; distance; distance >>= 4)
        used++;
    return used;
}

/* Whether a symbol is outside the table. */
static inline int has_outside(const model *with, const int32_t *values, const uint32_t *order, uint32_t start,
                              uint32_t end) {
    uint32_t outside = 0, offset = (uint32_t)with->offset, last = with->last;
    for (uint32_t k = start; k < end; k++)
        outside |= (uint32_t)values[order ? order[k] : k] - offset >= last;
    return outside != 0;
}

/* Of each symbol outside its table the nibbles, or the number of its nibbles; the last symbol first. */
static void push_outside(writer *to, const group *of, const int32_t *values, int lengths) {
    for (uint32_t number = of->with.count; number-- > 0;) {
        const model *with = of->with.each + number;
        uint32_t start = start_of(of, number), end = end_of(of, number);
        if (of->order ? !has_outside(with, values, of->order, start, end) : !has_outside(with, values, NULL, start, end))
            continue;
        for (uint32_t k = end; k-- > start;) {
            int32_t symbol = values[place_of(of, k)];
            if ((uint32_t)symbol - (uint32_t)with->offset < with->last)
                continue;
            uint64_t distance = distance_of(symbol, with);
            uint32_t used = nibbles_of(distance);
            if (lengths)
                push_nibble(to, used);
            else
                while (used-- > 0)
                    push_nibble(to, distance >> 4 * used & 15);
        }
    }
}

void push_group(writer *to, const group *of, const int32_t *values) {
    for (int lengths = 0; lengths < 2; lengths++)
        push_outside(to, of, values, lengths);
    for (uint32_t number = of->with.count; number-- > 0;) {
        const model *with = of->with.each + number;
        uint32_t start = start_of(of, number), end = end_of(of, number);
        if (of->order)
            push_all(to, with, values, of->order, start, end);
        else
            push_all(to, with, values, NULL, start, end);
    }
}

/* Reads the distance of a symbol outside its table from the table; 0 if the symbol has more than 32 bits. */
static int pop_distance(reader *from, uint32_t used, const model *of, int32_t *symbol) {
    uint64_t distance = 0;
    for (uint32_t i = 0; i < used; i++)
        distance |= (uint64_t)pop_nibble(from) << 4 * i;
    int64_t half = (int64_t)(distance >> 1);
    int64_t found = distance & 1 ? (int64_t)of->offset - 1 - half : (int64_t)of->offset + of->last + half;
    *symbol = (int32_t)limited(found, INT32_MIN, INT32_MAX);
    return *symbol == found;
}

/* Values are first intervals; of a symbol outside its table, then the last interval plus its number of nibbles. */
int pop_group(reader *from, const group *of, int32_t *values) {
    uint32_t outside = 0;
    for (uint32_t number = 0; number < of->with.count; number++) {
        const model *with = of->with.each + number;
        uint32_t start = start_of(of, number), end = end_of(of, number);
        outside += of->order ? pop_all(from, with, values, of->order, start, end)
                             : pop_all(from, with, values, NULL, start, end);
    }
    for (uint32_t number = 0; outside && number < of->with.count; number++) {
        const model *with = of->with.each + number;
        for (uint32_t k = start_of(of, number), end = end_of(of, number); k < end; k++) {
            int32_t *value = values + place_of(of, k);
            if ((uint32_t)*value < with->last)
                continue;
            uint32_t used = pop_nibble(from);
            if (used > MOST_NIBBLES)
                return 0;
            *value += (int32_t)used;
        }
    }
    for (uint32_t number = 0; number < of->with.count; number++) {
        const model *with = of->with.each + number;
        for (uint32_t k = start_of(of, number), end = end_of(of, number); k < end; k++) {
            int32_t *value = values + place_of(of, k);
            uint32_t found = (uint32_t)*value;
            if (found < with->last)
                *value = signed_of(found + (uint32_t)with->offset);
            else if (!pop_distance(from, found - with->last, with, value))
                return 0;
        }
    }
    return 1;
}

void add_least(fewest *to, uint32_t least) {
    to->sum += least;
    to->last = least ? least : to->last;
    to->most = least > to->most ? least : to->most;
}

uint64_t fewest_of(fewest of, uint64_t positions) {
    /* As RowCoder.fewest_bytes says; here rounded down. */
    uint64_t bits = positions * (of.sum - of.last) >> 16;
    bits = bits > of.most ? (bits - of.most) * 99 / 100 : 0;
    return bits > 64 ? (bits - 64) / 8 : 0;
}

uint64_t fewest_bytes(models of, uint64_t positions) {
    fewest sum = {0, 0, 0};
    for (uint32_t number = 0; number < of.count; number++)
        add_least(&sum, of.each[number].least);
    return fewest_of(sum, positions);
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
