// The paged KV cache, and attention over it.
//
// Of each layer: [blocks, kv heads, keys and values, 16 tokens, padded head]. A head is padded with zeros to a multiple of
// 16 values. Q8_0 has its scales apart: [blocks, kv heads, keys and values, 16 tokens, padded head / 32 rounded up], f16.
#pragma once
#include "numbers.cuh"

constexpr int BLOCK_TOKENS = 16;
// Segments that the context of a row is cut into at most; each is summed by a block of its own.
constexpr int SEGMENTS = 32;
constexpr int SEGMENT_TOKENS_MIN = 64;
// Position of rows that only fill up a bucket: nothing is stored for them, and zeros come out.
constexpr int NO_POSITION = -1;

// One layer of the cache.
struct Cache {
    void* values;
    unsigned short* scales;  // Q8_0 alone
    int kv_heads;
    int dim;         // values a head
    int padded_dim;  // in the cache
};

// Where rows stand.
struct Places {
    const int* positions;     // [rows]
    const unsigned* tables;   // [rows]: where in `blocks` those of the row's sequence begin
    const unsigned* blocks;
};

__device__ __forceinline__ size_t head_in_cache(const Cache& cache, unsigned block, int kv_head, int is_value) {
    return ((size_t)block * cache.kv_heads + kv_head) * 2 + is_value;
}

// How the context of a row is cut: segment s has the tokens from start + s * tokens on, as far as `first` <= token <=
// position. It follows from the position and the window alone, so a row has the same sums in any step.
struct Segments {
    int first, start, tokens, count;

    __device__ __forceinline__ Segments(int position, int window) {
        first = window > 0 ? max(0, position + 1 - window) : 0;
        start = first / BLOCK_TOKENS * BLOCK_TOKENS;
        tokens = SEGMENT_TOKENS_MIN;
        const int length = position + 1 - start;
        while (tokens * SEGMENTS < length) tokens *= 2;
        count = (length + tokens - 1) / tokens;
    }
};

// ---------------------------------------------------------------- how values are stored

template <int HALF> struct Cached16 {
    static constexpr bool SCALED = false;
    // 65504, and the largest bf16.
    static __device__ __forceinline__ float largest() { return HALF ? 65504.f : bits_to_float(0x7f7f0000u); }
    struct Raw { uint4 v; };
    static __device__ __forceinline__ Raw load(const Cache& c, size_t head, int token, int d) {
        return {load_cache((const uint4*)((const unsigned short*)c.values + (head * BLOCK_TOKENS + token) * c.padded_dim + d))};
    }
    static __device__ __forceinline__ void expand(const Raw& raw, float (&v)[8]) {
        if (HALF) expand_half(raw.v, v);
        else expand_bf16(raw.v, v);
    }
    static __device__ __forceinline__ void store(const Cache& c, size_t head, int token, int d, float x, float) {
        ((unsigned short*)c.values)[(head * BLOCK_TOKENS + token) * c.padded_dim + d] = HALF ? float_to_half(x) : float_to_bf16(x);
    }
};
using CachedF16 = Cached16<1>;
using CachedBF16 = Cached16<0>;

struct CachedF32 {
    static constexpr bool SCALED = false;
    static __device__ __forceinline__ float largest() { return bits_to_float(0x7f7fffffu); }
    struct Raw { uint4 a, b; };
    static __device__ __forceinline__ Raw load(const Cache& c, size_t head, int token, int d) {
        const uint4* p = (const uint4*)((const float*)c.values + (head * BLOCK_TOKENS + token) * c.padded_dim + d);
        return {load_cache(p), load_cache(p + 1)};
    }
    static __device__ __forceinline__ void expand(const Raw& raw, float (&v)[8]) {
        v[0] = bits_to_float(raw.a.x), v[1] = bits_to_float(raw.a.y), v[2] = bits_to_float(raw.a.z), v[3] = bits_to_float(raw.a.w);
        v[4] = bits_to_float(raw.b.x), v[5] = bits_to_float(raw.b.y), v[6] = bits_to_float(raw.b.z), v[7] = bits_to_float(raw.b.w);
    }
    static __device__ __forceinline__ void store(const Cache& c, size_t head, int token, int d, float x, float) {
        ((float*)c.values)[(head * BLOCK_TOKENS + token) * c.padded_dim + d] = x;
    }
};

