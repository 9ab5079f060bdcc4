/* Files: the header and the payload. The counterpart of codec/bitstream/container.py and hyper_coder.py. */
#include <string.h>

#include "internal.h"

enum { HEADER = 12, MOST_POSITIONS = 1 << 20, MOST_PIXELS = 178956970, MOST_SYMBOL = (1 << 24) - 1 };
#define TOO_LARGE ((int64_t)1 << 30)

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

/* The extent of a picture; NIC_SIZE for a size that no file holds. */
static nic_status measure(const nic_coder *coder, uint64_t height, uint64_t width, extent *size) {
    if (!height || !width || height > MOST_PIXELS || width > MOST_PIXELS || height * width > MOST_PIXELS)
        return NIC_SIZE;
    uint32_t rows = ((uint32_t)height + STRIDE - 1) / STRIDE, columns = ((uint32_t)width + STRIDE - 1) / STRIDE;
    uint32_t z_rows = (rows + SIDE - 1) / SIDE, z_columns = (columns + SIDE - 1) / SIDE;
    if ((uint64_t)rows * columns > MOST_POSITIONS)
        return NIC_SIZE;
    *size = (extent){(uint32_t)height, (uint32_t)width, rows, columns, z_rows, z_columns};
    return (uint64_t)rows * columns * coder->info.channels >> 32 ? NIC_MEMORY : NIC_OK; /* places have 32 bits */
}

static uint64_t take_work(const nic_coder *coder, const extent *size, void *work, piece *of) {
    arena from = arena_in(work);
    take_scaling(coder, &from, &of->at);
    if (coder->info.architecture)
        take_piece(coder, size, &from, of);
    return counted(&from);
}

nic_status nic_work(const nic_coder *coder, uint32_t height, uint32_t width, size_t *bytes) {
    extent size;
    piece unused;
    nic_status status = measure(coder, height, width, &size);
    uint64_t needed = status == NIC_OK ? take_work(coder, &size, NULL, &unused) : 0;
    *bytes = (size_t)needed;
    return status == NIC_OK && needed > SIZE_MAX ? NIC_MEMORY : status;
}

/* The extent of a picture, and its work memory prepared for a rate. */
static nic_status begin(const nic_coder *coder, uint32_t rate, uint32_t height, uint32_t width, void *work,
                        size_t bytes, extent *size, piece *of) {
    size_t needed;
    nic_status status = nic_work(coder, height, width, &needed);
    if (status != NIC_OK || needed > bytes)
        return status != NIC_OK ? status : NIC_MEMORY;
    measure(coder, height, width, size);
    take_work(coder, size, work, of);
    return set_rate(coder, rate, &of->at) ? NIC_OK : NIC_RATE;
}

