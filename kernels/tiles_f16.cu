// Products with F16 weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES(F16, f16, 2)
