// The decoding step of a Llama for a handful of tokens: what model.py does, without a tensor library.
//
// One token at a time, a model is read from memory once per token and each weight is used once, so the time is that of
// reading it. This file therefore touches weights in the order they lie in memory, in the type they are stored in, and
// keeps everything else (a few thousand float32 activations) in the cache of the processor. compiled_step.py compiles it for
// one shape of model (the macros D, H, G, K, F, V) and one processor, and calls `decode`.
//
// A «lane» is one token of this step. Lanes may follow each other in one text or belong to different texts.
//
// Matrices of floats are multiplied in floats, matrices of few bits in whole numbers: then activations are rounded, too, with a
// scale for 32 of them, to 8 bits, or precisely, to two times 8. What that costs is in docs/experiments.md.
//
// Try: leave out the barrier after `rotate`; tests/test_compiled_step.py (test_two_ways_step_equals_model) fails now and then,
// and with more threads more often.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "products.h"

enum Kind : int64_t { FLOAT32, BFLOAT16, INT8, INT8_GROUPS, INT4_GROUPS };

constexpr int LANES = 4;                                       // of one matrix that are multiplied at a time
constexpr int64_t AHEAD = 8192;                                // bytes to ask memory for in advance; 0 takes four times as long

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
    int64_t precise;                                           // activations meet few bits in 16 bits, not in 8
};

struct Cache {                                                 // of one layer: (rows of the batch, G, slots, K)
    void *keys, *values;
    int64_t row_stride, head_stride;                           // in numbers
};

struct Lane {
    int64_t row, slot, first;                                  // its text, where it is stored, the first slot it may see
};

// ---- products --------------------------------------------------------------------------------------------------------

// What a matrix is multiplied by, a vector a lane: as it is, and rounded, with a scale a group: x = scale · q, or where it
// is to be precise, scale · (q + rest / FINER).
struct Input {
    int64_t columns, groups;                                   // groups: with room for whole vectors, in which zeros stand
    const float* x;                                            // (lanes, columns)
    const int8_t *q, *rest;                                    // (lanes, columns), -127 … 127; rest: null where it is left
    const float *scale, *sum;                                  // (lanes, groups); sum: of what x is in a group
};
constexpr int FINER = 254;                                     // what rounding leaves is half a step, which 127 stands for

using processor::Floats, processor::Sums;
constexpr int WIDTH = sizeof(Floats) / sizeof(float), STEP = sizeof(Sums) / sizeof(float);
typedef uint32_t Words __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));
constexpr int64_t groups_of(int64_t columns) { return (columns / GROUP + STEP - 1) / STEP * STEP; }
constexpr int64_t MOST_GROUPS = groups_of(std::max(std::max(D, F), H * K));

template <class Vector = Floats> static inline Vector load(const float* x) {
    Vector v;
    memcpy(&v, x, sizeof v);
    return v;
}

static inline Floats load(const uint16_t* x) {                 // bfloat16 is the upper half of a float32
    Halves halves;
    memcpy(&halves, x, sizeof halves);
    const Words words = __builtin_convertvector(halves, Words) << 16;
    Floats v;
    memcpy(&v, &words, sizeof v);
    return v;
}

static inline float total(Floats v) {
    float sum = 0;
    for (int i = 0; i < WIDTH; i++) sum += v[i];
    return sum;
}

