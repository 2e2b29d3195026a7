// What is known of the experts of a row.
#pragma once
#include "numbers.cuh"

// One of them, and what its output is multiplied with.
struct Choice {
    int expert;
    float share;
};
