// A convolution of tokens or pixels as a matrix product, shared by the operators that shrink a
// grid.
#pragma once

#include <cstdint>
#include <functional>

#include "cpu/args.h"

namespace pvt {

// What to do with finished rows: output tokens [row, row + rows) of all images one after the other.
//   sums: [rows, C_out rounded up to kPackedColumns], without the bias; may be overwritten
using FinishRows = std::function<void(int64_t row, int64_t rows, float* sums)>;

// Calls finish() for every output token once, in parallel.
//   scalar_t: of the weight   x: `images` of them, strided as in args
template <class scalar_t>
void convolve(const PatchArgs& args, int64_t images, const float* x, const FinishRows& finish);

}  // namespace pvt
