// Products of a matrix with encoded rows: out[row] = weights * input[row] + bias, or added to what is there; and gate and
// up with their activation, encoded for the next matrix.
//
// A warp works on ROWS rows of the matrix and B rows of the input at once. Lane l adds the chunks l, l + 32, ... of a row
// one after the other, and the lanes meet by halves. Neither ROWS nor B, AHEAD nor the grid enters into that order, so an
// output has the same bits in any batch; warps_a_row does, and follows from the matrix alone.
//
// Weights come in 16-byte loads, AHEAD<F, B> chunks of each row before they are needed; the first ones before the kernel ahead
// of this one has ended. The input is small and stays in L1.
#pragma once
#include "encoding.cuh"
#include "experts.cuh"
#include "formats.cuh"

constexpr int WARPS = 8;
// Rows of the matrix that a warp works on at once.
constexpr int ROWS = 2;

// Chunks that are loaded ahead for B rows of the input: sums of many rows need the registers.
template <class F, int B> constexpr int AHEAD = B < 8 ? F::AHEAD : F::AHEAD / 2;
template <class F, int B> using Ahead = typename F::Raw[AHEAD<F, B>][ROWS];

// Loads chunks of two rows: strips `strip`, `strip + stride`, ... of 32 chunks.
template <class F, int B>
__device__ __forceinline__ void load_strips(Ahead<F, B>& raw, const Matrix& m, const int (&rows)[ROWS], int strip, int stride) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int a = 0; a < AHEAD<F, B>; a++) {
        const int chunk = (strip + a * stride) * 32 + lane;
        if (chunk >= m.chunks) continue;
#pragma unroll
        for (int r = 0; r < ROWS; r++) raw[a][r] = F::load(m, rows[r], chunk);
    }
}

// Adds the products of those chunks with B rows of the input from `first` on.
template <class F, int B>
__device__ __forceinline__ void add_strips(float (&sums)[ROWS][B], const Ahead<F, B>& raw, const Matrix& m, const Input& in, int first, int strip, int stride) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int a = 0; a < AHEAD<F, B>; a++) {
        const int chunk = (strip + a * stride) * 32 + lane;
        if (chunk >= m.chunks) continue;
        typename F::Weights weights[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) weights[r] = F::unpack(raw[a][r]);
#pragma unroll
        for (int b = 0; b < B; b++) {
            // Past the last row: computed once more, stored nowhere.
            const typename F::X x = F::input(in, min(first + b, in.rows - 1), chunk);
#pragma unroll
            for (int r = 0; r < ROWS; r++) sums[r][b] = F::add(weights[r], x, sums[r][b]);
        }
    }
}

// Lanes for each of the sums of ROWS x B pairs, once they have met.
template <int B> constexpr int LANES_A_SUM = 32 / (ROWS * B);

// The sums over all lanes. Those of row r of the matrix and row b of the input are in the LANES_A_SUM lanes from
// (r * B + b) * LANES_A_SUM on. With each step half of the sums that a lane has go to the lane across, whose other half it
// takes over; the order is that of a plain butterfly for each.
template <int B> __device__ __forceinline__ float meet(const float (&sums)[ROWS][B]) {
    const int lane = threadIdx.x & 31;
    float mine[ROWS * B];
#pragma unroll
    for (int i = 0; i < ROWS * B; i++) mine[i] = sums[i / B][i % B];
    int across = 16;
#pragma unroll
    for (int half = ROWS * B / 2; half > 0; half /= 2) {
        const bool upper = lane & across;
#pragma unroll
        for (int i = 0; i < half; i++) {
            const float kept = upper ? mine[i + half] : mine[i], given = upper ? mine[i] : mine[i + half];
            mine[i] = kept + __shfl_xor_sync(WARP_ALL, given, across);
        }
        across /= 2;
    }
#pragma unroll
    for (; across > 0; across /= 2) mine[0] += __shfl_xor_sync(WARP_ALL, mine[0], across);
    return mine[0];
}

