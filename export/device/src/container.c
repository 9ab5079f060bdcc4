/* Files: the header and the payload. The counterpart of codec/bitstream/container.py and hyper_coder.py. */
#include <string.h>

#include "internal.h"

enum { HEADER = 12, MOST_POSITIONS = 1 << 20, MOST_PIXELS = 178956970, MOST_SYMBOL = (1 << 24) - 1, MOST_VALUE = 1 << 30 };

const char *nic_message(nic_status status) {
    static const char *const messages[] = {
        "no error",
        "no entropy tables of a version that this program reads; give the file that the export wrote beside the model",
        "damaged entropy tables; export the model again",
        "no compressed picture of a version that this program reads; give a file that codec.compress wrote",
        "it is truncated or altered: the checksum does not match; fetch it again",
        "it was written with another codec; give the tables of the codec that it was written with",
        "a picture without pixels, or larger than a file may hold",
        "its symbols do not fit its bytes",
        "values that are not finite or too large; use a codec whose training has not diverged",
        "symbols that are too large; use a codec whose training has not diverged",
        "the memory that was given is too small",
        "the codec does not have this rate",
    };
    return (unsigned)status < sizeof messages / sizeof *messages ? messages[status] : "unknown status";
}

/* Rows and columns of y, and the work memory; NIC_SIZE for a size that no file holds. */
static nic_status measure(const nic_coder *coder, uint64_t height, uint64_t width, uint32_t size[2], arena *work,
                          piece *of) {
    if (!height || !width || height > MOST_PIXELS || width > MOST_PIXELS || height * width > MOST_PIXELS)
        return NIC_SIZE;
    uint64_t rows = (height + STRIDE - 1) / STRIDE, columns = (width + STRIDE - 1) / STRIDE;
    if (rows * columns > MOST_POSITIONS)
        return NIC_SIZE;
    if (rows * columns * coder->info.channels >> 32) /* places have 32 bits */
        return NIC_MEMORY;
    size[0] = (uint32_t)rows;
    size[1] = (uint32_t)columns;
    if (work)
        take_scaling(coder, work, &of->at);
    if (work && coder->info.architecture)
        take_piece(coder, size[0], size[1], work, of);
    return work && work->used > work->size ? NIC_MEMORY : NIC_OK;
}

nic_status nic_work(const nic_coder *coder, uint32_t height, uint32_t width, size_t *bytes) {
    arena counted = {NULL, 0, UINT64_MAX};
    uint32_t size[2];
    piece unused;
    nic_status status = measure(coder, height, width, size, &counted, &unused);
    *bytes = (size_t)counted.used;
    return status == NIC_OK && counted.used > SIZE_MAX ? NIC_MEMORY : status;
}

static uint32_t positions_of_z(const uint32_t size[2]) {
    return ((size[0] + SIDE - 1) / SIDE) * ((size[1] + SIDE - 1) / SIDE);
}

/* Whether a payload of this length can hold the symbols. */
static int is_enough(const nic_coder *coder, uint32_t rate, const uint32_t size[2], size_t length) {
    uint64_t positions = coder->info.architecture ? positions_of_z(size) : (uint64_t)size[0] * size[1], least;
    if (!coder->info.most_rate)
        return length >= fewest_bytes(coder->info.architecture ? coder->z : coder->y, positions);
    return fewest_at(coder, rate, positions, &least) && length >= least;
}

/* The version of the files of a codec. */
static uint8_t version_of(const nic_coder *coder) {
    return coder->info.most_rate ? 3 : coder->info.architecture ? 2 : 1;
}

static size_t put_varint(uint8_t *to, uint32_t number) {
    size_t used = 0;
    for (; number > 127; number >>= 7)
        to[used++] = (uint8_t)(number | 128);
    to[used++] = (uint8_t)number;
    return used;
}

/* A number of at most five bytes; returns where it ends, or 0. */
static size_t read_varint(const uint8_t *data, size_t start, size_t length, uint64_t *number) {
    *number = 0;
    for (size_t i = start; i < length && i < start + 5; i++) {
        *number |= (uint64_t)(data[i] & 127) << 7 * (i - start);
        if (data[i] < 128)
            return i + 1;
    }
    return 0;
}

