/* The coder as a command: compressed files to values of y, and symbols to compressed files. Statuses as codec.compress:
 * 0, or 2 with one line on stderr. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nic.h"

static const char usage[] =
    "usage: nic about TABLES\n"
    "       nic decode TABLES FILE VALUES\n"
    "       nic encode TABLES RATE WIDTH HEIGHT SYMBOLS [Z] FILE\n"
    "\n"
    "about   prints what a file of entropy tables says\n"
    "decode  writes the values of y, int32 [M][rows][columns], and prints the size of the picture and of y\n"
    "encode  writes the file of the symbols of y and, with a hyperprior, of z, int32 in the same order; RATE is 0 for a\n"
    "        codec of one rate, and up to what `about` says for a codec of several\n";

static int refuse(const char *name, const char *why) {
    fprintf(stderr, "error: %s: %s\n", name, why);
    exit(2);
}

static void *room_for(size_t bytes, const char *name) {
    void *found = malloc(bytes ? bytes : 1);
    if (!found)
        refuse(name, "it does not fit into memory");
    return found;
}

static void *read_file(const char *name, size_t *length) {
    FILE *file = fopen(name, "rb");
    if (!file || fseek(file, 0, SEEK_END))
        refuse(name, "it cannot be read");
    long end = ftell(file);
    if (end < 0 || end > 1 << 30 || fseek(file, 0, SEEK_SET))
        refuse(name, "it cannot be read");
    void *data = room_for((size_t)end, name);
    *length = fread(data, 1, (size_t)end, file);
    if (*length != (size_t)end)
        refuse(name, "it cannot be read");
    fclose(file);
    return data;
}

static void write_file(const char *name, const void *data, size_t length) {
    FILE *file = fopen(name, "wb");
    if (!file)
        refuse(name, "it cannot be written");
    int whole = fwrite(data, 1, length, file) == length;
    if (fclose(file) || !whole) {
        remove(name);
        refuse(name, "it cannot be written");
    }
}

static void check(nic_status status, const char *name) {
    if (status != NIC_OK)
        refuse(name, nic_message(status));
}

static nic_coder *open_tables(const char *name) {
    size_t length, bytes;
    void *tables = read_file(name, &length);
    nic_coder *coder;
    check(nic_memory(tables, length, &bytes), name);
    check(nic_open(tables, length, room_for(bytes, name), bytes, &coder), name);
    free(tables);
    return coder;
}

static void *work_for(const nic_coder *coder, uint32_t height, uint32_t width, const char *name, size_t *bytes) {
    check(nic_work(coder, height, width, bytes), name);
    return room_for(*bytes, name);
}

static void about(const nic_coder *coder) {
    static const char *const names[] = {"bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018_mean"};
    nic_info info = nic_about(coder);
    printf("codec %08lx, %s, M=%lu", (unsigned long)info.fingerprint, names[info.architecture],
           (unsigned long)info.channels);
    if (info.z_channels)
        printf(", N=%lu", (unsigned long)info.z_channels);
    if (info.most_rate)
        printf(", rates 0 to %lu", (unsigned long)info.most_rate);
    printf("\n");
}

static void decode(const nic_coder *coder, const char *name, const char *target) {
    size_t length, bytes;
    uint32_t height, width;
    void *file = read_file(name, &length);
    check(nic_size(coder, file, length, &height, &width), name);
    uint32_t rows = (height + 15) / 16, columns = (width + 15) / 16, channels = nic_about(coder).channels;
    size_t count = (size_t)channels * rows * columns;
    int32_t *values = room_for(count * sizeof *values, name);
    void *work = work_for(coder, height, width, name, &bytes);
    check(nic_decode(coder, file, length, values, count, work, bytes), name);
    write_file(target, values, count * sizeof *values);
    printf("picture %lux%lu, y %lux%lux%lu\n", (unsigned long)width, (unsigned long)height, (unsigned long)channels,
           (unsigned long)rows, (unsigned long)columns);
}

static uint32_t number(const char *word) {
    char *end;
    unsigned long found = strtoul(word, &end, 10);
    if (*word < '0' || *word > '9' || *end || found > 1ul << 30)
        refuse(word, "a rate, a width and a height are whole numbers");
    return (uint32_t)found;
}

static const int32_t *read_symbols(const char *name, size_t count) {
    size_t length;
    const int32_t *symbols = read_file(name, &length);
    if (length != count * sizeof *symbols)
        refuse(name, "it has not as many int32 numbers as a picture of this size has symbols");
    return symbols;
}

static void encode(const nic_coder *coder, int count, char **words) {
    nic_info info = nic_about(coder);
    const char *target = words[count - 1];
    if (count != (info.z_channels ? 6 : 5))
        refuse(target, info.z_channels ? "this codec needs the symbols of z" : "this codec has no z");
    uint32_t rate = number(words[0]), width = number(words[1]), height = number(words[2]);
    size_t bytes, room = nic_most(coder, height, width), length;
    void *work = work_for(coder, height, width, target, &bytes);
    size_t rows = (height + 15) / 16, columns = (width + 15) / 16;
    const int32_t *y = read_symbols(words[3], info.channels * rows * columns), *z = NULL;
    if (info.z_channels)
        z = read_symbols(words[4], info.z_channels * ((rows + 3) / 4) * ((columns + 3) / 4));
    void *file = room_for(room, target);
    check(nic_encode(coder, rate, height, width, y, z, file, room, &length, work, bytes), target);
    write_file(target, file, length);
}

int main(int count, char **words) {
    if (count == 2 && (!strcmp(words[1], "-h") || !strcmp(words[1], "--help"))) {
        fputs(usage, stdout);
        return 0;
    }
    const char *what = count > 2 ? words[1] : "";
    if (count == 3 && !strcmp(what, "about"))
        about(open_tables(words[2]));
    else if (count == 5 && !strcmp(what, "decode"))
        decode(open_tables(words[2]), words[3], words[4]);
    else if ((count == 8 || count == 9) && !strcmp(what, "encode"))
        encode(open_tables(words[2]), count - 3, words + 3);
    else {
        fprintf(stderr, "%serror: nic takes about, decode or encode, with their files\n", usage);
        return 2;
    }
    return 0;
}
