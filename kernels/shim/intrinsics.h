// The built-in functions of device code.
#pragma once
#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "execution.h"

// --- bits

template <class To, class From> inline To shim_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float __int_as_float(int x) { return shim_cast<float>(x); }
inline int __float_as_int(float x) { return shim_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return shim_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return shim_cast<unsigned>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline int __mulhi(int a, int b) { return static_cast<int>((int64_t{a} * b) >> 32); }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (x >> i & 1) << (31 - i);
    return reversed;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    uint64_t bytes = uint64_t{y} << 32 | x;
    unsigned picked = 0;
    for (int i = 0; i < 4; i++) {
        unsigned nibble = selector >> (4 * i);
        unsigned byte = static_cast<unsigned>(bytes >> (8 * (nibble & 7))) & 0xff;
        if (nibble & 8) byte = byte & 0x80 ? 0xff : 0; // its sign, eight times
        picked |= byte << (8 * i);
    }
    return picked;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>(((uint64_t{high} << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}

// --- four bytes at once

template <class F> inline unsigned shim_bytes(unsigned a, unsigned b, F one) {
    unsigned all = 0;
    for (int i = 0; i < 32; i += 8) all |= (static_cast<unsigned>(one(a >> i & 0xff, b >> i & 0xff)) & 0xff) << i;
    return all;
}
inline unsigned __vadd4(unsigned a, unsigned b) { return shim_bytes(a, b, [](unsigned x, unsigned y) { return x + y; }); }
inline unsigned __vsub4(unsigned a, unsigned b) { return shim_bytes(a, b, [](unsigned x, unsigned y) { return x - y; }); }
inline unsigned __vsubss4(unsigned a, unsigned b) {
    return shim_bytes(a, b, [](unsigned x, unsigned y) {
        int difference = int{static_cast<int8_t>(x)} - static_cast<int8_t>(y);
        return difference < -128 ? -128 : difference > 127 ? 127 : difference;
    });
}
inline unsigned __vcmpeq4(unsigned a, unsigned b) {
    return shim_bytes(a, b, [](unsigned x, unsigned y) { return x == y ? 0xff : 0; });
}
inline unsigned __vcmpne4(unsigned a, unsigned b) { return ~__vcmpeq4(a, b); }
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) c += int{static_cast<int8_t>(a >> i)} * static_cast<int8_t>(b >> i);
    return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 32; i += 8) c += (a >> i & 0xff) * (b >> i & 0xff);
    return c;
}

