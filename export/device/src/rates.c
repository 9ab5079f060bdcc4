/* Codecs of several rates: the gains and the CDFs of a rate. The counterpart of codec/bitstream/gains.py and density.py. */
#include <string.h>

#include "internal.h"

enum { STEPS = 64, OCTAVE = 256, DENSITY_BITS = 24, MOST_SYMBOLS = 1 << 14, ONE = 1 << 16 };

double power_of_two(uint32_t part) {
    /* 2^(1/256), 2^(1/128), .. 2^(1/2) */
    static const double roots[8] = {1.0027112750502025, 1.0054299011128027, 1.0108892860517005, 1.0218971486541166,
                                    1.0442737824274138, 1.0905077326652577, 1.189207115002721,  1.4142135623730951};
    double found = 1;
    for (int bit = 0; bit < 8; bit++)
        found *= part >> bit & 1 ? roots[bit] : 1;
    return found;
}

uint32_t highest_rate(uint32_t rates) {
    return STEPS * (rates - 1);
}

/* Between trained rates the exponents are interpolated. */
static uint32_t exponent_at(const gains *of, uint32_t rate, uint32_t channel) {
    uint32_t lower = rate / STEPS, part = rate % STEPS, upper = part ? lower + 1 : lower;
    uint32_t below = (uint32_t)of->exponents[(size_t)lower * of->channels + channel];
    uint32_t above = (uint32_t)of->exponents[(size_t)upper * of->channels + channel];
    return (below * (STEPS - part) + above * part + STEPS / 2) / STEPS;
}

float gain_at(const gains *of, uint32_t rate, uint32_t channel) {
    uint32_t exponent = exponent_at(of, rate, channel), whole = (exponent + OCTAVE - 1) / OCTAVE;
    return (float)(power_of_two(whole * OCTAVE - exponent) / (1u << whole));
}

/* A gain and its inverse in units of 2^-16. */
static uint32_t fixed_at(const nic_coder *coder, const gains *of, uint32_t rate, uint32_t channel) {
    uint32_t exponent = exponent_at(of, rate, channel), whole = (exponent + OCTAVE - 1) / OCTAVE;
    return (coder->powers[whole * OCTAVE - exponent] + (1u << whole >> 1)) >> whole;
}

static uint32_t inverse_at(const nic_coder *coder, const gains *of, uint32_t rate, uint32_t channel) {
    uint32_t exponent = exponent_at(of, rate, channel);
    return coder->powers[exponent % OCTAVE] << exponent / OCTAVE;
}

/* The CDF of a channel at a rate. */
typedef struct {
    const int32_t *values;
    int64_t start, end, lowest, count, inverse, below; /* start, end: of the samples, in units of 2^-17 */
    int shift;
} row;

/* The density below a place in units of 2^-17, interpolated between the samples. */
static int64_t density_at(const row *of, int64_t place) {
    int64_t inside = limited(place, of->start, of->end) - of->start;
    int64_t lower = limited(inside >> of->shift, 0, ((of->end - of->start) >> of->shift) - 1);
    int64_t part = inside - (lower << of->shift);
    return of->values[lower] + ((int64_t)(of->values[lower + 1] - of->values[lower]) * part >> of->shift);
}

static int64_t bound_of(const row *of, int64_t i) {
    return (2 * (of->lowest + i) - 1) * of->inverse;
}

static row row_at(const density *of, uint32_t channel, int64_t inverse) {
    row made = {of->values + (size_t)channel * of->points, 0, 0, 0, 0, inverse, 0, of->shift[channel] + 1};
    made.start = of->first[channel] * ((int64_t)1 << made.shift);
    made.end = made.start + ((int64_t)(of->points - 1) << made.shift);
    made.lowest = -((inverse - made.start) / (2 * inverse)); /* start is not above 0, end not below */
    made.count = (made.end + inverse) / (2 * inverse) - made.lowest + 1;
    if (made.count <= MOST_SYMBOLS)
        made.below = density_at(&made, bound_of(&made, 0));
    return made;
}

