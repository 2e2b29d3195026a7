// Products with MXFP4 weights: linear maps, gated blocks, experts, embeddings. See linear.cuh.
#include "linear.cuh"

WEIGHT_TYPE(MXFP4, mxfp4, 2)
