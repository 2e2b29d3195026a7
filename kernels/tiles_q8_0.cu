// Products with Q8_0 weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES(Q8_0, q8_0, 1)