/* Reads the header; gives height and width of the picture and the rate, the size of y, and where the payload starts. */
static nic_status read_header(const nic_coder *coder, const uint8_t *data, size_t length, uint64_t picture[3],
                              uint32_t size[2], size_t *start) {
    if (length < HEADER || memcmp(data, "NIC", 3) || data[3] < 1 || data[3] > 3)
        return NIC_NO_FILE;
    if (crc32_of(&coder->crc, crc32_of(&coder->crc, 0, data, 8), data + HEADER, length - HEADER) != word_at(data + 8))
        return NIC_CHECKSUM;
    if (word_at(data + 4) != coder->info.fingerprint)
        return NIC_OTHER_CODEC;
    uint8_t version = version_of(coder);
    if (data[3] != version || (version > 1 && (length == HEADER || data[HEADER] != coder->info.architecture)))
        return NIC_BAD_FILE;
    *start = HEADER + (version > 1);
    picture[2] = 0;
    for (int i = version == 3 ? 2 : 1; i >= 0; i--) { /* the rate, the width, the height */
        size_t end = read_varint(data, *start, length, picture + i);
        if (!end)
            return NIC_BAD_FILE;
        *start = end;
    }
    if (picture[2] > coder->info.most_rate)
        return NIC_BAD_FILE;
    nic_status status = measure(coder, picture[0], picture[1], size, NULL, NULL);
    return status == NIC_OK && !is_enough(coder, (uint32_t)picture[2], size, length - *start) ? NIC_BAD_FILE : status;
}

nic_status nic_size(const nic_coder *coder, const void *file, size_t length, uint32_t *height, uint32_t *width) {
    uint64_t picture[3] = {0, 0, 0};
    uint32_t size[2];
    size_t start;
    nic_status status = read_header(coder, file, length, picture, size, &start);
    *height = status == NIC_OK ? (uint32_t)picture[0] : 0;
    *width = status == NIC_OK ? (uint32_t)picture[1] : 0;
    return status;
}

static group of_all(models all, uint32_t each) {
    group made = {all, NULL, NULL, each};
    return made;
}

static group of_piece(const nic_coder *coder, const piece *of) {
    group made = {coder->y, of->order, of->ends, 0};
    return made;
}

/* A run is a row of a piece in one channel: its values lie side by side. */
static uint32_t runs_of(const nic_coder *coder, const piece *of) {
    return coder->info.channels * (uint32_t)(of->place.bottom - of->place.top);
}

static uint32_t length_of_runs(const piece *of) {
    return (uint32_t)(of->place.right - of->place.left);
}

static window whole_of(const uint32_t size[2]) {
    window made = {0, (int32_t)size[0], 0, (int32_t)size[1]};
    return made;
}

/* Where a run begins in y. */
static size_t place_of_run(const uint32_t size[2], const piece *of, uint32_t run) {
    uint32_t each = (uint32_t)(of->place.bottom - of->place.top);
    return ((size_t)(run / each) * size[0] + (size_t)of->place.top + run % each) * size[1] + (size_t)of->place.left;
}

/* Whether a symbol of y is too large, with a mean or with a gain. */
static int is_too_large(const nic_coder *coder, const scaling *at, uint32_t channel, int32_t symbol) {
    int64_t size = symbol < 0 ? -(int64_t)symbol : symbol;
    if (at->inverse && size * at->inverse[channel] >> (16 - MEAN_BITS) >= MOST_VALUE)
        return 1;
    return coder->network.has_means && !at->inverse && size > MOST_SYMBOL;
}

/* A symbol as a value, without its mean. */
static int32_t value_of(const nic_coder *coder, const scaling *at, uint32_t channel, int32_t symbol) {
    enum { DOWN = 16 - MEAN_BITS };
    if (at->inverse)
        return (int32_t)floored((int64_t)symbol * at->inverse[channel] + (1 << DOWN >> 1), DOWN);
    return coder->network.has_means ? symbol * (1 << MEAN_BITS) : symbol;
}

/* From symbols of a piece to values; 0 if a symbol is too large. */
static int finish(const nic_coder *coder, const uint32_t size[2], const piece *of, int32_t *y) {
    const int32_t *mean = of->means;
    uint32_t runs = runs_of(coder, of), each = runs / coder->info.channels;
    for (uint32_t run = 0; (of->at.inverse || mean) && run < runs; run++) {
        int32_t *value = y + place_of_run(size, of, run);
        for (uint32_t i = length_of_runs(of); i-- > 0; value++) {
            if (is_too_large(coder, &of->at, run / each, *value))
                return 0;
            *value = value_of(coder, &of->at, run / each, *value) + (mean ? *mean++ : 0);
        }
    }
    return 1;
}