// A block has WARPS / warps_a_row pairs of rows; the blocks that share them lie next to each other in the grid, one for
// each B rows of the input, so that the weights come from memory once. `out` has `stride` values a row.
template <class F, int B>
__device__ __forceinline__ void multiply(const Matrix& m, const Input& in, float* out, int stride, int add, int warps_a_row) {
    __shared__ float parts[WARPS][ROWS * B];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, part = warp % warps_a_row;
    const int tiles = (in.rows + B - 1) / B, first = blockIdx.x % tiles * B;
    const int row = (blockIdx.x / tiles * (WARPS / warps_a_row) + warp / warps_a_row) * ROWS;
    const int rows[ROWS] = {min(row, m.rows - 1), min(row + 1, m.rows - 1)};
    const int strips = (m.chunks + 31) / 32, step = AHEAD<F, B> * warps_a_row;

    Ahead<F, B> now, next;
    load_strips<F, B>(now, m, rows, part, warps_a_row);
    wait_for_previous();
    float sums[ROWS][B] = {};
    for (int strip = part; strip < strips; strip += step) {
        load_strips<F, B>(next, m, rows, strip + step, warps_a_row);
        add_strips<F, B>(sums, now, m, in, first, strip, warps_a_row);
#pragma unroll
        for (int a = 0; a < AHEAD<F, B>; a++)
#pragma unroll
            for (int r = 0; r < ROWS; r++) now[a][r] = next[a][r];
    }

    float sum = meet<B>(sums);
    const int which = lane / LANES_A_SUM<B>;
    if (warps_a_row > 1) {
        if (lane % LANES_A_SUM<B> == 0) parts[warp][which] = sum;
        __syncthreads();
        if (part > 0) return;
        for (int other = 1; other < warps_a_row; other++) sum += parts[warp + other][which];
    }
    const int to_row = row + which / B, to = first + which % B;
    if (lane % LANES_A_SUM<B> > 0 || to_row >= m.rows || to >= in.rows) return;
    if (m.bias) sum += m.bias[to_row];
    float* place = out + (size_t)to * stride + to_row;
    *place = add ? *place + sum : sum;
}

enum { SILU = 0, GELU_TANH = 1 };

