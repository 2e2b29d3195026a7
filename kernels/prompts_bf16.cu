// Attention of prompts over a cache of BF16 values. See prompts.cuh.
#include "prompts.cuh"

PROMPTS(CachedBF16, InBF16, bf16)
