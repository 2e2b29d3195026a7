// Products with FP8 weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES(FP8, fp8, 2)
