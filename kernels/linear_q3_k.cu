// Products with Q3_K weights: linear maps, gated blocks, experts, embeddings. See linear.cuh.
#include "linear.cuh"

WEIGHT_TYPE(Q3_K, q3_k, 2)
