/* A photograph to a compressed file and back, with exported models, ONNX Runtime's C API and the coder: no Python.
 *
 *     photograph encode photo.ppm photo.bin enc.onnx [RATE]
 *     photograph decode photo.bin decoded.ppm dec.onnx
 *
 * The models are of any size (python -m export --dynamic), float or int8, and lie where the export wrote them: beside
 * enc.tables and, with a hyperprior, enc.h_a.onnx. A picture is a binary PPM of 8 bits, and is computed at once, without
 * tiles. A codec of several rates has 64 from one trained rate to the next, from 0; without RATE it is the highest. The
 * files are those of codec.compress. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef HAVE_ONNXRUNTIME_HEADER
#include <onnxruntime_c_api.h>
#else
#include "onnxruntime_subset.h"
#endif

#include "nic.h"

enum { STRIDE = 16, ZERO = 128 };

/* A graph of one input and one output. A value of 8 bits is a level: `steps` of its channel, or 1 where steps is NULL.
 * Where splits is not NULL, so many channels of the graph hold a channel: the level is the sum of its splits. */
typedef struct {
    OrtSession *session;
    char *input, *output;
    int bytes;              /* the input is uint8, not float */
    float *steps;
    size_t *splits;
} graph;

/* A tensor [1][channels][rows][columns]. */
typedef struct {
    void *values;
    int bytes;
    size_t channels, rows, columns;
} tensor;

static const OrtApi *ort;

static void refuse(const char *name, const char *why) {
    fprintf(stderr, "error: %s: %s\n", name, why);
    exit(2);
}

static void check(OrtStatus *status, const char *name) {
    if (status)
        refuse(name, ort->GetErrorMessage(status));
}

static void check_coder(nic_status status, const char *name) {
    if (status != NIC_OK)
        refuse(name, nic_message(status));
}

static void *room_for(size_t count, size_t size) {
    void *found = malloc(count * size + 1);
    if (!found)
        refuse("memory", "there is not enough");
    return found;
}

static uint8_t *read_file(const char *name, size_t *length) {
    FILE *file = fopen(name, "rb");
    if (!file || fseek(file, 0, SEEK_END))
        refuse(name, "it cannot be read");
    *length = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = room_for(*length, 1);
    if (fread(data, 1, *length, file) != *length)
        refuse(name, "it cannot be read");
    fclose(file);
    return data;
}

static void write_file(const char *name, const char *head, const void *data, size_t length) {
    FILE *file = fopen(name, "wb");
    if (!file || fputs(head, file) < 0 || fwrite(data, 1, length, file) != length || fclose(file))
        refuse(name, "it cannot be written");
}

/* The name of a file beside a model: enc.onnx and ".tables" give enc.tables. */
static char *beside(const char *model, const char *suffix) {
    char *made = room_for(strlen(model) + strlen(suffix), 1), *dot;
    strcpy(made, model);
    dot = strrchr(made, '.');
    strcpy(dot ? dot : made + strlen(made), suffix);
    return made;
}

static nic_coder *open_tables(const char *name) {
    size_t length, bytes;
    uint8_t *tables = read_file(name, &length);
    nic_coder *coder;
    check_coder(nic_memory(tables, length, &bytes), name);
    check_coder(nic_open(tables, length, room_for(bytes, 1), bytes, &coder), name);
    free(tables);
    return coder;
}

/* float32 numbers, little-endian, in hexadecimal; NULL for no text. */
static float *read_steps(const char *text) {
    if (!text || !*text)
        return NULL;
    size_t count = strlen(text) / 8;
    float *steps = room_for(count, sizeof *steps);
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = 0;
        for (int byte = 3; byte >= 0; byte--) {
            char digits[3] = {text[8 * i + 2 * (size_t)byte], text[8 * i + 2 * (size_t)byte + 1], 0};
            bits = bits << 8 | (uint32_t)strtoul(digits, NULL, 16);
        }
        memcpy(steps + i, &bits, 4);
    }
    return steps;
}