struct CachedQ8_0 {
    static constexpr bool SCALED = true;
    static __device__ __forceinline__ float largest() { return 65504.f; }
    struct Raw { uint2 v; unsigned short scale; };
    static __device__ __forceinline__ size_t scale_at(const Cache& c, size_t head, int token, int d) {
        return (head * BLOCK_TOKENS + token) * ((c.padded_dim + 31) / 32) + d / 32;
    }
    static __device__ __forceinline__ Raw load(const Cache& c, size_t head, int token, int d) {
        const uint2* p = (const uint2*)((const signed char*)c.values + (head * BLOCK_TOKENS + token) * c.padded_dim + d);
        return {load_cache(p), c.scales[scale_at(c, head, token, d)]};
    }
    static __device__ __forceinline__ void expand(const Raw& raw, float (&v)[8]) {
        const float scale = half_to_float(raw.scale);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = scale * (float)(signed char)((i < 4 ? raw.v.x : raw.v.y) >> (8 * (i % 4)) & 255);
    }
    // `scale` is of the 32 values around it.
    static __device__ __forceinline__ void store(const Cache& c, size_t head, int token, int d, float x, float scale) {
        const float code = scale == 0.f ? 0.f : fminf(fmaxf(rintf(x / scale), -127.f), 127.f);
        ((signed char*)c.values)[(head * BLOCK_TOKENS + token) * c.padded_dim + d] = (signed char)(int)code;
        if (d % 32 == 0) c.scales[scale_at(c, head, token, d)] = float_to_half(scale);
    }
};

// ---------------------------------------------------------------- norms, rotation, storing

// How queries and keys are made ready. Null where there is no norm, no rotation.
struct Preparation {
    const float* query_norm;  // [dim]
    const float* key_norm;
    float query_epsilon, key_epsilon;
    const float2* angles;  // [rows, pairs]: cosine and sine, times the rope's magnitude
    int pairs;
    int interleaved;
};

// qkv [rows, (heads + 2 kv heads) * dim] -> queries [rows, heads, dim], and keys and values in the cache. A block a row
// and head, 128 threads; what is stored is made finite, so that it never disturbs the next sequence that uses the block.
template <class C>
__device__ __forceinline__ void store_heads(const float* qkv, int heads, const Cache& cache, const Places& places, const Preparation& how, float* queries) {
    __shared__ float scratch[32], x[256];
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.y, head = blockIdx.x, dim = cache.dim, lane = threadIdx.x & 31;
    const int position = places.positions[row];
    const bool is_query = head < heads, is_value = head >= heads + cache.kv_heads;
    if (position == NO_POSITION) return;

    const float* in = qkv + ((size_t)row * (heads + 2 * cache.kv_heads) + head) * dim;
    const float* norm = is_query ? how.query_norm : is_value ? nullptr : how.key_norm;
    float squares = 0.f;
    for (int d = threadIdx.x; d < dim; d += blockDim.x) x[d] = in[d], squares = fmaf(in[d], in[d], squares);
    const float mean = block_sum(squares, scratch) / (float)dim;
    if (norm) {
        const float factor = 1.f / sqrtf(mean + (is_query ? how.query_epsilon : how.key_epsilon));
        for (int d = threadIdx.x; d < dim; d += blockDim.x) x[d] = x[d] * factor * norm[d];
    }
    __syncthreads();

    const size_t place = is_query ? 0 : head_in_cache(cache, places.blocks[places.tables[row] + position / BLOCK_TOKENS], (head - heads) % cache.kv_heads, is_value);
    // Whole warps, for the scales of 32 values.
    for (int base = threadIdx.x - lane; base < cache.padded_dim; base += blockDim.x) {
        const int d = base + lane;
        float v = d < dim ? x[d] : 0.f;
        if (how.angles && !is_value && d < 2 * how.pairs) {
            const int pair = how.interleaved ? d / 2 : d % how.pairs;
            const bool second = how.interleaved ? d & 1 : d >= how.pairs;
            const float a = how.interleaved ? x[2 * pair] : x[pair], b = how.interleaved ? x[2 * pair + 1] : x[pair + how.pairs];
            const float2 at = how.angles[(size_t)row * how.pairs + pair];
            v = second ? a * at.y + b * at.x : a * at.x - b * at.y;
        }
        if (is_query) {
            if (d < dim) queries[((size_t)row * heads + head) * dim + d] = v;
            continue;
        }
        v = v != v ? 0.f : fminf(fmaxf(v, -C::largest()), C::largest());
        float scale = 0.f;
        if (C::SCALED) scale = half_to_float(float_to_half(warp_max(fabsf(v)) / 127.f));
        if (d < cache.padded_dim) C::store(cache, place, position % BLOCK_TOKENS, d, v, scale);
    }
}