__device__ __forceinline__ float activate(int activation, float x) {
    if (activation == SILU) return x / (1.f + expf(-x));
    return 0.5f * x * (1.f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

// A block has 32 hidden values, which is what the encoding of activations needs to see at once: four a warp, each a row
// of gate and, m.rows / 2 further down, its row of up.
template <class F, int B>
__device__ __forceinline__ void multiply_gated(const Matrix& m, const Input& in, int activation, const Encoded& out, int first_out) {
    __shared__ float hidden[B][33];
    constexpr int EACH = 32 / WARPS;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, width = m.rows / 2;
    const int tiles = (in.rows + B - 1) / B, first = blockIdx.x % tiles * B, block = blockIdx.x / tiles;
    const int strips = (m.chunks + 31) / 32;

    const int begin = min(block * 32 + warp * EACH, width - 1);
    int rows[ROWS] = {begin, begin + width};
    Ahead<F, B> now, next;
    load_strips<F, B>(now, m, rows, 0, 1);
    wait_for_previous();
    for (int i = 0; i < EACH; i++) {
        const int column = block * 32 + warp * EACH + i, following = min(column + 1, width - 1);
        const int next_rows[ROWS] = {following, following + width};
        float sums[ROWS][B] = {};
        for (int strip = 0; strip < strips; strip += AHEAD<F, B>) {
            const bool last = strip + AHEAD<F, B> >= strips;
            // The beginning of the next rows is under way while these end.
            if (!last) load_strips<F, B>(next, m, rows, strip + AHEAD<F, B>, 1);
            else if (i + 1 < EACH) load_strips<F, B>(next, m, next_rows, 0, 1);
            add_strips<F, B>(sums, now, m, in, first, strip, 1);
#pragma unroll
            for (int a = 0; a < AHEAD<F, B>; a++)
#pragma unroll
                for (int r = 0; r < ROWS; r++) now[a][r] = next[a][r];
        }
        rows[0] = next_rows[0], rows[1] = next_rows[1];
        // Gates are in the first half of the warp, their ups across.
        float gate = meet<B>(sums), up = __shfl_xor_sync(WARP_ALL, gate, 16);
        if (lane >= 16 || lane % LANES_A_SUM<B> > 0) continue;
        if (m.bias && column < width) gate += m.bias[column], up += m.bias[column + width];
        hidden[lane / LANES_A_SUM<B>][warp * EACH + i] = column < width ? activate(activation, gate) * up : 0.f;
    }
    __syncthreads();
    for (int b = warp; b < B && first + b < in.rows; b += WARPS) encode_block(out, first_out + first + b, block, hidden[b][lane]);
}

// One row of the input alone, which has so many 16-byte words for 32 columns.
__device__ __forceinline__ Input one_row(Input in, int row, int values_a_block) {
    in.values += (size_t)row * in.blocks * values_a_block;
    in.meta += (size_t)row * in.blocks;
    in.rows = 1;
    return in;
}

// out[row] = scale * the row of the matrix for each token.
template <class F>
__device__ __forceinline__ void look_up(const Matrix& m, const unsigned* tokens, float scale, float* out, int columns) {
    const int row = blockIdx.x;
    let_next_start();
    wait_for_previous();
    out += (size_t)row * columns;
    for (int chunk = threadIdx.x; chunk < m.chunks; chunk += blockDim.x) {
        float v[F::COLUMNS];
        F::values(F::load(m, tokens[row], chunk), v);
#pragma unroll
        for (int i = 0; i < F::COLUMNS; i++)
            if (chunk * F::COLUMNS + i < columns) out[chunk * F::COLUMNS + i] = scale * v[i];
    }
}

#define LINEAR(F, NAME, B)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256, 1) linear_##NAME##_##B(Matrix m, Input in, float* out, int stride, int add, int warps_a_row) { \
        let_next_start();                                                                                                  \
        multiply<F, B>(m, in, out, stride, add, warps_a_row);                                                              \
    }                                                                                                                      \
    SHIM_KERNEL(linear_##NAME##_##B);                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, 1) gated_##NAME##_##B(Matrix m, Input in, int activation, Encoded out) { \
        let_next_start();                                                                                                  \
        multiply_gated<F, B>(m, in, activation, out, 0);                                                                   \
    }                                                                                                                      \
    SHIM_KERNEL(gated_##NAME##_##B);

// All kernels of a weight type, whose input has VALUES 16-byte words for 32 columns. Experts are multiplied a pair of row and rank at a time: `in` has a
// row for `ranks` pairs, the output a row for each.
#define WEIGHT_TYPE(F, NAME, VALUES)                                                                                       \
    LINEAR(F, NAME, 1) LINEAR(F, NAME, 4) LINEAR(F, NAME, 8)                                                               \
    extern "C" __global__ void __launch_bounds__(256, 1) expert_linear_##NAME(const Matrix* experts, const Choice* choices, Input in, int ranks, float* out, int stride, int warps_a_row) { \
        let_next_start();                                                                                                  \
        wait_for_previous();                                                                                               \
        const int pair = blockIdx.y;                                                                                       \
        multiply<F, 1>(experts[choices[pair].expert], one_row(in, pair / ranks, VALUES), out + (size_t)pair * stride, stride, 0, warps_a_row); \
    }                                                                                                                      \
    SHIM_KERNEL(expert_linear_##NAME);                                                                                     \
    extern "C" __global__ void __launch_bounds__(256, 1) expert_gated_##NAME(const Matrix* experts, const Choice* choices, Input in, int ranks, int activation, Encoded out) { \
        let_next_start();                                                                                                  \
        wait_for_previous();                                                                                               \
        const int pair = blockIdx.y;                                                                                       \
        multiply_gated<F, 1>(experts[choices[pair].expert], one_row(in, pair / ranks, VALUES), activation, out, pair);     \
    }                                                                                                                      \
    SHIM_KERNEL(expert_gated_##NAME);                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, 1) embed_##NAME(Matrix m, const unsigned* tokens, float scale, float* out, int columns) { \
        look_up<F>(m, tokens, scale, out, columns);                                                                        \
    }                                                                                                                      \
    SHIM_KERNEL(embed_##NAME);
