// Products with IQ4_XS weights: linear maps, gated blocks, experts, embeddings. See linear.cuh.
#include "linear.cuh"

WEIGHT_TYPE(IQ4_XS, iq4_xs, 2)
