// token[row] = what `draw[row]` chooses among its first logits: the very token, bit for bit, that `sampling::Draw::choose`
// of crates/tokrun-kernels does. Weights are whole numbers of units, so their sums are the same in any order.
//
// logits [rows, width], draws [rows], drawn [rows, 2]: the token and the bits of its logit; or, marked `BAD`, the first
// token whose logit leaves no choice. A block a row, 512 threads; a row whose draw has no vocabulary is passed over.
//
// Tokens stand in one order, by falling logit, of equal ones by rising id: that of their `place`, a number of 64 bits that
// no two share. What a cut keeps is all up to some place, which is found by narrowing down: first by the distance from the
// largest logit, which spreads well, then by the places themselves.
#include "numbers.cuh"

constexpr int THREADS = 512, WARPS = THREADS / 32;
constexpr unsigned BAD = 0x80000000u;
typedef unsigned long long u64;

// As `sampling::Draw`; `scale` is one over the temperature, or 0 for the largest logit.
struct Draw {
    unsigned vocab_size;
    float scale;
    unsigned top_k;
    float top_p, min_p;
    unsigned padding;
    u64 number;
};

struct Row {
    const float* logits;
    int count;
    float largest, scale;
};

// The bins that tokens fall into, one for each thread, the most probable ones in the first.
constexpr int BIN_BITS = 9;
static_assert(1 << BIN_BITS == THREADS);
struct Bins {
    unsigned counts[THREADS];
    u64 units[THREADS];
};

// Of the bin that a cut goes through: which, and what is in it and in those before.
struct Chosen {
    int bin;
    unsigned count;
    u64 before;
};

// Rises with the number, as an integer.
__device__ __forceinline__ unsigned ordered(float x) {
    const unsigned bits = float_to_bits(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
// The most probable token has the greatest.
__device__ __forceinline__ u64 place_of(float logit, int token) { return (u64)ordered(logit) << 32 | ~(unsigned)token; }

// e^x for x at most 0, in the steps of `sampling::distribution::exp`.
__device__ __forceinline__ float falling_exp(float x) {
    const float rounder = 12582912.f;
    const float power = fmaxf(x * 1.44269504088896340736f, -127.f);
    const float shifted = power + rounder;
    const float fraction = (power - (shifted - rounder)) * 0.693147180559945309417f;
    const int exponent = (int)(float_to_bits(shifted) - float_to_bits(rounder));
    float series = 1.f / 720.f;
    series = series * fraction + 1.f / 120.f;
    series = series * fraction + 1.f / 24.f;
    series = series * fraction + 1.f / 6.f;
    series = series * fraction + 0.5f;
    series = series * fraction + 1.f;
    return (series * fraction + 1.f) * bits_to_float((unsigned)(exponent + 127) << 23);
}

__device__ __forceinline__ float weight_of(const Row& row, float logit) { return falling_exp((logit - row.largest) * row.scale); }
// Multiplying by a power of two is exact.
__device__ __forceinline__ u64 units_of(float weight) { return (u64)rintf(weight * 17592186044416.f); }

// --- over the block

struct Greater {
    __device__ static u64 of(u64 a, u64 b) { return a > b ? a : b; }
};
struct Sum {
    __device__ static u64 of(u64 a, u64 b) { return a + b; }
};

// Of all threads' values, in every thread. `scratch` holds one for each warp. 0 must change nothing.
template <class Op> __device__ __forceinline__ u64 block_all(u64 v, u64* scratch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) v = Op::of(v, __shfl_xor_sync(WARP_ALL, v, lanes));
    __syncthreads();
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = lane < WARPS ? scratch[lane] : 0;
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) v = Op::of(v, __shfl_xor_sync(WARP_ALL, v, lanes));
    return v;
}

__device__ __forceinline__ u64 warp_sums(u64 v) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes <<= 1) {
        const u64 before = __shfl_up_sync(WARP_ALL, v, lanes);
        if (lane >= lanes) v += before;
    }
    return v;
}

