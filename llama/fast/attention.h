// Attention over the cache: one query at a time, or a block of them that see nearly the same keys.
//
// A block meets SLOTS keys at a time, laid out so that one instruction takes many of them, and sums of exponentials are
// corrected as larger scores come: Dao et al., FlashAttention, 2022 (arXiv:2205.14135), algorithm 1.
//
// Try: leave out `* old` where a block's sums are corrected; tests/test_compiled_step.py
// (test_two_ways_many_tokens_equal_few) fails.

#pragma once
#include "matrices.h"

// One query head over the slots [first, last] of its key-value head; scores has room for them.
template <class C> static void attend_alone(const float* q, const C* keys, const C* values, int64_t first, int64_t last,
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

// ---- many queries ----------------------------------------------------------------------------------------------------

constexpr int SLOTS = 2 * WIDTH, ABOVE = SLOTS / WIDTH;        // keys at a time, as vectors
constexpr int QUERIES = 4;                                     // that meet them at a time

struct Query {
    const float* q;                                            // (K,)
    float* out;                                                // (K,)
    int64_t first, last;                                       // slots that it sees; none if first > last
    float top, sum;                                            // so far: the largest score, and the sum of exp(score - top)
};

// Keys and values of some slots as floats, keys turned around: (K, SLOTS).
struct Seen {
    alignas(64) float keys[K][SLOTS], values[SLOTS][K];

    template <class C> void take(const C* k, const C* v, int64_t n) {
        alignas(64) float row[K];
        for (int64_t s = 0; s < SLOTS; s++) {
            if (s >= n) std::fill_n(row, K, 0.f), std::fill_n(values[s], K, 0.f);
            for (int64_t i = 0; i < K && s < n; i += WIDTH) {
                const Floats key = load(k + s * K + i), value = load(v + s * K + i);
                memcpy(row + i, &key, sizeof key);
                memcpy(&values[s][i], &value, sizeof value);
            }
            for (int64_t i = 0; i < K; i++) keys[i][s] = row[i];
        }
    }
};

static void see(Query& query, float* scores, int64_t start, const Seen& seen) {
    if (std::max(query.first, start) > std::min(query.last, start + SLOTS - 1)) return;
    float top = query.top, sum = 0;
    for (int s = 0; s < SLOTS; s++) {
        const bool hidden = start + s < query.first || start + s > query.last;
        scores[s] = hidden ? -1e30f : scores[s] / std::sqrt((float)K);
        top = std::max(top, scores[s]);
    }
    for (int s = 0; s < SLOTS; s++) sum += scores[s] = std::exp(scores[s] - top);
    const float old = std::exp(query.top - top);
    constexpr int N = K / WIDTH % 4 == 0 ? 4 : K / WIDTH % 2 == 0 ? 2 : 1;      // vectors that are summed at a time
    for (int64_t i = 0; i < K; i += N * WIDTH) {
        Floats mixed[N];
        #pragma GCC unroll 4
        for (int n = 0; n < N; n++) mixed[n] = load(query.out + i + n * WIDTH) * old;
        for (int s = 0; s < SLOTS; s++)
            #pragma GCC unroll 4
            for (int n = 0; n < N; n++) mixed[n] += load(&seen.values[s][i + n * WIDTH]) * scores[s];
        #pragma GCC unroll 4
        for (int n = 0; n < N; n++) memcpy(query.out + i + n * WIDTH, &mixed[n], sizeof mixed[n]);
    }
    query.sum = query.sum * old + sum;
    query.top = top;
}

template <class C> static void attend_together(std::vector<Query>& queries, const C* keys, const C* values, Seen& seen) {
    int64_t first = INT64_MAX, last = -1;
    for (Query& query : queries) {
        query.top = -1e30f, query.sum = 0;
        std::fill_n(query.out, K, 0.f);
        if (query.first <= query.last) first = std::min(first, query.first), last = std::max(last, query.last);
    }
    while (queries.size() % QUERIES) queries.push_back({queries[0].q, nullptr, 1, 0, 0, 0});      // sees nothing
    for (int64_t start = first; start <= last; start += SLOTS) {
        seen.take(keys + start * K, values + start * K, std::min<int64_t>(SLOTS, last + 1 - start));
        for (size_t n = 0; n < queries.size(); n += QUERIES) {
            Floats scores[QUERIES][ABOVE] = {};
            for (int64_t i = 0; i < K; i++)
                #pragma GCC unroll 8
                for (int j = 0; j < QUERIES; j++)
                    #pragma GCC unroll 8
                    for (int v = 0; v < ABOVE; v++) scores[j][v] += load(&seen.keys[i][v * WIDTH]) * queries[n + j].q[i];
            for (int j = 0; j < QUERIES; j++) see(queries[n + j], (float*)scores[j], start, seen);
        }
    }
    for (const Query& query : queries)
        for (int64_t i = 0; i < K && query.sum; i++) query.out[i] /= query.sum;
}
