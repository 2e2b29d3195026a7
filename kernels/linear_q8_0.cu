// Products with Q8_0 weights: linear maps, gated blocks, experts, embeddings. See linear.cuh.
#include "linear.cuh"

WEIGHT_TYPE(Q8_0, q8_0, 2)
