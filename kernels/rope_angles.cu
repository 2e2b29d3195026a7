// angles[row, pair] = magnitude * (cosine, sine) of position[row] * frequency[pair]. Once a step, in f64 up to the part of a
// turn, so that far positions lose nothing. A thread a pair and row.
#include "numbers.cuh"

extern "C" __global__ void __launch_bounds__(128) rope_angles(const int* positions, const float* frequencies, float magnitude, int pairs, float2* angles) {
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.y, pair = blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= pairs) return;
    double halves = (double)positions[row] * (double)frequencies[pair] * 0.31830988618379067;  // of a turn
    halves -= 2.0 * rint(0.5 * halves);
    const float2 at = turn((float)halves);
    float2 scaled;
    scaled.x = magnitude * at.y, scaled.y = magnitude * at.x;
    angles[(size_t)row * pairs + pair] = scaled;
}
SHIM_KERNEL(rope_angles);
