// Products with Q2_K weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES_OF_HALVES(Q2_K, q2_k)