// The sum of the values of this thread and those before it.
__device__ __forceinline__ u64 block_sums(u64 v, u64* scratch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    v = warp_sums(v);
    __syncthreads();
    if (lane == 31) scratch[warp] = v;
    __syncthreads();
    const u64 warps = warp_sums(lane < WARPS ? scratch[lane] : 0);
    const u64 before = __shfl_sync(WARP_ALL, warps, warp > 0 ? warp - 1 : 0);
    return v + (warp > 0 ? before : 0);
}

// --- cuts

// The bin through which the cut goes that keeps `enough`, or none. Called by all threads, after a barrier.
__device__ bool choose_bin(const Bins& bins, bool by_count, u64 enough, u64* scratch, Chosen* chosen) {
    const int t = threadIdx.x;
    const u64 mine = by_count ? bins.counts[t] : bins.units[t];
    const u64 upto = block_sums(mine, scratch);
    const bool here = upto - mine < enough && enough <= upto;
    if (here) chosen->bin = t, chosen->count = bins.counts[t], chosen->before = upto - mine;
    return __syncthreads_or(here);
}

__device__ __forceinline__ void empty(Bins& bins) {
    __syncthreads();
    bins.counts[threadIdx.x] = 0, bins.units[threadIdx.x] = 0;
    __syncthreads();
}
__device__ __forceinline__ void put(Bins& bins, int bin, u64 units) {
    atomicAdd(&bins.counts[bin], 1u);
    atomicAdd(&bins.units[bin], units);
}

// The place of the last token that is kept, of those up to `last`: the first `count` of them, or the fewest that hold
// `share` of their units.
__device__ u64 cut(const Row& row, u64 last, unsigned count, float share, Bins& bins, u64* scratch, Chosen* chosen) {
    // A 16th of the temperature a bin: what is further than all of them weighs nothing.
    auto bin_of = [&](float logit) { return (int)fminf((row.largest - logit) * row.scale * 16.f, THREADS - 1.f); };
    const bool by_count = count > 0;
    empty(bins);
    u64 all = 0;
    for (int i = threadIdx.x; i < row.count; i += THREADS) {
        const float logit = row.logits[i];
        const u64 units = units_of(weight_of(row, logit));
        if (units && place_of(logit, i) >= last) put(bins, bin_of(logit), units), all += units;
    }
    all = block_all<Sum>(all, scratch);
    u64 enough = by_count ? count : (u64)ceil((double)share * (double)all);
    if (!enough) enough = 1;
    if (!choose_bin(bins, by_count, enough, scratch, chosen)) return last;
    const int bin = chosen->bin;
    bool found = chosen->count == 1;
    enough -= chosen->before;

    // Between which places the bin lies.
    u64 high = 0, low = 0;  // `low` as its complement
    for (int i = threadIdx.x; i < row.count; i += THREADS) {
        const float logit = row.logits[i];
        if (!units_of(weight_of(row, logit)) || bin_of(logit) != bin) continue;
        const u64 place = place_of(logit, i);
        if (place >= last) high = Greater::of(high, place), low = Greater::of(low, ~place);
    }
    high = block_all<Greater>(high, scratch);
    low = ~block_all<Greater>(low, scratch);

    while (!found) {
        const int bits = 64 - __clzll((long long)(high - low));
        const int shift = bits > BIN_BITS ? bits - BIN_BITS : 0;
        empty(bins);
        for (int i = threadIdx.x; i < row.count; i += THREADS) {
            const float logit = row.logits[i];
            const u64 place = place_of(logit, i), units = units_of(weight_of(row, logit));
            if (units && low <= place && place <= high) put(bins, (int)((high - place) >> shift), units);
        }
        __syncthreads();
        choose_bin(bins, by_count, enough, scratch, chosen);
        found = chosen->count == 1;
        enough -= chosen->before;
        high -= (u64)chosen->bin << shift;
        const u64 lowest = high - (((u64)1 << shift) - 1);
        low = lowest > low ? lowest : low;
    }
    return low;
}

