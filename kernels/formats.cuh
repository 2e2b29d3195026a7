// How the weights of each storage type lie on the device, and how they multiply with encoded activations.
//
// A row is cut into chunks: 32 columns of quantised weights, 8 of 16-bit floats, 4 of f32. A lane takes a chunk, so that
// a warp reads consecutive words of each plane. The planes of a matrix, all `[rows, chunks]` but `supers`, which has an
// entry for 8 chunks: `codes` (16 bytes a chunk; two planes of a row after each other where codes have 8 bits), `high`
// (further bits of the codes), `scales`, `supers` (what sub-scales are multiplied with).
//
// Groups of four columns are four bytes of a word. Of the words of `codes`, word k has group k in its low nibbles and
// group 4 + k in its high ones; of `high`, bit g of each byte belongs to group g, or the pair of bits g % 4 of word g / 4.
#pragma once
#include "numbers.cuh"

// One matrix, or gate and up one below the other. The host writes the same structure.
struct Matrix {
    const uint4* codes;
    const void* high;
    const void* scales;
    const void* supers;
    const float* bias;  // [rows], or null
    int rows;
    int chunks;
};

// Encoded rows as weights read them: `values` in the form of the weights, `meta` with the scale of each 32 columns and
// the sums of the codes of their halves, 16 bits each.
struct Input {
    const uint4* values;
    const uint2* meta;
    int blocks;  // of 32 columns, a row
    int rows;
};

// ---------------------------------------------------------------- quantised weights, 8-bit activations

struct Int8Input {
    int x[8];
    float scale;
    int sums[2];

    static __device__ __forceinline__ Int8Input load(const Input& in, int row, int chunk) {
        const size_t first = (size_t)row * in.blocks;
        const uint4 a = in.values[2 * first + chunk], b = in.values[2 * first + in.blocks + chunk];
        const uint2 meta = in.meta[first + chunk];
        return {{(int)a.x, (int)a.y, (int)a.z, (int)a.w, (int)b.x, (int)b.y, (int)b.z, (int)b.w},
                bits_to_float(meta.x), {(int)(short)(meta.y & 0xffff), (int)meta.y >> 16}};
    }
};

// Scales and minimums of a chunk; those of its second half where halves have their own.
struct Scales {
    float scale[2];
    float min[2];
};

// The low nibbles of each word, then the high ones.
__device__ __forceinline__ void nibbles(uint4 q, unsigned (&w)[8]) {
    const unsigned words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int i = 0; i < 4; i++) w[i] = words[i] & 0x0f0f0f0fu, w[4 + i] = words[i] >> 4 & 0x0f0f0f0fu;
}

// Codes of four bits.
struct Codes4 {
    struct Raw { uint4 low; };
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        return {load_weights(m.codes + row * m.chunks + chunk)};
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, unsigned (&w)[8]) { nibbles(raw.low, w); }
};

// Of five: a word of fifth bits.
struct Codes5 {
    struct Raw { uint4 low; unsigned high; };
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        const size_t at = row * m.chunks + chunk;
        return {load_weights(m.codes + at), load_weights((const unsigned*)m.high + at)};
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, unsigned (&w)[8]) {
        nibbles(raw.low, w);
#pragma unroll
        for (int g = 0; g < 8; g++) w[g] |= (raw.high >> g & 0x01010101u) << 4;
    }
};

__device__ __forceinline__ unsigned pair_of(uint2 pairs, int group) {
    return (group < 4 ? pairs.x : pairs.y) >> (2 * (group % 4)) & 0x03030303u;
}

// Of six: two words of the two bits above.
struct Codes6 {
    struct Raw { uint4 low; uint2 high; };
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        const size_t at = row * m.chunks + chunk;
        return {load_weights(m.codes + at), load_weights((const uint2*)m.high + at)};
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, unsigned (&w)[8]) {
        nibbles(raw.low, w);
#pragma unroll
        for (int g = 0; g < 8; g++) w[g] |= pair_of(raw.high, g) << 4;
    }
};

// Of two: no nibbles, `codes` has 8 bytes a chunk.
struct Codes2 {
    struct Raw { uint2 pairs; };
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        return {load_weights((const uint2*)m.codes + row * m.chunks + chunk)};
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, unsigned (&w)[8]) {
#pragma unroll
        for (int g = 0; g < 8; g++) w[g] = pair_of(raw.pairs, g);
    }
};

