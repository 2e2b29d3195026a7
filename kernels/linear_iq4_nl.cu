// Products with IQ4_NL weights: linear maps, gated blocks, experts, embeddings. See linear.cuh.
#include "linear.cuh"

WEIGHT_TYPE(IQ4_NL, iq4_nl, 2)
