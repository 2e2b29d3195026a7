// out[row] = encoded(x[row] * factor * weight), where factor = 1 / sqrt(mean(x[row]^2) + epsilon), or encoded(x[row]).
//
// x [rows, width] f32, weight [width] f32 or null. A block a row, 256 threads. Moves 4 + 4 (weight, from L2) + 1.25 bytes
// a value as int8; rows of a decoding step come from L2.
#include "encoding.cuh"

extern "C" __global__ void __launch_bounds__(256) encode_rows(const float* x, const float* weight, float epsilon, int width, Encoded out) {
    let_next_start();
    wait_for_previous();
    __shared__ float scratch[32];
    const int row = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    x += (size_t)row * width;
    float factor = 1.f;
    if (weight) {
        float squares = 0.f;
        for (int i = threadIdx.x; i < width; i += blockDim.x) squares = fmaf(x[i], x[i], squares);
        factor = 1.f / sqrtf(block_sum(squares, scratch) / (float)width + epsilon);
    }
    for (int block = warp; block < out.blocks; block += warps) {
        const int column = block * 32 + lane;
        float v = column < width ? x[column] : 0.f;
        if (weight && column < width) v = v * factor * weight[column];
        encode_block(out, row, block, v);
    }
}
SHIM_KERNEL(encode_rows);
