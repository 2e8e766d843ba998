// A matrix times vectors, one for each token of a step: of floats in floats, of few bits in whole numbers.
//
// For few tokens the time is that of reading the matrix: ROWS rows at a time, along their columns (`multiply_floats`,
// `multiply_integers`). For many it is that of the products: a panel of rows is packed once, so that one instruction takes all
// of them, and then meets every token (`multiply_panel`).
//
// Try: let `pack` swap the two halves of a byte; tests/test_compiled_step.py
// (test_two_ways_many_tokens_equal_few) fails.

#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "products.h"

enum Kind : int64_t { FLOAT32, BFLOAT16, INT8, INT8_GROUPS, INT4_GROUPS };

constexpr int LANES = 4;                                       // vectors that are multiplied at a time
constexpr int64_t LINE = 64;                                   // bytes that memory brings at a time
constexpr int64_t AHEAD = 8192;                                // bytes to ask memory for in advance; 0 takes four times as long

struct Matrix {                                                // as in compiled_step.py
    const void* weight;                                        // (rows, columns), two weights a byte for INT4_GROUPS
    const void* scale;                                         // INT8 (rows,) float32; groups (rows, columns / GROUP) float16
    const void* minimum;                                       // INT4_GROUPS: added to each weight, shaped like scale
    const float* bias;                                         // (rows,) or null
    int64_t rows, columns, kind;
};

// ---- vectors ---------------------------------------------------------------------------------------------------------

// What a matrix is multiplied by, a vector a lane: as it is, and rounded, with a scale a group: x = scale · q, or where it
// is to be precise, scale · (q + rest / FINER).
struct Input {
    bool precise;
    int64_t columns, groups;                                   // groups: with room for whole vectors, in which zeros stand
    const float* x;                                            // (lanes, columns)
    const int8_t *q, *rest;                                    // (lanes, columns), -127 … 127; rest: null where it is left
    const int32_t* pairs;                                      // (lanes, columns / 2), of many lanes: see `pair_up`
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

// The numbers of a group in 16 bits, two in each of 16 places, so that a place of a panel (`pack`) takes few
// instructions: of the bytes in a word of 32 bits the first and the third, and the second and the fourth.
static void pair_up(const int8_t* q, const int8_t* rest, int32_t* pairs) {
    int16_t x[GROUP];
    for (int i = 0; i < GROUP; i++) x[i] = rest ? q[i] * FINER + rest[i] : q[i];
    for (int j = 0; j < 4; j++)
        for (int half = 0; half < 2; half++)
            for (int odd = 0; odd < 2; odd++) {
                const int16_t* two = x + 16 * half + 4 * j + odd;
                *pairs++ = (uint16_t)two[0] | (uint32_t)(uint16_t)two[2] << 16;
            }
}

// Room for what the vectors of a step are rounded to.
class Rounded {
    std::vector<int8_t> q, rest;
    std::vector<int32_t> pairs;                                // of many lanes, and then no q and rest
    std::vector<float> scale, sum;
    const bool precise, many;

public:
    Rounded(int64_t lanes, bool precise, bool many)
        : q(many ? 0 : lanes * MOST_GROUPS * GROUP), rest(precise ? q.size() : 0),
          pairs(many ? lanes * MOST_GROUPS * GROUP / 2 : 0), scale(lanes * MOST_GROUPS), sum(lanes * MOST_GROUPS),
          precise(precise), many(many) {}

