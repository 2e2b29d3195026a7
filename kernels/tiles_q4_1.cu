// Products with Q4_1 weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES(Q4_1, q4_1, 2)
