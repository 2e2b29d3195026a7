// x[row] += share * outputs[row, rank], one rank after the other. Grid (columns / 256, rows).
#include "experts.cuh"

extern "C" __global__ void __launch_bounds__(256) mix_experts(const Choice* choices, const float* outputs, int ranks, int width, float* x) {
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= width) return;
    float sum = x[(size_t)row * width + i];
    for (int rank = 0; rank < ranks; rank++) {
        const size_t pair = (size_t)row * ranks + rank;
        sum = fmaf(choices[pair].share, outputs[pair * width + i], sum);
    }
    x[(size_t)row * width + i] = sum;
}
SHIM_KERNEL(mix_experts);