/* Numbers with spaces between; NULL for no text. */
static size_t *read_splits(const char *text) {
    if (!text || !*text)
        return NULL;
    size_t *splits = room_for(strlen(text), sizeof *splits), count = 0;
    for (char *rest = (char *)text; *rest; count++)
        splits[count] = strtoul(rest, &rest, 10);
    return splits;
}

static graph open_graph(const OrtEnv *env, const char *name) {
    OrtSessionOptions *options;
    OrtAllocator *allocator;
    OrtTypeInfo *type;
    OrtModelMetadata *metadata;
    const OrtTensorTypeAndShapeInfo *shape;
    ONNXTensorElementDataType kind;
    graph made;
    char *steps, *splits;
    check(ort->CreateSessionOptions(&options), name);
    /* Exact int8 sums on an x86 without VNNI, which a CPU with VNNI has without it, and faster (docs/export.md). */
    check(ort->AddSessionConfigEntry(options, "session.x64quantprecision", "1"), name);
    check(ort->CreateSession(env, name, options, &made.session), name);
    check(ort->GetAllocatorWithDefaultOptions(&allocator), name);
    check(ort->SessionGetInputName(made.session, 0, allocator, &made.input), name);
    check(ort->SessionGetOutputName(made.session, 0, allocator, &made.output), name);
    check(ort->SessionGetInputTypeInfo(made.session, 0, &type), name);
    check(ort->CastTypeInfoToTensorInfo(type, &shape), name);
    check(ort->GetTensorElementType(shape, &kind), name);
    check(ort->SessionGetModelMetadata(made.session, &metadata), name);
    check(ort->ModelMetadataLookupCustomMetadataMap(metadata, allocator, "steps", &steps), name);
    made.bytes = kind == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    check(ort->ModelMetadataLookupCustomMetadataMap(metadata, allocator, "splits", &splits), name);
    made.steps = read_steps(steps);
    made.splits = read_splits(splits);
    return made;
}

static tensor run(const graph *of, tensor x) {
    int64_t sides[4] = {1, (int64_t)x.channels, (int64_t)x.rows, (int64_t)x.columns};
    size_t count = x.channels * x.rows * x.columns;
    OrtMemoryInfo *memory;
    OrtValue *input, *output = NULL;
    OrtTensorTypeAndShapeInfo *shape;
    ONNXTensorElementDataType kind = x.bytes ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    tensor found;
    const char *from = of->input, *to = of->output;
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), "ONNX Runtime");
    check(ort->CreateTensorWithDataAsOrtValue(memory, x.values, count * (x.bytes ? 1 : sizeof(float)), sides, 4, kind,
                                              &input), "ONNX Runtime");
    check(ort->Run(of->session, NULL, &from, (const OrtValue *const *)&input, 1, &to, 1, &output), "ONNX Runtime");
    check(ort->GetTensorMutableData(output, &found.values), "ONNX Runtime");
    check(ort->GetTensorTypeAndShape(output, &shape), "ONNX Runtime");
    check(ort->GetTensorElementType(shape, &kind), "ONNX Runtime");
    check(ort->GetDimensions(shape, sides, 4), "ONNX Runtime");
    found.bytes = kind == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    found.channels = (size_t)sides[1];
    found.rows = (size_t)sides[2];
    found.columns = (size_t)sides[3];
    return found;
}

/* A value of the size of 8 bits rounded half to even: there floats have their last bit at 1/2^15 or below. */
static float even(float value) {
    const float large = 12582912; /* 1.5 * 2^23: a sum with it has no bits below 1 */
    volatile float sum = value + large;
    return sum - large;
}

static size_t splits_of(const graph *of, size_t channel) {
    return of->splits ? of->splits[channel] : 1;
}

/* A split of the graph's level of a value in 8 bits, or of the value itself: the sum over all places is the level. */
static uint8_t level_of(const graph *of, float value, size_t channel, size_t place) {
    int32_t count = (int32_t)splits_of(of, channel), most = 8 * ZERO;
    float exact = of->steps ? value / of->steps[channel] : value;
    int32_t level = exact < -most ? -most : exact > most ? most : (int32_t)even(exact), sum = level + (int32_t)place;
    int32_t split = sum / count - (sum % count < 0); /* rounded down */
    return (uint8_t)(split < -ZERO ? 0 : split > ZERO - 1 ? 255 : split + ZERO);
}

