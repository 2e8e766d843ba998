// The step of a Llama from tokens to logits through a cache: what model.py does, without a tensor library.
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

#include <cmath>
#include <memory>

#include "attention.h"

struct Layer {
    const float *input_layernorm, *post_attention_layernorm;   // (D,)
    Matrix q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
};

struct Model {
    const Layer* layers;
    const float* norm;                                         // (D,)
    Matrix embed_tokens, lm_head;                              // (V, D)
    const float *cos, *sin;                                    // (positions, K)
    int64_t num_layers, window;                                // window: keys a query may see; 0 means all
    float eps;
    int64_t precise;                                           // activations meet few bits in 16 bits, not in 8
};

struct Cache {                                                 // of one layer: (rows of the batch, G, slots, K)
    void *keys, *values;
    int64_t row_stride, head_stride;                           // in numbers
};

struct Lane {
    int64_t token, position;
    int64_t row, slot, first;                                  // its text, where it is stored, the first slot it may see
    int64_t wanted;                                            // whether its logits are
};

constexpr int64_t MOST = 256;                                  // lanes that go through a block together
constexpr int64_t RUN = 32, TOGETHER = 4;                      // lanes whose queries are a block: at most, and at least

// ---- the parts of a block --------------------------------------------------------------------------------------------

static void rms_norm(const float* x, const float* weight, float eps, float* y) {
    float squares = 0;
    for (int64_t i = 0; i < D; i++) squares += x[i] * x[i];
    const float factor = 1 / std::sqrt(squares / D + eps);
    for (int64_t i = 0; i < D; i++) y[i] = x[i] * factor * weight[i];
}