extern "C" __global__ void __launch_bounds__(THREADS) sample(const float* logits, int width, const Draw* draws, unsigned* drawn) {
    __shared__ Bins bins;
    __shared__ u64 scratch[WARPS];
    __shared__ Chosen chosen;
    let_next_start();
    wait_for_previous();
    const Draw draw = draws[blockIdx.x];
    if (!draw.vocab_size) return;
    logits += (size_t)blockIdx.x * width, drawn += 2 * blockIdx.x;
    const int count = (int)draw.vocab_size;

    u64 best = 0, bad = 0;  // `bad` as the complement of the first one's id
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const float logit = logits[i];
        if (!(logit < INFINITY)) bad = Greater::of(bad, ~(unsigned)i);
        else best = Greater::of(best, place_of(logit + 0.f, i));  // to which both zeros are equal
    }
    best = block_all<Greater>(best, scratch);
    bad = block_all<Greater>(bad, scratch);
    int token = (int)~(unsigned)best;
    if (!bad && logits[token] == -INFINITY) bad = ~0u;
    if (bad) token = (int)~(unsigned)bad;
    const Row row = {logits, count, logits[token], draw.scale};
    if (bad || draw.scale == 0.f) {
        if (threadIdx.x == 0) drawn[0] = (unsigned)token | (bad ? BAD : 0), drawn[1] = float_to_bits(row.largest);
        return;
    }

    u64 last = 0;
    if (draw.top_k > 0 && draw.top_k < draw.vocab_size) last = cut(row, last, draw.top_k, 0.f, bins, scratch, &chosen);
    if (draw.top_p < 1.f) last = cut(row, last, 0, draw.top_p, bins, scratch, &chosen);

    // The line of what is left, in as many pieces as there are warps, and then in one for each thread.
    auto kept = [&](int i) -> u64 {
        const float logit = logits[i], weight = weight_of(row, logit);
        return place_of(logit, i) >= last && weight >= draw.min_p ? units_of(weight) : 0;
    };
    const int piece = (count + WARPS - 1) / WARPS, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    u64 units = 0;
    for (int i = warp * piece + lane; i < min(count, (warp + 1) * piece); i += 32) units += kept(i);
    const u64 upto_mine = block_sums(units, scratch);
    const u64 all = block_all<Sum>(units, scratch);
    const u64 left = __umul64hi(draw.number, all);
    const u64 upto_warp = __shfl_sync(WARP_ALL, upto_mine, 31), first_of_warp = __shfl_sync(WARP_ALL, upto_mine - units, 0);
    __syncthreads();
    if (lane == 0 && first_of_warp <= left && left < upto_warp) chosen.bin = warp, chosen.before = first_of_warp;
    __syncthreads();
    const int begin = chosen.bin * piece, end = min(count, begin + piece), each = (piece + THREADS - 1) / THREADS;
    const int from = begin + (int)threadIdx.x * each, to = min(end, from + each);
    u64 rest = left - chosen.before;
    units = 0;
    for (int i = from; i < to; i++) units += kept(i);
    const u64 before = block_sums(units, scratch) - units;
    if (rest < before || rest >= before + units) return;
    rest -= before;
    for (int i = from; i < to; i++) {
        const u64 mine = kept(i);
        if (rest < mine) {
            drawn[0] = (unsigned)i, drawn[1] = float_to_bits(logits[i]);
            return;
        }
        rest -= mine;
    }
}
SHIM_KERNEL(sample);

// Puts drawn tokens in place of those words of `tokens` that are marked: `UNKNOWN` and the index of what was drawn. A
// thread a row.
constexpr unsigned UNKNOWN = 0x80000000u;

extern "C" __global__ void __launch_bounds__(256) feed_drawn(unsigned* tokens, int rows, const unsigned* drawn) {
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows && tokens[row] & UNKNOWN) tokens[row] = drawn[2 * (tokens[row] & ~UNKNOWN)] & ~BAD;
}
SHIM_KERNEL(feed_drawn);
