// Products on tensor cores, for steps of many rows: what linear.cuh computes, with the sums in another order.
//
// A row of the matrix and one of the input are cut into steps of 32 bytes, which is what one product of tensor cores takes:
// 32 columns of quantised weights, 16 of 16-bit floats. A block has 8 warps, N rows of the input and 128 / parts rows of the
// matrix. It goes through the columns in stages of 4 * parts steps; warp w takes the four steps of part w % parts, so that
// narrow matrices fill a card too, and the parts are added in order at the end.
//
// Weights come in the loads of formats.cuh, AHEAD stages before their use (the first before the kernel ahead has ended),
// and are unpacked to shared memory once for all N rows. Input codes come by asynchronous copies. Both are two stages
// deep: one barrier a stage. In shared memory a row has its 16-byte units in the order unit ^ (row & 7): eight rows then
// lie in different banks for any unit.
//
// Quantised: the sum of a block of 32 codes (16 where halves have scales) is exact, as with dp4a, and its f32 sums run over
// the blocks in order, within a part; linear.cuh has 32 such sums, one a lane. So results differ in the last bits.
#pragma once
#include "linear.cuh"

constexpr int TILE_M = 128, STAGE_STEPS = 4, STAGE_SLOTS = TILE_M * STAGE_STEPS;
// Threads a block, and what each of them brings of a stage: slots of 32 bytes of the matrix.
constexpr int TILE_THREADS = 256, SLOTS_EACH = STAGE_SLOTS / TILE_THREADS;
// Between columns of the finished sums; 4 beyond a multiple of 32 banks.
constexpr int SUMS_STRIDE = TILE_M + 4;

// How rows of the input belong to matrices. Without `tiles`: tile i has the rows from i * N on. With them, it has pairs of
// row and rank for an expert; an input row serves `ranks` pairs.
struct Grouped {
    const Matrix* experts;
    const ExpertTile* tiles;
    const int* order;  // [pairs]
    int ranks;
};

// ---------------------------------------------------------------- types of weights

// Exact sums come as floats: added to this number's bits, an integer below 2^22 is that number plus itself.
constexpr int MAGIC_BITS = 0x4b400000;
constexpr float MAGIC = 12582912.f;

// WORDS: 16-byte units that unpacked weights take a step. SCALES, INPUT_SCALES: floats a step of each row of the matrix and
// of the input.
template <class F> struct Tensor;

template <class Codes, class ScaleKind, int ZERO, bool HALVES, bool MINS> struct Tensor<Quantised<Codes, ScaleKind, ZERO, HALVES, MINS>> {
    using F = Quantised<Codes, ScaleKind, ZERO, HALVES, MINS>;
    using Raw = typename F::Raw;
    static constexpr int PLANES = 1, PARTS = HALVES ? 2 : 1, SCALES = PARTS * (MINS ? 2 : 1), INPUT_SCALES = MINS ? 1 + PARTS : 1;

    static __device__ __forceinline__ int steps(const Matrix& m) { return m.chunks; }
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int step) { return F::load(m, row, step); }
    static __device__ __forceinline__ void unpack(const Raw& raw, bool, uint4 (&halves)[2], float* scales) {
        const typename F::Weights q = F::unpack(raw);
        unsigned w[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            w[i] = q.w[i];
            // Codes below 128: nothing is borrowed from the byte above.
            if (ZERO > 0) w[i] = ((w[i] | 0x80808080u) - ZERO * 0x01010101u) ^ 0x80808080u;
        }
        halves[0].x = w[0], halves[0].y = w[1], halves[0].z = w[2], halves[0].w = w[3];
        halves[1].x = w[4], halves[1].y = w[5], halves[1].z = w[6], halves[1].w = w[7];
#pragma unroll
        for (int h = 0; h < PARTS; h++) {
            scales[h] = q.s.scale[h];
            if (MINS) scales[PARTS + h] = q.s.min[h];
        }
    }
    static __device__ __forceinline__ const uint4* input(const Input& in, size_t row, int step, int half) {
        return in.values + (2 * row + half) * in.blocks + step;
    }
    // The scale of the input's block; then the sums that minimums are multiplied with.
    static __device__ __forceinline__ void input_scales(uint2 meta, float* scales) {
        const float scale = bits_to_float(meta.x);
        const int sums[2] = {(int)(short)(meta.y & 0xffff), (int)meta.y >> 16};
        scales[0] = scale;
        if (MINS && HALVES) scales[1] = scale * (float)sums[0], scales[2] = scale * (float)sums[1];
        else if (MINS) scales[1] = scale * (float)(sums[0] + sums[1]);
    }
    // `mine` has the scales of two rows of the matrix, `theirs` those of two of the input.
    static __device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&a)[PLANES][4], const unsigned (&b)[2], const float (&mine)[2][SCALES], const float (&theirs)[2][INPUT_SCALES]) {
#pragma unroll
        for (int h = 0; h < PARTS; h++) {
            int d[4] = {MAGIC_BITS, MAGIC_BITS, MAGIC_BITS, MAGIC_BITS};
            if (HALVES) multiply_int8(d, a[0][2 * h], a[0][2 * h + 1], b[h]);
            else multiply_int8(d, a[0], b);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sums[i] = fmaf(mine[i / 2][h] * theirs[i % 2][0], __int_as_float(d[i]) - MAGIC, sums[i]);
                if (MINS) sums[i] = fmaf(mine[i / 2][(MINS ? PARTS : 0) + h], theirs[i % 2][MINS ? 1 + h : 0], sums[i]);
            }
        }
    }
};

