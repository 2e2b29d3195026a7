// Products with Q4_1 weights: linear maps, gated blocks, experts, embeddings. See linear.cuh.
#include "linear.cuh"

WEIGHT_TYPE(Q4_1, q4_1, 2)
