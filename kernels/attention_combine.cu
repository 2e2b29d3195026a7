// out[row, head] = the segments of its context put together, one after the other: the sum of the weighted sums over that of
// the weights. Zeros for rows without a position. A block a head and row, a thread a value.
#include "attention.cuh"

extern "C" __global__ void __launch_bounds__(256) attention_combine(const Partial* partials, const float* sums, const int* positions, int window, int dim, float* out) {
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.y, head = blockIdx.x, heads = gridDim.x, column = threadIdx.x;
    if (column >= dim) return;
    const size_t place = (size_t)row * heads + head;
    const int position = positions[row];
    if (position == NO_POSITION) {
        out[place * dim + column] = 0.f;
        return;
    }
    const Segments cut(position, window);
    float top = NEVER, weight = 0.f, all = 0.f;
    for (int s = 0; s < cut.count; s++) top = fmaxf(top, partials[place * SEGMENTS + s].largest);
    for (int s = 0; s < cut.count; s++) {
        const size_t at = place * SEGMENTS + s;
        const float fade = exp2f(partials[at].largest - top);
        weight = fmaf(fade, partials[at].total, weight);
        all = fmaf(fade, sums[at * dim + column], all);
    }
    out[place * dim + column] = all / weight;
}
SHIM_KERNEL(attention_combine);