// Of three: the same, and a word of third bits.
struct Codes3 {
    struct Raw { uint2 pairs; unsigned high; };
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        const size_t at = row * m.chunks + chunk;
        return {load_weights((const uint2*)m.codes + at), load_weights((const unsigned*)m.high + at)};
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, unsigned (&w)[8]) {
#pragma unroll
        for (int g = 0; g < 8; g++) w[g] = pair_of(raw.pairs, g) | (raw.high >> g & 0x01010101u) << 2;
    }
};

// Of eight, signed.
struct Codes8 {
    struct Raw { uint4 first, second; };
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        const uint4* p = m.codes + 2 * row * m.chunks + chunk;
        return {load_weights(p), load_weights(p + m.chunks)};
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, unsigned (&w)[8]) {
        w[0] = raw.first.x, w[1] = raw.first.y, w[2] = raw.first.z, w[3] = raw.first.w;
        w[4] = raw.second.x, w[5] = raw.second.y, w[6] = raw.second.z, w[7] = raw.second.w;
    }
};

// Of four, that name values of a table of signed bytes. Here nibble i of word k is column 8 k + i: four of them are what
// selects bytes.
template <unsigned T0, unsigned T1, unsigned T2, unsigned T3> struct CodesOfTable {
    struct Raw { uint4 low; };
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        return {load_weights(m.codes + row * m.chunks + chunk)};
    }
    static __device__ __forceinline__ unsigned look_up(unsigned four) {
        const unsigned below_8 = select_bytes(T0, T1, four), from_8 = select_bytes(T2, T3, four);
        // The top bit of each nibble says which of the two: byte i of the first or byte i of the second.
        return select_bytes(below_8, from_8, 0x3210u | (four & 0x8888u) >> 1);
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, unsigned (&w)[8]) {
        const unsigned words[4] = {raw.low.x, raw.low.y, raw.low.z, raw.low.w};
#pragma unroll
        for (int k = 0; k < 4; k++) w[2 * k] = look_up(words[k]), w[2 * k + 1] = look_up(words[k] >> 16);
    }
};

// -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
using CodesIq4 = CodesOfTable<0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u>;
// 0 1 2 3 4 6 8 12 0 -1 -2 -3 -4 -6 -8 -12
using CodesMxfp4 = CodesOfTable<0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu>;

// A scale in half precision.
struct ScaleHalf {
    using Raw = unsigned short;
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        return load_weights((const unsigned short*)m.scales + row * m.chunks + chunk);
    }
    static __device__ __forceinline__ Scales unpack(Raw raw) { return {{half_to_float(raw), 0.f}, {0.f, 0.f}}; }
};

// And a minimum.
struct ScaleAndMin {
    using Raw = unsigned;
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        return load_weights((const unsigned*)m.scales + row * m.chunks + chunk);
    }
    static __device__ __forceinline__ Scales unpack(Raw raw) {
        return {{half_to_float(raw), 0.f}, {half_to_float(raw >> 16), 0.f}};
    }
};

// Half of 2^(exponent - 127).
struct ScaleExponent {
    using Raw = unsigned char;
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        return load_weights((const unsigned char*)m.scales + row * m.chunks + chunk);
    }
    static __device__ __forceinline__ Scales unpack(Raw raw) {
        const unsigned e = raw, bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
        return {{bits_to_float(bits), 0.f}, {0.f, 0.f}};
    }
};

// Sub-scales, two bytes a chunk, and what they are multiplied with, in half precision: `Super` has a scale, or a scale
// and a minimum. Products of a half and a byte are exact.
template <class Super> struct SubScales {
    struct Raw { unsigned short sub; Super super; };
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        return {load_weights((const unsigned short*)m.scales + row * m.chunks + chunk),
                load_weights((const Super*)m.supers + row * (m.chunks / 8) + chunk / 8)};
    }
};

// A scale and a minimum for 32 columns.
struct SubScaleAndMin : SubScales<unsigned> {
    static __device__ __forceinline__ Scales unpack(const Raw& raw) {
        return {{half_to_float(raw.super) * (float)(raw.sub & 255), 0.f},
                {-half_to_float(raw.super >> 16) * (float)(raw.sub >> 8), 0.f}};
    }
};

// A signed scale for each 16 columns; one for 32 is there twice.
struct SubScaleHalves : SubScales<unsigned short> {
    static __device__ __forceinline__ Scales unpack(const Raw& raw) {
        const float super = half_to_float(raw.super);
        return {{super * (float)(signed char)(raw.sub & 255), super * (float)(signed char)(raw.sub >> 8)}, {0.f, 0.f}};
    }
};