static void rotate(float* head, const Model& model, int64_t position) {  // pairs (i, i + K/2)
    const float *cos = model.cos + position * K, *sin = model.sin + position * K;
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

// ---- rows as floats --------------------------------------------------------------------------------------------------

static void widen_all(const uint16_t* halves, int64_t n, float* y) {
    for (int64_t i = 0; i < n; i += STEP) {
        uint16_t some[STEP] = {};
        std::copy_n(halves + i, std::min<int64_t>(STEP, n - i), some);
        const Sums found = processor::widen(some);
        memcpy(y + i, &found, sizeof found);
    }
}

// A row of any matrix.
template <class Y> static void unpack_row(const Matrix& m, int64_t row, Y* __restrict y) {
    if (m.kind == FLOAT32 || m.kind == BFLOAT16) {
        for (int64_t i = 0; i < m.columns; i += WIDTH) {
            const int64_t place = row * m.columns + i;
            const Floats x = m.kind == FLOAT32 ? load((const float*)m.weight + place) : load((const uint16_t*)m.weight + place);
            store<WIDTH>((const float*)&x, y + i);
        }
        return;
    }
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

// ---- the step --------------------------------------------------------------------------------------------------------

// Lanes that follow each other in one text, whose queries see nearly the same keys.
struct Run {
    int64_t start, lanes;
};

// What all threads share between two barriers; one of each per lane.
struct Shared {
    std::vector<float> x, q, k, v, mixed, gated, normed;
    Rounded rounded;
    std::vector<Run> runs;
    Shared(int64_t lanes, const Lane* lane, bool precise)
        : x(lanes * D), q(lanes * H * K), k(lanes * G * K), v(lanes * G * K), mixed(lanes * H * K), gated(lanes * F),
          normed(lanes * D), rounded(are_many(lanes, precise) ? room_for(lanes) : 0, precise, true) {
        for (int64_t t = 0; t < lanes; t++)
            if (t == 0 || lane[t].row != lane[t - 1].row || runs.back().lanes == RUN) runs.push_back({t, 1});
            else runs.back().lanes++;
    }
};

// What a thread works on by itself.
struct Own {
    std::vector<float> normed, scores, y;
    Rounded rounded;
    std::vector<Query> queries;
    std::unique_ptr<Seen> seen;
    std::unique_ptr<Panel> panel;
    Own(int64_t lanes, int64_t slots, bool precise)
        : normed(FEW[precise] * D), scores(slots), y(lanes * std::max(PANEL_ROWS, ROWS)),
          rounded(FEW[precise], precise, false), seen(new Seen), panel(new Panel) {
        panel->y.resize(room_for(lanes) * PANEL_ROWS);
    }
};

// The vectors x (lanes, columns), normed if there is a norm, and rounded. Of few lanes every thread does it for itself, since
// that is faster than waiting for another to have done it; of many each does some.
static Input input(const float* x, int64_t columns, const float* norm, const Model& model, int64_t lanes, Shared& shared,
                   Own& own) {
    const bool many = are_many(lanes, model.precise);
    Rounded& rounded = many ? shared.rounded : own.rounded;
    float* normed = many ? shared.normed.data() : own.normed.data();
    const auto take = [&](int64_t t) {
        if (norm) rms_norm(x + t * D, norm, model.eps, normed + t * D);
        rounded.take((norm ? normed : x) + t * columns, columns, t);
    };
    if (many) {
        #pragma omp for schedule(static)
        for (int64_t t = 0; t < lanes; t++) take(t);
    } else
        for (int64_t t = 0; t < lanes; t++) take(t);
    return rounded.input(norm ? normed : x, columns);
}

// Query heads [head, head + heads) of a run, which share their key-value head.
template <class C> static void attend(const Model& model, const Cache& cache, const Run& run, int64_t head, int64_t heads,
                                      const Lane* lane, const Shared& shared, float* mixed, Own& own) {
    const int64_t place = lane[run.start].row * cache.row_stride + head / (H / G) * cache.head_stride;
    const C *keys = (const C*)cache.keys + place, *values = (const C*)cache.values + place;
    own.queries.clear();
    for (int64_t t = run.start; t < run.start + run.lanes; t++) {
        const int64_t last = lane[t].slot, oldest = model.window ? last + 1 - model.window : 0;
        for (int64_t i = t * H + head; i < t * H + head + heads; i++)
            own.queries.push_back({&shared.q[i * K], mixed + i * K, std::max(lane[t].first, oldest), last, 0, 0});
    }
    if (run.lanes < TOGETHER)
        for (const Query& query : own.queries)
            attend_alone(query.q, keys, values, query.first, query.last, own.scores.data(), query.out);
    else attend_together(own.queries, keys, values, *own.seen);
}

// then: the matrix that is read after this block
template <class C> static void block(const Model& model, const Layer& layer, const Matrix& then, const Cache& cache,
                                     int64_t lanes, const Lane* lane, Shared& shared, Own& own) {
    float* x = shared.x.data();
    C *keys = (C*)cache.keys, *values = (C*)cache.values;
    const int64_t rows = rows_at_once(are_many(lanes, model.precise));
    const auto project = [&](const Matrix& m, const Matrix& then, const Input& in, std::vector<float>& y) {
        multiply_share(m, then, rows, in, lanes, y.data(), *own.panel);
    };
    // The same, but each product is used while it is in the processor's cache.
    const auto each = [&](const Matrix& m, const Matrix& then, const Input& in, auto use) {
        for_share(m, then, rows, [&](const Share& share, int64_t row, const Share& next) {
            multiply(share, row, next, in, lanes, own.y.data(), rows, *own.panel);
            for (int64_t t = 0; t < lanes; t++)
                for (int64_t r = 0; r < rows; r++) use(t, row + r, own.y[t * rows + r]);
        });
        #pragma omp barrier
    };
    const auto add = [&](int64_t t, int64_t row, float y) { x[t * D + row] += y; };
    const auto swiglu = [&](int64_t t, int64_t row, float up) {
        float& gate = shared.gated[t * F + row];
        gate = gate / (1 + std::exp(-gate)) * up;
    };

    Input in = input(x, D, layer.input_layernorm, model, lanes, shared, own);
    project(layer.q_proj, layer.k_proj, in, shared.q);
    project(layer.k_proj, layer.v_proj, in, shared.k);
    project(layer.v_proj, layer.o_proj, in, shared.v);
    #pragma omp barrier

    #pragma omp for schedule(static)
    for (int64_t i = 0; i < lanes * (H + G); i++) {
        const int64_t t = i / (H + G), head = i % (H + G), g = head - H;
        if (head < H) {
            rotate(&shared.q[(t * H + head) * K], model, lane[t].position);
            continue;
        }
        const int64_t place = lane[t].row * cache.row_stride + g * cache.head_stride + lane[t].slot * K;
        rotate(&shared.k[(t * G + g) * K], model, lane[t].position);
        store<K>(&shared.k[(t * G + g) * K], keys + place);
        store<K>(&shared.v[(t * G + g) * K], values + place);
    }

    const int64_t runs = shared.runs.size(), parts = runs == lanes ? H : G, heads = H / parts;
    // Heads that read the same keys go to one thread, and a lone token's are shared out in as many parts as there are threads.
    [[maybe_unused]] const int64_t chunk = parts == G ? 1 : runs > 1 ? H / G : (H + threads() - 1) / threads();
    #pragma omp for schedule(dynamic, chunk)
    for (int64_t i = 0; i < runs * parts; i++)
        attend<C>(model, cache, shared.runs[i / parts], i % parts * heads, heads, lane, shared, shared.mixed.data(), own);

    each(layer.o_proj, layer.gate_proj, input(shared.mixed.data(), H * K, nullptr, model, lanes, shared, own), add);

    in = input(x, D, layer.post_attention_layernorm, model, lanes, shared, own);
    project(layer.gate_proj, layer.up_proj, in, shared.gated);
    each(layer.up_proj, layer.down_proj, in, swiglu);
    each(layer.down_proj, then, input(shared.gated.data(), F, nullptr, model, lanes, shared, own), add);
}

// Some lanes through all blocks, and the logits of those that want them, in their order.
static void step(const Model& model, const Cache* caches, bool half, int64_t lanes, const Lane* lane, float* logits) {
    Shared shared(lanes, lane, model.precise);
    int64_t slots = 0, wanted = 0;
    for (int64_t t = 0; t < lanes; t++) slots = std::max(slots, lane[t].slot + 1);
    #pragma omp parallel
    {
        Own own(lanes, slots, model.precise);
        #pragma omp for schedule(static)
        for (int64_t t = 0; t < lanes; t++) unpack_row(model.embed_tokens, lane[t].token, &shared.x[t * D]);
        for (int64_t i = 0; i < model.num_layers; i++) {
            const Matrix& then = i + 1 < model.num_layers ? model.layers[i + 1].q_proj : model.lm_head;
            if (half) block<uint16_t>(model, model.layers[i], then, caches[i], lanes, lane, shared, own);
            else block<float>(model, model.layers[i], then, caches[i], lanes, lane, shared, own);
        }
        #pragma omp single
        for (int64_t t = 0; t < lanes; t++)
            if (lane[t].wanted) memmove(&shared.x[wanted++ * D], &shared.x[t * D], D * sizeof(float));
        const Input in = input(shared.x.data(), D, model.norm, model, wanted, shared, own);
        multiply_share(model.lm_head, model.layers[0].q_proj, rows_at_once(are_many(wanted, model.precise)), in, wanted, logits,
                       *own.panel);                            // what is read then is of the next token
    }
}

// logits (those of `lane` that are wanted, V). half: the cache holds bfloat16.
extern "C" void decode(const Model* model, const Cache* caches, int64_t half, int64_t lanes, const Lane* lane,
                       float* logits) {
    for (int64_t start = 0, n; start < lanes; start += n) {
        n = std::min(MOST, lanes - start);
        step(*model, caches, half, n, lane + start, logits);
        for (int64_t t = start; t < start + n; t++) logits += lane[t].wanted * V;
    }
}

extern "C" const char* instructions() { return INSTRUCTIONS; }

// Torch multiplies many tokens of floats faster than this file does; of few bits, then, it gets floats.
// y (rows, columns): rows from `first` on, in bfloat16 if `half`, else in float32.
extern "C" void unpack(const Matrix* m, int64_t first, int64_t rows, int64_t half, void* y) {
    #pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        if (half) unpack_row(*m, first + r, (uint16_t*)y + r * m->columns);
        else unpack_row(*m, first + r, (float*)y + r * m->columns);
}
