// Products with Q4_0 weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES(Q4_0, q4_0, 2)
