/* What the files of the coder share. Not for callers. */
#ifndef NIC_INTERNAL_H
#define NIC_INTERNAL_H

#include "nic.h"

enum { LAYERS = 3, MOST_ROWS = 256, SIDE = 4, STRIDE = 16, MEAN_BITS = 6, MOST_MEDIAN = (1 << 30) - 1, GROUP = 4 };

/* gcc compiles such a function twice, in plain C both times; the program takes the one for its CPU when it starts. */
#if defined(__gnu_linux__) && defined(__x86_64__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define FOR_EACH_CPU __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

/* An interval of a CDF. A number n below count * 2^40 has the quotient 2 n * reciprocal >> 64 >> shift by count. */
typedef struct {
    uint64_t reciprocal;
    uint32_t low;   /* of 65536 */
    uint16_t count; /* of 65536 */
    uint8_t shift;
} interval;

/* The interval with which a search begins. */
typedef struct {
    uint16_t low, count, index;
} guess;

/* A row of CDF tables. */
typedef struct {
    const interval *intervals;
    const guess *guesses;   /* [256]: the interval that holds 256 times the index */
    int32_t offset;         /* symbol of the first interval */
    uint32_t last;          /* the interval of all symbols outside the table */
    uint32_t least;         /* bits of the most probable interval, in units of 2^-16; 0 if that is the first */
} model;

/* The rows of CDF tables. */
typedef struct {
    const model *each;
    uint32_t count;
} models;

/* A layer of the integer h_s (docs/rd.md). Vectors of a file stay its little-endian words; `at` reads them. */
typedef struct {
    uint32_t outputs, inputs, padded;           /* padded: inputs, up to whole eights */
    int transposed, wide;                       /* wide: inputs may have more than 16 bits */
    int32_t slope, most;
    const uint8_t *bias, *multiplier, *shift;   /* [outputs] */
    const int8_t *weights;  /* of each phase of rows and columns: [outputs, up to whole fours][rows][columns][padded] */
} layer;

typedef struct {
    layer layers[LAYERS];
    const uint8_t *medians;     /* [N] */
    int32_t fraction, most;
    const uint8_t *indexes;     /* [65536]: the row of a scale */
    int has_means;
} network;

/* For four bytes at once: of a byte with no, one, two and three bytes behind it. */
typedef struct {
    uint32_t of[4][256];
} crc_tables;

/* The gains of a latent: 2^(-exponent / 256), of each trained rate and channel. */
typedef struct {
    const uint8_t *exponents;   /* [rates][channels] */
    uint32_t channels;
} gains;

/* Cumulative densities: value j is that below (first + j) * 2^(shift - 16), in units of 2^-24. */
typedef struct {
    const uint8_t *first, *shift, *values;  /* [channels], [channels], [channels][points] */
    uint32_t channels, points;
} density;

struct nic_coder {
    nic_info info;
    models y, z;            /* with several rates those of a rate are in its scaling, but for y with a hyperprior */
    network network;
    crc_tables crc;
    gains y_gains, z_gains;
    density density;        /* of z with a hyperprior, else of y */
    uint32_t powers[256];   /* 2^(i / 256) in units of 2^-16 */
    uint64_t intervals;     /* of all channels at the highest rate */
};

/* Memory that is handed out piece by piece; with `base` NULL it only counts. */
typedef struct {
    uint8_t *base;
    uint64_t used;
} arena;

/* Memory from its first address that is a multiple of 64; what was counted, with room for that. */
arena arena_in(void *memory);
uint64_t counted(const arena *of);

/* The next count * size bytes, aligned to 64; NULL where the arena only counts. */
void *take(arena *from, uint64_t count, size_t size);

/* Rows and columns of a picture, of y and of z. */
typedef struct {
    uint32_t height, width, rows, columns, z_rows, z_columns;
} extent;

/* Rows and columns, [first, end). */
typedef struct {
    int32_t top, bottom, left, right;
} window;

/* What a rate makes of the tables; inverse, fixed and inverse_z are NULL in a codec of one rate. */
typedef struct {
    models coded;           /* of z with a hyperprior, else of y */
    uint32_t *inverse, *fixed, *inverse_z; /* gains of y, inverted and not, and inverted ones of z, in units of 2^-16 */
    model *models;
    guess *guesses;
    interval *intervals;
} scaling;

