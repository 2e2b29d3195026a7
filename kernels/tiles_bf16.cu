// Products with BF16 weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES(BF16, bf16, 2)
