// x[row, first..first + columns] *= factor * weight, where factor = 1 / sqrt(mean of their squares + epsilon). x has `width`
// values a row. A block a row, 256 threads.
#include "numbers.cuh"

extern "C" __global__ void __launch_bounds__(256) norm_columns(float* x, int width, int first, int columns, const float* weight, float epsilon) {
    let_next_start();
    wait_for_previous();
    __shared__ float scratch[32];
    x += (size_t)blockIdx.x * width + first;
    float squares = 0.f;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) squares = fmaf(x[i], x[i], squares);
    const float factor = 1.f / sqrtf(block_sum(squares, scratch) / (float)columns + epsilon);
    for (int i = threadIdx.x; i < columns; i += blockDim.x) x[i] = x[i] * factor * weight[i];
}
SHIM_KERNEL(norm_columns);