/* Positions of the latent that is coded first: z with a hyperprior, else y. */
static uint32_t positions_of(const nic_coder *coder, const extent *size) {
    return coder->info.architecture ? size->z_rows * size->z_columns : size->rows * size->columns;
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

static uint32_t checksum(const nic_coder *coder, const uint8_t *data, size_t length) {
    return crc32_of(&coder->crc, crc32_of(&coder->crc, 0, data, 8), data + HEADER, length - HEADER);
}

/* Whether the symbols can fit a payload of this length. */
static int is_enough(const nic_coder *coder, uint32_t rate, const extent *size, size_t length) {
    uint64_t least;
    return fewest_bytes(coder, rate, positions_of(coder, size), &least) && length >= least;
}

/* Reads the header; gives the picture's extent and rate, and where the payload starts. */
static nic_status read_header(const nic_coder *coder, const uint8_t *data, size_t length, extent *size, uint32_t *rate,
                              size_t *start) {
    uint8_t version = version_of(coder);
    uint64_t numbers[3] = {0, 0, 0}; /* height, width, rate */
    if (length < HEADER || memcmp(data, "NIC", 3) || data[3] < 1 || data[3] > 3)
        return NIC_NO_FILE;
    if (checksum(coder, data, length) != word_at(data + 8))
        return NIC_CHECKSUM;
    if (word_at(data + 4) != coder->info.fingerprint)
        return NIC_OTHER_CODEC;
    if (data[3] != version || (version > 1 && (length == HEADER || data[HEADER] != coder->info.architecture)))
        return NIC_BAD_FILE;
    *start = HEADER + (version > 1);
    for (int i = version == 3 ? 2 : 1; i >= 0; i--)
        if (!(*start = read_varint(data, *start, length, numbers + i)))
            return NIC_BAD_FILE;
    if (numbers[2] > coder->info.most_rate)
        return NIC_BAD_FILE;
    *rate = (uint32_t)numbers[2];
    nic_status status = measure(coder, numbers[0], numbers[1], size);
    return status == NIC_OK && !is_enough(coder, *rate, size, length - *start) ? NIC_BAD_FILE : status;
}

nic_status nic_size(const nic_coder *coder, const void *file, size_t length, uint32_t *height, uint32_t *width) {
    extent size;
    uint32_t rate;
    size_t start;
    nic_status status = read_header(coder, file, length, &size, &rate, &start);
    *height = status == NIC_OK ? size.height : 0;
    *width = status == NIC_OK ? size.width : 0;
    return status;
}

/* The value of a symbol of y, without its mean; TOO_LARGE of a symbol that no encoder writes. */
static int64_t value_of(const nic_coder *coder, const scaling *of, uint32_t channel, int32_t symbol) {
    enum { DOWN = 16 - MEAN_BITS };
    int64_t size = symbol < 0 ? -(int64_t)symbol : symbol;
    if (of->inverse && size * of->inverse[channel] >> DOWN < TOO_LARGE)
        return floored((int64_t)symbol * of->inverse[channel] + (1 << DOWN >> 1), DOWN);
    if (of->inverse || (coder->network.has_means && size > MOST_SYMBOL))
        return TOO_LARGE;
    return coder->network.has_means ? symbol * (1 << MEAN_BITS) : symbol;
}

static int changes_symbols(const nic_coder *coder) {
    return coder->info.most_rate || coder->network.has_means;
}

/* From symbols of a piece to values; 0 if a symbol is too large. */
static int finish(const nic_coder *coder, const extent *size, const piece *of, int32_t *y) {
    const int32_t *mean = of->means;
    for (uint32_t channel = 0; changes_symbols(coder) && channel < coder->info.channels; channel++)
        for (uint32_t row = (uint32_t)of->place.top; row < (uint32_t)of->place.bottom; row++) {
            int32_t *line = y + ((size_t)channel * size->rows + row) * size->columns;
            for (int32_t column = of->place.left; column < of->place.right; column++) {
                int64_t value = value_of(coder, &of->at, channel, line[column]);
                if (value == TOO_LARGE)
                    return 0;
                line[column] = (int32_t)value + (mean ? *mean++ : 0);
            }
        }
    return 1;
}

static group group_of(const nic_coder *coder, const piece *of) {
    return (group){coder->y, of->order, of->ends, 0};
}

nic_status nic_decode(const nic_coder *coder, const void *file, size_t length, int32_t *y, size_t count, void *work,
                      size_t bytes) {
    extent size;
    uint32_t rate;
    size_t start;
    piece of;
    nic_status status = read_header(coder, file, length, &size, &rate, &start);
    if (status == NIC_OK && count < (uint64_t)size.rows * size.columns * coder->info.channels)
        status = NIC_MEMORY;
    if (status == NIC_OK)
        status = begin(coder, rate, size.height, size.width, work, bytes, &size, &of);
    if (status != NIC_OK)
        return status == NIC_RATE ? NIC_BAD_FILE : status;
    const uint8_t *payload = (const uint8_t *)file + start;
    if (length > start && !payload[length - start - 1]) /* a zero is never written at the end */
        return NIC_BAD_FILE;
    reader from = reader_of(payload, length - start);
    group first = {of.at.coded, NULL, NULL, positions_of(coder, &size)};
    if (!pop_group(&from, &first, coder->info.architecture ? of.z : y))
        return NIC_BAD_FILE;
    for (uint32_t i = 0; set_piece(coder, &size, i, of.z, &of); i++) {
        group own = group_of(coder, &of);
        if ((coder->info.architecture && !pop_group(&from, &own, y)) || !finish(coder, &size, &of, y))
            return NIC_BAD_FILE;
    }
    return from.state || from.words ? NIC_BAD_FILE : NIC_OK;
}

size_t nic_most(const nic_coder *coder, uint32_t height, uint32_t width) {
    extent size;
    if (measure(coder, height, width, &size) != NIC_OK)
        return 0;
    /* A symbol takes 16 bits at most, and outside its table 40 more. */
    uint64_t symbols = (uint64_t)size.rows * size.columns * coder->info.channels
                       + (uint64_t)size.z_rows * size.z_columns * coder->info.z_channels;
    return symbols * 8 > SIZE_MAX / 2 ? 0 : (size_t)symbols * 8 + 64;
}

/* Writes what is left in the state; returns the payload's length without the zeros at its end. */
static size_t finished(writer *of, size_t room) {
    size_t length = 4 * of->words;
    for (; of->state && length < room; of->state >>= 8)
        of->bytes[length++] = (uint8_t)of->state;
    of->full |= of->state != 0;
    while (length && !of->bytes[length - 1])
        length--;
    return length;
}

nic_status nic_encode(const nic_coder *coder, uint32_t rate, uint32_t height, uint32_t width, const int32_t *y,
                      const int32_t *z, void *file, size_t room, size_t *length, void *work, size_t bytes) {
    extent size;
    uint32_t pieces = 0;
    piece of;
    uint8_t *data = file, version = version_of(coder), head[HEADER + 16] = {'N', 'I', 'C', version};
    size_t start = HEADER;
    *length = 0;
    nic_status status = begin(coder, rate, height, width, work, bytes, &size, &of);
    if (status != NIC_OK)
        return status;
    size_t each = (size_t)size.rows * size.columns;
    for (size_t i = 0; changes_symbols(coder) && i < each * coder->info.channels; i++)
        if (value_of(coder, &of.at, (uint32_t)(i / each), y[i]) == TOO_LARGE)
            return NIC_SYMBOL;
    put_word(head + 4, coder->info.fingerprint);
    if (version > 1)
        head[start++] = (uint8_t)coder->info.architecture;
    start += version == 3 ? put_varint(head + start, rate) : 0;
    start += put_varint(head + start, width);
    start += put_varint(head + start, height);
    if (room < start)
        return NIC_MEMORY;
    memcpy(data, head, start);
    writer to = {0, data + start, 0, (room - start) / 4, 0};
    while (coder->info.architecture && set_piece(coder, &size, pieces, NULL, &of))
        pieces++;
    while (pieces-- > 0) {
        set_piece(coder, &size, pieces, z, &of);
        group own = group_of(coder, &of);
        push_group(&to, &own, y);
    }
    group first = {of.at.coded, NULL, NULL, positions_of(coder, &size)};
    push_group(&to, &first, coder->info.architecture ? z : y);
    size_t payload = finished(&to, room - start);
    if (to.full)
        return NIC_MEMORY;
    if (!is_enough(coder, rate, &size, payload)) /* every file that is written must be readable */
        return NIC_BAD_FILE;
    put_word(data + 8, checksum(coder, data, start + payload));
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

nic_status nic_round_z(const nic_coder *coder, uint32_t rate, uint32_t height, uint32_t width, const float *z,
                       int32_t *symbols) {
    extent size;
    nic_status status = measure(coder, height, width, &size);
    if (status != NIC_OK || rate > coder->info.most_rate)
        return status != NIC_OK ? status : NIC_RATE;
    for (uint32_t channel = 0; channel < coder->info.z_channels; channel++) {
        float gain = gain_at(coder, &coder->z_gains, rate, channel);
        for (size_t i = (size_t)size.z_rows * size.z_columns; i-- > 0; z++, symbols++)
            if (!nearest(*z * gain, symbols))
                return NIC_NOT_FINITE;
    }
    return NIC_OK;
}

nic_status nic_round(const nic_coder *coder, uint32_t rate, uint32_t height, uint32_t width, const float *y,
                     const int32_t *z, int32_t *symbols, void *work, size_t bytes) {
    extent size;
    piece of;
    nic_status status = begin(coder, rate, height, width, work, bytes, &size, &of);
    if (status != NIC_OK)
        return status;
    for (uint32_t i = 0; set_piece(coder, &size, i, coder->network.has_means ? z : NULL, &of); i++) {
        const int32_t *mean = of.means;
        for (uint32_t channel = 0; channel < coder->info.channels; channel++) {
            float gain = gain_at(coder, &coder->y_gains, rate, channel), median = coder->info.medians[channel];
            for (uint32_t row = (uint32_t)of.place.top; row < (uint32_t)of.place.bottom; row++) {
                size_t place = ((size_t)channel * size.rows + row) * size.columns + (size_t)of.place.left;
                for (int32_t left = of.place.right - of.place.left; left > 0; left--, place++) {
                    float centre = mean ? (float)*mean++ * coder->info.unit : median;
                    if (!nearest((y[place] - centre) * gain, symbols + place))
                        return NIC_NOT_FINITE;
                }
            }
        }
    }
    return NIC_OK;
}
