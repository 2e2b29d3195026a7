// Products with Q5_0 weights: linear maps, gated blocks, experts, embeddings. See linear.cuh.
#include "linear.cuh"

WEIGHT_TYPE(Q5_0, q5_0, 2)
