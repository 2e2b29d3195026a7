// Products with IQ4_NL weights on tensor cores, for many rows. See tiles.cuh.
#include "tiles.cuh"

TILES(IQ4_NL, iq4_nl, 2)
