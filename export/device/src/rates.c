/* Models of CDFs, and codecs of several rates: the gains and the CDFs of a rate. The counterpart of
 * codec/bitstream/gains.py and density.py. */
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
    uint32_t below = (uint32_t)at(of->exponents, (uint64_t)lower * of->channels + channel);
    uint32_t above = (uint32_t)at(of->exponents, (uint64_t)upper * of->channels + channel);
    return (below * (STEPS - part) + above * part + STEPS / 2) / STEPS;
}

float gain_at(const nic_coder *coder, const gains *of, uint32_t rate, uint32_t channel) {
    uint32_t exponent = coder->info.most_rate ? exponent_at(of, rate, channel) : 0;
    uint32_t whole = (exponent + OCTAVE - 1) / OCTAVE;
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

/* The density below a place in units of 2^-17, interpolated between the samples. */
static int64_t density_at(const row *of, int64_t place) {
    int64_t inside = limited(place, of->start, of->end) - of->start;
    int64_t lower = limited(inside >> of->shift, 0, ((of->end - of->start) >> of->shift) - 1);
    int64_t part = inside - lower * ((int64_t)1 << of->shift), below = at(of->samples, (uint64_t)lower);
    return below + ((at(of->samples, (uint64_t)lower + 1) - below) * part >> of->shift);
}

static int64_t bound_of(const row *of, int64_t i) {
    return (2 * (of->lowest + i) - 1) * of->inverse;
}

static row row_at(const density *of, uint32_t channel, int64_t inverse) {
    row made = {.samples = of->values + 4 * (uint64_t)channel * of->points, .inverse = inverse};
    made.shift = at(of->shift, channel) + 1;
    made.start = at(of->first, channel) * ((int64_t)1 << made.shift);
    made.end = made.start + ((int64_t)(of->points - 1) << made.shift);
    made.lowest = -((inverse - made.start) / (2 * inverse)); /* start is not above 0, end not below */
    made.count = (made.end + inverse) / (2 * inverse) - made.lowest + 1;
    if (made.count <= MOST_SYMBOLS)
        made.below = density_at(&made, bound_of(&made, 0));
    return made;
}

/* Entry i of a CDF. */
static uint32_t entry_of(const row *of, int64_t i) {
    if (of->cdf)
        return (uint32_t)at(of->cdf, (uint64_t)i);
    if (i > of->count)
        return ONE;
    int64_t share = ONE - of->count - 1;
    return (uint32_t)(i + ((density_at(of, bound_of(of, i)) - of->below) * share >> DENSITY_BITS));
}

/* Bits of an interval of this count of 65536, in units of 2^-16, rounded down. */
static uint32_t least_bits(uint32_t count) {
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

void fill(model *made, interval *intervals, guess *guesses, const row *of) {
    uint32_t most = 0, likely = 0, next = 0, low = 0, last = (uint32_t)of->count;
    for (uint32_t i = 0; i <= last; i++) {
        uint32_t end = entry_of(of, (int64_t)i + 1), count = end - low;
        if (count > most) {
            most = count;
            likely = i < last ? i : likely;
        }
        if (intervals)
            intervals[i] = interval_from(low, count);
        for (; guesses && next < 256 && next << 8 < end; next++)
            guesses[next] = (guess){(uint16_t)low, (uint16_t)count, (uint16_t)i};
        low = end;
    }
    *made = (model){intervals, guesses, (int32_t)of->lowest, last, likely ? least_bits(most) : 0};
}

/* Makes the model of a channel of the latent whose densities are learned; 0 if it has too many symbols. */
static int fill_at(const nic_coder *coder, uint32_t rate, uint32_t channel, model *made, interval *intervals,
                   guess *guesses) {
    const gains *of = coder->info.architecture ? &coder->z_gains : &coder->y_gains;
    row found = row_at(&coder->density, channel, inverse_at(coder, of, rate, channel));
    if (found.count > MOST_SYMBOLS)
        return 0;
    fill(made, intervals, guesses, &found);
    return 1;
}

void count_intervals(nic_coder *coder) {
    for (uint32_t channel = 0; channel < coder->density.channels; channel++) /* lower rates have fewer */
        coder->intervals += (uint64_t)limited(row_at(&coder->density, channel, ONE).count, 0, MOST_SYMBOLS) + 1;
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
    of->coded = (models){of->models, coder->density.channels};
}

int set_rate(const nic_coder *coder, uint32_t rate, scaling *of) {
    interval *intervals = of->intervals;
    if (rate > coder->info.most_rate || !coder->info.most_rate)
        return !rate;
    for (uint32_t channel = 0; channel < coder->info.channels; channel++) {
        of->inverse[channel] = inverse_at(coder, &coder->y_gains, rate, channel);
        of->fixed[channel] = fixed_at(coder, &coder->y_gains, rate, channel);
    }
    for (uint32_t channel = 0; channel < coder->info.z_channels; channel++)
        of->inverse_z[channel] = inverse_at(coder, &coder->z_gains, rate, channel);
    for (uint32_t channel = 0; channel < coder->density.channels; channel++) {
        model *made = of->models + channel;
        if (!fill_at(coder, rate, channel, made, intervals, of->guesses + (size_t)channel * 256))
            return 0;
        intervals += made->last + 1;
    }
    return 1;
}

int fewest_bytes(const nic_coder *coder, uint32_t rate, uint64_t positions, uint64_t *bytes) {
    const models *coded = coder->info.architecture ? &coder->z : &coder->y;
    uint64_t sum = 0, last = 0, most = 0;
    uint32_t count = coder->info.most_rate ? coder->density.channels : coded->count;
    for (uint32_t channel = 0; channel < count; channel++) {
        model own;
        if (!coder->info.most_rate)
            own = coded->each[channel];
        else if (!fill_at(coder, rate, channel, &own, NULL, NULL))
            return 0;
        sum += own.least;
        last = own.least ? own.least : last;
        most = own.least > most ? own.least : most;
    }
    /* As RowCoder.fewest_bytes says; here rounded down. */
    uint64_t bits = positions * (sum - last) >> 16;
    bits = bits > most ? (bits - most) * 99 / 100 : 0;
    *bytes = bits > 64 ? (bits - 64) / 8 : 0;
    return 1;
}
