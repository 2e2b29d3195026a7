// Attention of prompts over a cache of F16 values. See prompts.cuh.
#include "prompts.cuh"

PROMPTS(CachedF16, InHalf, f16)