// The f16 ones are the sum of two bf16, exactly, since inputs are bf16: two products.
template <bool BRAIN> struct Tensor<Float16<BRAIN>> {
    struct Raw { uint4 halves[2]; };
    static constexpr int PLANES = BRAIN ? 1 : 2, SCALES = 0, INPUT_SCALES = 0;

    static __device__ __forceinline__ int steps(const Matrix& m) { return (m.chunks + 1) / 2; }
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int step) {
        const uint4* p = m.codes + row * m.chunks + 2 * step;
        Raw raw = {};
        raw.halves[0] = load_weights(p);
        if (2 * step + 1 < m.chunks) raw.halves[1] = load_weights(p + 1);
        return raw;
    }
    // What remains of two f16 once their bf16 are taken off; of numbers that are none, nothing.
    static __device__ __forceinline__ unsigned split(unsigned pair, bool rest) {
        unsigned both = 0;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float x = half_to_float(pair >> (16 * i));
            const unsigned high = float_to_bf16(x);
            const float left = fabsf(x) <= 65504.f ? x - bf16_low(high) : 0.f;
            both |= (rest ? (unsigned)float_to_bf16(left) : high) << (16 * i);
        }
        return both;
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, bool rest, uint4 (&halves)[2], float*) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            halves[h] = raw.halves[h];
            if (BRAIN) continue;
            halves[h].x = split(raw.halves[h].x, rest), halves[h].y = split(raw.halves[h].y, rest);
            halves[h].z = split(raw.halves[h].z, rest), halves[h].w = split(raw.halves[h].w, rest);
        }
    }
    static __device__ __forceinline__ const uint4* input(const Input& in, size_t row, int step, int half) {
        return in.values + row * in.blocks * 4 + 2 * step + half;
    }
    static __device__ __forceinline__ void input_scales(uint2, float*) {}
    static __device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&a)[PLANES][4], const unsigned (&b)[2], const float (&)[2][1], const float (&)[2][1]) {
#pragma unroll
        for (int plane = 0; plane < PLANES; plane++) multiply_bf16(sums, a[plane], b);
    }
};