// GROUP numbers to -127 … 127: never -128, so that any product of two fits 15 bits.
static void round(const float* x, int8_t* q, int8_t* rest, float& scale, float& sum) {
    int32_t top = 0, total = 0;
    for (int i = 0; i < GROUP; i++) {                          // sizes compared as whole numbers, of which NaN is the largest:
        int32_t word;                                          // as floats, -ffast-math would lose it
        memcpy(&word, x + i, sizeof word);
        top = std::max(top, word & 0x7fffffff);
    }
    float largest;
    memcpy(&largest, &top, sizeof largest);
    const float factor = largest < 1e-30f ? 0 : 127 / largest;
    for (int i = 0; i < GROUP; i++) {
        const int32_t n = (int32_t)(x[i] * factor + (x[i] < 0 ? -0.5f : 0.5f));
        q[i] = n;
        total += n;
    }
    scale = largest / 127;
    sum = scale * total;
    if (!rest) return;
    int32_t left = 0;
    for (int i = 0; i < GROUP; i++) {
        const float f = (x[i] * factor - q[i]) * FINER;
        const int32_t n = (int32_t)(f + (f < 0 ? -0.5f : 0.5f));
        rest[i] = std::max(-127, std::min(127, n));
        left += rest[i];
    }
    sum += scale * left / FINER;
}

// ROWS rows lie in memory as one piece, of which a loop over columns takes `bytes` a turn. Memory is asked for them in the
// order of that piece: asked row by row, it brings a third as much.
static inline void ask_ahead(const void* rows, int64_t turn, int bytes) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)rows + turn * bytes + AHEAD + i);
}

// y[t][r] = row r of `weight` times x of lane t, for N lanes from `lane` on. A weight is loaded once for all of them, and a
// number of x once for all rows.
template <int N, class W> static void multiply_floats(const W* weight, const Input& in, int64_t lane, float (*y)[ROWS]) {
    const float* x = in.x + lane * in.columns;
    Floats sums[N][ROWS] = {};
    for (int64_t i = 0; i < in.columns; i += WIDTH) {
        ask_ahead(weight, i / WIDTH, ROWS * WIDTH * sizeof(W));
        #pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const Floats w = load(weight + r * in.columns + i);
            #pragma GCC unroll 8
            for (int t = 0; t < N; t++) sums[t][r] += w * load(x + t * in.columns + i);
        }
    }
    for (int t = 0; t < N; t++) processor::totals(sums[t], y[t]);
}

// Vectors of scales reach beyond the end of a row. Behind the last one is nothing that may be read, so it is copied.
static inline const uint16_t* rows_of(const void* scales, const Matrix& m, int64_t row, uint16_t (&copy)[ROWS * MOST_GROUPS]) {
    const int64_t groups = m.columns / GROUP;
    const uint16_t* found = (const uint16_t*)scales + row * groups;
    if ((m.rows - row - ROWS) * groups >= STEP) return found;
    std::fill(std::copy_n(found, ROWS * groups, copy), std::end(copy), 0);
    return copy;
}

// The same in whole numbers. With weights scale · q + minimum, and x = scale' · q', a group adds
// (q · q') · scale · scale' + minimum · (sum of x).
template <int N, Kind KIND, bool PRECISE> static void multiply_integers(const Matrix& m, int64_t row, const Input& in,
                                                                        int64_t lane, float (*y)[ROWS]) {
    using Stored = std::conditional_t<KIND == INT4_GROUPS, uint8_t, int8_t>;
    constexpr int64_t BYTES = KIND == INT4_GROUPS ? GROUP / 2 : GROUP;
    const int64_t groups = m.columns / GROUP;
    uint16_t copy[2][ROWS * MOST_GROUPS];
    const uint16_t* scale = KIND == INT8 ? nullptr : rows_of(m.scale, m, row, copy[0]);
    const uint16_t* minimum = KIND == INT4_GROUPS ? rows_of(m.minimum, m, row, copy[1]) : nullptr;
    float factor[N][ROWS][MOST_GROUPS];                        // scale · scale'
    Sums sums[N][ROWS] = {};
    #pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
        for (int64_t g = 0; g < groups; g += STEP) {
            const Sums ours = scale ? processor::widen(scale + r * groups + g) : Sums{} + ((const float*)m.scale)[row + r];
            const Sums low = minimum ? processor::widen(minimum + r * groups + g) : Sums{};
            #pragma GCC unroll 8
            for (int t = 0; t < N; t++) {
                const int64_t theirs = (lane + t) * in.groups + g;
                const Sums both = ours * load<Sums>(in.scale + theirs) * (PRECISE ? 1.f / FINER : 1.f);
                memcpy(&factor[t][r][g], &both, sizeof both);
                if (minimum) sums[t][r] += low * load<Sums>(in.sum + theirs);
            }
        }

    const Stored* weight = (const Stored*)m.weight + row * groups * BYTES;
    const int8_t *q = in.q + lane * in.columns, *rest = in.rest + lane * in.columns;
    for (int64_t g = 0; g < groups; g++) {
        ask_ahead(weight, g, ROWS * BYTES);
        #pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
            #pragma GCC unroll 8
            for (int t = 0; t < N; t++) {
                const Stored* w = weight + (r * groups + g) * BYTES;
                auto dot = processor::dot(w, q + t * in.columns + g * GROUP);
                if (PRECISE) dot = dot * FINER + processor::dot(w, rest + t * in.columns + g * GROUP);
                sums[t][r] += __builtin_convertvector(dot, Sums) * factor[t][r][g];
            }
    }
    for (int t = 0; t < N; t++) processor::totals(sums[t], y[t]);
}