    void take(const float* x, int64_t columns, int64_t lane) { // x (columns,)
        const int64_t groups = groups_of(columns);
        float *scales = &scale[lane * groups], *sums = &sum[lane * groups];
        for (int64_t g = 0; g < columns / GROUP; g++) {
            if (many) {
                int8_t whole[GROUP], left[GROUP];
                round(x + g * GROUP, whole, precise ? left : nullptr, scales[g], sums[g]);
                pair_up(whole, precise ? left : nullptr, &pairs[(lane * columns + g * GROUP) / 2]);
            } else {
                const int64_t place = lane * columns + g * GROUP;
                round(x + g * GROUP, &q[place], precise ? &rest[place] : nullptr, scales[g], sums[g]);
            }
        }
        std::fill(scales + columns / GROUP, scales + groups, 0.f);
        std::fill(sums + columns / GROUP, sums + groups, 0.f);
    }
    Input input(const float* x, int64_t columns) const {
        return {precise, columns, groups_of(columns), x, q.data(), precise ? rest.data() : nullptr,
                many ? pairs.data() : nullptr, scale.data(), sum.data()};
    }
};

// ---- asking memory in advance ----------------------------------------------------------------------------------------

// Rows of a matrix that one thread multiplies, [first, last): they lie in memory as one piece.
struct Share {
    const Matrix* matrix;
    int64_t first, last;
    const char* start() const { return place(first); }
    const char* end() const { return place(last); }
    const char* place(int64_t row) const {
        constexpr int BITS[] = {32, 16, 8, 8, 4};              // of a Kind
        return (const char*)matrix->weight + row * matrix->columns * BITS[matrix->kind] / 8;
    }
    // What is `distance` bytes behind the beginning of a row, where this thread reads on at its end in `next`.
    const char* ahead(int64_t row, int64_t distance, const Share& next) const {
        const char *found = place(row) + distance, *end = this->end();
        return found < end ? found : next.start() + (found - end);
    }
};

#ifdef _OPENMP
static inline int64_t thread() { return omp_get_thread_num(); }
static inline int64_t threads() { return omp_get_num_threads(); }
#else
static inline int64_t thread() { return 0; }
static inline int64_t threads() { return 1; }
#endif

// What of a matrix is this thread's, in whole blocks of so many rows.
static inline Share share_of(const Matrix& m, int64_t block) {
    const int64_t blocks = (m.rows + block - 1) / block;
    return {&m, blocks * thread() / threads() * block, std::min(m.rows, blocks * (thread() + 1) / threads() * block)};
}

// For each block of rows that this thread has of `m`: use(share, row, next), where next is what it reads then.
template <class Use> static void for_share(const Matrix& m, const Matrix& then, int64_t block, const Use& use) {
    const Share share = share_of(m, block), next = share_of(then, block);
    for (int64_t row = share.first; row < share.last; row += block) use(share, row, next);
}

// A loop that takes `bytes` a turn asks for as many as it goes, in the order in which they lie: asked row by row, memory
// brings a third as much.
static inline void ask(const char* ahead, int64_t turn, int bytes) {
    for (int i = 0; i < bytes; i += LINE) __builtin_prefetch(ahead + turn * bytes + i);
}

// ---- few tokens ------------------------------------------------------------------------------------------------------

// y[t][r] = row r of `weight` times x of lane t, for N lanes from `lane` on. A weight is loaded once for all of them, and a
// number of x once for all rows.
template <int N, class W> static void multiply_floats(const W* weight, const Input& in, int64_t lane, const char* ahead,
                                                      float (*y)[ROWS]) {
    const float* x = in.x + lane * in.columns;
    Floats sums[N][ROWS] = {};
    for (int64_t i = 0; i < in.columns; i += WIDTH) {
        ask(ahead, i / WIDTH, ROWS * WIDTH * sizeof(W));
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
                                                                        int64_t lane, const char* ahead,
                                                                        float (*y)[ROWS]) {
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
        ask(ahead, g, ROWS * BYTES);
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
                                                      const char* ahead, float (*y)[ROWS]) {
    if (in.precise) multiply_integers<N, KIND, true>(m, row, in, lane, ahead, y);
    else multiply_integers<N, KIND, false>(m, row, in, lane, ahead, y);
}

template <int N> static void multiply_lanes(const Matrix& m, int64_t row, const Input& in, int64_t lane, const char* ahead,
                                            float (*y)[ROWS]) {
    switch (m.kind) {
        case FLOAT32: multiply_floats<N>((const float*)m.weight + row * m.columns, in, lane, ahead, y); break;
        case BFLOAT16: multiply_floats<N>((const uint16_t*)m.weight + row * m.columns, in, lane, ahead, y); break;
        case INT8: multiply_bits<N, INT8>(m, row, in, lane, ahead, y); break;
        case INT8_GROUPS: multiply_bits<N, INT8_GROUPS>(m, row, in, lane, ahead, y); break;
        case INT4_GROUPS: multiply_bits<N, INT4_GROUPS>(m, row, in, lane, ahead, y); break;
    }
    if (m.bias)
        for (int t = 0; t < N; t++)
            for (int r = 0; r < ROWS; r++) y[t][r] += m.bias[row + r];
}

// Rows [row, row + ROWS) times each of the vectors: y[t * stride + r]
static void multiply_rows(const Matrix& m, int64_t row, const Input& in, int64_t lanes, const char* ahead, float* y,
                          int64_t stride) {
    float found[LANES][ROWS];
    for (int64_t t = 0, n; t < lanes; t += n) {
        n = lanes - t >= LANES ? LANES : lanes - t >= 2 ? 2 : 1;
        if (n == LANES) multiply_lanes<LANES>(m, row, in, t, ahead, found);
        else if (n == 2) multiply_lanes<2>(m, row, in, t, ahead, found);
        else multiply_lanes<1>(m, row, in, t, ahead, found);
        for (int64_t i = 0; i < n; i++) memcpy(y + (t + i) * stride, found[i], sizeof found[i]);
    }
}

// ---- many tokens -----------------------------------------------------------------------------------------------------

using processor::Pairs;
typedef int16_t Shorts __attribute__((vector_size(4 * WIDTH)));
constexpr int ABREAST = 2, PANEL_ROWS = ABREAST * WIDTH;       // rows of a panel, one in each place of so many vectors
constexpr int TILE = 4;                                        // vectors that meet a panel at a time
constexpr int64_t PANEL_GROUPS = 32;                           // groups that are packed at a time: they stay in the cache

// Some rows, PANEL_GROUPS groups of them, as many vectors are multiplied by them, and what came of it.
struct Panel {
    Pairs pairs[PANEL_GROUPS][GROUP / 2][ABREAST];
    Floats scale[PANEL_GROUPS][ABREAST], minimum[PANEL_GROUPS][ABREAST];
    std::vector<float> y;                                      // (lanes, PANEL_ROWS)
};

// n scales of each row of a panel, from group `first` on, in float16, turned around: to[g][row]
static void pack_scales(const void* scales, const Matrix& m, int64_t row, int64_t first, int64_t n, float factor,
                        Floats (*to)[ABREAST]) {
    const int64_t groups = m.columns / GROUP, end = m.rows * groups;
    for (int r = 0; r < PANEL_ROWS; r++) {
        const int64_t place = std::min(row + r, m.rows - 1) * groups + first;
        for (int64_t g = 0; g < n; g += STEP) {
            uint16_t halves[STEP] = {};
            std::copy_n((const uint16_t*)scales + place + g, std::min<int64_t>(STEP, end - place - g), halves);
            const Sums found = processor::widen(halves) * factor;
            for (int64_t i = 0; i < std::min<int64_t>(STEP, n - g); i++) ((float*)to[g + i])[r] = found[i];
        }
    }
}

template <Kind KIND> static void pack(const Matrix& m, int64_t row, int64_t first, int64_t n, float factor, const char* ahead,
                                      Panel& panel) {
    constexpr int BYTES = KIND == INT4_GROUPS ? GROUP / 2 : GROUP;
    const int64_t groups = m.columns / GROUP;
    const char* weights = (const char*)m.weight;
    if (KIND == INT4_GROUPS) pack_scales(m.minimum, m, row, first, n, 1, panel.minimum);
    if (KIND != INT8) pack_scales(m.scale, m, row, first, n, factor, panel.scale);
    else
        for (int r = 0; r < PANEL_ROWS; r++)
            for (int64_t g = 0; g < n; g++)
                ((float*)panel.scale[g])[r] = ((const float*)m.scale)[std::min(row + r, m.rows - 1)] * factor;
    for (int64_t g = 0; g < n; g++) {
        ask(ahead, first + g, PANEL_ROWS * BYTES);
        alignas(sizeof(Words)) uint32_t words[BYTES / 4][PANEL_ROWS];
        for (int r = 0; r < PANEL_ROWS; r++) {                 // behind the last row comes that row again
            uint32_t found[BYTES / 4];
            memcpy(found, weights + (std::min(row + r, m.rows - 1) * groups + first + g) * BYTES, BYTES);
            for (int j = 0; j < BYTES / 4; j++) words[j][r] = found[j];
        }
        for (int j = 0; j < BYTES / 4; j++)
            for (int v = 0; v < ABREAST; v++) {
                Words word;
                memcpy(&word, &words[j][v * WIDTH], sizeof word);
                if (KIND == INT4_GROUPS) {
                    for (int i = 0; i < 4; i++)                // lower half of the even bytes, of the odd ones, upper halves
                        panel.pairs[g][4 * j + i][v] = (Pairs)(word >> (i % 2 * 8 + i / 2 * 4) & 0x000f000f);
                } else {
                    Pairs* places = &panel.pairs[g][j % 4 * 4 + j / 4 * 2][v];
                    places[0] = (Pairs)((Shorts)(word << 8) >> 8);
                    places[ABREAST] = (Pairs)((Shorts)word >> 8);
                }
            }
    }
}

// y += the groups in `panel`, which begin with group `first` of a row, times TILE vectors.
template <bool MINIMUM> static void multiply_tile(const Panel& panel, int64_t first, int64_t n, const Input& in, int64_t lane,
                                                  float* y) {
    Floats sums[TILE][ABREAST];
    memcpy(sums, y, sizeof sums);
    for (int64_t g = 0; g < n; g++) {
        Pairs dot[TILE][ABREAST] = {};
        const int32_t* x = in.pairs + (lane * in.columns + (first + g) * GROUP) / 2;
        for (int p = 0; p < GROUP / 2; p++)
            #pragma GCC unroll 8
            for (int t = 0; t < TILE; t++)
                #pragma GCC unroll 8
                for (int v = 0; v < ABREAST; v++)
                    dot[t][v] = processor::pairs(dot[t][v], panel.pairs[g][p][v], x[t * in.columns / 2 + p]);
        #pragma GCC unroll 8
        for (int t = 0; t < TILE; t++) {
            const int64_t theirs = (lane + t) * in.groups + first + g;
            #pragma GCC unroll 8
            for (int v = 0; v < ABREAST; v++) {
                sums[t][v] += __builtin_convertvector(dot[t][v], Floats) * (panel.scale[g][v] * in.scale[theirs]);
                if (MINIMUM) sums[t][v] += panel.minimum[g][v] * in.sum[theirs];
            }
        }
    }
    memcpy(y, sums, sizeof sums);
}

// Rows [row, row + PANEL_ROWS), as far as there are such: y[t * stride + r]
template <Kind KIND> static void multiply_panel(const Matrix& m, int64_t row, const Input& in, int64_t lanes,
                                                const char* ahead, float* y, int64_t stride, Panel& panel) {
    const int64_t groups = m.columns / GROUP, rows = std::min<int64_t>(PANEL_ROWS, m.rows - row);
    std::fill(panel.y.begin(), panel.y.end(), 0.f);
    for (int64_t first = 0; first < groups; first += PANEL_GROUPS) {
        const int64_t n = std::min(PANEL_GROUPS, groups - first);
        pack<KIND>(m, row, first, n, in.precise ? 1.f / FINER : 1.f, ahead, panel);
        for (int64_t t = 0; t < lanes; t += TILE)
            multiply_tile<KIND == INT4_GROUPS>(panel, first, n, in, t, &panel.y[t * PANEL_ROWS]);
    }
    for (int64_t t = 0; t < lanes; t++)
        for (int64_t r = 0; r < rows; r++) y[t * stride + r] = panel.y[t * PANEL_ROWS + r] + (m.bias ? m.bias[row + r] : 0);
}

// ---- either ----------------------------------------------------------------------------------------------------------

// Lanes up to which packing takes longer than it saves: of activations in 8 bits, of which a panel makes 16, and in 16.
constexpr int64_t FEW[] = {24, 6};

static inline bool are_many(int64_t lanes, bool precise) { return lanes > FEW[precise]; }
static inline int64_t rows_at_once(bool many) { return many ? PANEL_ROWS : ROWS; }
static inline int64_t room_for(int64_t lanes) { return (lanes + TILE - 1) / TILE * TILE; }

// Rows [row, row + rows_at_once(many)) of a thread's share, as far as there are such, times each of the vectors:
// y[t * stride + r]. next: what the thread reads then.
static void multiply(const Share& share, int64_t row, const Share& next, const Input& in, int64_t lanes, float* y,
                     int64_t stride, Panel& panel) {
    const Matrix& m = *share.matrix;
    const bool many = in.pairs;
    if (many) {                                                // floats go a few rows at a time, whatever the lanes
        const char* ahead = share.ahead(row, share.place(PANEL_ROWS) - share.place(0), next);       // the panel behind
        switch (m.kind) {
            case INT8: return multiply_panel<INT8>(m, row, in, lanes, ahead, y, stride, panel);
            case INT8_GROUPS: return multiply_panel<INT8_GROUPS>(m, row, in, lanes, ahead, y, stride, panel);
            case INT4_GROUPS: return multiply_panel<INT4_GROUPS>(m, row, in, lanes, ahead, y, stride, panel);
        }
    }
    const int64_t end = std::min(row + rows_at_once(many), m.rows);
    for (int64_t r = row; r < end; r += ROWS) {                // the number of rows need not be a multiple of ROWS
        const int64_t first = std::min(r, m.rows - ROWS);
        multiply_rows(m, first, in, lanes, share.ahead(r, AHEAD, next), y + first - row, stride);
    }
}

// A thread's share of y (lanes, rows of m), and memory is asked for `then`, which the thread reads behind it.
static void multiply_share(const Matrix& m, const Matrix& then, int64_t block, const Input& in, int64_t lanes, float* y,
                           Panel& panel) {
    for_share(m, then, block, [&](const Share& share, int64_t row, const Share& next) {
        multiply(share, row, next, in, lanes, y + row, m.rows, panel);
    });
}