nic_status nic_decode(const nic_coder *coder, const void *file, size_t length, int32_t *y, size_t count, void *work,
                      size_t bytes) {
    uint64_t picture[3];
    uint32_t size[2];
    size_t start;
    arena from_work = {work, 0, bytes};
    piece of;
    window in_z;
    nic_status status = read_header(coder, file, length, picture, size, &start);
    if (status == NIC_OK)
        status = measure(coder, picture[0], picture[1], size, &from_work, &of);
    if (status != NIC_OK)
        return status;
    uint64_t positions = (uint64_t)size[0] * size[1];
    if (count < positions * coder->info.channels)
        return NIC_MEMORY;
    const uint8_t *payload = (const uint8_t *)file + start;
    if (length > start && !payload[length - start - 1]) /* a zero is never written at the end */
        return NIC_BAD_FILE;
    reader from = reader_of(payload, length - start);
    uint32_t arch = coder->info.architecture;
    if (!set_rate(coder, (uint32_t)picture[2], &of.at))
        return NIC_BAD_FILE;
    group first = of_all(of.at.coded, arch ? positions_of_z(size) : (uint32_t)positions);
    if (!pop_group(&from, &first, arch ? of.z : y))
        return NIC_BAD_FILE;
    if (!arch) { /* all of y is the piece */
        of.place = whole_of(size);
        of.means = NULL;
        if (!finish(coder, size, &of, y))
            return NIC_BAD_FILE;
    }
    for (uint32_t i = 0; arch && window_of_piece(coder, size[0], size[1], i, &in_z); i++) {
        predict(coder, of.z, size[0], size[1], in_z, &of);
        group own = of_piece(coder, &of);
        if (!pop_group(&from, &own, y) || !finish(coder, size, &of, y))
            return NIC_BAD_FILE;
    }
    return from.state || from.words ? NIC_BAD_FILE : NIC_OK;
}

size_t nic_most(const nic_coder *coder, uint32_t height, uint32_t width) {
    uint32_t size[2];
    if (measure(coder, height, width, size, NULL, NULL) != NIC_OK)
        return 0;
    /* A symbol takes 16 bits at most, and outside its table 40 more. */
    uint64_t symbols = (uint64_t)size[0] * size[1] * coder->info.channels
                       + (uint64_t)positions_of_z(size) * coder->info.z_channels;
    return symbols * 8 > SIZE_MAX / 2 ? 0 : (size_t)symbols * 8 + 64;
}

/* Writes what is left in the state; returns the payload's length without the zeros at its end, or 0 without room. */
static size_t finished(writer *of, size_t room) {
    size_t length = 4 * of->words;
    for (; of->state; of->state >>= 8) {
        if (length == room) {
            of->full = 1;
            return 0;
        }
        of->bytes[length++] = (uint8_t)of->state;
    }
    while (length && !of->bytes[length - 1])
        length--;
    return length;
}

static int any_too_large(const nic_coder *coder, const scaling *at, const uint32_t size[2], const int32_t *y) {
    size_t each = (size_t)size[0] * size[1];
    for (uint32_t channel = 0; (at->inverse || coder->network.has_means) && channel < coder->info.channels; channel++)
        for (size_t i = channel * each; i < (channel + 1) * each; i++)
            if (is_too_large(coder, at, channel, y[i]))
                return 1;
    return 0;
}

