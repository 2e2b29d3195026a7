// Products with Q5_0 weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES(Q5_0, q5_0, 2)