// Weights are scaled, and rounded to bf16, when they are unpacked: a block of 128 columns with one scale is eight steps.
template <> struct Tensor<FP8> {
    using Raw = FP8::Raw;
    static constexpr int PLANES = 1, SCALES = 0, INPUT_SCALES = 0;

    static __device__ __forceinline__ int steps(const Matrix& m) { return m.chunks; }
    static __device__ __forceinline__ Raw load(const Matrix& m, size_t row, int step) { return FP8::load(m, row, step); }
    static __device__ __forceinline__ void unpack(const Raw& raw, bool, uint4 (&halves)[2], float*) {
        float v[16];
        FP8::values(raw, v);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            halves[h].x = pack_bf16(v[8 * h], v[8 * h + 1]), halves[h].y = pack_bf16(v[8 * h + 2], v[8 * h + 3]);
            halves[h].z = pack_bf16(v[8 * h + 4], v[8 * h + 5]), halves[h].w = pack_bf16(v[8 * h + 6], v[8 * h + 7]);
        }
    }
    static __device__ __forceinline__ const uint4* input(const Input& in, size_t row, int step, int half) {
        return Tensor<BF16>::input(in, row, step, half);
    }
    static __device__ __forceinline__ void input_scales(uint2, float*) {}
    static __device__ __forceinline__ void multiply(float (&sums)[4], const unsigned (&a)[1][4], const unsigned (&b)[2], const float (&)[2][1], const float (&)[2][1]) {
        multiply_bf16(sums, a[0], b);
    }
};

// ---------------------------------------------------------------- a stage in shared memory

template <int COUNT> constexpr int AT_LEAST_1 = COUNT > 0 ? COUNT : 1;

// The host computes the same sizes (tiles.rs).
template <class F> struct Stage {
    static constexpr int MINE = Tensor<F>::SCALES, THEIRS = Tensor<F>::INPUT_SCALES;
    uint4 weights[Tensor<F>::PLANES][2 * STAGE_SLOTS];
    uint4 input[2 * STAGE_SLOTS];
    float mine[MINE > 0 ? MINE * STAGE_SLOTS : 4];        // [steps, rows of the matrix, SCALES]
    float theirs[THEIRS > 0 ? THEIRS * STAGE_SLOTS : 4];  // [steps, rows of the input, INPUT_SCALES]
};

// Where a 16-byte unit of a row lies, among rows of 8 * parts units.
__device__ __forceinline__ int unit_at(int row, int unit, int parts) { return row * 8 * parts + (unit ^ (row & 7)); }

// What a block works on.
struct Work {
    Matrix m;
    int parts;     // 1, 2, 4 or 8
    int first_row;
    bool gated;    // the second half of its rows are ups, m.rows / 2 further down than their gates
    int height;    // rows of the matrix: TILE_M / parts
    int steps;

    __device__ __forceinline__ int row(int r) const {
        if (!gated) return min(first_row + r, m.rows - 1);
        const int half = height / 2, width = m.rows / 2;
        return r < half ? min(first_row + r, width - 1) : width + min(first_row + r - half, width - 1);
    }
};

template <class F> using Slots = typename Tensor<F>::Raw[SLOTS_EACH];

template <class F> __device__ __forceinline__ void load_slots(Slots<F>& raw, const Work& work, int stage) {
    const int across = STAGE_STEPS * work.parts;
#pragma unroll
    for (int i = 0; i < SLOTS_EACH; i++) {
        const int slot = threadIdx.x + i * TILE_THREADS, step = stage * across + slot % across;
        if (step < work.steps) raw[i] = Tensor<F>::load(work.m, work.row(slot / across), step);
    }
}

template <class F> __device__ __forceinline__ void store_slots(Stage<F>& to, const Slots<F>& raw, const Work& work, int stage) {
    const int across = STAGE_STEPS * work.parts;
#pragma unroll
    for (int i = 0; i < SLOTS_EACH; i++) {
        const int slot = threadIdx.x + i * TILE_THREADS, row = slot / across, step = slot % across;
        const bool there = stage * across + step < work.steps;
        float scales[AT_LEAST_1<Tensor<F>::SCALES>] = {};
#pragma unroll
        for (int plane = 0; plane < Tensor<F>::PLANES; plane++) {
            uint4 halves[2] = {};
            if (there) Tensor<F>::unpack(raw[i], plane > 0, halves, scales);
            to.weights[plane][unit_at(row, 2 * step, work.parts)] = halves[0];
            to.weights[plane][unit_at(row, 2 * step + 1, work.parts)] = halves[1];
        }
#pragma unroll
        for (int s = 0; s < Tensor<F>::SCALES; s++) to.mine[(step * work.height + row) * Tensor<F>::SCALES + s] = scales[s];
    }
}

