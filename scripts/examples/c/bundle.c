/* Runs a bundle's graphs through ONNX Runtime's C API, as docs/bundle.md describes them. Headers and library are those
   of an ONNX Runtime release (or of its NuGet package; a Python wheel has the library alone):

       cc -std=c11 -O2 -I ORT/include bundle.c -o bundle -L ORT/lib -lonnxruntime
       ./bundle BUNDLE logits 464,3797,3332 1169,3290,318         a line of T x V numbers for each row of ids
       ./bundle BUNDLE generate 20 464,3797,3332 1169,3290,318    the 20 most likely tokens after each row

   All rows have the same length. Sizes, types and limits are read from the graphs; the manifest, which is JSON, is not
   read, so neither hashes nor `runs_on` are checked. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <onnxruntime_c_api.h>

enum { MOST = 1024 }; /* inputs of a graph */

static const OrtApi *api;
static OrtAllocator *allocator;
static OrtMemoryInfo *host;

static void fail(const char *what, const char *name) {
    fprintf(stderr, "%s: %s\n", name, what);
    exit(1);
}

static void ok(OrtStatus *status) {
    if (status != NULL) fail(api->GetErrorMessage(status), "ONNX Runtime");
}

static void *zeros(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (memory == NULL) fail("out of memory", "bundle");
    return memory;
}

/* One head's graph, and the limits in its metadata. */
typedef struct {
    OrtSession *session;
    int64_t block_size, vocab_size;
} Graph;

static char *metadata(OrtModelMetadata *all, const char *key) {
    char *value;
    ok(api->ModelMetadataLookupCustomMetadataMap(all, allocator, key, &value));
    return value;
}

/* Weights of another export than the graph's have another SHA-256 in their last line. */
static void check_weights(const char *folder, const char *expected) {
    char path[4096], found[65] = "";
    snprintf(path, sizeof path, "%s/weights.data", folder);
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, -65, SEEK_END) || fread(found, 1, 64, file) != 64 || strcmp(found, expected))
        fail("missing, truncated, or of another export than the graph", path);
    fclose(file);
}

static Graph open_graph(OrtEnv *env, const char *folder, const char *head) {
    Graph graph;
    OrtSessionOptions *options;
    OrtModelMetadata *all;
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.onnx", folder, head);
    ok(api->CreateSessionOptions(&options));
    ok(api->CreateSession(env, path, options, &graph.session));
    ok(api->SessionGetModelMetadata(graph.session, &all));
    char *block_size = metadata(all, "gptexport.block_size"), *vocab_size = metadata(all, "gptexport.vocab_size");
    if (block_size == NULL || vocab_size == NULL) fail("not a graph of gptexport", path);
    graph.block_size = strtoll(block_size, NULL, 10);
    graph.vocab_size = strtoll(vocab_size, NULL, 10);
    char *weights = metadata(all, "gptexport.weights");
    if (weights != NULL) check_weights(folder, weights);
    return graph;
}

static OrtValue *tensor(void *data, size_t bytes, const int64_t *shape, size_t rank, ONNXTensorElementDataType type) {
    OrtValue *value;
    ok(api->CreateTensorWithDataAsOrtValue(host, data, bytes, shape, rank, type, &value));
    return value;
}

