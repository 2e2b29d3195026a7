// Attention over a cache of BF16 values: storing keys and values, and the sums of each segment of the context. See
// attention.cuh.
#include "attention.cuh"

CACHE_TYPE(CachedBF16, bf16)