// Starts the copies of the input's codes, and brings its scales.
template <class F, int N> __device__ __forceinline__ void load_input(Stage<F>& to, const Work& work, const Input& in, const int* rows, int stage) {
    const int across = STAGE_STEPS * work.parts;
    for (int unit = threadIdx.x; unit < 2 * N * across; unit += TILE_THREADS) {
        const int n = unit / (2 * across), at = unit % (2 * across), step = stage * across + at / 2;
        const bool there = rows[n] >= 0 && step < work.steps;
        const uint4* from = there ? Tensor<F>::input(in, rows[n], step, at % 2) : in.values;
        copy_async(&to.input[unit_at(n, at, work.parts)], from, there);
    }
    constexpr int THEIRS = Tensor<F>::INPUT_SCALES;
    for (int slot = threadIdx.x; THEIRS > 0 && slot < N * across; slot += TILE_THREADS) {
        const int n = slot / across, step = stage * across + slot % across;
        float scales[AT_LEAST_1<THEIRS>] = {};
        if (rows[n] >= 0 && step < work.steps) Tensor<F>::input_scales(in.meta[(size_t)rows[n] * in.blocks + step], scales);
#pragma unroll
        for (int s = 0; s < THEIRS; s++) to.theirs[(slot % across * N + n) * THEIRS + s] = scales[s];
    }
}

// ---------------------------------------------------------------- the product

// A warp has MT times 16 rows of the matrix and NT times 8 of the input; ACROSS warps share the rows of the matrix.
template <int N> struct Shape {
    static constexpr int ACROSS = N > 64 ? 2 : 1, MT = ACROSS, NT = N / 8 / ACROSS;
    // Stages of weights that are under way in registers.
    static constexpr int AHEAD = N <= 16 ? 3 : N <= 64 ? 2 : 1;
};

template <class F, int N, class Sums>
__device__ __forceinline__ void multiply_stage(Sums& sums, const Stage<F>& stage, const Work& work) {
    using T = Tensor<F>;
    using S = Shape<N>;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, part = warp % work.parts;
    const int top = warp / work.parts / S::ACROSS * 16 * S::MT, left = warp / work.parts % S::ACROSS * 8 * S::NT;
    const int row = top + lane % 16, n = left + lane / 16 * 8 + lane % 8, theirs_n = left + lane % 4 * 2;
#pragma unroll 1
    for (int step = part * STAGE_STEPS; step < (part + 1) * STAGE_STEPS; step++) {
        // Rows that are a multiple of eight further down are so many units away.
        const int a_at = unit_at(row, 2 * step + lane / 16, work.parts), b_at = unit_at(n, 2 * step + lane / 8 % 2, work.parts);
        unsigned a[S::MT][T::PLANES][4];
        float mine[S::MT][2][AT_LEAST_1<T::SCALES>];
#pragma unroll
        for (int i = 0; i < S::MT; i++) {
#pragma unroll
            for (int plane = 0; plane < T::PLANES; plane++)
                load_matrices(a[i][plane], &stage.weights[plane][a_at + 16 * i * 8 * work.parts]);
#pragma unroll
            for (int s = 0; s < 2 * T::SCALES; s++)
                mine[i][s / AT_LEAST_1<T::SCALES>][s % AT_LEAST_1<T::SCALES>] =
                    stage.mine[(step * work.height + top + 16 * i + lane / 4 + 8 * (s / AT_LEAST_1<T::SCALES>)) * T::SCALES + s % AT_LEAST_1<T::SCALES>];
        }
#pragma unroll
        for (int j = 0; j < S::NT; j += 2) {
            unsigned words[4];
            load_matrices(words, &stage.input[b_at + 8 * j * 8 * work.parts]);
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const unsigned b[2] = {words[2 * k], words[2 * k + 1]};
                float theirs[2][AT_LEAST_1<T::INPUT_SCALES>];
#pragma unroll
                for (int s = 0; s < 2 * T::INPUT_SCALES; s++)
                    theirs[s / AT_LEAST_1<T::INPUT_SCALES>][s % AT_LEAST_1<T::INPUT_SCALES>] =
                        stage.theirs[(step * N + theirs_n + 8 * (j + k)) * T::INPUT_SCALES + s];
#pragma unroll
                for (int i = 0; i < S::MT; i++) T::multiply(sums[i][j + k], a[i], b, mine[i], theirs);
            }
        }
    }
}

