// Runs CUDA kernels on the CPU, for tests: `g++ -x c++ -include cuda_shim.h kernel.cu`.
//
// Beyond wrong numbers it finds barriers that not all threads reach, warp operations that name an absent lane or meet
// another one, deadlocks, copies to shared memory that nobody waited for, and, by shuffling the order that threads run
// in (FAKECUDA_SEED), missing barriers. It cannot find faults of timing between blocks, and it never sees the PTX.
//
// A kernel file needs two conventions: `DYN_SMEM(T, name)` for dynamic shared memory, and `SHIM_KERNEL(name);` after
// each `extern "C" __global__` function. Both mean what CUDA writes out, or nothing, when nvcc compiles the file.
#pragma once
#define CUDA_SHIM 1

#include "vector_types.h"
#include "execution.h"
#include "intrinsics.h"
#include "twins.h"
#include "qualifiers.h"
