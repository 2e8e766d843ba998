// Every function of llama/fast/products.h for the processor that this is compiled for, against the portable one and against
// sums in plain C++: on numbers at the ends of their ranges, where 16 bits overflow, and on scattered ones. Whole numbers
// must be equal. Says how many were compared; exits with 1 at the first difference. test_products.py and arm.py build it.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "products.h"

static int compared = 0;

static void check(const char* what, double found, double expected) {
    compared++;
    if (found == expected) return;
    printf("%s: %.9g instead of %.9g, after %d that were equal\n", what, found, expected, compared - 1);
    exit(1);
}

template <class Vector> static double total(Vector v) {
    double sum = 0;
    for (size_t i = 0; i < sizeof v / sizeof v[0]; i++) sum += v[i];
    return sum;
}

static uint32_t state = 1;
static uint32_t scattered() { return (state = state * 1664525 + 1013904223) >> 8; }

// Rows of bytes that repeat two values, all pairs of them, and scattered ones. `low`, `high`: the range of the latter.
static std::vector<std::vector<int>> rows(std::vector<int> values, int low, int high) {
    std::vector<std::vector<int>> made;
    for (int even : values)
        for (int odd : values) {
            std::vector<int> row(GROUP);
            for (int i = 0; i < GROUP; i++) row[i] = i % 2 ? odd : even;
            made.push_back(row);
        }
    for (int n = 0; n < 200; n++) {
        std::vector<int> row(GROUP);
        for (int& value : row) value = low + int(scattered() % (high - low + 1));
        made.push_back(row);
    }
    return made;
}

int main() {
    const auto vectors = rows({-127, -126, -1, 0, 1, 127}, -127, 127);
    for (const auto& weights : rows({-128, -127, -1, 0, 1, 127}, -128, 127))
        for (const auto& x : vectors) {
            int8_t w[GROUP], v[GROUP];
            int expected = 0;
            for (int i = 0; i < GROUP; i++) w[i] = weights[i], v[i] = x[i], expected += w[i] * v[i];
            check("portable, 8 bits", total(portable::dot(w, v)), expected);
            check("8 bits", total(processor::dot(w, v)), expected);
        }
    for (const auto& weights : rows({0, 1, 8, 15}, 0, 15))
        for (const auto& x : vectors) {
            uint8_t w[GROUP / 2];
            int8_t v[GROUP];
            int expected = 0;
            for (int i = 0; i < GROUP / 2; i++) w[i] = weights[i] | weights[i + 16] << 4;
            for (int i = 0; i < GROUP; i++) v[i] = x[i], expected += weights[i] * x[i];
            check("portable, 4 bits", total(portable::dot(w, v)), expected);
            check("4 bits", total(processor::dot(w, v)), expected);
        }
    constexpr int16_t ENDS[] = {-32768, -32767, -255, -1, 0, 1, 127, 32767};
    for (int16_t w0 : ENDS)
        for (int16_t w1 : ENDS)
            for (int16_t x0 : ENDS)
                for (int16_t x1 : ENDS) {
                    const int64_t product = (int64_t)w0 * x0 + (int64_t)w1 * x1;
                    if (product != (int32_t)product) continue;
                    const int32_t weight = (uint16_t)w0 | w1 << 16, x = (uint16_t)x0 | x1 << 16, before = product > 0 ? -7 : 7;
                    check("portable pairs", portable::pairs(portable::Pairs{} + before, portable::Pairs{} + weight, x)[3],
                          before + product);
                    const auto found = processor::pairs(processor::Pairs{} + before, processor::Pairs{} + weight, x);
                    check("pairs", found[sizeof found / 4 - 1], before + product);
                }
    constexpr int STEP = sizeof(processor::Sums) / sizeof(float);
    for (int first = 0; first < 1 << 16; first += STEP) {      // every float16 but infinities and NaN
        uint16_t halves[STEP];
        for (int i = 0; i < STEP; i++) halves[i] = (first + i) % 0x8000 < 0x7c00 ? first + i : 0;
        const processor::Sums found = processor::widen(halves);
        for (int i = 0; i < STEP; i++) {
            const int exponent = halves[i] >> 10 & 31, fraction = halves[i] & 1023;
            double expected = exponent ? 1024 + fraction : fraction;
            for (int n = exponent ? exponent : 1; n < 25; n++) expected /= 2;
            for (int n = 25; n < exponent; n++) expected *= 2;
            if (halves[i] & 0x8000) expected = -expected;
            check("portable float16", portable::widen(halves + i / 4 * 4)[i % 4], expected);
            check("float16", found[i], expected);
        }
    }
    processor::Floats wide[ROWS];
    processor::Sums narrow[ROWS];
    float y[ROWS];
    for (int r = 0; r < ROWS; r++) {
        for (size_t i = 0; i < sizeof wide[r] / sizeof(float); i++) wide[r][i] = int(scattered() % 2000) - 1000;
        for (int i = 0; i < STEP; i++) narrow[r][i] = int(scattered() % 2000) - 1000;
    }
    processor::totals(wide, y);
    for (int r = 0; r < ROWS; r++) check("totals of floats", y[r], total(wide[r]));
    processor::totals(narrow, y);
    for (int r = 0; r < ROWS; r++) check("totals of groups", y[r], total(narrow[r]));
    printf("%d equal, %d numbers at a time\n", compared, STEP);
}