template <int N, Kind KIND> static void multiply_bits(const Matrix& m, int64_t row, const Input& in, int64_t lane,
                                                      float (*y)[ROWS]) {
    if (in.rest) multiply_integers<N, KIND, true>(m, row, in, lane, y);
    else multiply_integers<N, KIND, false>(m, row, in, lane, y);
}

template <int N> static void multiply_lanes(const Matrix& m, int64_t row, const Input& in, int64_t lane, float (*y)[ROWS]) {
    switch (m.kind) {
        case FLOAT32: multiply_floats<N>((const float*)m.weight + row * m.columns, in, lane, y); break;
        case BFLOAT16: multiply_floats<N>((const uint16_t*)m.weight + row * m.columns, in, lane, y); break;
        case INT8: multiply_bits<N, INT8>(m, row, in, lane, y); break;
        case INT8_GROUPS: multiply_bits<N, INT8_GROUPS>(m, row, in, lane, y); break;
        case INT4_GROUPS: multiply_bits<N, INT4_GROUPS>(m, row, in, lane, y); break;
    }
    if (m.bias)
        for (int t = 0; t < N; t++)
            for (int r = 0; r < ROWS; r++) y[t][r] += m.bias[row + r];
}

// y[t * stride + r] = rows [row, row + ROWS) of m times each of the vectors
static void multiply(const Matrix& m, int64_t row, const Input& in, int64_t lanes, float* y, int64_t stride) {
    float found[LANES][ROWS];
    for (int64_t t = 0, n; t < lanes; t += n) {
        n = lanes - t >= LANES ? LANES : lanes - t >= 2 ? 2 : 1;
        if (n == LANES) multiply_lanes<LANES>(m, row, in, t, found);
        else if (n == 2) multiply_lanes<2>(m, row, in, t, found);
        else multiply_lanes<1>(m, row, in, t, found);
        for (int64_t i = 0; i < n; i++) memcpy(y + (t + i) * stride, found[i], sizeof found[i]);
    }
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

template <int N> static inline void store(const float* from, float* to) { memcpy(to, from, N * sizeof(float)); }
template <int N> static inline void store(const float* from, uint16_t* to) {   // round to nearest, ties to even
    for (int i = 0; i < N; i++) {
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
        Floats dot = {};
        for (int64_t i = 0; i < K; i += WIDTH) dot += load(q + i) * load(keys + s * K + i);
        scores[s - first] = total(dot) / std::sqrt((float)K);
        top = std::max(top, scores[s - first]);
    }
    for (int64_t s = 0; s <= last - first; s++) sum += scores[s] = std::exp(scores[s] - top);
    Floats mixed[K / WIDTH] = {};
    for (int64_t s = first; s <= last; s++)
        for (int64_t i = 0; i < K / WIDTH; i++) mixed[i] += load(values + s * K + i * WIDTH) * (scores[s - first] / sum);
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
    std::vector<float> normed, scale, sum, scores, y;
    std::vector<int8_t> q, rest;                               // rest: empty where it is left
    Own(int64_t lanes, int64_t slots, bool precise)
        : normed(lanes * D), scale(lanes * MOST_GROUPS), sum(lanes * MOST_GROUPS), scores(slots), y(lanes * ROWS),
          q(lanes * MOST_GROUPS * GROUP), rest(precise ? q.size() : 0) {}

    Input norm(const float* x, const float* weight, float eps, int64_t lanes) {
        for (int64_t t = 0; t < lanes; t++) rms_norm(x + t * D, weight, eps, normed.data() + t * D);
        return rounded(normed.data(), D, lanes);
    }
    Input rounded(const float* x, int64_t columns, int64_t lanes) {
        const int64_t groups = groups_of(columns);
        std::fill_n(scale.begin(), lanes * groups, 0.f);
        std::fill_n(sum.begin(), lanes * groups, 0.f);
        for (int64_t t = 0; t < lanes; t++)
            for (int64_t i = 0; i < columns; i += GROUP) {
                const int64_t g = t * groups + i / GROUP;
                const int64_t place = t * columns + i;
                round(x + place, &q[place], rest.empty() ? nullptr : &rest[place], scale[g], sum[g]);
            }
        return {columns, groups, x, q.data(), rest.empty() ? nullptr : rest.data(), scale.data(), sum.data()};
    }
};

template <class C> static void block(const Model& model, const Layer& layer, const Cache& cache, int64_t lanes,
                                     const Lane* lane, const float* cos, const float* sin, float* x, Shared& shared,
                                     Own& own) {
    C *keys = (C*)cache.keys, *values = (C*)cache.values;

    Input in = own.norm(x, layer.input_layernorm, model.eps, lanes);
    #pragma omp for schedule(static)
    for (int64_t row = 0; row < (H + 2 * G) * K; row += ROWS) {
        if (row < H * K) multiply(layer.q_proj, row, in, lanes, &shared.q[row], H * K);
        else if (row < (H + G) * K) multiply(layer.k_proj, row - H * K, in, lanes, &shared.k[row - H * K], G * K);
        else multiply(layer.v_proj, row - (H + G) * K, in, lanes, &shared.v[row - (H + G) * K], G * K);
    }

    #pragma omp for schedule(static)
    for (int64_t i = 0; i < lanes * G; i++) {
        const int64_t t = i / G, g = i % G, place = lane[t].row * cache.row_stride + g * cache.head_stride + lane[t].slot * K;
        rotate(&shared.k[i * K], cos + t * K, sin + t * K);
        store<K>(&shared.k[i * K], keys + place);
        store<K>(&shared.v[i * K], values + place);
    }

    #pragma omp for schedule(static)
    for (int64_t i = 0; i < lanes * H; i++) {
        const int64_t t = i / H, g = i % H / (H / G), place = lane[t].row * cache.row_stride + g * cache.head_stride;
        const int64_t last = lane[t].slot, oldest = model.window ? last + 1 - model.window : 0;
        rotate(&shared.q[i * K], cos + t * K, sin + t * K);
        attend(&shared.q[i * K], keys + place, values + place, std::max(lane[t].first, oldest), last, own.scores.data(),
               &shared.mixed[i * K]);
    }

    in = own.rounded(shared.mixed.data(), H * K, lanes);
    #pragma omp for schedule(static)
    for (int64_t row = 0; row < D; row += ROWS) {
        multiply(layer.o_proj, row, in, lanes, own.y.data(), ROWS);
        for (int64_t i = 0; i < lanes * ROWS; i++) x[i / ROWS * D + row + i % ROWS] += own.y[i];
    }

    in = own.norm(x, layer.post_attention_layernorm, model.eps, lanes);
    #pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < F; row += ROWS) multiply(layer.gate_proj, row, in, lanes, &shared.gated[row], F);
    #pragma omp for schedule(static)                           // and so each thread gets the rows that it got above
    for (int64_t row = 0; row < F; row += ROWS) {
        multiply(layer.up_proj, row, in, lanes, own.y.data(), ROWS);
        for (int64_t i = 0; i < lanes * ROWS; i++) {
            float& gate = shared.gated[i / ROWS * F + row + i % ROWS];
            gate = gate / (1 + std::exp(-gate)) * own.y[i];
        }
    }

    in = own.rounded(shared.gated.data(), F, lanes);
    #pragma omp for schedule(static)
    for (int64_t row = 0; row < D; row += ROWS) {
        multiply(layer.down_proj, row, in, lanes, own.y.data(), ROWS);
        for (int64_t i = 0; i < lanes * ROWS; i++) x[i / ROWS * D + row + i % ROWS] += own.y[i];
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
        Own own(lanes, slots, model->precise);
        for (int64_t i = 0; i < model->num_layers; i++)
            if (half) block<uint16_t>(*model, model->layers[i], caches[i], lanes, lane, cos, sin, x, shared, own);
            else block<float>(*model, model->layers[i], caches[i], lanes, lane, cos, sin, x, shared, own);
        const Input in = own.norm(x, model->norm, model->eps, lanes);
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < V; i += ROWS) {
            const int64_t row = std::min<int64_t>(i, V - ROWS);   // a vocabulary need not be a multiple of ROWS
            multiply(model->lm_head, row, in, lanes, logits + row, V);
        }
    }
}