// A scale (low nibble) and a minimum (high nibble) for each 16 columns.
struct SubNibbles : SubScales<unsigned> {
    static __device__ __forceinline__ Scales unpack(const Raw& raw) {
        const float scale = half_to_float(raw.super), min = -half_to_float(raw.super >> 16);
        return {{scale * (float)(raw.sub & 15), scale * (float)(raw.sub >> 8 & 15)},
                {min * (float)(raw.sub >> 4 & 15), min * (float)(raw.sub >> 12)}};
    }
};

// `scale * (code - ZERO) + min`; with HALVES, scale and minimum of each 16 columns.
template <class Codes, class ScaleKind, int ZERO, bool HALVES, bool MINS> struct Quantised {
    static constexpr int COLUMNS = 32;
    // Chunks that are loaded before the first is used, of each row that a warp works on.
    static constexpr int AHEAD = 2;
    struct Raw { typename Codes::Raw codes; typename ScaleKind::Raw scales; };
    struct Weights { unsigned w[8]; Scales s; };
    using X = Int8Input;

    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        return {Codes::load(m, row, chunk), ScaleKind::load(m, row, chunk)};
    }
    static __device__ __forceinline__ Weights unpack(const Raw& raw) {
        Weights q;
        Codes::unpack(raw.codes, q.w);
        q.s = ScaleKind::unpack(raw.scales);
        return q;
    }
    static __device__ __forceinline__ X input(const Input& in, int row, int chunk) { return X::load(in, row, chunk); }

    static __device__ __forceinline__ float add(const Weights& q, const X& x, float sum) {
        int dot[2] = {0, 0};
#pragma unroll
        for (int g = 0; g < 8; g++) dot[g / 4] = __dp4a((int)q.w[g], x.x[g], dot[g / 4]);
        if (HALVES) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                sum = fmaf(q.s.scale[h] * x.scale, (float)(dot[h] - ZERO * x.sums[h]), sum);
                if (MINS) sum = fmaf(q.s.min[h] * x.scale, (float)x.sums[h], sum);
            }
            return sum;
        }
        const int total = x.sums[0] + x.sums[1];
        sum = fmaf(q.s.scale[0] * x.scale, (float)(dot[0] + dot[1] - ZERO * total), sum);
        return MINS ? fmaf(q.s.min[0] * x.scale, (float)total, sum) : sum;
    }

    static __device__ __forceinline__ void values(const Raw& raw, float (&v)[COLUMNS]) {
        const Weights q = unpack(raw);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            const int half = HALVES ? i / 16 : 0, code = (int)(signed char)(q.w[i / 4] >> (8 * (i % 4)) & 255);
            v[i] = q.s.scale[half] * (float)(code - ZERO);
            if (MINS) v[i] += q.s.min[half];
        }
    }
};

using Q4_0 = Quantised<Codes4, ScaleHalf, 8, false, false>;
using Q4_1 = Quantised<Codes4, ScaleAndMin, 0, false, true>;
using Q5_0 = Quantised<Codes5, ScaleHalf, 16, false, false>;
using Q5_1 = Quantised<Codes5, ScaleAndMin, 0, false, true>;
using Q8_0 = Quantised<Codes8, ScaleHalf, 0, false, false>;
using Q2_K = Quantised<Codes2, SubNibbles, 0, true, true>;
using Q3_K = Quantised<Codes3, SubScaleHalves, 4, true, false>;
using Q4_K = Quantised<Codes4, SubScaleAndMin, 0, false, true>;
using Q5_K = Quantised<Codes5, SubScaleAndMin, 0, false, true>;
using Q6_K = Quantised<Codes6, SubScaleHalves, 32, true, false>;
using IQ4_NL = Quantised<CodesIq4, ScaleHalf, 0, false, false>;
using IQ4_XS = Quantised<CodesIq4, SubScaleHalves, 0, false, false>;
using MXFP4 = Quantised<CodesMxfp4, ScaleExponent, 0, false, false>;

// ---------------------------------------------------------------- floats

