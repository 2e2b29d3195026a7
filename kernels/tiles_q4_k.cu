// Products with Q4_K weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES(Q4_K, q4_k, 1)
