/* Damaged files and tables for the coder in C, in one process, compiled with sanitizers: SEED COUNT TABLES FILE ..
 *
 * Every buffer is allocated anew with exactly the bytes that the coder asked for, so a step beyond it is seen. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

enum { MOST_FILES = 16, SECONDS = 20 };
#define MOST_BYTES ((size_t)64 << 20)

typedef struct {
    uint8_t *data;
    size_t length;
} bytes;

static uint64_t chance = 88172645463325252u;
static size_t largest, asked;
static crc_tables crc;

static uint32_t below(uint32_t limit) {
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return (uint32_t)(chance >> 32) % (limit ? limit : 1);
}

static void *exactly(size_t size) {
    asked += size;
    largest = asked > largest ? asked : largest;
    return malloc(size ? size : 1);
}

static bytes read_file(const char *name) {
    FILE *file = fopen(name, "rb");
    bytes found = {malloc(1 << 24), 0};
    if (!file || !found.data)
        exit(3);
    found.length = fread(found.data, 1, 1 << 24, file);
    fclose(file);
    return found;
}

/* A damaged copy of `of`: bits flipped, the end cut off, spliced with `other`, random bytes, a word of another value. */
static bytes damaged(bytes of, bytes other) {
    bytes made = {malloc(of.length + other.length + 1), of.length};
    memcpy(made.data, of.data, of.length);
    uint32_t length = (uint32_t)of.length, cut = below(length), kind = below(7);
    if (below(2)) /* near the start, where headers are */
        cut %= 64;
    if (kind == 0)
        for (uint32_t i = 1u << below(7); i > 0; i--)
            made.data[below(length)] ^= (uint8_t)(1 << below(8));
    if (kind == 1)
        made.length = cut;
    if (kind == 2) {
        uint32_t from = below((uint32_t)other.length);
        memcpy(made.data + cut, other.data + from, other.length - from);
        made.length = cut + other.length - from;
    }
    if (kind == 3)
        for (uint32_t i = cut; i < length; i++)
            made.data[i] = (uint8_t)below(256);
    if (kind == 4 && cut < length) {
        uint32_t hole = below(40) % (length - cut) + 1;
        memmove(made.data + cut, made.data + cut + hole, length - cut - hole);
        made.length = length - hole;
    }
    if (kind == 5 && length > 4) {
        static const uint32_t values[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 0xffff, 0x10000, 3};
        put_word(made.data + (cut < length - 4 ? cut / 4 * 4 : 0), values[below(8)]);
    }
    if (kind == 6)
        for (uint32_t i = cut; i < length && i < cut + 10; i++)
            made.data[i] = (uint8_t)(below(2) ? 255 : below(256));
    uint8_t *exact = malloc(made.length ? made.length : 1); /* its end is the end of the allocation */
    memcpy(exact, made.data, made.length);
    free(made.data);
    made.data = exact;
    return made;
}

/* Makes the checksum fit: what a stranger can do. */
static void seal(bytes file, int tables) {
    if (file.length < 12)
        return;
    uint32_t before = tables ? 0 : crc32_of(&crc, 0, file.data, 8);
    put_word(file.data + 8, crc32_of(&crc, before, file.data + 12, file.length - 12));
}

static nic_coder *opened(bytes tables, void **memory) {
    size_t size;
    nic_coder *coder = NULL;
    *memory = NULL;
    if (nic_memory(tables.data, tables.length, &size) != NIC_OK || size > MOST_BYTES)
        return NULL;
    *memory = exactly(size - 1);
    if (nic_open(tables.data, tables.length, *memory, size - 1, &coder) != NIC_MEMORY || coder)
        abort();
    free(*memory);
    asked -= size - 1;
    *memory = exactly(size);
    if (nic_open(tables.data, tables.length, *memory, size, &coder) != NIC_OK)
        abort(); /* it said that this is enough */
    return coder;
}