static OrtValue *integers(int64_t *data, const int64_t *shape, size_t rank) {
    size_t count = 1;
    for (size_t i = 0; i < rank; i++) count *= (size_t)shape[i];
    return tensor(data, count * sizeof *data, shape, rank, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
}

/* Inputs and outputs of `decode` from the cache on. A tensor is both past and present, so that a step copies nothing. */
typedef struct {
    size_t count;
    const char *past[MOST], *present[MOST];
    OrtValue *values[MOST];
} Cache;

static Cache *empty_cache(OrtSession *session, int64_t B, int64_t S) {
    Cache *cache = zeros(1, sizeof *cache);
    size_t inputs;
    ok(api->SessionGetInputCount(session, &inputs));
    if (inputs > MOST) fail("too many layers for this example", "decode.onnx");
    for (size_t i = 3; i < inputs; i++) { /* behind input_ids, lengths, past_lengths */
        OrtTypeInfo *info;
        const OrtTensorTypeAndShapeInfo *said;
        ONNXTensorElementDataType type;
        int64_t shape[4];
        char *past, *present;
        ok(api->SessionGetInputName(session, i, allocator, &past));
        ok(api->SessionGetOutputName(session, i - 2, allocator, &present)); /* behind logits */
        ok(api->SessionGetInputTypeInfo(session, i, &info));
        ok(api->CastTypeInfoToTensorInfo(info, &said));
        ok(api->GetTensorElementType(said, &type));
        ok(api->GetDimensions(said, shape, 4)); /* (B,n_kv_head,S,head_size) */
        shape[0] = B, shape[2] = S;
        size_t count = (size_t)(shape[0] * shape[1] * shape[2] * shape[3]);
        size_t size = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? 4 : type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 ? 1 : 2;
        cache->past[cache->count] = past;
        cache->present[cache->count] = present;
        cache->values[cache->count++] = tensor(zeros(count, size), count * size, shape, 4, type);
        api->ReleaseTypeInfo(info);
    }
    return cache;
}

/* One call of `decode`: T tokens for each of B rows, behind `past` tokens; logits (B,V). */
static void decode(OrtSession *session, Cache *cache, int64_t *ids, int64_t B, int64_t T, int64_t past, float *logits,
                   int64_t V) {
    OrtIoBinding *binding;
    int64_t *lengths = zeros((size_t)B, sizeof *lengths), *past_lengths = zeros((size_t)B, sizeof *lengths);
    for (int64_t b = 0; b < B; b++) lengths[b] = T, past_lengths[b] = past;
    OrtValue *fed[] = {
        integers(ids, (int64_t[]){B, T}, 2), integers(lengths, &B, 1), integers(past_lengths, &B, 1),
        tensor(logits, (size_t)(B * V) * sizeof *logits, (int64_t[]){B, V}, 2, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
    };
    ok(api->CreateIoBinding(session, &binding));
    ok(api->BindInput(binding, "input_ids", fed[0]));
    ok(api->BindInput(binding, "lengths", fed[1]));
    ok(api->BindInput(binding, "past_lengths", fed[2]));
    ok(api->BindOutput(binding, "logits", fed[3]));
    for (size_t i = 0; i < cache->count; i++) {
        ok(api->BindInput(binding, cache->past[i], cache->values[i]));
        ok(api->BindOutput(binding, cache->present[i], cache->values[i]));
    }
    ok(api->RunWithBinding(session, NULL, binding));
    api->ReleaseIoBinding(binding);
    for (size_t i = 0; i < 4; i++) api->ReleaseValue(fed[i]);
    free(lengths);
    free(past_lengths);
}

static int64_t argmax(const float *row, int64_t V) {
    int64_t best = 0;
    for (int64_t i = 1; i < V; i++)
        if (row[i] > row[best]) best = i;
    return best;
}

static void generate(Graph graph, int64_t *ids, int64_t B, int64_t T, int64_t count) {
    int64_t V = graph.vocab_size;
    float *logits = zeros((size_t)(B * V), sizeof *logits);
    int64_t *chosen = zeros((size_t)(count * B), sizeof *chosen); /* (count,B) */
    Cache *cache = empty_cache(graph.session, B, T + count - 1);  /* the last token that is chosen is not fed */
    for (int64_t i = 0; i < count; i++) {
        if (i == 0) decode(graph.session, cache, ids, B, T, 0, logits, V);
        else decode(graph.session, cache, chosen + (i - 1) * B, B, 1, T + i - 1, logits, V);
        for (int64_t b = 0; b < B; b++) chosen[i * B + b] = argmax(logits + b * V, V);
    }
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < count; i++)
            printf("%lld%c", (long long)chosen[i * B + b], i + 1 < count ? ',' : '\n');
}

static void print_logits(Graph graph, int64_t *ids, int64_t B, int64_t T) {
    const char *in[] = {"input_ids"}, *out[] = {"logits"};
    const OrtValue *fed[] = {integers(ids, (int64_t[]){B, T}, 2)};
    OrtValue *made = NULL;
    float *logits;
    ok(api->Run(graph.session, NULL, in, fed, 1, out, 1, &made));
    ok(api->GetTensorMutableData(made, (void **)&logits));
    int64_t size = T * graph.vocab_size;
    for (int64_t i = 0; i < B * size; i++) printf("%.9g%c", logits[i], (i + 1) % size ? ',' : '\n');
}

/* The ids of `B` arguments, `T` each, at most `most`. */
static int64_t *parse(char **rows, int64_t B, int64_t most, int64_t V, int64_t *T) {
    int64_t *ids = NULL, count = 0;
    for (int64_t b = 0; b < B; b++) {
        for (char *at = rows[b], *end; *at; at = *end ? end + 1 : end) {
            int64_t id = strtoll(at, &end, 10);
            if (end == at || (*end && *end != ',') || id < 0 || id >= V) fail("an id is not one of the model's", rows[b]);
            ids = realloc(ids, (size_t)(count + 1) * sizeof *ids);
            if (ids == NULL) fail("out of memory", "bundle");
            ids[count++] = id;
        }
        if (b == 0) *T = count;
        if (count != (b + 1) * *T || *T < 1 || *T > most) fail("the rows are too long, or of different lengths", rows[b]);
    }
    return ids;
}

int main(int argc, char **argv) {
    int generates = argc > 4 && strcmp(argv[2], "generate") == 0, first = generates ? 4 : 3;
    if (argc <= first || !(generates || strcmp(argv[2], "logits") == 0))
        fail("expected BUNDLE logits IDS... or BUNDLE generate COUNT IDS...", argv[0]);
    int64_t B = argc - first, T = 0, count = generates ? strtoll(argv[3], NULL, 10) : 1;
    OrtEnv *env;
    api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (api == NULL) fail("the library is older than its header", "ONNX Runtime");
    ok(api->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "bundle", &env));
    ok(api->GetAllocatorWithDefaultOptions(&allocator));
    ok(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &host));
    Graph graph = open_graph(env, argv[1], generates ? "decode" : "logits");
    int64_t *ids = parse(argv + first, B, graph.block_size - (count - 1), graph.vocab_size, &T);
    if (count < 1) fail("expected a count of 1 or more", argv[3]);
    if (generates) generate(graph, ids, B, T, count);
    else print_logits(graph, ids, B, T);
    return 0; /* what is still allocated goes with the process */
}
