// The decoding step of a Llama for a handful of tokens: what model.py does, without a tensor library.
//
// One token at a time, a model is read from memory once per token and each weight is used once, so the time is that of
// reading it. This file therefore touches weights in the order they lie in memory, in the type they are stored in, and
// keeps everything else (a few thousand float32 activations) in the cache of the processor. compiled_step.py compiles it for
// one shape of model (the macros D, H, G, K, F, V) and one processor, and calls `decode`.
//
// A «lane» is one token of this step. Lanes may follow each other in one text or belong to different texts.
//
// Try: leave out the barrier after `rotate`; tests/test_compiled_step.py (test_two_ways_step_equals_model) fails now and then,
// and with more threads more often.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum Kind : int64_t { FLOAT32, BFLOAT16, INT8, INT8_GROUPS, INT4_GROUPS };

constexpr int GROUP = 32;                                      // weights that share a scale, in the kinds with groups
constexpr int64_t QUERY_BLOCK = 4;                                    // rows of a matrix that are multiplied at a time
constexpr int64_t AHEAD = 8192;                                // bytes to ask memory for in advance; 0 is half as fast

struct Matrix {                                                // as in compiled_step.py
    const void* weight;                                        // (rows, columns), two weights a byte for INT4_GROUPS
    const void* scale;                                         // INT8 (rows,) float32; groups (rows, columns / GROUP) float16
    const void* minimum;                                       // INT4_GROUPS: added to each weight, shaped like scale
    const float* bias;                                         // (rows,) or null
    int64_t rows, columns, kind;
};

struct Layer {
    const float *input_layernorm, *post_attention_layernorm;   // (D,)
    Matrix q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
};

struct Model {
    const Layer* layers;
    const float* norm;                                         // (D,)
    Matrix lm_head;
    int64_t num_layers, window;                                // window: keys a query may see; 0 means all
    float eps;
};

struct Cache {                                                 // of one layer: (rows of the batch, G, slots, K)
    void *keys, *values;
    int64_t row_stride, head_stride;                           // in numbers
};

struct Lane {
    int64_t row, slot, first;                                  // its text, where it is stored, the first slot it may see
};

// ---- products --------------------------------------------------------------------------------------------------------

typedef float Vector __attribute__((vector_size(64)));         // 16 numbers; compilers split it where registers are smaller
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

static inline Vector load(const float* x) {
    Vector v;
    memcpy(&v, x, sizeof v);
    return v;
}

static inline Vector load(const uint16_t* x) {                 // bfloat16 is the upper half of a float32
    Halves halves;
    memcpy(&halves, x, sizeof halves);
    Words words = __builtin_convertvector(halves, Words) << 16;
    Vector v;
    memcpy(&v, &words, sizeof v);
    return v;
}

// Bytes. What compilers make of __builtin_convertvector here is many times slower than the processor's own instruction.
#ifdef __AVX2__
static inline Vector widen(__m128i bytes) {
#ifdef __AVX512F__
    return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#else
    const __m256 eights[2] = {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                              _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes)))};
    Vector v;
    memcpy(&v, eights, sizeof v);
    return v;
