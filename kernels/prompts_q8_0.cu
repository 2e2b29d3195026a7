// Attention of prompts over a cache of Q8_0 values. See prompts.cuh.
#include "prompts.cuh"

PROMPTS(CachedQ8_0, InHalf, q8_0)