/* Writes what was read, and reads that again. */
static void encode(const nic_coder *coder, uint32_t height, uint32_t width, const int32_t *y, size_t count, void *work,
                   size_t work_bytes) {
    nic_info info = nic_about(coder);
    size_t positions = (size_t)((height + 63) / 64) * ((width + 63) / 64), length, most = nic_most(coder, height, width);
    int32_t *z = exactly(positions * info.z_channels * sizeof *z), *again = exactly(count * sizeof *again);
    for (size_t i = 0; i < positions * info.z_channels; i++)
        z[i] = below(8) ? (int32_t)below(9) - 4 : (int32_t)below(0xffffffff);
    size_t room = below(2) ? most : below((uint32_t)most);
    uint8_t *file = exactly(room);
    uint32_t rate = below(info.most_rate + 2); /* one too high, too */
    nic_status status = nic_encode(coder, rate, height, width, y, z, file, room, &length, work, work_bytes);
    if ((status == NIC_MEMORY && room == most) || length > room)
        abort();
    if (status == NIC_OK && (nic_decode(coder, file, length, again, count, work, work_bytes) != NIC_OK
                             || (info.architecture < 2 && !info.most_rate && memcmp(again, y, count * sizeof *y))))
        abort();
    float *values = exactly(count * sizeof *values);
    for (size_t i = 0; i < count; i++)
        values[i] = (float)y[i] * info.unit;
    nic_round(coder, rate, height, width, values, z, again, work, work_bytes);
    free(values);
    free(file);
    free(again);
    free(z);
}

/* Reads a file; 1 if it is accepted. */
static int decode(const nic_coder *coder, bytes file) {
    uint32_t height, width;
    size_t work_bytes;
    if (nic_size(coder, file.data, file.length, &height, &width) != NIC_OK
        || nic_work(coder, height, width, &work_bytes) != NIC_OK)
        return 0;
    size_t count = (size_t)nic_about(coder).channels * ((height + 15) / 16) * ((width + 15) / 16);
    if (count * 16 + work_bytes > MOST_BYTES)
        return 0;
    int32_t *y = exactly(count * sizeof *y);
    void *work = exactly(work_bytes);
    if (nic_decode(coder, file.data, file.length, y, count - 1, work, work_bytes) != NIC_MEMORY
        || (work_bytes && nic_decode(coder, file.data, file.length, y, count, work, work_bytes - 1) != NIC_MEMORY))
        abort();
    int whole = nic_decode(coder, file.data, file.length, y, count, work, work_bytes) == NIC_OK;
    if (whole)
        encode(coder, height, width, y, count, work, work_bytes);
    free(work);
    free(y);
    return whole;
}

int main(int count, char **words) {
    static bytes files[MOST_FILES];
    int known = count - 4, refused = 0, accepted = 0, tables_opened = 0;
    bytes tables = read_file(words[3]);
    void *memory, *other;
    double slowest = 0;
    chance += strtoul(words[1], NULL, 10) * 0x9e3779b97f4a7c15u;
    crc_tables_of(&crc);
    nic_coder *coder = opened(tables, &memory);
    for (int i = 0; i < known; i++) {
        files[i] = read_file(words[4 + i]);
        if (!coder || !decode(coder, files[i]))
            return 3;
    }
    for (unsigned long i = strtoul(words[2], NULL, 10); i > 0; i--) {
        clock_t start = clock();
        alarm(SECONDS);
        asked = 0;
        bytes whole = files[below((uint32_t)known)];
        if (below(10) < 8) {
            bytes file = damaged(whole, files[below((uint32_t)known)]);
            if (below(4))
                seal(file, 0);
            decode(coder, file) ? accepted++ : refused++;
            free(file.data);
        } else {
            bytes wrong = damaged(tables, tables);
            if (below(8))
                seal(wrong, 1);
            nic_coder *found = opened(wrong, &other);
            found ? accepted++ : refused++;
            tables_opened += found != NULL;
            bytes file = {malloc(whole.length), whole.length};
            memcpy(file.data, whole.data, whole.length);
            if (found) {
                put_word(file.data + 4, nic_about(found).fingerprint);
                seal(file, 0);
                decode(found, file);
            }
            free(file.data);
            free(other);
            free(wrong.data);
        }
        double took = (double)(clock() - start) / CLOCKS_PER_SEC;
        slowest = took > slowest ? took : slowest;
    }
    printf("{\"refused\": %d, \"accepted\": %d, \"tables\": %d, \"slowest\": %.4f, \"megabytes\": %.3f}\n", refused,
           accepted, tables_opened, slowest, (double)largest / 1e6);
    for (int i = 0; i < known; i++)
        free(files[i].data);
    free(tables.data);
    free(memory);
    return 0;
}
