// Attention of prompts, on tensor cores: softmax(scale * queries keys^T) values over the paged cache, without ever holding the scores.
//
// The query heads that share a key head lie below each other: line l of a prompt is head l % share of its row l / share. A
// block has LINES lines and goes through all that they see in tiles of TOKENS tokens: a tile of keys is multiplied while its
// values come, its values are while the next keys come. Each warp has its own lines, with a running maximum and sum (in
// base 2), so all that warps share is the cache's tiles.
//
// Grid (tiles of all prompts, the last of each first since they see most; kv heads). In shared memory: lines of queries, keys,
// values, each STRIDE units of 16 bytes, an odd number, so that eight lines lie in different banks for any unit.
//
// Queries and weights are rounded to the type that keys and values are multiplied in, sums are f32. A row has other bits than
// attention.cuh gives it.
#pragma once
#include "attention.cuh"

// Rows of a step that belong to one sequence.
struct Prompt {
    int first, rows;
};

constexpr int PROMPT_WARPS = 4, PROMPT_THREADS = 32 * PROMPT_WARPS;

// For heads of up to D values; the host computes the same sizes (prompts.rs).
template <int D> struct PromptShape {
    // Times 16 lines a warp, times 8 tokens.
    static constexpr int MT = D <= 128 ? 2 : 1, NT = D <= 64 ? 8 : D <= 128 ? 6 : 4;
    static constexpr int LINES = 16 * MT * PROMPT_WARPS, TOKENS = 8 * NT, STRIDE = D / 8 + 1;
};

// ---------------------------------------------------------------- in which type

struct InHalf {
    static constexpr float LARGEST = 65504.f;
    static __device__ __forceinline__ unsigned pack(float low, float high) { return pack_halves(low, high); }
    static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { multiply_half(d, a, b); }
};
struct InBF16 {
    static constexpr float LARGEST = 3.3e38f;
    static __device__ __forceinline__ unsigned pack(float low, float high) { return pack_bf16(low, high); }
    static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { multiply_bf16(d, a, b); }
};

template <class Type> __device__ __forceinline__ uint4 pack_unit(const float (&v)[8]) {
    uint4 unit;
    unit.x = Type::pack(v[0], v[1]), unit.y = Type::pack(v[2], v[3]), unit.z = Type::pack(v[4], v[5]), unit.w = Type::pack(v[6], v[7]);
    return unit;
}

// Eight values of a token, brought to shared memory; zeros where there are none, since what lies there may be no number.
template <class C> struct Bring;
template <int HALF> struct Bring<Cached16<HALF>> {
    static __device__ __forceinline__ void unit(uint4* to, const Cache& c, size_t head, int token, int d, bool there) {
        const unsigned short* from = (const unsigned short*)c.values + (head * BLOCK_TOKENS + token) * c.padded_dim + d;
        copy_async(to, there ? (const void*)from : c.values, there);
    }
};
template <> struct Bring<CachedQ8_0> {
    static __device__ __forceinline__ void unit(uint4* to, const Cache& c, size_t head, int token, int d, bool there) {
        float v[8] = {};
        if (there) CachedQ8_0::expand(CachedQ8_0::load(c, head, token, d), v);
        *to = pack_unit<InHalf>(v);
    }
};

// ---------------------------------------------------------------- a tile of a prompt

struct PromptTile {
    Prompt prompt;
    int first_line, lines;  // of the block; of the prompt
    int share;              // query heads a kv head
    int start;              // position of the prompt's first row
    int window;

    __device__ __forceinline__ int position(int line) const { return start + min(line, lines - 1) / share; }
    __device__ __forceinline__ int first_seen(int position) const { return window > 0 ? max(0, position + 1 - window) : 0; }
};

// Keys or values of TOKENS tokens from `first` on, as far as `end`.
template <class C, int D>
__device__ __forceinline__ void bring_tile(uint4* to, const Cache& cache, const unsigned* blocks, int kv_head, int is_value, int first, int end) {
    using S = PromptShape<D>;
#pragma unroll C::SCALED ? 1 : 2
    for (int unit = threadIdx.x; unit < S::TOKENS * (D / 8); unit += PROMPT_THREADS) {
        const int line = unit / (D / 8), d = unit % (D / 8) * 8, token = first + line;
        const bool there = token < end && d < cache.padded_dim;
        const size_t head = there ? head_in_cache(cache, blocks[token / BLOCK_TOKENS], kv_head, is_value) : 0;
        Bring<C>::unit(&to[line * S::STRIDE + d / 8], cache, head, token % BLOCK_TOKENS, d, there);
    }
}

// The block's lines of queries, times `factor`. What is no number stays none.
template <class Type, int D>
__device__ __forceinline__ void bring_queries(uint4* to, const float* queries, int heads, int first_head, int dim, const PromptTile& tile, float factor) {
    using S = PromptShape<D>;
    for (int unit = threadIdx.x; unit < S::LINES * (D / 8); unit += PROMPT_THREADS) {
        const int line = unit / (D / 8), d = unit % (D / 8) * 8, at = tile.first_line + line;
        float v[8] = {};
        if (at < tile.lines) {
            const float* in = queries + ((size_t)(tile.prompt.first + at / tile.share) * heads + first_head + at % tile.share) * dim;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float x = d + i < dim ? factor * in[d + i] : 0.f;
                v[i] = x > Type::LARGEST ? Type::LARGEST : x < -Type::LARGEST ? -Type::LARGEST : x;
            }
        }
        to[line * S::STRIDE + d / 8] = pack_unit<Type>(v);
    }
}

