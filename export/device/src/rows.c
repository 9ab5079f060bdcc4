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
    if (to->words == to->room)
        to->full = 1;
    else
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

/* Takes symbols off into values[start .. end) or, with an order, into those at its places; returns how many of them
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
        values[order ? order[k] : k] = signed_of(found + (uint32_t)with->offset);
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

static inline size_t place_of(const group *of, uint32_t k) {
    return of->order ? of->order[k] : k;
}

/* The interval of a symbol if its table went on; at least `last` if it is outside. */
static inline uint32_t interval_of(const model *with, int32_t symbol) {
    return (uint32_t)symbol - (uint32_t)with->offset;
}

/* Whether one of the symbols of a model is outside its table. It reads backwards, as pushing does. */
FOR_EACH_CPU static int has_outside(const group *of, uint32_t number, const int32_t *values) {
    const model with = of->with.each[number];
    uint32_t outside = 0, end = end_of(of, number);
    if (of->order)
        for (uint32_t k = start_of(of, number); k < end; k++)
            outside |= interval_of(&with, values[of->order[k]]) >= with.last;
    else
        for (uint32_t k = end, start = start_of(of, number); k-- > start;)
            outside |= interval_of(&with, values[k]) >= with.last;
    return outside != 0;
}

/* Pushes the number that stands for a symbol outside its table, in nibbles, or the number of these nibbles. */
static void push_distance(writer *to, const model *with, int32_t symbol, int lengths) {
    int64_t beyond = (int64_t)symbol - with->offset;
    uint64_t distance = beyond < 0 ? (uint64_t)(-2 * beyond - 1) : (uint64_t)(2 * (beyond - with->last));
    uint32_t used = 0;
    while (distance >> 4 * used)
        used++;
    if (lengths)
        push_nibble(to, used);
    while (!lengths && used-- > 0)
        push_nibble(to, distance >> 4 * used & 15);
}

/* Pushes what follows the intervals of a group, the last symbol first; returns whether there is any. */
static int push_outside(writer *to, const group *of, const int32_t *values, int lengths) {
    int any = 0;
    for (uint32_t number = of->with.count; number-- > 0;) {
        const model *with = of->with.each + number;
        if (!has_outside(of, number, values))
            continue;
        any = 1;
        for (uint32_t k = end_of(of, number), start = start_of(of, number); k-- > start;)
            if (interval_of(with, values[place_of(of, k)]) >= with->last)
                push_distance(to, with, values[place_of(of, k)], lengths);
    }
    return any;
}

void push_group(writer *to, const group *of, const int32_t *values) {
    if (push_outside(to, of, values, 0))
        push_outside(to, of, values, 1);
    for (uint32_t number = of->with.count; number-- > 0;) {
        const model *with = of->with.each + number;
        if (of->order)
            push_all(to, with, values, of->order, start_of(of, number), end_of(of, number));
        else
            push_all(to, with, values, NULL, start_of(of, number), end_of(of, number));
    }
}

/* Of a symbol outside its table: the first time adds its number of nibbles, then reads these; 0 if there are too many
 * or the symbol has more than 32 bits. */
static int pop_distance(reader *from, const model *with, int32_t *symbol, int lengths) {
    uint32_t used = lengths ? pop_nibble(from) : interval_of(with, *symbol) - with->last;
    uint64_t distance = 0;
    if (lengths) {
        *symbol = signed_of((uint32_t)*symbol + used);
        return used <= MOST_NIBBLES;
    }
    for (uint32_t i = 0; i < used; i++)
        distance |= (uint64_t)pop_nibble(from) << 4 * i;
    int64_t half = (int64_t)(distance >> 1);
    int64_t found = distance & 1 ? (int64_t)with->offset - 1 - half : (int64_t)with->offset + with->last + half;
    *symbol = (int32_t)limited(found, INT32_MIN, INT32_MAX);
    return *symbol == found;
}

int pop_group(reader *from, const group *of, int32_t *values) {
    uint32_t outside = 0;
    for (uint32_t number = 0; number < of->with.count; number++) {
        const model *with = of->with.each + number;
        uint32_t start = start_of(of, number), end = end_of(of, number);
        outside += of->order ? pop_all(from, with, values, of->order, start, end)
                             : pop_all(from, with, values, NULL, start, end);
    }
    for (int lengths = 1; outside && lengths >= 0; lengths--)
        for (uint32_t number = 0; number < of->with.count; number++) {
            const model *with = of->with.each + number;
            if (!has_outside(of, number, values))
                continue;
            for (uint32_t k = start_of(of, number), end = end_of(of, number); k < end; k++) {
                int32_t *value = values + place_of(of, k);
                if (interval_of(with, *value) >= with->last && !pop_distance(from, with, value, lengths))
                    return 0;
            }
        }
    return 1;
}
