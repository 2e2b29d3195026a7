// Attention over a cache of Q8_0 values: storing keys and values, and the sums of each segment of the context. See
// attention.cuh.
#include "attention.cuh"

CACHE_TYPE(CachedQ8_0, q8_0)