#endif
}
static inline Vector load(const int8_t* x) { return widen(_mm_loadu_si128((const __m128i*)x)); }
static inline void load_nibbles(const uint8_t* x, Vector& low, Vector& high) {
    const __m128i bytes = _mm_loadu_si128((const __m128i*)x), mask = _mm_set1_epi8(15);
    low = widen(_mm_and_si128(bytes, mask));
    high = widen(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
}
#else
static inline Vector load(const int8_t* x) {
    Vector v;
    for (int i = 0; i < 16; i++) v[i] = x[i];
    return v;
}
static inline void load_nibbles(const uint8_t* x, Vector& low, Vector& high) {
    for (int i = 0; i < 16; i++) low[i] = x[i] & 15, high[i] = x[i] >> 4;
}
#endif

static inline float total(Vector v) {
    float sum = 0;
    for (int i = 0; i < 16; i++) sum += v[i];
    return sum;
}

static inline float sum_of(const float* x, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

// y[r] = weight row r · x, for QUERY_BLOCK rows. Each number of x is loaded once for all of them.
template <class W> static void dots(const W* weight, int64_t columns, const float* x, float* y) {
    Vector sums[QUERY_BLOCK] = {};
    for (int64_t i = 0; i < columns; i += 16) {
        const Vector v = load(x + i);
        #pragma GCC unroll 4
        for (int r = 0; r < QUERY_BLOCK; r++) {
            __builtin_prefetch((const char*)(weight + r * columns + i) + AHEAD);
            sums[r] += load(weight + r * columns + i) * v;
        }
    }
    for (int r = 0; r < QUERY_BLOCK; r++) y[r] = total(sums[r]);
}

static void dots_int8_groups(const Matrix& m, int64_t row, const float* x, float* y) {
    const int64_t columns = m.columns, groups = columns / GROUP;
    const int8_t* weight = (const int8_t*)m.weight + row * columns;
    const _Float16* scale = (const _Float16*)m.scale + row * groups;
    Vector sums[QUERY_BLOCK] = {};
    for (int64_t g = 0; g < groups; g++) {
        const Vector first = load(x + g * GROUP), second = load(x + g * GROUP + 16);
        #pragma GCC unroll 4
        for (int r = 0; r < QUERY_BLOCK; r++) {
            const int8_t* w = weight + r * columns + g * GROUP;
            __builtin_prefetch((const char*)w + AHEAD);
            sums[r] += (load(w) * first + load(w + 16) * second) * (float)scale[r * groups + g];
        }
    }
    for (int r = 0; r < QUERY_BLOCK; r++) y[r] = total(sums[r]);
}

// Within a group, byte i holds weight i in its low half and weight i + 16 in its high half (GGUF's Q4_0 and Q4_1).
// scale · q + minimum, so a group adds scale · (q · x) + minimum · (sum of x); `x_sums` (groups,) are computed once.
static void dots_int4_groups(const Matrix& m, int64_t row, const float* x, const float* x_sums, float* y) {
    const int64_t columns = m.columns, groups = columns / GROUP;
    const uint8_t* weight = (const uint8_t*)m.weight + row * columns / 2;
    const _Float16* scale = (const _Float16*)m.scale + row * groups;
    const _Float16* minimum = (const _Float16*)m.minimum + row * groups;
    Vector sums[QUERY_BLOCK] = {};
    float minima[QUERY_BLOCK] = {};
    for (int64_t g = 0; g < groups; g++) {
        const Vector first = load(x + g * GROUP), second = load(x + g * GROUP + 16);
        #pragma GCC unroll 4
        for (int r = 0; r < QUERY_BLOCK; r++) {
            const uint8_t* w = weight + (r * columns + g * GROUP) / 2;
            __builtin_prefetch((const char*)w + AHEAD);
            Vector low, high;
            load_nibbles(w, low, high);
            sums[r] += (low * first + high * second) * (float)scale[r * groups + g];
            minima[r] += (float)minimum[r * groups + g] * x_sums[g];
        }
    }
    for (int r = 0; r < QUERY_BLOCK; r++) y[r] = total(sums[r]) + minima[r];
}

// y (QUERY_BLOCK,) = rows [row, row + QUERY_BLOCK) of m times x (columns,)
static void multiply(const Matrix& m, int64_t row, const float* x, const float* x_sums, float* y) {
    switch (m.kind) {
        case FLOAT32: dots((const float*)m.weight + row * m.columns, m.columns, x, y); break;
        case BFLOAT16: dots((const uint16_t*)m.weight + row * m.columns, m.columns, x, y); break;
        case INT8:
            dots((const int8_t*)m.weight + row * m.columns, m.columns, x, y);
            for (int r = 0; r < QUERY_BLOCK; r++) y[r] *= ((const float*)m.scale)[row + r];
            break;
        case INT8_GROUPS: dots_int8_groups(m, row, x, y); break;
        case INT4_GROUPS: dots_int4_groups(m, row, x, x_sums, y); break;
    }
    if (m.bias)
        for (int r = 0; r < QUERY_BLOCK; r++) y[r] += m.bias[row + r];
}

// ---- the parts of a block --------------------------------------------------------------------------------------------

static void rms_norm(const float* x, const float* weight, float eps, float* y) {
    float squares = 0;
    for (int64_t i = 0; i < D; i++) squares += x[i] * x[i];
    const float factor = 1 / std::sqrt(squares / D + eps);
    for (int64_t i = 0; i < D; i++) y[i] = x[i] * factor * weight[i];
}

static void rotate(float* head, const float* cos, const float* sin) {    // pairs (i, i + K/2)
    for (int64_t i = 0; i < K / 2; i++) {
        const float first = head[i], second = head[i + K / 2];
        head[i] = first * cos[i] - second * sin[i];
        head[i + K / 2] = second * cos[i] + first * sin[i];
    }
}

static inline void store(const float* from, float* to) { memcpy(to, from, K * sizeof(float)); }
static inline void store(const float* from, uint16_t* to) {    // round to nearest, ties to even
    for (int64_t i = 0; i < K; i++) {
        uint32_t word;
        memcpy(&word, from + i, sizeof word);
        to[i] = (word + 0x7fff + (word >> 16 & 1)) >> 16;
    }
}

// One query head over the slots [first, last] of its key-value head; scores has room for them.
template <class C> static void attend(const float* q, const C* keys, const C* values, int64_t first, int64_t last,
                                      float* scores, float* out) {
    float top = -1e30f, sum = 0;             // no infinity: -ffast-math does without
    for (int64_t s = first; s <= last; s++) {
        Vector dot = {};
        for (int64_t i = 0; i < K; i += 16) dot += load(q + i) * load(keys + s * K + i);
        scores[s - first] = total(dot) / std::sqrt((float)K);
        top = std::max(top, scores[s - first]);
    }
    for (int64_t s = 0; s <= last - first; s++) sum += scores[s] = std::exp(scores[s] - top);
    Vector mixed[K / 16] = {};
    for (int64_t s = first; s <= last; s++)
        for (int64_t i = 0; i < K / 16; i++) mixed[i] += load(values + s * K + i * 16) * (scores[s - first] / sum);
    memcpy(out, mixed, sizeof mixed);
}

// ---- the step --------------------------------------------------------------------------------------------------------

// What all threads share between two barriers; one of each per lane.
struct Shared {
    std::vector<float> q, k, v, mixed, gated;
    explicit Shared(int64_t lanes)
        : q(lanes * H * K), k(lanes * G * K), v(lanes * G * K), mixed(lanes * H * K), gated(lanes * F) {}
};

// What a thread computes for itself, because that is faster than waiting for another to have done it.
struct Own {
    std::vector<float> normed, sums, scores;
    Own(int64_t lanes, int64_t slots)
        : normed(lanes * D), sums(lanes * (std::max(std::max(D, F), H * K) / GROUP + 1)), scores(slots) {}

    void norm(const float* x, const float* weight, float eps, int64_t lanes) {
        for (int64_t t = 0; t < lanes; t++) rms_norm(x + t * D, weight, eps, normed.data() + t * D);
        group_sums(normed.data(), D, lanes);
    }
    void group_sums(const float* x, int64_t columns, int64_t lanes) {
        for (int64_t g = 0; g < lanes * columns / GROUP; g++) sums[g] = sum_of(x + g * GROUP, GROUP);
    }
};

template <class C> static void block(const Model& model, const Layer& layer, const Cache& cache, int64_t lanes,
                                     const Lane* lane, const float* cos, const float* sin, float* x, Shared& shared,
                                     Own& own) {
    float y[QUERY_BLOCK], z[QUERY_BLOCK];
    C *keys = (C*)cache.keys, *values = (C*)cache.values;

    own.norm(x, layer.input_layernorm, model.eps, lanes);
    #pragma omp for schedule(static)
    for (int64_t row = 0; row < (H + 2 * G) * K; row += QUERY_BLOCK)
        for (int64_t t = 0; t < lanes; t++) {
            const float *n = own.normed.data() + t * D, *sums = own.sums.data() + t * (D / GROUP);
            if (row < H * K) multiply(layer.q_proj, row, n, sums, &shared.q[t * H * K + row]);
            else if (row < (H + G) * K) multiply(layer.k_proj, row - H * K, n, sums, &shared.k[t * G * K + row - H * K]);
            else multiply(layer.v_proj, row - (H + G) * K, n, sums, &shared.v[t * G * K + row - (H + G) * K]);
        }

    #pragma omp for schedule(static)
    for (int64_t i = 0; i < lanes * G; i++) {
        const int64_t t = i / G, g = i % G, place = lane[t].row * cache.row_stride + g * cache.head_stride + lane[t].slot * K;
        rotate(&shared.k[i * K], cos + t * K, sin + t * K);
        store(&shared.k[i * K], keys + place);
        store(&shared.v[i * K], values + place);
    }

    #pragma omp for schedule(static)
    for (int64_t i = 0; i < lanes * H; i++) {
        const int64_t t = i / H, g = i % H / (H / G), place = lane[t].row * cache.row_stride + g * cache.head_stride;
        const int64_t last = lane[t].slot, oldest = model.window ? last + 1 - model.window : 0;
        rotate(&shared.q[i * K], cos + t * K, sin + t * K);
        attend(&shared.q[i * K], keys + place, values + place, std::max(lane[t].first, oldest), last, own.scores.data(),
               &shared.mixed[i * K]);
    }

    own.group_sums(shared.mixed.data(), H * K, lanes);
    #pragma omp for schedule(static)
    for (int64_t row = 0; row < D; row += QUERY_BLOCK)
        for (int64_t t = 0; t < lanes; t++) {
            multiply(layer.o_proj, row, &shared.mixed[t * H * K], own.sums.data() + t * (H * K / GROUP), y);
            for (int r = 0; r < QUERY_BLOCK; r++) x[t * D + row + r] += y[r];
        }

    own.norm(x, layer.post_attention_layernorm, model.eps, lanes);
    #pragma omp for schedule(static)
    for (int64_t row = 0; row < F; row += QUERY_BLOCK)
        for (int64_t t = 0; t < lanes; t++) {
            const float *n = own.normed.data() + t * D, *sums = own.sums.data() + t * (D / GROUP);
            multiply(layer.gate_proj, row, n, sums, y);
            multiply(layer.up_proj, row, n, sums, z);
            for (int r = 0; r < QUERY_BLOCK; r++) shared.gated[t * F + row + r] = y[r] / (1 + std::exp(-y[r])) * z[r];
        }

    own.group_sums(shared.gated.data(), F, lanes);
    #pragma omp for schedule(static)
    for (int64_t row = 0; row < D; row += QUERY_BLOCK)
        for (int64_t t = 0; t < lanes; t++) {
            multiply(layer.down_proj, row, &shared.gated[t * F], own.sums.data() + t * (F / GROUP), y);
            for (int r = 0; r < QUERY_BLOCK; r++) x[t * D + row + r] += y[r];
        }
}

// x (lanes, D): embedded tokens, overwritten; cos, sin (lanes, K); logits (lanes, V). half: the cache holds bfloat16.
extern "C" void decode(const Model* model, const Cache* caches, int64_t half, int64_t lanes, const Lane* lane,
                       const float* cos, const float* sin, float* x, float* logits) {
    Shared shared(lanes);
    int64_t slots = 0;
    for (int64_t t = 0; t < lanes; t++) slots = std::max(slots, lane[t].slot + 1);
    #pragma omp parallel
    {
        Own own(lanes, slots);
        for (int64_t i = 0; i < model->num_layers; i++)
            if (half) block<uint16_t>(*model, model->layers[i], caches[i], lanes, lane, cos, sin, x, shared, own);
            else block<float>(*model, model->layers[i], caches[i], lanes, lane, cos, sin, x, shared, own);
        own.norm(x, model->norm, model->eps, lanes);
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < V; i += QUERY_BLOCK) {
            const int64_t row = std::min(i, V - QUERY_BLOCK);             // a vocabulary need not be a multiple of QUERY_BLOCK
            for (int64_t t = 0; t < lanes; t++)
                multiply(model->lm_head, row, &own.normed[t * D], &own.sums[t * (D / GROUP)], logits + t * V + row);
        }
    }
}
