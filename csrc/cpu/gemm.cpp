// The matrix product of every CPU kernel, compiled here alone: its many unrolled tiles are the
// larger part of the library's code.
#define PVT_KERNEL_BODY "cpu/gemm_impl.h"
#include "cpu/foreach_level.h"