// --- arithmetic

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline int __float2int_rn(float x) { return static_cast<int>(nearbyintf(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
inline int __float2int_ru(float x) { return static_cast<int>(ceilf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float max(float a, float b) { return fmaxf(a, b); }

// --- memory: only one thread runs at a time, so everything is in order and atomic

template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline void __stcs(T* p, T value) { *p = value; }
template <class T> inline void __stcg(T* p, T value) { *p = value; }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap() { shim::fail("__trap"); }

template <class T, class F> inline T shim_atomic(T* p, F change) {
    T old = *p;
    *p = change(old);
    return old;
}
template <class T> inline T atomicAdd(T* p, std::type_identity_t<T> x) { return shim_atomic(p, [x](T old) { return old + x; }); }
template <class T> inline T atomicSub(T* p, std::type_identity_t<T> x) { return shim_atomic(p, [x](T old) { return old - x; }); }
template <class T> inline T atomicMax(T* p, std::type_identity_t<T> x) { return shim_atomic(p, [x](T old) { return x > old ? x : old; }); }
template <class T> inline T atomicMin(T* p, std::type_identity_t<T> x) { return shim_atomic(p, [x](T old) { return x < old ? x : old; }); }
template <class T> inline T atomicAnd(T* p, std::type_identity_t<T> x) { return shim_atomic(p, [x](T old) { return old & x; }); }
template <class T> inline T atomicOr(T* p, std::type_identity_t<T> x) { return shim_atomic(p, [x](T old) { return old | x; }); }
template <class T> inline T atomicExch(T* p, std::type_identity_t<T> x) { return shim_atomic(p, [x](T) { return x; }); }
template <class T> inline T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> x) {
    return shim_atomic(p, [expected, x](T old) { return old == expected ? x : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
    return shim_atomic(p, [limit](unsigned old) { return old >= limit ? 0 : old + 1; });
}

// --- barriers

inline void __syncthreads() { shim::barrier("__syncthreads", 0, 0, 0); }
inline int __syncthreads_count(int predicate) { return shim::barrier("__syncthreads_count", 0, 0, predicate != 0); }
inline int __syncthreads_or(int predicate) { return shim::barrier("__syncthreads_or", 0, 0, predicate != 0) != 0; }
inline int __syncthreads_and(int predicate) { return shim::barrier("__syncthreads_and", 0, 0, predicate == 0) == 0; }

// --- the warp

namespace shim {

template <class T> struct Shuffled {
    T in, out;
    int argument;
};

// `source(lane, argument, segment, width)` is the lane that a lane reads.
template <class T, class Source> inline T shuffle(const char* name, unsigned mask, T value, int argument, int width, Source) {
    struct Exchange { Shuffled<T> values; int width; const char* name; } mine{{value, value, argument}, width, name};
    converge(name, mask, &mine, [](void** lanes, unsigned mask) {
        for (int lane = 0; lane < 32; lane++) {
            if (!(mask >> lane & 1)) continue;
            auto* exchange = static_cast<Exchange*>(lanes[lane]);
            int segment = lane & ~(exchange->width - 1);
            int from = Source{}(lane, exchange->values.argument, segment, exchange->width);
            if (!(mask >> from & 1)) fail("%s: lane %d reads lane %d, which is not in mask %08x", exchange->name, lane, from, mask);
            exchange->values.out = static_cast<Exchange*>(lanes[from])->values.in;
        }
    });
    return mine.values.out;
}

// Combines a value of each lane, and gives all of them the result.
template <class T, class Fold> inline T reduce(const char* name, unsigned mask, T value, Fold) {
    converge(name, mask, &value, [](void** lanes, unsigned mask) {
        bool first = true;
        T all{};
        for (int lane = 0; lane < 32; lane++) {
            if (!(mask >> lane & 1)) continue;
            T one = *static_cast<T*>(lanes[lane]);
            all = first ? one : Fold{}(all, one);
            first = false;
        }
        for (int lane = 0; lane < 32; lane++)
            if (mask >> lane & 1) *static_cast<T*>(lanes[lane]) = all;
    });
    return value;
}

} // namespace shim

template <class T> inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return shim::shuffle("__shfl_sync", mask, value, lane, width,
                         [](int, int lane, int segment, int width) { return segment | (lane & (width - 1)); });
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    return shim::shuffle("__shfl_xor_sync", mask, value, bits, width, [](int lane, int bits, int segment, int width) {
        return (lane ^ bits) < segment + width ? lane ^ bits : lane;
    });
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return shim::shuffle("__shfl_down_sync", mask, value, static_cast<int>(by), width, [](int lane, int by, int segment, int width) {
        return lane + by < segment + width ? lane + by : lane;
    });
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    return shim::shuffle("__shfl_up_sync", mask, value, static_cast<int>(by), width,
                         [](int lane, int by, int segment, int) { return lane - by >= segment ? lane - by : lane; });
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    unsigned bit = predicate ? 1u << (shim::current->linear % 32) : 0;
    return shim::reduce("__ballot_sync", mask, bit, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    shim::converge("__syncwarp", mask, nullptr, [](void**, unsigned) {});
}
inline unsigned __activemask() { return shim::live_lanes(); }
template <class T> inline T __reduce_add_sync(unsigned mask, T value) {
    return shim::reduce("__reduce_add_sync", mask, value, [](T a, T b) { return a + b; });
}
template <class T> inline T __reduce_max_sync(unsigned mask, T value) {
    return shim::reduce("__reduce_max_sync", mask, value, [](T a, T b) { return a > b ? a : b; });
}
template <class T> inline T __reduce_min_sync(unsigned mask, T value) {
    return shim::reduce("__reduce_min_sync", mask, value, [](T a, T b) { return a < b ? a : b; });
}
