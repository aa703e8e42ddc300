// The matrix product of every CPU kernel, compiled here alone: its many unrolled tiles are the
// larger part of the library's code.
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace pvt {
using torch::headeronly::BFloat16;
using torch::headeronly::Half;
}  // namespace pvt

#define PVT_KERNEL_BODY "cpu/gemm_impl.h"
#include "cpu/foreach_level.h"
