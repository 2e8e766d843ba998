// Products of whole numbers: the five functions in which processors differ, each written for a few kinds of them.
//
// A matrix of few bits is read 32 weights at a time, a group. Activations are rounded to 8 bits, too (decode.cpp), and 32
// small whole numbers are multiplied by one or two instructions where 32 floats need twelve. That is why few bits are fast
// also where reading memory is not what takes the time. Sums of whole numbers are exact, so every version gives the same.
//
//                     portable                AVX2                       AVX2 and VNNI   NEON               and dotprod
//     dot, 8 bits     a loop                  abs, sign, maddubs, madd   xor, dpbusd     vmull, vpadal      vdotq
//     dot, 4 bits     a loop                  maddubs, madd              dpbusd          as with 8 bits     vdotq
//     pairs           two products            madd                       dpwssd          as portable        as portable
//     widen           bits put where a        cvtph                      cvtph           vcvt               vcvt
//                     float32 has them
//     totals          a loop                  hadd                       hadd            vpadd              vpadd
//
// Read `portable` first: the others are its translations. What one gets is `processor`, chosen below by what the compiler
// may use. -DPORTABLE takes the portable one everywhere.
//
// Try: take abs and sign out of `avx2::dot`, as if maddubs multiplied signed by signed; tests/test_products.py
// (test_two_ways_every_processor_equals_the_portable_one) fails.

#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

constexpr int GROUP = 32;                                      // weights and activations that are multiplied at a time
constexpr int ROWS = 4;                                        // of a matrix, side by side: each activation is loaded once for them

// ---- in plain C++ ----------------------------------------------------------------------------------------------------

namespace portable {

typedef int32_t Ints __attribute__((vector_size(16)));         // their total is the product of a group
typedef float Sums __attribute__((vector_size(16)));           // the same, scaled and summed over groups
typedef Sums Floats;                                           // as many floats as are computed with at a time
typedef int32_t Pairs __attribute__((vector_size(sizeof(Floats))));    // two numbers of 16 bits in each, or their sum

// 32 weights of -128 … 127 times 32 activations of -127 … 127
static inline Ints dot(const int8_t* weight, const int8_t* x) {
    Ints sums = {};
    for (int i = 0; i < GROUP; i++) sums[i / 4 % 4] += weight[i] * x[i];
    return sums;
}

// 32 weights of 0 … 15: byte i holds weight i in its low half and weight i + 16 in its high half (GGUF's Q4_0 and Q4_1)
static inline Ints dot(const uint8_t* weight, const int8_t* x) {
    Ints sums = {};
    for (int i = 0; i < 16; i++) sums[i / 4] += (weight[i] & 15) * x[i] + (weight[i] >> 4) * x[i + 16];
    return sums;
}

// In each place, of both numbers of 16 bits there: sums + (lower · lower of x) + (upper · upper of x)
template <class Vector> static inline Vector pairs(Vector sums, Vector weight, int32_t x) {
    return sums + (weight << 16 >> 16) * (int32_t)(int16_t)x + (weight >> 16) * (x >> 16);
}

// float16 to float32: exponent and fraction move to their places; without an exponent it is so many times 2^-24
static inline Sums widen(const uint16_t* half) {
    Sums y;
    for (int i = 0; i < 4; i++) {
        const uint32_t exponent = half[i] >> 10 & 31, fraction = half[i] & 1023, word = (exponent + 112) << 23 | fraction << 13;
        float f = 0x1p-24f * fraction;
        if (exponent) memcpy(&f, &word, sizeof f);
        y[i] = half[i] & 0x8000 ? -f : f;
    }
    return y;
}

static inline void totals(const Sums* sums, float* y) {        // of ROWS rows
    for (int r = 0; r < ROWS; r++) y[r] = sums[r][0] + sums[r][1] + sums[r][2] + sums[r][3];
}

}  // namespace portable

// ---- x86 -------------------------------------------------------------------------------------------------------------

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
namespace avx2 {

typedef int32_t Ints __attribute__((vector_size(32)));
typedef float Sums __attribute__((vector_size(32)));
#ifdef __AVX512F__
typedef float Floats __attribute__((vector_size(64)));
#else
typedef Sums Floats;
#endif
typedef int32_t Pairs __attribute__((vector_size(sizeof(Floats))));

static inline __m256i load(const void* bytes) { return _mm256_loadu_si256((const __m256i*)bytes); }

// unsigned times signed, four neighbours to a sum
static inline __m256i multiply(__m256i w, __m256i x, __m256i sums) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sums, w, x);
#elif defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sums, w, x);
#else                                                          // pairs in 16 bits, which end at 32,767: 2 · 128 · 127 fits
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
#endif
}