/* The levels of the graph's 8 bits, or its symbols, [channels][each]: the sum of each channel's splits. */
static void levels_of(const graph *of, const uint8_t *values, size_t channels, size_t each, int32_t *levels) {
    for (size_t channel = 0; channel < channels; channel++)
        for (size_t split = 0; split < splits_of(of, channel); split++, values += each)
            for (size_t i = 0; i < each; i++)
                levels[channel * each + i] = (split ? levels[channel * each + i] : 0) + values[i] - ZERO;
}

/* The input of a graph from float values of y, or from those that the coder decodes. */
static tensor input_of(const graph *of, const nic_info *info, const float *values, int is_decoded, tensor shape) {
    size_t each = shape.rows * shape.columns, channels = 0, next = 0;
    int magnitudes = !strncmp(of->input, "magnitude", 9);
    for (size_t channel = 0; channel < shape.channels; channel++)
        channels += splits_of(of, channel);
    float *floats = room_for(channels * each, sizeof *floats);
    uint8_t *bytes = (uint8_t *)floats;
    for (size_t channel = 0; channel < shape.channels; channel++)
        for (size_t split = 0; split < splits_of(of, channel); split++)
            for (size_t i = channel * each; i < (channel + 1) * each; i++, next++) {
                float value = magnitudes && values[i] < 0 ? -values[i] : values[i];
                if (is_decoded && (of->steps || !of->bytes))
                    value = value * info->unit + info->medians[channel];
                if (!of->bytes)
                    floats[next] = value;
                else if (magnitudes && !of->steps)
                    bytes[next] = (uint8_t)(value > 255 ? 255 : value);
                else
                    bytes[next] = level_of(of, value, channel, split);
            }
    shape.values = floats;
    shape.bytes = of->bytes;
    shape.channels = channels;
    return shape;
}

/* The picture as the encoder takes it: planes of whole blocks; the last row and column are repeated. */
static tensor planes_of(const graph *encoder, const uint8_t *pixels, size_t height, size_t width) {
    tensor x = {NULL, encoder->bytes, 3, (height + STRIDE - 1) / STRIDE * STRIDE, (width + STRIDE - 1) / STRIDE * STRIDE};
    float *floats = x.values = room_for(3 * x.rows * x.columns, sizeof *floats);
    uint8_t *bytes = x.values;
    for (size_t i = 0; i < 3 * x.rows * x.columns; i++) {
        size_t channel = i / (x.rows * x.columns), row = i / x.columns % x.rows, column = i % x.columns;
        row = row < height ? row : height - 1;
        column = column < width ? column : width - 1;
        uint8_t value = pixels[3 * (row * width + column) + channel];
        if (x.bytes)
            bytes[i] = value;
        else
            floats[i] = (float)value / 255;
    }
    return x;
}

