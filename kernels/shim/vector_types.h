// CUDA's built-in vector types, with their alignment.
#pragma once
#include <cstdint>

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define SHIM_VECTORS(name, scalar)                                                                  \
    struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };                                    \
    struct name##3 { scalar x, y, z; };                                                             \
    struct alignas(4 * sizeof(scalar) > 16 ? 16 : 4 * sizeof(scalar)) name##4 { scalar x, y, z, w; }; \
    inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                            \
    inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }               \
    inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

SHIM_VECTORS(char, signed char)
SHIM_VECTORS(uchar, unsigned char)
SHIM_VECTORS(short, short)
SHIM_VECTORS(ushort, unsigned short)
SHIM_VECTORS(int, int)
SHIM_VECTORS(float, float)
SHIM_VECTORS(double, double)
SHIM_VECTORS(longlong, long long)
SHIM_VECTORS(ulonglong, unsigned long long)
#undef SHIM_VECTORS

// uint3 is the type of threadIdx, above.
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
