/* Encodes and decodes the compressed files of this project (docs/rd.md), byte for byte like codec.bitstream.
 *
 * C99, no library, no allocation: the caller gives all memory. After nic_open a coder is only read, so several threads
 * may share it, each with work memory of its own. A file or tables from anywhere are safe to read: whatever their bytes
 * are, each function stays in the memory that it was given, and ends.
 *
 * M is the number of channels of y, N that of z. y has ceil(height / 16) rows and ceil(width / 16) columns, z has
 * ceil(rows / 4) and ceil(columns / 4). Arrays are [channel][row][column]. Memory is aligned as malloc aligns it.
 */
#ifndef NIC_H
#define NIC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    NIC_OK = 0,
    NIC_NO_TABLES,      /* no entropy tables, or of a version that this program does not read */
    NIC_BAD_TABLES,     /* entropy tables that are damaged */
    NIC_NO_FILE,        /* no compressed picture, or of a version that this program does not read */
    NIC_CHECKSUM,       /* a compressed picture that is truncated or altered */
    NIC_OTHER_CODEC,    /* a compressed picture of another codec than that of the tables */
    NIC_SIZE,           /* a picture without pixels, or larger than any file may hold */
    NIC_BAD_FILE,       /* a compressed picture whose bytes are not those of its symbols */
    NIC_NOT_FINITE,     /* values that are not finite, or have more than 32 bits */
    NIC_SYMBOL,         /* symbols of y that are too large */
    NIC_MEMORY,         /* the memory that was given is too small */
    NIC_RATE            /* a codec without this rate */
} nic_status;

/* The status in words, one line in English. */
const char *nic_message(nic_status status);

typedef struct nic_coder nic_coder;

/* What a codec's tables say. */
typedef struct {
    uint32_t fingerprint;   /* identifies the codec; files carry it, and the metadata of exported models */
    uint32_t architecture;  /* 0: bmshj2018_factorized, 1: bmshj2018_hyperprior, 2: mbt2018_mean */
    uint32_t channels;      /* M */
    uint32_t z_channels;    /* N; 0 without a hyperprior */
    uint32_t most_rate;     /* a codec of several rates has the rates 0 to this one, the highest; otherwise 0 */
    float unit;             /* of decoded values: y_hat = value * unit + median of its channel */
    const float *medians;   /* [M] */
} nic_info;

/* The bytes of memory that a coder for these tables takes.
 * Returns NIC_NO_TABLES or NIC_BAD_TABLES if the bytes are not entropy tables. */
nic_status nic_memory(const void *tables, size_t length, size_t *bytes);

/* Makes a coder in `memory`, which must stay as it is as long as the coder is used. The tables are copied.
 * Returns what nic_memory returns, or NIC_MEMORY if there are fewer bytes than it says. */
nic_status nic_open(const void *tables, size_t length, void *memory, size_t bytes, nic_coder **coder);

/* What the coder's tables say. */
nic_info nic_about(const nic_coder *coder);

/* The bytes of work memory that nic_decode, nic_encode and nic_round take for a picture of this size; 0 for a codec of
 * one rate without a hyperprior. Returns NIC_SIZE for a size that no file holds. */
nic_status nic_work(const nic_coder *coder, uint32_t height, uint32_t width, size_t *bytes);

/* The size of a file's picture. Checks all but the symbols: the checksum, the codec, and that the file is long enough
 * for the size it claims.
 * Returns NIC_NO_FILE, NIC_CHECKSUM, NIC_OTHER_CODEC, NIC_SIZE or NIC_BAD_FILE if it is no such file. */
nic_status nic_size(const nic_coder *coder, const void *file, size_t length, uint32_t *height, uint32_t *width);

/* Decodes a file to the values y [M][rows][columns], which has room for `count` values.
 * Returns what nic_size returns, NIC_BAD_FILE if the symbols do not end where the bytes do, or NIC_MEMORY if y or the
 * work memory is too small. After an error y holds nothing of use. */
nic_status nic_decode(const nic_coder *coder, const void *file, size_t length, int32_t *y, size_t count, void *work,
                      size_t bytes);

/* The most bytes that a file of a picture of this size has, whatever its symbols; 0 for a size that no file holds. A
 * photograph's file takes about a hundredth of it, so a caller may give less room and see whether NIC_MEMORY comes. */
size_t nic_most(const nic_coder *coder, uint32_t height, uint32_t width);

/* Writes the file of a picture at a rate, 0 to most_rate: of the symbols y [M][rows][columns] and, with a hyperprior, z
 * (else NULL). `file` has `room` bytes; `length` gets those that were written.
 * Returns NIC_SIZE, NIC_RATE, NIC_SYMBOL, NIC_MEMORY (work or room too small), or NIC_BAD_FILE if the symbols hold next
 * to no information for the picture's size, which no reader would believe. */
nic_status nic_encode(const nic_coder *coder, uint32_t rate, uint32_t height, uint32_t width, const int32_t *y,
                      const int32_t *z, void *file, size_t room, size_t *length, void *work, size_t bytes);

/* The symbols at a rate of y [M][rows][columns] as an encoder gives it: y less its medians, or the means that z
 * predicts, times the gains, rounded half to even. z as in nic_encode.
 * Returns NIC_SIZE, NIC_RATE, NIC_NOT_FINITE or NIC_MEMORY. */
nic_status nic_round(const nic_coder *coder, uint32_t rate, uint32_t height, uint32_t width, const float *y,
                     const int32_t *z, int32_t *symbols, void *work, size_t bytes);

/* The symbols at a rate of z [N][rows][columns] as an exported h_a gives it, which has subtracted the medians.
 * Returns as nic_round. */
nic_status nic_round_z(const nic_coder *coder, uint32_t rate, uint32_t height, uint32_t width, const float *z,
                       int32_t *symbols);

#ifdef __cplusplus
}
#endif

#endif
