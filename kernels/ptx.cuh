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
