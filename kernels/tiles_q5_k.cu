// Products with Q5_K weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES(Q5_K, q5_k, 2)
