// Products with Q3_K weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES_OF_HALVES(Q3_K, q3_k)