// ---------------------------------------------------------------- attention

struct Scores {
    float scale;
    float softcap;  // 0: none
    int window;     // tokens that a row sees, itself among them; 0: all
};

// What a segment came to: [rows, heads, SEGMENTS] of these, and sums of values [rows, heads, SEGMENTS, dim].
struct Partial {
    float largest;  // of the scores, in base 2
    float total;    // of the weights
};

constexpr int ATTENTION_THREADS = 128;
constexpr float NEVER = -1e30f;

// Grid (segments, kv heads * tiles of G query heads, rows). The query heads of a tile share each load of keys and values.
// LANES lanes share a token, 8 values each; such groups of lanes go through the tokens side by side, each with a softmax of
// its own, and meet at the end in an order that depends on nothing.
template <class C, int LANES, int G>
__device__ __forceinline__ void attend(const float* queries, int heads, const Cache& cache, const Places& places, const Scores& how, Partial* partials, float* sums) {
    constexpr int GROUPS = ATTENTION_THREADS / LANES, AT_ONCE = 2;
    __shared__ float group_largest[GROUPS][G], group_total[GROUPS][G], group_sum[GROUPS][G][LANES * 8];
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.z, segment = blockIdx.x, position = places.positions[row];
    if (position == NO_POSITION) return;
    const Segments cut(position, how.window);
    if (segment >= cut.count) return;
    const int share = heads / cache.kv_heads, tiles = (share + G - 1) / G;
    const int kv_head = blockIdx.y / tiles, first_head = kv_head * share + blockIdx.y % tiles * G;
    const int here = min(G, kv_head * share + share - first_head);  // heads of this tile
    const int begin = max(cut.first, cut.start + segment * cut.tokens), end = min(position + 1, cut.start + (segment + 1) * cut.tokens);
    const unsigned* blocks = places.blocks + places.tables[row];
    const int group = threadIdx.x / LANES, d = threadIdx.x % LANES * 8, dim = cache.dim;
    // Lanes past the padded head hold zeros.
    const bool inside = d < cache.padded_dim;

    float q[G][8], sum[G][8], largest[G], total[G];
#pragma unroll
    for (int h = 0; h < G; h++) {
        largest[h] = NEVER, total[h] = 0.f;
        const float* in = queries + ((size_t)row * heads + first_head + min(h, here - 1)) * dim;
#pragma unroll
        for (int i = 0; i < 8; i++) q[h][i] = d + i < dim ? in[d + i] : 0.f, sum[h][i] = 0.f;
    }
    // Every thread makes every round, so that shuffles are whole.
    for (int first = begin; first < end; first += GROUPS * AT_ONCE) {
        typename C::Raw keys[AT_ONCE], values[AT_ONCE];
        if (inside) {
#pragma unroll
            for (int u = 0; u < AT_ONCE; u++) {
                const int token = min(first + u * GROUPS + group, end - 1);  // past the end: some token, with weight 0
                const size_t key = head_in_cache(cache, blocks[token / BLOCK_TOKENS], kv_head, 0);
                keys[u] = C::load(cache, key, token % BLOCK_TOKENS, d);
                values[u] = C::load(cache, key + 1, token % BLOCK_TOKENS, d);
            }
        }
        float score[AT_ONCE][G];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            float k[8] = {};
            if (inside) C::expand(keys[u], k);
            const bool seen = first + u * GROUPS + group < end;
#pragma unroll
            for (int h = 0; h < G; h++) {
                float dot = 0.f;
#pragma unroll
                for (int i = 0; i < 8; i++) dot = fmaf(q[h][i], k[i], dot);
#pragma unroll
                for (int lanes = LANES / 2; lanes > 0; lanes >>= 1) dot += __shfl_xor_sync(WARP_ALL, dot, lanes);
                dot *= how.scale;
                if (how.softcap > 0.f) dot = how.softcap * tanhf(dot / how.softcap);
                score[u][h] = seen ? dot * 1.4426950408889634f : NEVER;
            }
        }
#pragma unroll
        for (int h = 0; h < G; h++) {
            float top = largest[h];
#pragma unroll
            for (int u = 0; u < AT_ONCE; u++) top = fmaxf(top, score[u][h]);
            const float fade = exp2f(largest[h] - top);
            largest[h] = top, total[h] *= fade;
#pragma unroll
            for (int i = 0; i < 8; i++) sum[h][i] *= fade;
#pragma unroll
            for (int u = 0; u < AT_ONCE; u++) {
                score[u][h] = first + u * GROUPS + group < end ? exp2f(score[u][h] - top) : 0.f;
                total[h] += score[u][h];
            }
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            float v[8] = {};
            if (inside) C::expand(values[u], v);
#pragma unroll
            for (int h = 0; h < G; h++)
#pragma unroll
                for (int i = 0; i < 8; i++) sum[h][i] = fmaf(score[u][h], v[i], sum[h][i]);
        }
    }
