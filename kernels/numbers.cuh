// Small conversions and sums over warps and blocks, in an order that never changes.
#pragma once
#include "ptx.cuh"

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) v += __shfl_xor_sync(WARP_ALL, v, lanes);
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) v = fmaxf(v, __shfl_xor_sync(WARP_ALL, v, lanes));
    return v;
}

// The sum over all threads of a block of whole warps, in every thread. `scratch` holds 32 numbers and may be used again
// after the next barrier.
__device__ __forceinline__ float block_sum(float v, float* scratch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    v = warp_sum(v);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : 0.f);
}

__device__ __forceinline__ float bits_to_float(unsigned bits) { return __int_as_float((int)bits); }
__device__ __forceinline__ unsigned float_to_bits(float x) { return (unsigned)__float_as_int(x); }

// The two halves of a word as numbers.
__device__ __forceinline__ float bf16_low(unsigned pair) { return bits_to_float(pair << 16); }
__device__ __forceinline__ float bf16_high(unsigned pair) { return bits_to_float(pair & 0xffff0000u); }

__device__ __forceinline__ float half_to_float(unsigned bits) {
    const unsigned short b = (unsigned short)bits;
    return __half2float(*reinterpret_cast<const __half*>(&b));
}
__device__ __forceinline__ unsigned short float_to_half(float x) {
    const __half h = __float2half_rn(x);
    return *reinterpret_cast<const unsigned short*>(&h);
}
__device__ __forceinline__ unsigned short float_to_bf16(float x) {
    const __nv_bfloat16 b = __float2bfloat16_rn(x);
    return *reinterpret_cast<const unsigned short*>(&b);
}

__device__ __forceinline__ void expand_bf16(uint4 q, float (&v)[8]) {
    v[0] = bf16_low(q.x), v[1] = bf16_high(q.x), v[2] = bf16_low(q.y), v[3] = bf16_high(q.y);
    v[4] = bf16_low(q.z), v[5] = bf16_high(q.z), v[6] = bf16_low(q.w), v[7] = bf16_high(q.w);
}
__device__ __forceinline__ void expand_half(uint4 q, float (&v)[8]) {
    const unsigned words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int i = 0; i < 4; i++) v[2 * i] = half_to_float(words[i]), v[2 * i + 1] = half_to_float(words[i] >> 16);
}
