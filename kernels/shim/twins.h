// What inline PTX does, in arithmetic: the branches `#ifdef CUDA_SHIM` of the kernels' primitives call these.
// Fragments lie in registers as the PTX manual draws them.
#pragma once
#include "intrinsics.h"

namespace shim {

// --- tensor cores

struct Fragments {
    const uint32_t *a, *b;
    void* d;
};

// Word `i` of `A[row][column / per_word]`, of an m16 tile whose rows are 8 words (32 bytes) long.
inline uint32_t a_word(void** lanes, int row, int word) {
    auto* lane = static_cast<Fragments*>(lanes[(row & 7) * 4 + (word & 3)]);
    return lane->a[(row >> 3) + 2 * (word >> 2)];
}
inline uint32_t b_word(void** lanes, int column, int word) {
    return static_cast<Fragments*>(lanes[column * 4 + (word & 3)])->b[word >> 2];
}

// d += a b, of words that `Expand` makes COUNT numbers of. Each sum runs over the columns in order.
template <class Number, int COUNT, class Expand> inline void mma_16x8(void** lanes, Expand expand) {
    Number a[16][8 * COUNT], b[8 * COUNT][8], sums[16][8] = {};
    for (int word = 0; word < 8; word++) {
        for (int row = 0; row < 16; row++) expand(a_word(lanes, row, word), &a[row][COUNT * word]);
        for (int column = 0; column < 8; column++) {
            Number numbers[COUNT];
            expand(b_word(lanes, column, word), numbers);
            for (int i = 0; i < COUNT; i++) b[COUNT * word + i][column] = numbers[i];
        }
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 8 * COUNT; k++)
            for (int column = 0; column < 8; column++) sums[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < 32; lane++) {
        Number* d = static_cast<Number*>(static_cast<Fragments*>(lanes[lane])->d);
        for (int i = 0; i < 4; i++) d[i] += sums[lane / 4 + (i >> 1) * 8][lane % 4 * 2 + (i & 1)];
    }
}

// mma.m16n8k16.row.col.f32.bf16.bf16.f32
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Fragments mine{a, b, d};
    converge("mma.m16n8k16.bf16", ~0u, &mine, [](void** lanes, unsigned) {
        mma_16x8<float, 2>(lanes, [](uint32_t word, float* v) {
            v[0] = __uint_as_float(word << 16), v[1] = __uint_as_float(word & 0xffff0000u);
        });
    });
}

// mma.m16n8k16.row.col.f32.f16.f16.f32
inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Fragments mine{a, b, d};
    converge("mma.m16n8k16.f16", ~0u, &mine, [](void** lanes, unsigned) {
        mma_16x8<float, 2>(lanes, [](uint32_t word, float* v) {
            auto half = [](uint32_t bits) { return static_cast<float>(shim_cast<_Float16>(static_cast<uint16_t>(bits))); };
            v[0] = half(word), v[1] = half(word >> 16);
        });
    });
}

// mma.m16n8k32.row.col.s32.s8.s8.s32
inline void mma_m16n8k32_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Fragments mine{a, b, d};
    converge("mma.m16n8k32.s8", ~0u, &mine, [](void** lanes, unsigned) {
        mma_16x8<int, 4>(lanes, [](uint32_t word, int* v) {
            for (int i = 0; i < 4; i++) v[i] = static_cast<int8_t>(word >> (8 * i));
        });
    });
}

// mma.m16n8k16.row.col.s32.s8.s8.s32: the same with the second half of the bytes zero.
inline void mma_m16n8k16_s8(int (&d)[4], const uint32_t (&a)[2], uint32_t b) {
    const uint32_t whole_a[4] = {a[0], a[1], 0, 0}, whole_b[2] = {b, 0};
    mma_m16n8k32_s8(d, whole_a, whole_b);
}

// ldmatrix.m8n8.x{1,2,4}[.trans].b16: lane 8 i + r holds the address of row r of matrix i.
template <int MATRICES, bool TRANSPOSED = false> inline void ldmatrix(uint32_t (&d)[MATRICES], const void* row) {
    struct Exchange { uint32_t* d; const void* row; } mine{d, row};
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("ldmatrix: a row's address is not a multiple of 16");
    converge("ldmatrix", ~0u, &mine, [](void** lanes, unsigned) {
        auto element = [lanes](int matrix, int row, int column) {
            uint16_t value;
            memcpy(&value, static_cast<const char*>(static_cast<Exchange*>(lanes[8 * matrix + row])->row) + 2 * column, 2);
            return uint32_t{value};
        };
        for (int lane = 0; lane < 32; lane++)
            for (int matrix = 0; matrix < MATRICES; matrix++) {
                int row = lane / 4, column = lane % 4 * 2;
                uint32_t low = TRANSPOSED ? element(matrix, column, row) : element(matrix, row, column);
                uint32_t high = TRANSPOSED ? element(matrix, column + 1, row) : element(matrix, row, column + 1);
                static_cast<Exchange*>(lanes[lane])->d[matrix] = low | high << 16;
            }
    });
}

// --- asynchronous copies: done when they are waited for and not before, so a wait that is missing shows

inline void cp_async(void* to, const void* from, unsigned bytes, unsigned source_bytes) {
    if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async of %u bytes", bytes);
    if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0)
        fail("cp.async: an address is not a multiple of %u", bytes);
    current->copies.push_back({to, from, bytes, source_bytes, current->copy_group});
}
inline void cp_async(void* to, const void* from, unsigned bytes) { cp_async(to, from, bytes, bytes); }
inline void cp_async_commit() { current->copy_group++; }
inline void finish_copies(unsigned groups) {
    std::vector<PendingCopy> rest;
    for (const PendingCopy& copy : current->copies) {
        if (copy.group >= groups) {
            rest.push_back(copy);
            continue;
        }
        memcpy(copy.to, copy.from, copy.source_bytes);
        memset(static_cast<char*>(copy.to) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
    }
    current->copies.swap(rest);
}
// All groups but the newest `pending`.
inline void cp_async_wait(unsigned pending) {
    finish_copies(current->copy_group > pending ? current->copy_group - pending : 0);
}
inline void cp_async_wait_all() { finish_copies(~0u); }

// bar.sync id, threads: a barrier of some warps.
inline void bar_sync(unsigned id, unsigned threads) {
    if (id >= 16 || threads % 32 != 0) fail("bar.sync %u, %u: there are 16 barriers, for whole warps", id, threads);
    barrier("bar.sync", id, threads, 0);
}

} // namespace shim
