// The experts of each row: choices[row, rank] = the expert of that rank (of equal logits the first) and its share, which is
// its part of the softmax over all experts, or over the chosen ones. A warp a row.
#include "experts.cuh"

extern "C" __global__ void __launch_bounds__(32) route(const float* logits, int experts, int ranks, int normalise, Choice* choices) {
    __shared__ float left[EXPERTS_MAX];
    let_next_start();
    wait_for_previous();
    const int row = blockIdx.x, lane = threadIdx.x;
    logits += (size_t)row * experts, choices += (size_t)row * ranks;
    float top = -INFINITY;
    // What is no number ranks last.
    for (int e = lane; e < experts; e += 32) left[e] = logits[e] == logits[e] ? logits[e] : -INFINITY, top = fmaxf(top, left[e]);
    top = warp_max(top);
    float total = 0.f;
    if (!normalise) {
        for (int e = lane; e < experts; e += 32) total += expf(logits[e] - top);
        total = warp_sum(total);
    }
    __syncwarp();

    unsigned taken = 0;  // bit i: this lane's expert lane + 32 i
    for (int rank = 0; rank < ranks; rank++) {
        float best = -INFINITY;
        int which = experts;
        for (int i = 0; lane + 32 * i < experts; i++) {
            const int e = lane + 32 * i;
            if (taken >> i & 1) continue;
            if (left[e] > best || which == experts) best = left[e], which = e;
        }
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes >>= 1) {
            const float other = __shfl_xor_sync(WARP_ALL, best, lanes);
            const int whose = __shfl_xor_sync(WARP_ALL, which, lanes);
            if (whose < experts && (which == experts || other > best || (other == best && whose < which))) best = other, which = whose;
        }
        if (which % 32 == lane) taken |= 1u << (which / 32);
        const float weight = expf(logits[which] - top);
        if (normalise) total += weight;
        if (lane == 0) choices[rank].expert = which, choices[rank].share = weight;
    }
    __syncwarp();
    for (int rank = lane; rank < ranks; rank += 32) choices[rank].share = choices[rank].share / total;
}
SHIM_KERNEL(route);
