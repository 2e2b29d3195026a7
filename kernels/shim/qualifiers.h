// CUDA's keywords. After all headers of the system, which have names of their own like these.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static // one block runs at a time
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n))) // allowed in more places than alignas
#define __grid_constant__
#define __cluster_dims__(...)
