// x[row] = cap * tanh(x[row] / cap). A thread a value, grid (columns / 256, rows).
#include "numbers.cuh"

extern "C" __global__ void __launch_bounds__(256) softcap(float* x, int width, float cap) {
    let_next_start();
    wait_for_previous();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= width) return;
    float* at = x + (size_t)blockIdx.y * width + i;
    *at = cap * tanhf(*at / cap);
}
SHIM_KERNEL(softcap);