// The scores of a warp's lines, which begin at `queries`.
template <class Type, int D>
__device__ __forceinline__ void score_tile(float (&scores)[PromptShape<D>::MT][PromptShape<D>::NT][4], const uint4* queries, const uint4* keys) {
    using S = PromptShape<D>;
    const int lane = threadIdx.x & 31;
#pragma unroll 2
    for (int k = 0; k < D / 16; k++) {
        unsigned a[S::MT][4];
#pragma unroll
        for (int i = 0; i < S::MT; i++) load_matrices(a[i], &queries[(16 * i + lane % 16) * S::STRIDE + 2 * k + lane / 16]);
#pragma unroll
        for (int j = 0; j < S::NT; j += 2) {
            unsigned words[4];
            load_matrices(words, &keys[(8 * j + lane / 16 * 8 + lane % 8) * S::STRIDE + 2 * k + lane / 8 % 2]);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const unsigned b[2] = {words[2 * n], words[2 * n + 1]};
#pragma unroll
                for (int i = 0; i < S::MT; i++) Type::multiply(scores[i][j + n], a[i], b);
            }
        }
    }
}

// Adds the values of a tile, weighted by what the scores have become.
template <class Type, int D>
__device__ __forceinline__ void add_values(float (&sums)[PromptShape<D>::MT][D / 8][4], const float (&weights)[PromptShape<D>::MT][PromptShape<D>::NT][4], const uint4* values) {
    using S = PromptShape<D>;
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int k = 0; k < S::TOKENS / 16; k++) {
        // What a product leaves in a lane is what the next one takes from it.
        unsigned a[S::MT][4];
#pragma unroll
        for (int i = 0; i < S::MT; i++)
#pragma unroll
            for (int w = 0; w < 4; w++) a[i][w] = Type::pack(weights[i][2 * k + w / 2][w % 2 * 2], weights[i][2 * k + w / 2][w % 2 * 2 + 1]);
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            unsigned words[4];
            load_matrices_turned(words, &values[(16 * k + lane % 16) * S::STRIDE + j + lane / 16]);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const unsigned b[2] = {words[2 * n], words[2 * n + 1]};
#pragma unroll
                for (int i = 0; i < S::MT; i++) Type::multiply(sums[i][j + n], a[i], b);
            }
        }
    }
}

// Scores with a cap, in base 2.
template <int D> __device__ __forceinline__ void cap_scores(float (&scores)[PromptShape<D>::MT][PromptShape<D>::NT][4], float softcap) {
    using S = PromptShape<D>;
#pragma unroll
    for (int i = 0; i < S::MT * S::NT * 4; i++) {
        float& score = scores[i / 4 / S::NT][i / 4 % S::NT][i % 4];
        score = softcap * 1.4426950408889634f * tanhf(score / softcap);
    }
}

// Takes what lines do not see out of a tile.
template <int D>
__device__ __forceinline__ void hide_scores(float (&scores)[PromptShape<D>::MT][PromptShape<D>::NT][4], const int (&positions)[PromptShape<D>::MT][2], const PromptTile& tile, int first) {
    using S = PromptShape<D>;
    const int token = first + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < S::MT; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int to = positions[i][half] - token, from = tile.first_seen(positions[i][half]) - token;
#pragma unroll
            for (int j = 0; j < S::NT; j++)
#pragma unroll
                for (int c = 0; c < 2; c++)
                    if (8 * j + c > to || 8 * j + c < from) scores[i][j][2 * half + c] = NEVER;
        }
}

// Turns scores into weights, and fades what was summed before where a score is larger than all until now.
template <int D>
__device__ __forceinline__ void weigh_scores(float (&scores)[PromptShape<D>::MT][PromptShape<D>::NT][4], float (&sums)[PromptShape<D>::MT][D / 8][4], float (&largest)[PromptShape<D>::MT][2], float (&total)[PromptShape<D>::MT][2]) {
    using S = PromptShape<D>;
#pragma unroll
    for (int i = 0; i < S::MT; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = largest[i][half];
#pragma unroll
            for (int j = 0; j < S::NT; j++) top = fmaxf(top, fmaxf(scores[i][j][2 * half], scores[i][j][2 * half + 1]));
            top = fmaxf(top, __shfl_xor_sync(WARP_ALL, top, 1));
            top = fmaxf(top, __shfl_xor_sync(WARP_ALL, top, 2));
            // Where nothing was seen yet, weights are zero, not one.
            const float base = top == NEVER ? 0.f : top, fade = power_of_2(largest[i][half] - base);
            largest[i][half] = top;
            float all = 0.f;
#pragma unroll
            for (int j = 0; j < S::NT; j++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float& weight = scores[i][j][2 * half + c];
                    weight = power_of_2(weight - base);
                    all += weight;
                }
            total[i][half] = fmaf(total[i][half], fade, all);
#pragma unroll
            for (int j = 0; j < D / 8; j++) sums[i][j][2 * half] *= fade, sums[i][j][2 * half + 1] *= fade;
        }
}