// All sums of the block, to shared memory: finished[n * SUMS_STRIDE + part * height + row of the matrix].
template <class F, int N>
__device__ __forceinline__ void multiply_tile(float* finished, Stage<F>* stages, const Work& work, const Input& in, const int* rows, Slots<F> (&raw)[Shape<N>::AHEAD]) {
    using S = Shape<N>;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, part = warp % work.parts;
    const int across = STAGE_STEPS * work.parts, count = (work.steps + across - 1) / across;
    float sums[S::MT][S::NT][4] = {};
    for (int stage = -1; stage < count; stage++) {
        if (stage >= 0) {
            copies_arrive();
            __syncthreads();
        }
        const bool more = stage + 1 < count;
        if (more) load_input<F, N>(stages[(stage + 1) % 2], work, in, rows, stage + 1);
        if (stage >= 0) multiply_stage<F, N>(sums, stages[stage % 2], work);
        if (!more) break;
        store_slots<F>(stages[(stage + 1) % 2], raw[0], work, stage + 1);
#pragma unroll
        for (int i = 0; i + 1 < S::AHEAD; i++)
#pragma unroll
            for (int j = 0; j < SLOTS_EACH; j++) raw[i][j] = raw[i + 1][j];
        load_slots<F>(raw[S::AHEAD - 1], work, stage + 1 + S::AHEAD);
    }
    __syncthreads();  // the sums take the place of the stages
    const int top = part * work.height + warp / work.parts / S::ACROSS * 16 * S::MT, left = warp / work.parts % S::ACROSS * 8 * S::NT;
#pragma unroll
    for (int i = 0; i < S::MT; i++)
#pragma unroll
        for (int j = 0; j < S::NT; j++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                finished[(left + 8 * j + lane % 4 * 2 + k % 2) * SUMS_STRIDE + top + 16 * i + lane / 4 + k / 2 * 8] = sums[i][j][k];
    __syncthreads();
}

// What the block has to do: its tile of the input is blockIdx.x % tiles, so that blocks with the same weights are
// neighbours. `rows` and `outputs` say which rows go in and where they come out; -1 where there is none.
template <class F, int N>
__device__ __forceinline__ bool run_tile(float* finished, Stage<F>* stages, Work& work, const Grouped& grouped, const Input& in, int tiles, int* rows, int* outputs) {
    const int tile = blockIdx.x % tiles, place = blockIdx.x / tiles;
    work.height = TILE_M / work.parts;
    work.first_row = place * (work.gated ? work.height / 2 : work.height);
    int first = tile * N, count = in.rows - first;
    Slots<F> raw[Shape<N>::AHEAD];
    if (grouped.tiles) {
        wait_for_previous();
        const ExpertTile mine = grouped.tiles[tile];
        if (mine.count == 0) return false;
        first = mine.first, count = mine.count;
        work.m = grouped.experts[mine.expert];
    }
    work.steps = Tensor<F>::steps(work.m);
#pragma unroll
    for (int i = 0; i < Shape<N>::AHEAD; i++) load_slots<F>(raw[i], work, i);
    if (!grouped.tiles) wait_for_previous();
    for (int n = threadIdx.x; n < N; n += TILE_THREADS) {
        const int which = n >= count ? -1 : grouped.tiles ? grouped.order[first + n] : first + n;
        outputs[n] = which;
        rows[n] = which < 0 || !grouped.tiles ? which : which / grouped.ranks;
    }
    __syncthreads();
    multiply_tile<F, N>(finished, stages, work, in, rows, raw);
    return true;
}

// The finished sum of a row of the matrix, over its parts.
__device__ __forceinline__ float finished_sum(const float* finished, const Work& work, int n, int row) {
    float sum = finished[n * SUMS_STRIDE + row];
    for (int part = 1; part < work.parts; part++) sum += finished[n * SUMS_STRIDE + part * work.height + row];
    return sum;
}

template <class F, int N>
__device__ __forceinline__ void linear_tile(const Matrix& m, const Grouped& grouped, const Input& in, int tiles, int parts, float* out, int stride, int add) {
    DYN_SMEM(float, finished);
    __shared__ int rows[N], outputs[N];
    let_next_start();
    Work work = {m, N > 64 ? 1 : parts, 0, false, 0, 0};
    if (!run_tile<F, N>(finished, (Stage<F>*)finished, work, grouped, in, tiles, rows, outputs)) return;
    for (int at = threadIdx.x; at < N * work.height; at += TILE_THREADS) {
        const int n = at / work.height, row = at % work.height, to_row = work.first_row + row;
        if (outputs[n] < 0 || to_row >= work.m.rows) continue;
        float sum = finished_sum(finished, work, n, row);
        if (work.m.bias) sum += work.m.bias[to_row];
        float* place = out + (size_t)outputs[n] * stride + to_row;
        *place = add ? *place + sum : sum;
    }
}

// `parts` is 1 or 2, so that a block has 64 or 32 hidden values.
template <class F, int N>
__device__ __forceinline__ void gated_tile(const Matrix& m, const Grouped& grouped, const Input& in, int tiles, int parts, int activation, const Encoded& out) {
    DYN_SMEM(float, finished);
    __shared__ int rows[N], outputs[N];
    let_next_start();
    Work work = {m, N > 64 ? 1 : parts, 0, true, 0, 0};
    if (!run_tile<F, N>(finished, (Stage<F>*)finished, work, grouped, in, tiles, rows, outputs)) return;
    const int lane = threadIdx.x & 31, width = work.m.rows / 2, half = work.height / 2, blocks = half / 32;
    for (int at = threadIdx.x >> 5; at < N * blocks; at += WARPS) {
        const int n = at / blocks, row = at % blocks * 32 + lane, column = work.first_row + row;
        // The same for all lanes.
        if (outputs[n] < 0 || work.first_row + at % blocks * 32 >= width) continue;
        float gate = finished_sum(finished, work, n, row), up = finished_sum(finished, work, n, row + half);
        if (work.m.bias && column < width) gate += work.m.bias[column], up += work.m.bias[column + width];
        encode_block(out, outputs[n], (work.first_row + row) / 32, column < width ? activate(activation, gate) * up : 0.f);
    }
}

// N rows of the input, and so many blocks a multiprocessor.
#define TILE(F, NAME, N, BLOCKS)                                                                                           \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, BLOCKS) linear_tile_##NAME##_##N(Matrix m, Grouped grouped, Input in, int tiles, int parts, float* out, int stride, int add) { \
        linear_tile<F, N>(m, grouped, in, tiles, parts, out, stride, add);                                                 \
    }                                                                                                                      \
    SHIM_KERNEL(linear_tile_##NAME##_##N);                                                                                 \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS, BLOCKS) gated_tile_##NAME##_##N(Matrix m, Grouped grouped, Input in, int tiles, int parts, int activation, Encoded out) { \
        gated_tile<F, N>(m, grouped, in, tiles, parts, activation, out);                                                   \
    }                                                                                                                      \
    SHIM_KERNEL(gated_tile_##NAME##_##N);

// BLOCKS_OF_32 is 2 where that leaves registers enough.
#define TILES(F, NAME, BLOCKS_OF_32) TILE(F, NAME, 16, 2) TILE(F, NAME, 32, BLOCKS_OF_32) TILE(F, NAME, 64, 1) TILE(F, NAME, 128, 1)
// Two scales a step leave no registers for 128 rows.
#define TILES_OF_HALVES(F, NAME) TILE(F, NAME, 16, 2) TILE(F, NAME, 32, 1) TILE(F, NAME, 64, 1)
