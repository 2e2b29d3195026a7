// out[row] = encoded(activation(gate[row]) * up[row]), for gated blocks whose two matrices have different types. products
// [rows, 2 * hidden]: gate, then up. A block a row, 256 threads.
#include "linear.cuh"

extern "C" __global__ void __launch_bounds__(256) activate_gated(const float* products, int hidden, int activation, Encoded out) {
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.x, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    products += (size_t)row * 2 * hidden;
    for (int block = threadIdx.x >> 5; block < out.blocks; block += warps) {
        const int column = block * 32 + lane;
        const float v = column < hidden ? activate(activation, products[column]) * products[hidden + column] : 0.f;
        encode_block(out, row, block, v);
    }
}
SHIM_KERNEL(activate_gated);
