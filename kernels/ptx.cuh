// Every primitive that is written in PTX, each with an arithmetic twin for tests on the processor (CUDA_SHIM).
//
// Numbers are reproducible: kernels are compiled without contraction, and a fused multiply-add stands where `fmaf` is
// written. What an output is does not depend on how the compiler arranged one variant of a kernel.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#ifdef CUDA_SHIM
#define PTX(twin, ...) return twin
#else
#define PTX(twin, ...) __VA_ARGS__
// Makes a kernel known to the fake driver by its name.
#define SHIM_KERNEL(name)
#define DYN_SMEM(T, name) extern __shared__ __align__(128) T name[]
#endif

#define WARP_ALL 0xffffffffu

// Loads of weights: read once a step, so they pass by the first cache and leave it to the activations. Read-only while
// any kernel runs, hence `.nc`, and allowed before `wait_for_previous`.
__device__ __forceinline__ uint4 load_weights(const uint4* p) {
    PTX(*p, uint4 v;
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
        return v);
}
__device__ __forceinline__ uint2 load_weights(const uint2* p) {
    PTX(*p, uint2 v;
        asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
        return v);
}
__device__ __forceinline__ unsigned load_weights(const unsigned* p) {
    PTX(*p, unsigned v; asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p)); return v);
}
__device__ __forceinline__ unsigned short load_weights(const unsigned short* p) {
    PTX(*p, unsigned short v; asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(p)); return v);
}
__device__ __forceinline__ unsigned char load_weights(const unsigned char* p) {
    PTX(*p, unsigned v; asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(v) : "l"(p)); return (unsigned char)v);
}

// Loads of the KV cache: as above, but another kernel of the same step has just written some of it.
__device__ __forceinline__ uint4 load_cache(const uint4* p) {
    PTX(*p, uint4 v;
        asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
        return v);
}
__device__ __forceinline__ uint2 load_cache(const uint2* p) {
    PTX(*p, uint2 v;
        asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
        return v);
}

// Copies 16 bytes to shared memory without passing through registers; zeros where there is nothing to copy. They have
// arrived when `copies_arrive` returns, for the thread that asked; a barrier tells the others.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
#ifdef CUDA_SHIM
    shim::cp_async(to, from, 16, there ? 16 : 0);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
#endif
}
__device__ __forceinline__ void copies_arrive() {
#ifdef CUDA_SHIM
    shim::cp_async_wait_all();
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Four matrices of eight rows of 16 bytes, from shared memory: lane 8 i + r names row r of matrix i, and lane l gets word
// l % 4 of row l / 4 of each. These are the fragments of the products below.
__device__ __forceinline__ void load_matrices(unsigned (&d)[4], const void* row) {
#ifdef CUDA_SHIM
    shim::ldmatrix<4>(d, row);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
#endif
}

// The same, each matrix turned: lane l gets from column l / 4 of each the rows 2 (l % 4) and the next, of values of 16 bits.
__device__ __forceinline__ void load_matrices_turned(unsigned (&d)[4], const void* row) {
#ifdef CUDA_SHIM
    shim::ldmatrix<4, true>(d, row);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
#endif
}

// Products on tensor cores: d [16, 8] += a [16, 32 bytes] * b [8, 32 bytes]^T. Lane l has in d columns 2 (l % 4) and the next
// of rows l / 4 and 8 + l / 4; of a the words l % 4 of these rows, then the words 4 + l % 4; of b those words of row l / 4.
__device__ __forceinline__ void multiply_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef CUDA_SHIM
    shim::mma_m16n8k16_bf16(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
__device__ __forceinline__ void multiply_half(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef CUDA_SHIM
    shim::mma_m16n8k16_f16(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
__device__ __forceinline__ void multiply_int8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef CUDA_SHIM
    shim::mma_m16n8k32_s8(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
// Of 16 bytes: one word of each of the two rows of a, one of b.
__device__ __forceinline__ void multiply_int8(int (&d)[4], unsigned a0, unsigned a1, unsigned b) {
#ifdef CUDA_SHIM
    shim::mma_m16n8k16_s8(d, {a0, a1}, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a0), "r"(a1), "r"(b));
#endif
}

// Programmatic dependent launch (sm_90 and later; elsewhere, and without the launch attribute, both do nothing). Every
// kernel begins with `let_next_start`, so that the next one may take free multiprocessors and fetch its weights, and
// calls `wait_for_previous` before it touches what another kernel writes or reads. As all do, completion is transitive.
// What kernels pass on to each other must never be `const __restrict__`: the compiler could read it by `ld.nc`, which the
// wait does not cover.
__device__ __forceinline__ void let_next_start() {
#if !defined(CUDA_SHIM) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_previous() {
#if !defined(CUDA_SHIM) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Four bytes of the eight in `low` and `high`, each named by the low three bits of a nibble of `selector`.
__device__ __forceinline__ unsigned select_bytes(unsigned low, unsigned high, unsigned selector) {
    const unsigned s = selector & 0x7777;
#ifdef CUDA_SHIM
    const uint64_t both = (uint64_t)high << 32 | low;
    unsigned bytes = 0;
    for (int i = 0; i < 4; i++) bytes |= (unsigned)(both >> (8 * (s >> (4 * i) & 7)) & 255) << (8 * i);
    return bytes;
#else
    return __byte_perm(low, high, s);
#endif
}

// Sine and cosine of `pi * x`.
__device__ __forceinline__ float2 turn(float x) {
#ifdef CUDA_SHIM
    return {(float)sin(M_PI * (double)x), (float)cos(M_PI * (double)x)};
#else
    float2 v;
    sincospif(x, &v.x, &v.y);
    return v;
#endif
}

// Two raised to `x`, to 22 bits; results below 2^-126 are zero.
__device__ __forceinline__ float power_of_2(float x) {
    PTX(exp2f(x), float v; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x)); return v);
}

// Two numbers rounded to 16 bits, the first in the low half of the word.
__device__ __forceinline__ unsigned pack_halves(float low, float high) {
    PTX(__half_as_ushort(__float2half_rn(low)) | (unsigned)__half_as_ushort(__float2half_rn(high)) << 16,
        unsigned v; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low)); return v);
}
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    PTX(__bfloat16_as_ushort(__float2bfloat16_rn(low)) | (unsigned)__bfloat16_as_ushort(__float2bfloat16_rn(high)) << 16,
        unsigned v; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low)); return v);
}
