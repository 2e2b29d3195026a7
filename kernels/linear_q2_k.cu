// Products with Q2_K weights: linear maps, gated blocks, experts, embeddings. See linear.cuh.
#include "linear.cuh"

WEIGHT_TYPE(Q2_K, q2_k, 2)
