// Products with Q5_1 weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES(Q5_1, q5_1, 1)
