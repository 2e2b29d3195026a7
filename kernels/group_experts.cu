// Pairs of row and rank put together by their expert, and cut into tiles of up to `height` of one expert: what products of
// experts on tensor cores go through. order [pairs]; tiles [tiles_max], those past the last one have none. One block, 256
// threads. Pairs of one expert come in any order: no output depends on it.
#include "experts.cuh"

extern "C" __global__ void __launch_bounds__(256) group_experts(const Choice* choices, int pairs, int experts, int height, int tiles_max, int* order, ExpertTile* tiles) {
    __shared__ int counts[EXPERTS_MAX], next[EXPERTS_MAX], used;
    let_next_start();
    wait_for_previous();
    for (int e = threadIdx.x; e < experts; e += blockDim.x) counts[e] = 0;
    __syncthreads();
    for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x) atomicAdd(&counts[choices[pair].expert], 1);
    __syncthreads();
    if (threadIdx.x < 32) {
        // A lane has consecutive experts: what lies before them is the sum over the lanes before.
        const int lane = threadIdx.x, each = (experts + 31) / 32, begin = min(lane * each, experts), end = min(begin + each, experts);
        int first = 0, tile = 0;
        for (int e = begin; e < end; e++) first += counts[e], tile += (counts[e] + height - 1) / height;
        const int own_pairs = first, own_tiles = tile;
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes <<= 1) {
            const int more_pairs = __shfl_up_sync(WARP_ALL, first, lanes), more_tiles = __shfl_up_sync(WARP_ALL, tile, lanes);
            if (lane >= lanes) first += more_pairs, tile += more_tiles;
        }
        if (lane == 31) used = tile;
        first -= own_pairs, tile -= own_tiles;
        for (int e = begin; e < end; e++) {
            next[e] = first;
            for (int done = 0; done < counts[e]; done += height, tile++) {
                tiles[tile].expert = e, tiles[tile].first = first + done, tiles[tile].count = min(height, counts[e] - done);
            }
            first += counts[e];
        }
    }
    __syncthreads();
    for (int tile = used + threadIdx.x; tile < tiles_max; tile += blockDim.x) tiles[tile].count = 0;
    for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x) order[atomicAdd(&next[choices[pair].expert], 1)] = pair;
}
SHIM_KERNEL(group_experts);
