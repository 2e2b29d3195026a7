// Products with IQ4_XS weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES(IQ4_XS, iq4_xs, 2)