/* Entry i of the CDF: 0 to count; the last interval is up to 65536. */
static uint32_t entry_of(const row *of, int64_t i) {
    int64_t share = ONE - of->count - 1;
    return i > of->count ? ONE : (uint32_t)(i + ((density_at(of, bound_of(of, i)) - of->below) * share >> DENSITY_BITS));
}

/* The gains of the latent whose densities are learned. */
static const gains *of_density(const nic_coder *coder) {
    return coder->info.architecture ? &coder->z_gains : &coder->y_gains;
}

void count_intervals(nic_coder *coder) {
    for (uint32_t channel = 0; channel < coder->density.channels; channel++) {
        uint64_t count = (uint64_t)limited(row_at(&coder->density, channel, ONE).count, 0, MOST_SYMBOLS) + 1;
        coder->intervals += count; /* lower rates have fewer */
        coder->longest = count > coder->longest ? (uint32_t)count : coder->longest;
    }
}

void take_scaling(const nic_coder *coder, arena *work, scaling *of) {
    memset(of, 0, sizeof *of);
    of->coded = coder->info.architecture ? coder->z : coder->y;
    if (!coder->info.most_rate)
        return;
    of->inverse = take(work, coder->info.channels, sizeof *of->inverse);
    of->fixed = take(work, coder->info.channels, sizeof *of->fixed);
    of->inverse_z = take(work, coder->info.z_channels, sizeof *of->inverse_z);
    of->models = take(work, coder->density.channels, sizeof *of->models);
    of->guesses = take(work, coder->density.channels, 256 * sizeof *of->guesses);
    of->intervals = take(work, coder->intervals, sizeof *of->intervals);
    of->cdf = take(work, coder->longest + 1, 4);
}

int set_rate(const nic_coder *coder, uint32_t rate, scaling *of) {
    interval *intervals = of->intervals;
    if (rate > coder->info.most_rate)
        return 0;
    if (!coder->info.most_rate)
        return 1;
    for (uint32_t channel = 0; channel < coder->info.channels; channel++) {
        of->inverse[channel] = inverse_at(coder, &coder->y_gains, rate, channel);
        of->fixed[channel] = fixed_at(coder, &coder->y_gains, rate, channel);
    }
    for (uint32_t channel = 0; channel < coder->info.z_channels; channel++)
        of->inverse_z[channel] = inverse_at(coder, &coder->z_gains, rate, channel);
    for (uint32_t channel = 0; channel < coder->density.channels; channel++) {
        row made = row_at(&coder->density, channel, inverse_at(coder, of_density(coder), rate, channel));
        if (made.count > MOST_SYMBOLS)
            return 0;
        uint32_t n = (uint32_t)made.count + 2;
        for (uint32_t i = 0; i < n; i++)
            put_word(of->cdf + 4 * (size_t)i, entry_of(&made, i));
        fill(of->models + channel, intervals, of->guesses + (size_t)channel * 256, of->cdf, n, (int32_t)made.lowest);
        intervals += n - 1;
    }
    of->coded.each = of->models;
    of->coded.count = coder->density.channels;
    return 1;
}

int fewest_at(const nic_coder *coder, uint32_t rate, uint64_t positions, uint64_t *bytes) {
    fewest sum = {0, 0, 0};
    for (uint32_t channel = 0; channel < coder->density.channels; channel++) {
        row made = row_at(&coder->density, channel, inverse_at(coder, of_density(coder), rate, channel));
        uint32_t most = 0, likely = 0, low = 0;
        if (made.count > MOST_SYMBOLS)
            return 0;
        for (uint32_t i = 0; i <= made.count; i++) {
            uint32_t next = entry_of(&made, i + 1);
            if (next - low > most) {
                most = next - low;
                likely = i < made.count ? i : likely;
            }
            low = next;
        }
        add_least(&sum, likely ? least_bits(most) : 0);
    }
    *bytes = fewest_of(sum, positions);
    return 1;
}
