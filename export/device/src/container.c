/* Files: the header and the payload. The counterpart of codec/bitstream/container.py and hyper_coder.py. */
#include <string.h>

#include "internal.h"

enum { HEADER = 12, MOST_POSITIONS = 1 << 20, MOST_PIXELS = 178956970, MOST_SYMBOL = (1 << 24) - 1 };

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
        "symbols of more than 25 bits; use a codec whose training has not diverged",
        "the memory that was given is too small",
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
    if (coder->info.architecture && work)
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

static uint64_t fewest(const nic_coder *coder, const uint32_t size[2]) {
    return coder->info.architecture ? fewest_bytes(coder->z, positions_of_z(size))
                                    : fewest_bytes(coder->y, (uint64_t)size[0] * size[1]);
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

/* Reads the header; gives the size of the picture and of y, and where the payload starts. */
static nic_status read_header(const nic_coder *coder, const uint8_t *data, size_t length, uint64_t picture[2],
                              uint32_t size[2], size_t *start) {
    if (length < HEADER || memcmp(data, "NIC", 3) || (data[3] != 1 && data[3] != 2))
        return NIC_NO_FILE;
    if (crc32_of(&coder->crc, crc32_of(&coder->crc, 0, data, 8), data + HEADER, length - HEADER) != word_at(data + 8))
        return NIC_CHECKSUM;
    if (word_at(data + 4) != coder->info.fingerprint)
        return NIC_OTHER_CODEC;
    uint32_t arch = coder->info.architecture;
    if (data[3] != (arch ? 2 : 1) || (arch && (length == HEADER || data[HEADER] != arch)))
        return NIC_BAD_FILE;
    *start = read_varint(data, HEADER + (arch ? 1 : 0), length, picture + 1);
    *start = *start ? read_varint(data, *start, length, picture) : 0;
    if (!*start)
        return NIC_BAD_FILE;
    nic_status status = measure(coder, picture[0], picture[1], size, NULL, NULL);
    if (status == NIC_OK && length - *start < fewest(coder, size))
        return NIC_BAD_FILE;
    return status;
}

nic_status nic_size(const nic_coder *coder, const void *file, size_t length, uint32_t *height, uint32_t *width) {
    uint64_t picture[2] = {0, 0};
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

/* Where a run begins in y. */
static size_t place_of_run(const uint32_t size[2], const piece *of, uint32_t run) {
    uint32_t each = (uint32_t)(of->place.bottom - of->place.top);
    return ((size_t)(run / each) * size[0] + (size_t)of->place.top + run % each) * size[1] + (size_t)of->place.left;
}

/* From symbols to values; 0 if a symbol is too large. */
static int add_means(const nic_coder *coder, const uint32_t size[2], const piece *of, int32_t *y) {
    const int32_t *mean = of->means;
    for (uint32_t run = 0; run < runs_of(coder, of); run++) {
        int32_t *value = y + place_of_run(size, of, run);
        for (uint32_t i = length_of_runs(of); i-- > 0; value++) {
            if (*value > MOST_SYMBOL || *value < -MOST_SYMBOL)
                return 0;
            *value = *value * (1 << MEAN_BITS) + *mean++;
        }
    }
    return 1;
}

nic_status nic_decode(const nic_coder *coder, const void *file, size_t length, int32_t *y, size_t count, void *work,
                      size_t bytes) {
    uint64_t picture[2];
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
    group all = of_all(coder->y, (uint32_t)positions), hyper = of_all(coder->z, positions_of_z(size));
    if (coder->info.architecture ? !pop_group(&from, &hyper, of.z) : !pop_group(&from, &all, y))
        return NIC_BAD_FILE;
    for (uint32_t i = 0; coder->info.architecture && window_of_piece(coder, size[0], size[1], i, &in_z); i++) {
        predict(coder, of.z, size[0], size[1], in_z, &of);
        group own = of_piece(coder, &of);
        if (!pop_group(&from, &own, y) || (of.means && !add_means(coder, size, &of, y)))
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

static int too_large(const nic_coder *coder, const uint32_t size[2], const int32_t *y) {
    size_t count = (size_t)size[0] * size[1] * coder->info.channels;
    for (size_t i = 0; coder->network.has_means && i < count; i++)
        if (y[i] > MOST_SYMBOL || y[i] < -MOST_SYMBOL)
            return 1;
    return 0;
}

nic_status nic_encode(const nic_coder *coder, uint32_t height, uint32_t width, const int32_t *y, const int32_t *z,
                      void *file, size_t room, size_t *length, void *work, size_t bytes) {
    uint32_t size[2], arch = coder->info.architecture, pieces = 0;
    arena from = {work, 0, bytes};
    piece of;
    window in_z;
    uint8_t *data = file, head[HEADER + 11] = {'N', 'I', 'C', (uint8_t)(arch ? 2 : 1)};
    size_t start = HEADER;
    *length = 0;
    nic_status status = measure(coder, height, width, size, &from, &of);
    if (status != NIC_OK)
        return status;
    if (too_large(coder, size, y))
        return NIC_SYMBOL;
    put_word(head + 4, coder->info.fingerprint);
    if (arch)
        head[start++] = (uint8_t)arch;
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
    group first = arch ? of_all(coder->z, positions_of_z(size)) : of_all(coder->y, size[0] * size[1]);
    push_group(&to, &first, arch ? z : y);
    size_t payload = finished(&to, room - start);
    if (to.full)
        return NIC_MEMORY;
    if (payload < fewest(coder, size)) /* every file that is written must be readable */
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

nic_status nic_nearest(const float *values, size_t count, int32_t *symbols) {
    for (size_t i = 0; i < count; i++)
        if (!nearest(values[i], symbols + i))
            return NIC_NOT_FINITE;
    return NIC_OK;
}

nic_status nic_round(const nic_coder *coder, uint32_t height, uint32_t width, const float *y, const int32_t *z,
                     int32_t *symbols, void *work, size_t bytes) {
    uint32_t size[2];
    arena from = {work, 0, bytes};
    piece of;
    window in_z;
    nic_status status = measure(coder, height, width, size, &from, &of);
    if (status != NIC_OK)
        return status;
    size_t each = (size_t)size[0] * size[1];
    if (!coder->network.has_means) {
        for (size_t i = 0; i < each * coder->info.channels; i++)
            if (!nearest(y[i] - coder->medians[i / each], symbols + i))
                return NIC_NOT_FINITE;
        return NIC_OK;
    }
    for (uint32_t i = 0; window_of_piece(coder, size[0], size[1], i, &in_z); i++) {
        predict(coder, z, size[0], size[1], in_z, &of);
        const int32_t *mean = of.means;
        for (uint32_t run = 0; run < runs_of(coder, &of); run++) {
            size_t place = place_of_run(size, &of, run);
            for (size_t end = place + length_of_runs(&of); place < end; place++)
                if (!nearest(y[place] - (float)*mean++ * coder->info.unit, symbols + place))
                    return NIC_NOT_FINITE;
        }
    }
    return NIC_OK;
}
