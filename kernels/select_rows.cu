// out[i] = x[rows[i]]. Grid (columns / 256, chosen rows).
#include "numbers.cuh"

extern "C" __global__ void __launch_bounds__(256) select_rows(const float* x, const unsigned* rows, int width, float* out) {
    let_next_start();
    wait_for_previous();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < width) out[(size_t)blockIdx.y * width + i] = x[(size_t)rows[blockIdx.y] * width + i];
}
SHIM_KERNEL(select_rows);