nic_status nic_encode(const nic_coder *coder, uint32_t rate, uint32_t height, uint32_t width, const int32_t *y,
                      const int32_t *z, void *file, size_t room, size_t *length, void *work, size_t bytes) {
    uint32_t size[2], arch = coder->info.architecture, pieces = 0;
    arena from = {work, 0, bytes};
    piece of;
    window in_z;
    uint8_t *data = file, version = version_of(coder), head[HEADER + 16] = {'N', 'I', 'C', version};
    size_t start = HEADER;
    *length = 0;
    nic_status status = measure(coder, height, width, size, &from, &of);
    if (status != NIC_OK)
        return status;
    if (!set_rate(coder, rate, &of.at))
        return NIC_RATE;
    if (any_too_large(coder, &of.at, size, y))
        return NIC_SYMBOL;
    put_word(head + 4, coder->info.fingerprint);
    if (version > 1)
        head[start++] = (uint8_t)arch;
    start += version == 3 ? put_varint(head + start, rate) : 0;
    start += put_varint(head + start, width);
    start += put_varint(head + start, height);
    if (room < start)
        return NIC_MEMORY;
    writer to = {0, data + start, 0, (room - start) / 4, 0};
    if (arch) {
        while (window_of_piece(coder, size[0], size[1], pieces, &in_z))
            pieces++;
        while (pieces-- > 0) {
            window_of_piece(coder, size[0], size[1], pieces, &in_z);
            predict(coder, z, size[0], size[1], in_z, &of);
            group own = of_piece(coder, &of);
            push_group(&to, &own, y);
        }
    }
    group first = of_all(of.at.coded, arch ? positions_of_z(size) : size[0] * size[1]);
    push_group(&to, &first, arch ? z : y);
    size_t payload = finished(&to, room - start);
    if (to.full)
        return NIC_MEMORY;
    if (!is_enough(coder, rate, size, payload)) /* every file that is written must be readable */
        return NIC_BAD_FILE;
    uint32_t crc = crc32_of(&coder->crc, crc32_of(&coder->crc, 0, head, 8), head + HEADER, start - HEADER);
    put_word(head + 8, crc32_of(&coder->crc, crc, data + start, payload));
    memcpy(data, head, start);
    *length = start + payload;
    return NIC_OK;
}

/* The value rounded half to even; 0 if it is not finite or too large. */
static int nearest(float value, int32_t *symbol) {
    if (!(value <= 2147483520.0f && value >= -2147483520.0f))
        return 0;
    int32_t whole = (int32_t)value;
    float rest = value - (float)whole; /* exact: from 2^24 on it is 0 */
    if (rest > 0.5f || (rest == 0.5f && whole & 1))
        whole++;
    else if (rest < -0.5f || (rest == -0.5f && whole & 1))
        whole--;
    *symbol = whole;
    return 1;
}

static nic_status round_all(const float *values, float median, float gain, size_t count, int32_t *symbols) {
    for (size_t i = 0; i < count; i++)
        if (!nearest((values[i] - median) * gain, symbols + i))
            return NIC_NOT_FINITE;
    return NIC_OK;
}

static float gain_of(const nic_coder *coder, const gains *of, uint32_t rate, uint32_t channel) {
    return coder->info.most_rate ? gain_at(of, rate, channel) : 1;
}

nic_status nic_round_z(const nic_coder *coder, uint32_t rate, uint32_t height, uint32_t width, const float *z,
                       int32_t *symbols) {
    uint32_t size[2];
    nic_status status = measure(coder, height, width, size, NULL, NULL);
    if (status == NIC_OK && rate > coder->info.most_rate)
        status = NIC_RATE;
    for (uint32_t channel = 0; status == NIC_OK && channel < coder->info.z_channels; channel++) {
        size_t each = positions_of_z(size), place = channel * each;
        status = round_all(z + place, 0, gain_of(coder, &coder->z_gains, rate, channel), each, symbols + place);
    }
    return status;
}

nic_status nic_round(const nic_coder *coder, uint32_t rate, uint32_t height, uint32_t width, const float *y,
                     const int32_t *z, int32_t *symbols, void *work, size_t bytes) {
    uint32_t size[2];
    arena from = {work, 0, bytes};
    piece of;
    window in_z;
    nic_status status = measure(coder, height, width, size, &from, &of);
    if (status != NIC_OK || !set_rate(coder, rate, &of.at))
        return status != NIC_OK ? status : NIC_RATE;
    size_t all = (size_t)size[0] * size[1];
    for (uint32_t channel = 0; !coder->network.has_means && channel < coder->info.channels; channel++) {
        float gain = gain_of(coder, &coder->y_gains, rate, channel);
        status = round_all(y + channel * all, coder->medians[channel], gain, all, symbols + channel * all);
        if (status != NIC_OK)
            return status;
    }
    for (uint32_t i = 0; coder->network.has_means && window_of_piece(coder, size[0], size[1], i, &in_z); i++) {
        predict(coder, z, size[0], size[1], in_z, &of);
        const int32_t *mean = of.means;
        uint32_t runs = runs_of(coder, &of), each = runs / coder->info.channels;
        for (uint32_t run = 0; run < runs; run++) {
            float gain = gain_of(coder, &coder->y_gains, rate, run / each);
            size_t place = place_of_run(size, &of, run);
            for (size_t end = place + length_of_runs(&of); place < end; place++)
                if (!nearest((y[place] - (float)*mean++ * coder->info.unit) * gain, symbols + place))
                    return NIC_NOT_FINITE;
        }
    }
    return NIC_OK;
}