// 16-bit weights, times bf16; products are exact in f32.
template <bool BRAIN> struct Float16 {
    static constexpr int COLUMNS = 8;
    static constexpr int AHEAD = 4;
    using Raw = uint4;
    struct Weights { float w[8]; };
    using X = Weights;

    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        return load_weights(m.codes + row * m.chunks + chunk);
    }
    static __device__ __forceinline__ Weights unpack(const Raw& raw) {
        Weights q;
        if (BRAIN) expand_bf16(raw, q.w);
        else expand_half(raw, q.w);
        return q;
    }
    static __device__ __forceinline__ X input(const Input& in, int row, int chunk) {
        X x;
        expand_bf16(in.values[(size_t)row * in.blocks * 4 + chunk], x.w);
        return x;
    }
    static __device__ __forceinline__ float add(const Weights& q, const X& x, float sum) {
#pragma unroll
        for (int i = 0; i < 8; i++) sum = fmaf(q.w[i], x.w[i], sum);
        return sum;
    }
    static __device__ __forceinline__ void values(const Raw& raw, float (&v)[COLUMNS]) {
        const Weights q = unpack(raw);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) v[i] = q.w[i];
    }
};
using BF16 = Float16<true>;
using F16 = Float16<false>;

// The numbers of four e4m3 codes, times 2^-8: a code's exponent and mantissa, one bit further down in a half.
__device__ __forceinline__ void expand_e4m3(unsigned four, float* v) {
#pragma unroll
    for (int odd = 0; odd < 2; odd++) {
        const unsigned tops = odd ? four & 0xff00ff00u : (four & 0x00ff00ffu) << 8;
        const unsigned halves = (tops & 0x80008000u) | (tops & 0x7f007f00u) >> 1;
        v[odd] = half_to_float(halves), v[2 + odd] = half_to_float(halves >> 16);
    }
}

// 8-bit floats (e4m3) with a scale for each 128 columns, times bf16. No code is NaN: files with such weights are refused.
struct FP8 {
    static constexpr int COLUMNS = 16;
    // Leaves registers for two blocks a multiprocessor.
    static constexpr int AHEAD = 3;
    struct Raw { uint4 codes; unsigned scale; };
    struct Weights { float w[16]; float scale; };
    struct X { float x[16]; };

    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        return {load_weights(m.codes + row * m.chunks + chunk),
                load_weights((const unsigned*)m.supers + row * (m.chunks / 8) + chunk / 8)};
    }
    static __device__ __forceinline__ Weights unpack(const Raw& raw) {
        Weights q;
        expand_e4m3(raw.codes.x, q.w), expand_e4m3(raw.codes.y, q.w + 4);
        expand_e4m3(raw.codes.z, q.w + 8), expand_e4m3(raw.codes.w, q.w + 12);
        q.scale = 256.f * bits_to_float(raw.scale);
        return q;
    }
    static __device__ __forceinline__ X input(const Input& in, int row, int chunk) {
        X x;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float v[8];
            expand_bf16(in.values[(size_t)row * in.blocks * 4 + 2 * chunk + half], v);
#pragma unroll
            for (int i = 0; i < 8; i++) x.x[8 * half + i] = v[i];
        }
        return x;
    }
    static __device__ __forceinline__ float add(const Weights& q, const X& x, float sum) {
        float dot = 0.f;
#pragma unroll
        for (int i = 0; i < 16; i++) dot = fmaf(q.w[i], x.x[i], dot);
        return fmaf(q.scale, dot, sum);
    }
    static __device__ __forceinline__ void values(const Raw& raw, float (&v)[COLUMNS]) {
        const Weights q = unpack(raw);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) v[i] = q.scale * q.w[i];
    }
};

struct F32 {
    static constexpr int COLUMNS = 4;
    static constexpr int AHEAD = 4;
    using Raw = uint4;
    struct Weights { float w[4]; };
    using X = Weights;

    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int chunk) {
        return load_weights(m.codes + row * m.chunks + chunk);
    }
    static __device__ __forceinline__ Weights unpack(const Raw& raw) {
        return {{bits_to_float(raw.x), bits_to_float(raw.y), bits_to_float(raw.z), bits_to_float(raw.w)}};
    }
    static __device__ __forceinline__ X input(const Input& in, int row, int chunk) {
        return unpack(in.values[(size_t)row * in.blocks * 8 + chunk]);
    }
    static __device__ __forceinline__ float add(const Weights& q, const X& x, float sum) {
#pragma unroll
        for (int i = 0; i < 4; i++) sum = fmaf(q.w[i], x.w[i], sum);
        return sum;
    }
    static __device__ __forceinline__ void values(const Raw& raw, float (&v)[COLUMNS]) {
        const Weights q = unpack(raw);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) v[i] = q.w[i];
    }
};
