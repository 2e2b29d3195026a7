// Products with MXFP4 weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES(MXFP4, mxfp4, 2)