#pragma unroll
    for (int h = 0; h < G; h++) {
        if (d == 0) group_largest[group][h] = largest[h], group_total[group][h] = total[h];
#pragma unroll
        for (int i = 0; i < 8; i++) group_sum[group][h][d + i] = sum[h][i];
    }
    __syncthreads();
    for (int at = threadIdx.x; at < here * dim; at += ATTENTION_THREADS) {
        const int h = at / dim, column = at % dim;
        float top = NEVER, weight = 0.f, all = 0.f;
        for (int g = 0; g < GROUPS; g++) top = fmaxf(top, group_largest[g][h]);
        for (int g = 0; g < GROUPS; g++) {
            const float fade = exp2f(group_largest[g][h] - top);
            weight = fmaf(fade, group_total[g][h], weight);
            all = fmaf(fade, group_sum[g][h][column], all);
        }
        const size_t place = ((size_t)row * heads + first_head + h) * SEGMENTS + segment;
        sums[place * dim + column] = all;
        if (column == 0) partials[place].largest = top, partials[place].total = weight;
    }
}

#define ATTEND(C, NAME, LANES, G)                                                                                          \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) attend_##NAME##_##LANES##_##G(const float* queries, int heads, Cache cache, Places places, Scores how, Partial* partials, float* sums) { \
        attend<C, LANES, G>(queries, heads, cache, places, how, partials, sums);                                           \
    }                                                                                                                      \
    SHIM_KERNEL(attend_##NAME##_##LANES##_##G);

#define CACHE_TYPE(C, NAME)                                                                                                \
    extern "C" __global__ void __launch_bounds__(128) store_##NAME(const float* qkv, int heads, Cache cache, Places places, Preparation how, float* queries) { \
        store_heads<C>(qkv, heads, cache, places, how, queries);                                                           \
    }                                                                                                                      \
    SHIM_KERNEL(store_##NAME);                                                                                             \
    ATTEND(C, NAME, 8, 1) ATTEND(C, NAME, 8, 4) ATTEND(C, NAME, 8, 8)                                                      \
    ATTEND(C, NAME, 16, 1) ATTEND(C, NAME, 16, 4) ATTEND(C, NAME, 16, 8)                                                   \
    ATTEND(C, NAME, 32, 1) ATTEND(C, NAME, 32, 4) ATTEND(C, NAME, 32, 8)
