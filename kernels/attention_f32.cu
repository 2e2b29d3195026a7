// Attention over a cache of F32 values: storing keys and values, and the sums of each segment of the context. See
// attention.cuh.
#include "attention.cuh"

CACHE_TYPE(CachedF32, f32)
