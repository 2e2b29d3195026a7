// Reads memory as fast as it comes, for the measured ceiling that other kernels are held against.
//
//     sums[t] = exclusive or of all words that thread t of the grid read
//
// words: [count] uint4, 16-byte aligned; sums: [gridDim.x * 256]. Any grid of blocks of 256 threads; four loads of 16 bytes a
// thread are under way at once. The sums prove that every word was read.
#ifndef CUDA_SHIM
#define SHIM_KERNEL(name)
#endif

extern "C" __global__ void __launch_bounds__(256)
bandwidth_read(const uint4* __restrict__ words, unsigned long long count, uint4* __restrict__ sums) {
    constexpr int AHEAD = 4;
    const unsigned long long thread = blockIdx.x * 256ull + threadIdx.x, threads = gridDim.x * 256ull;
    uint4 sum = {0, 0, 0, 0};
    for (unsigned long long at = thread; at < count; at += AHEAD * threads) {
        uint4 next[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            next[i] = at + i * threads < count ? words[at + i * threads] : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            sum.x ^= next[i].x;
            sum.y ^= next[i].y;
            sum.z ^= next[i].z;
            sum.w ^= next[i].w;
        }
    }
    sums[thread] = sum;
}
SHIM_KERNEL(bandwidth_read);