static inline Ints dot(const int8_t* weight, const int8_t* x) {
    const __m256i w = load(weight), v = load(x), zero = _mm256_setzero_si256();
#if defined(__AVX512VNNI__) && defined(__AVX512VL__) || defined(__AVXVNNI__)
    const __m256i bias = _mm256_set1_epi8(-128);               // as unsigned 128: (w + 128) · x - 128 · x, which all rows share
    return (Ints)multiply(_mm256_xor_si256(w, bias), v, _mm256_sub_epi32(zero, multiply(bias, v, zero)));
#else
    return (Ints)multiply(_mm256_abs_epi8(w), _mm256_sign_epi8(v, w), zero);   // |w| · (x with the sign of w)
#endif
}

static inline Ints dot(const uint8_t* weight, const int8_t* x) {
    const __m128i bytes = _mm_loadu_si128((const __m128i*)weight);
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(bytes), _mm_srli_epi16(bytes, 4), 1);
    return (Ints)multiply(_mm256_and_si256(both, _mm256_set1_epi8(15)), load(x), _mm256_setzero_si256());
}

static inline Pairs pairs(Pairs sums, Pairs weight, int32_t x) {
#if defined(__AVX512VNNI__)
    return (Pairs)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)weight, _mm512_set1_epi32(x));
#elif defined(__AVX512BW__)
    return sums + (Pairs)_mm512_madd_epi16((__m512i)weight, _mm512_set1_epi32(x));
#elif defined(__AVX512F__)
    return portable::pairs(sums, weight, x);
#elif defined(__AVXVNNI__)
    return (Pairs)_mm256_dpwssd_avx_epi32((__m256i)sums, (__m256i)weight, _mm256_set1_epi32(x));
#else
    return sums + (Pairs)_mm256_madd_epi16((__m256i)weight, _mm256_set1_epi32(x));
#endif
}

static inline Sums widen(const uint16_t* half) { return (Sums)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)half)); }

static inline void totals(const Sums* sums, float* y) {
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps((__m256)sums[0], (__m256)sums[1]),
                                        _mm256_hadd_ps((__m256)sums[2], (__m256)sums[3]));
    _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}

#ifdef __AVX512F__
static inline void totals(const Floats* sums, float* y) {
    Sums parts[ROWS][2], halves[ROWS];
    memcpy(parts, sums, sizeof parts);
    for (int r = 0; r < ROWS; r++) halves[r] = parts[r][0] + parts[r][1];
    totals(halves, y);
}
#endif

}  // namespace avx2
#endif

// ---- ARM -------------------------------------------------------------------------------------------------------------

#if defined(__ARM_NEON) && defined(__aarch64__)
namespace neon {

typedef int32_t Ints __attribute__((vector_size(16)));
typedef float Sums __attribute__((vector_size(16)));
typedef Sums Floats;
using portable::Pairs, portable::pairs;

static inline int32x4_t multiply(int8x16_t w, int8x16_t x, int32x4_t sums) {
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(sums, w, x);
#else                                                          // each product alone fits 16 bits: 128 · 127 is below 32,767
    sums = vpadalq_s16(sums, vmull_s8(vget_low_s8(w), vget_low_s8(x)));
    return vpadalq_s16(sums, vmull_s8(vget_high_s8(w), vget_high_s8(x)));
#endif
}

static inline Ints dot(const int8_t* weight, const int8_t* x) {
    return (Ints)multiply(vld1q_s8(weight + 16), vld1q_s8(x + 16), multiply(vld1q_s8(weight), vld1q_s8(x), vdupq_n_s32(0)));
}

static inline Ints dot(const uint8_t* weight, const int8_t* x) {
    const uint8x16_t bytes = vld1q_u8(weight);
    const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
    const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
    return (Ints)multiply(high, vld1q_s8(x + 16), multiply(low, vld1q_s8(x), vdupq_n_s32(0)));
}

static inline Sums widen(const uint16_t* half) { return (Sums)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(half))); }

static inline void totals(const Sums* sums, float* y) {
    vst1q_f32(y, vpaddq_f32(vpaddq_f32((float32x4_t)sums[0], (float32x4_t)sums[1]),
                            vpaddq_f32((float32x4_t)sums[2], (float32x4_t)sums[3])));
}

}  // namespace neon
#endif

#if defined(PORTABLE)
namespace processor = portable;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
namespace processor = avx2;
#elif defined(__ARM_NEON) && defined(__aarch64__)
namespace processor = neon;
#else
namespace processor = portable;
#endif

// What they are, for people.
constexpr const char* INSTRUCTIONS =
#if defined(PORTABLE) || !(defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)) && !defined(__aarch64__)
    "plain C++";
#elif defined(__AVX512F__) && defined(__AVX512VNNI__) && defined(__AVX512VL__)
    "AVX-512 and VNNI";
#elif defined(__AVX512F__)
    "AVX-512";
#elif defined(__AVXVNNI__)
    "AVX2 and VNNI";
#elif defined(__AVX2__)
    "AVX2";
#elif defined(__ARM_FEATURE_DOTPROD)
    "NEON and dotprod";
#else
    "NEON";
#endif
