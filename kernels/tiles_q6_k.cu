// Products with Q6_K weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES_OF_HALVES(Q6_K, q6_k)
