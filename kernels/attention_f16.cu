// Attention over a cache of F16 values: storing keys and values, and the sums of each segment of the context. See
// attention.cuh.
#include "attention.cuh"

CACHE_TYPE(CachedF16, f16)
