// Logits of a small model with scattered weights, in every kind of them, by the step as it is compiled: three tokens behind
// each other, then two at once, of two texts, then a prompt of many. arm.py compares what different builds print.

#include <cstdio>

#include "decode.cpp"

static uint32_t state;
static uint32_t scattered() { return (state = state * 1664525 + 1013904223) >> 8; }
static float number() { return (int(scattered() % 2001) - 1000) / 5000.f; }

struct Memory {                                                // what matrices point at
    std::vector<std::vector<float>> floats;
    std::vector<std::vector<uint8_t>> bytes;
    std::vector<std::vector<uint16_t>> halves;

    const float* vector(int64_t n, float around) {
        floats.emplace_back(n);
        for (float& x : floats.back()) x = around + number();
        return floats.back().data();
    }
    const uint16_t* scales(int64_t n, uint16_t sign) {         // float16 of 2^-9 … 2^-7
        halves.emplace_back(n);
        for (uint16_t& x : halves.back()) x = sign | (0x1800 + scattered() % 0x800);
        return halves.back().data();
    }
    Matrix matrix(int64_t rows, int64_t columns, Kind kind) {
        Matrix m = {nullptr, nullptr, nullptr, vector(rows, 0), rows, columns, kind};
        const int64_t n = rows * columns;
        if (kind == FLOAT32) m.weight = vector(n, 0);
        else if (kind == BFLOAT16) {                           // -2 … 2
            halves.emplace_back(n);
            for (uint16_t& x : halves.back()) x = (scattered() & 0x8000) | (0x3d00 + scattered() % 0x100);
            m.weight = halves.back().data();
        } else {
            bytes.emplace_back(n);
            for (uint8_t& x : bytes.back()) x = scattered();
            for (int i = 0; i < 64; i++) bytes.back()[i] = i < 32 ? 0x80 : 0x7f;
            m.weight = bytes.back().data();
            if (kind == INT8) {
                floats.emplace_back(rows, 0.003f);
                m.scale = floats.back().data();
            } else m.scale = scales(n / GROUP, 0);
            if (kind == INT4_GROUPS) m.minimum = scales(n / GROUP, 0x8000);
        }
        return m;
    }
};

int main() {
    constexpr int64_t LAYERS = 2, PLACES = 60, TEXTS = 2;
    for (Kind kind : {FLOAT32, BFLOAT16, INT8, INT8_GROUPS, INT4_GROUPS})
        for (int64_t half : {0, 1}) {
            state = 1;
            Memory memory;
            Layer layers[LAYERS];
            Cache caches[LAYERS];
            std::vector<float> room(LAYERS * 2 * TEXTS * G * PLACES * K);
            for (int64_t i = 0; i < LAYERS; i++) {
                layers[i] = {memory.vector(D, 1), memory.vector(D, 1), memory.matrix(H * K, D, kind),
                             memory.matrix(G * K, D, kind), memory.matrix(G * K, D, kind), memory.matrix(D, H * K, kind),
                             memory.matrix(F, D, kind), memory.matrix(F, D, kind), memory.matrix(D, F, kind)};
                float* keys = &room[i * 2 * TEXTS * G * PLACES * K];
                caches[i] = {keys, keys + TEXTS * G * PLACES * K, G * PLACES * K, PLACES * K};
            }
            const Model model = {layers, memory.vector(D, 1), memory.matrix(V, D, kind), LAYERS, 0, 1e-5f};
            for (int64_t turn = 0; turn < 5; turn++) {
                std::vector<Lane> lane;
                if (turn < 4) lane.push_back({0, turn, 0, 1});
                if (turn == 3) lane.push_back({1, 0, 0, 1});
                for (int64_t slot = 4; slot < 54 && turn == 4; slot++) lane.push_back({0, slot, 2, slot > 50});
                const int64_t lanes = lane.size();
                std::vector<float> cos(lanes * K), sin(lanes * K), x(lanes * D), logits(lanes * V);
                for (int64_t i = 0; i < lanes * K; i++) {
                    cos[i] = std::cos(lane[i / K].slot * 0.1f * (i % (K / 2)));
                    sin[i] = std::sin(lane[i / K].slot * 0.1f * (i % (K / 2)));
                }
                for (float& n : x) n = number();
                decode(&model, caches, half, lanes, lane.data(), cos.data(), sin.data(), x.data(), logits.data());
                for (float n : logits) printf("%.9g\n", n);
            }
        }
}
