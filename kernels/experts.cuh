// What is known of the experts of a row.
#pragma once
#include "numbers.cuh"

// One of them, and what its output is multiplied with.
struct Choice {
    int expert;
    float share;
};

// Up to so many pairs of row and rank that have one expert: those from `first` on in the order of all pairs.
struct ExpertTile {
    int expert, first, count;
};

constexpr int EXPERTS_MAX = 1024;