static void encode(const OrtEnv *env, const char *source, const char *target, const char *model, const char *given) {
    nic_coder *coder = open_tables(beside(model, ".tables"));
    nic_info info = nic_about(coder);
    graph encoder = open_graph(env, model);
    size_t length, bytes;
    unsigned width, height;
    int start = 0;
    uint8_t *data = read_file(source, &length);
    uint32_t rate = given ? (uint32_t)strtoul(given, NULL, 10) : info.most_rate;
    data[length] = 0;
    if (sscanf((char *)data, "P6 %u %u 255%n", &width, &height, &start) != 2 || !start
        || length - (size_t)start - 1 != (size_t)3 * width * height)
        refuse(source, "it is no binary PPM of 8 bits without comments");
    check_coder(nic_work(coder, height, width, &bytes), source);
    tensor y = run(&encoder, planes_of(&encoder, data + start + 1, height, width));
    size_t each = y.rows * y.columns, count = info.channels * each, channels = 0;
    for (size_t channel = 0; channel < info.channels; channel++)
        channels += splits_of(&encoder, channel);
    if (y.channels != channels)
        refuse(model, "its tables are of another codec");
    float *values = room_for(count, sizeof *values);
    int32_t *symbols = room_for(count, sizeof *symbols), *z = NULL;
    if (y.bytes)
        levels_of(&encoder, y.values, info.channels, each, symbols);
    for (size_t i = 0; i < count; i++)
        values[i] = y.bytes ? (float)symbols[i] * (encoder.steps ? encoder.steps[i / each] : 1) : ((float *)y.values)[i];
    y.channels = info.channels;
    if (info.z_channels) {
        graph h_a = open_graph(env, beside(model, ".h_a.onnx"));
        tensor found = run(&h_a, input_of(&h_a, &info, values, 0, y));
        size_t total = found.channels * found.rows * found.columns;
        float *of_z = room_for(total, sizeof *of_z);
        z = room_for(total, sizeof *z);
        float unit = strcmp(h_a.output, "fifths") ? 1 : 0.2f; /* of a symbol, in 8 bits */
        for (size_t i = 0; i < total; i++)
            of_z[i] = found.bytes ? (float)(((uint8_t *)found.values)[i] - ZERO) * unit : ((float *)found.values)[i];
        check_coder(nic_round_z(coder, rate, height, width, of_z, z), model);
    }
    void *work = room_for(bytes, 1);
    if (!y.bytes || encoder.steps)
        check_coder(nic_round(coder, rate, height, width, values, z, symbols, work, bytes), model);
    size_t room = nic_most(coder, height, width), written;
    uint8_t *file = room_for(room, 1);
    check_coder(nic_encode(coder, rate, height, width, symbols, z, file, room, &written, work, bytes), source);
    write_file(target, "", file, written);
}

static void decode(const OrtEnv *env, const char *source, const char *target, const char *model) {
    nic_coder *coder = open_tables(beside(model, ".tables"));
    nic_info info = nic_about(coder);
    graph decoder = open_graph(env, model);
    size_t length, bytes;
    uint32_t height, width;
    uint8_t *file = read_file(source, &length);
    check_coder(nic_size(coder, file, length, &height, &width), source);
    check_coder(nic_work(coder, height, width, &bytes), source);
    tensor shape = {NULL, 0, info.channels, (height + STRIDE - 1) / STRIDE, (width + STRIDE - 1) / STRIDE};
    size_t count = shape.channels * shape.rows * shape.columns;
    int32_t *y = room_for(count, sizeof *y);
    check_coder(nic_decode(coder, file, length, y, count, room_for(bytes, 1), bytes), source);
    float *values = room_for(count, sizeof *values);
    for (size_t i = 0; i < count; i++)
        values[i] = (float)y[i];
    tensor x_hat = run(&decoder, input_of(&decoder, &info, values, 1, shape));
    uint8_t *pixels = room_for((size_t)3 * height * width, 1);
    for (size_t i = 0; i < (size_t)3 * height * width; i++) {
        size_t place = (i % 3 * x_hat.rows + i / 3 / width) * x_hat.columns + i / 3 % width;
        float value = x_hat.bytes ? 0 : ((float *)x_hat.values)[place];
        value = value < 0 ? 0 : value > 1 ? 1 : value;
        pixels[i] = x_hat.bytes ? ((uint8_t *)x_hat.values)[place] : (uint8_t)even(value * 255);
    }
    char head[64];
    snprintf(head, sizeof head, "P6\n%lu %lu\n255\n", (unsigned long)width, (unsigned long)height);
    write_file(target, head, pixels, (size_t)3 * height * width);
}

int main(int count, char **words) {
    OrtEnv *env;
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!ort)
        refuse("ONNX Runtime", "it is older than version 1.17");
    int is_encode = count > 4 && !strcmp(words[1], "encode");
    if (!(is_encode && count <= 6) && !(count == 5 && !strcmp(words[1], "decode")))
        refuse("photograph", "give encode PICTURE.ppm FILE ENCODER.onnx [RATE], or decode FILE PICTURE.ppm DECODER.onnx");
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "photograph", &env), "ONNX Runtime");
    if (is_encode)
        encode(env, words[2], words[3], words[4], count == 6 ? words[5] : NULL);
    else
        decode(env, words[2], words[3], words[4]);
    return 0;
}
