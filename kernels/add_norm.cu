// x[row] += y[row] * factor * weight, where factor = 1 / sqrt(mean(y[row]^2) + epsilon). A block a row, 256 threads.
#include "numbers.cuh"

extern "C" __global__ void __launch_bounds__(256) add_norm(float* x, const float* y, int width, const float* weight, float epsilon) {
    let_next_start();
    wait_for_previous();
    __shared__ float scratch[32];
    x += (size_t)blockIdx.x * width, y += (size_t)blockIdx.x * width;
    float squares = 0.f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares = fmaf(y[i], y[i], squares);
    const float factor = 1.f / sqrtf(block_sum(squares, scratch) / (float)width + epsilon);
    for (int i = threadIdx.x; i < width; i += blockDim.x) x[i] += y[i] * factor * weight[i];
}
SHIM_KERNEL(add_norm);