// out [rows, heads, dim]
template <class C, class Type, int D>
__device__ __forceinline__ void attend_prompt(const float* queries, int heads, const Cache& cache, const Places& places, const Scores& how, const Prompt* prompts, float* out) {
    using S = PromptShape<D>;
    DYN_SMEM(uint4, shared);
    uint4 *const lines = shared, *const keys = lines + S::LINES * S::STRIDE, *const values = keys + S::TOKENS * S::STRIDE;
    let_next_start();
    wait_for_previous();
    const int kv_head = blockIdx.y, share = heads / cache.kv_heads, dim = cache.dim;
    int left = blockIdx.x, tiles = 0;
    for (;; left -= tiles, prompts++) {
        tiles = (prompts->rows * share + S::LINES - 1) / S::LINES;
        if (left < tiles) break;
    }
    PromptTile tile = {*prompts, (tiles - 1 - left) * S::LINES, prompts->rows * share, share, places.positions[prompts->first], how.window};
    const unsigned* blocks = places.blocks + places.tables[tile.prompt.first];
    const int end = tile.position(tile.first_line + S::LINES - 1) + 1;
    int first = tile.first_seen(tile.position(tile.first_line)) / S::TOKENS * S::TOKENS;

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, my_line = tile.first_line + warp * 16 * S::MT;
    const int my_first = tile.position(my_line), my_last = tile.position(my_line + 16 * S::MT - 1);
    const bool idle = my_line >= tile.lines;
    int positions[S::MT][2];
    float sums[S::MT][D / 8][4] = {}, largest[S::MT][2], total[S::MT][2] = {};
#pragma unroll
    for (int i = 0; i < 2 * S::MT; i++) positions[i / 2][i % 2] = tile.position(my_line + 8 * i + lane / 4), largest[i / 2][i % 2] = NEVER;

    bring_tile<C, D>(keys, cache, blocks, kv_head, 0, first, end);
    // With a cap, scores are turned to base 2 after it.
    bring_queries<Type, D>(lines, queries, heads, kv_head * share, dim, tile, how.softcap > 0.f ? how.scale : how.scale * 1.4426950408889634f);
    for (; first < end; first += S::TOKENS) {
        copies_arrive();
        __syncthreads();  // the keys are there; nobody needs the values before
        bring_tile<C, D>(values, cache, blocks, kv_head, 1, first, end);
        // The same for all lanes.
        const bool sees = !idle && first <= my_last && first + S::TOKENS > tile.first_seen(my_first);
        float scores[S::MT][S::NT][4] = {};
        if (sees) score_tile<Type, D>(scores, lines + warp * 16 * S::MT * S::STRIDE, keys);
        copies_arrive();
        __syncthreads();  // the values are there; nobody needs the keys any more
        if (first + S::TOKENS < end) bring_tile<C, D>(keys, cache, blocks, kv_head, 0, first + S::TOKENS, end);
        if (!sees) continue;
        if (how.softcap > 0.f) cap_scores<D>(scores, how.softcap);
        if (first + S::TOKENS - 1 > my_first || first < tile.first_seen(my_last)) hide_scores<D>(scores, positions, tile, first);
        weigh_scores<D>(scores, sums, largest, total);
        add_values<Type, D>(sums, scores, values);
    }
#pragma unroll
    for (int i = 0; i < S::MT; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float all = total[i][half];
            all += __shfl_xor_sync(WARP_ALL, all, 1);
            all += __shfl_xor_sync(WARP_ALL, all, 2);
            const int line = my_line + 16 * i + 8 * half + lane / 4;
            if (line >= tile.lines) continue;
            const float inverse = 1.f / all;
            float* to = out + ((size_t)(tile.prompt.first + line / share) * heads + kv_head * share + line % share) * dim;
#pragma unroll
            for (int j = 0; j < D / 8; j++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const int d = 8 * j + lane % 4 * 2 + c;
                    if (d < dim) to[d] = sums[i][j][2 * half + c] * inverse;
                }
        }
}

#define PROMPT(C, TYPE, NAME, D)                                                                                           \
    extern "C" __global__ void __launch_bounds__(PROMPT_THREADS, 2) prompt_##NAME##_##D(const float* queries, int heads, Cache cache, Places places, Scores how, const Prompt* prompts, float* out) { \
        attend_prompt<C, TYPE, D>(queries, heads, cache, places, how, prompts, out);                                       \
    }                                                                                                                      \
    SHIM_KERNEL(prompt_##NAME##_##D);

#define PROMPTS(C, TYPE, NAME) PROMPT(C, TYPE, NAME, 64) PROMPT(C, TYPE, NAME, 96) PROMPT(C, TYPE, NAME, 128) PROMPT(C, TYPE, NAME, 256)