/* What h_s says of a piece of y, [M][rows][columns] of the window `place` in y. */
typedef struct {
    window place;
    uint8_t *indexes;
    int32_t *means;         /* NULL without means */
    uint32_t *order;        /* places in y, those of row 0 first */
    uint32_t ends[MOST_ROWS];
    int16_t *buffers[LAYERS], *weights;
    int32_t *z;             /* for the decoder: all of z */
    scaling at;
} piece;

/* Takes the buffers of a rate, or of a picture with a hyperprior, from work memory. */
void take_scaling(const nic_coder *coder, arena *work, scaling *of);
void take_piece(const nic_coder *coder, const extent *size, arena *work, piece *of);

/* Fills a scaling; 0 if the codec has no such rate. */
int set_rate(const nic_coder *coder, uint32_t rate, scaling *of);

/* Fills piece `number` of y from z [N][rows][columns], or only its place if z is NULL; 0 after the last piece. Without
 * a hyperprior all of y is one piece. */
int set_piece(const nic_coder *coder, const extent *size, uint32_t number, const int32_t *z, piece *of);

/* Symbols that are coded together. Symbol k lies at values[order[k]], or at values[k] where order is NULL. Those of
 * model r end at ends[r], or at (r + 1) * each where ends is NULL. */
typedef struct {
    models with;
    const uint32_t *order, *ends;
    uint32_t each;
} group;

/* An ANS stack that is written: a state, and below it words at bytes[0 .. 4 * words). */
typedef struct {
    uint64_t state;
    uint8_t *bytes;
    size_t words, room;     /* in words */
    int full;               /* more words came than there is room for; later ones are lost */
} writer;

/* An ANS stack that is read. */
typedef struct {
    uint64_t state;
    const uint8_t *bytes;
    size_t words;
} reader;

/* Pushes the symbols of a group. */
void push_group(writer *to, const group *of, const int32_t *values);

/* The stack of a payload. */
reader reader_of(const uint8_t *payload, size_t length);

/* Takes the symbols of a group off; 0 if one has more than 32 bits. */
int pop_group(reader *from, const group *of, int32_t *values);

/* A CDF of count + 2 entries from 0 to 65536: words of a file, or with `cdf` NULL a density at a rate. */
typedef struct {
    const uint8_t *cdf, *samples;
    int64_t count, lowest;          /* lowest: the symbol of the first interval */
    int64_t start, end, inverse, below; /* start, end: of the samples, in units of 2^-17 */
    int shift;
} row;

/* Makes a model of a CDF; without intervals and guesses if they are NULL. */
void fill(model *made, interval *intervals, guess *guesses, const row *of);

/* A lower bound of the bytes of a payload of this many positions; 0 if its densities give too many symbols. */
int fewest_bytes(const nic_coder *coder, uint32_t rate, uint64_t positions, uint64_t *bytes);

/* 2^(part / 256) for part 0 to 255; the number of the highest of these trained rates; the gain of a channel. */
double power_of_two(uint32_t part);
uint32_t highest_rate(uint32_t rates);
float gain_at(const nic_coder *coder, const gains *of, uint32_t rate, uint32_t channel);

/* Counts the intervals of the densities at the highest rate. */
void count_intervals(nic_coder *coder);

void crc_tables_of(crc_tables *made);
uint32_t crc32_of(const crc_tables *tables, uint32_t before, const uint8_t *data, size_t length);

static inline uint32_t word_at(const uint8_t *data) {
    return (uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
}

static inline void put_word(uint8_t *data, uint32_t word) {
    for (int i = 0; i < 4; i++)
        data[i] = (uint8_t)(word >> 8 * i);
}

/* The word in two's complement. */
static inline int32_t signed_of(uint32_t word) {
    return word < 0x80000000u ? (int32_t)word : (int32_t)(word - 0x80000000u) - 0x7fffffff - 1;
}

static inline int32_t at(const uint8_t *words, uint64_t index) {
    return signed_of(word_at(words + 4 * index));
}

/* value / 2^shift, rounded down. */
static inline int64_t floored(int64_t value, int shift) {
    return value < 0 ? ~(~value >> shift) : value >> shift;
}

static inline int64_t limited(int64_t value, int64_t least, int64_t most) {
    return value < least ? least : value > most ? most : value;
}

#endif