extern "C" const char* instructions() { return INSTRUCTIONS; }

// ---- weights for many tokens -----------------------------------------------------------------------------------------

static void widen_all(const uint16_t* halves, int64_t n, float* y) {
    for (int64_t i = 0; i < n; i += STEP) {
        uint16_t some[STEP] = {};
        std::copy_n(halves + i, std::min<int64_t>(STEP, n - i), some);
        const Sums found = processor::widen(some);
        memcpy(y + i, &found, sizeof found);
    }
}

// Torch multiplies many tokens faster than this file does, but by floats: a row of a matrix of few bits as such.
template <class Y> static void unpack_row(const Matrix& m, int64_t row, Y* __restrict y) {
    const int64_t groups = m.columns / GROUP;
    float scale[MOST_GROUPS], minimum[MOST_GROUPS];
    if (m.kind == INT8) std::fill_n(scale, groups, ((const float*)m.scale)[row]);
    else widen_all((const uint16_t*)m.scale + row * groups, groups, scale);
    if (m.kind == INT4_GROUPS) {
        widen_all((const uint16_t*)m.minimum + row * groups, groups, minimum);
        const uint8_t* __restrict w = (const uint8_t*)m.weight + row * groups * (GROUP / 2);
        for (int64_t g = 0; g < groups; g++, w += GROUP / 2, y += GROUP) {
            float x[GROUP];
            const float factor = scale[g], low = minimum[g];
            for (int i = 0; i < GROUP / 2; i++) {
                x[i] = (int)(w[i] & 15) * factor + low;
                x[i + GROUP / 2] = (int)(w[i] >> 4) * factor + low;
            }
            store<GROUP>(x, y);
        }
    } else {
        const int8_t* __restrict w = (const int8_t*)m.weight + row * m.columns;
        for (int64_t g = 0; g < groups; g++, w += GROUP, y += GROUP) {
            float x[GROUP];
            for (int i = 0; i < GROUP; i++) x[i] = w[i] * scale[g];
            store<GROUP>(x, y);
        }
    }
}

// y (rows, columns): rows from `first` on, in bfloat16 if `half`, else in float32.
extern "C" void unpack(const Matrix* m, int64_t first, int64_t rows, int64_t half, void* y) {
    #pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        if (half) unpack_row(*m, first + r, (uint16_t*)y + r * m->columns);
        else unpack_row(*m, first + r, (float*)y + r * m->columns);
}
