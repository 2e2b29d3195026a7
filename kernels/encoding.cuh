// Activations in the forms that weights multiply with.
//
// int8: each 32 columns have a scale, the largest absolute value / 127; the sums of the codes of both halves go with it.
// Of a row all first halves of its blocks lie together, then all second ones, so that the loads of a warp are consecutive.
// Rows are padded with zeros to whole blocks.
#pragma once
#include "numbers.cuh"

// Where encoded rows go; the forms that nobody reads are null.
struct Encoded {
    signed char* codes;    // [rows, 2, blocks, 16]
    uint2* meta;           // [rows, blocks]: the scale's bits; the sums of both halves, 16 bits each
    unsigned short* bf16;  // [rows, blocks, 32]
    float* f32;            // [rows, blocks, 32]
    int blocks;
};

// Encodes 32 columns of a row; a warp calls it, lane i with column i.
__device__ __forceinline__ void encode_block(const Encoded& out, int row, int block, float x) {
    const int lane = threadIdx.x & 31;
    const size_t at = (size_t)row * out.blocks + block;
    if (out.codes) {
        const float top = warp_max(fabsf(x));
        // Blocks so small are zero: their scale has no inverse.
        const float inverse = top > 1e-30f ? 127.f / top : 0.f;
        // What is no number is none in the output either: the scale says so, since codes cannot.
        const bool finite = __all_sync(WARP_ALL, fabsf(x) <= 3.4e38f);
        const int code = finite ? (int)rintf(x * inverse) : 0;
        int sum = code;
#pragma unroll
        for (int lanes = 8; lanes > 0; lanes >>= 1) sum += __shfl_xor_sync(WARP_ALL, sum, lanes);
        const int second = __shfl_sync(WARP_ALL, sum, 16);
        out.codes[((size_t)row * 2 * out.blocks + (size_t)(lane / 16) * out.blocks + block) * 16 + lane % 16] = (signed char)code;
        if (lane == 0) {
            const float scale = finite ? top / 127.f : bits_to_float(0x7fc00000u);
            uint2 meta;
            meta.x = float_to_bits(scale), meta.y = ((unsigned)sum & 0xffffu) | (unsigned)second << 16;
            out.meta[at] = meta;
        }
    }
    if (out.bf16) out.bf16[at * 32 + lane] = float_to_bf16(x);
    if (out.f32) out.f32[at * 32 + lane] = x;
}
