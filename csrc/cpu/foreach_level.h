// Compiles the file named by PVT_KERNEL_BODY once per CPU level, each time in a namespace of its
// own (pvt::baseline, pvt::avx2, ..., pvt::amx) with that level's instructions allowed, so
// one portable binary holds them all and no source needs compiler flags of its own.
//
//   #define PVT_KERNEL_BODY "cpu/sra_attention_impl.h"
//   #include "cpu/foreach_level.h"
//   ... PVT_BEST_LEVEL(attend)(...)  calls the body's function `attend` of the level in use.
//
// Everything that bodies share with other files is included here, before the first level, so that
// none of it is emitted with wide instructions. Headers of bodies have guards that next_level.h
// lifts.
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cmath>
#include <cstdint>

#include "cpu/args.h"
#include "cpu/cpu_level.h"
#include "cpu/float_types.h"
#include "cpu/polynomials.h"
#include "cpu/scratch.h"

#if defined(__clang__)
#define PVT_PRAGMA(text) _Pragma(#text)
#define PVT_TARGET_BEGIN(features) \
  PVT_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define PVT_TARGET_END _Pragma("clang attribute pop")
#else
#define PVT_PRAGMA(text) _Pragma(#text)
#define PVT_TARGET_BEGIN(features) _Pragma("GCC push_options") PVT_PRAGMA(GCC target(features))
#define PVT_TARGET_END _Pragma("GCC pop_options")
#endif

// A test that emulates these levels has defined what they may use instead.
#if !defined(PVT_AVX512_FEATURES)
#define PVT_AVX512_FEATURES "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#define PVT_AVX512_VNNI_FEATURES "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#define PVT_AVX512_BF16_FEATURES \
  "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"
#endif
#if !defined(PVT_AMX_FEATURES)
#define PVT_AMX_FEATURES                                                             \
  "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile," \
  "amx-bf16,amx-int8"
#endif

#define PVT_LEVEL_BASELINE 0
#define PVT_LEVEL_AVX2 1
#define PVT_LEVEL_AVX512 2
#define PVT_LEVEL_AVX512_VNNI 3
#define PVT_LEVEL_AVX512_BF16 4
#define PVT_LEVEL_AMX 5

#define PVT_LEVEL PVT_LEVEL_BASELINE
namespace pvt::baseline {
#include PVT_KERNEL_BODY
}
#include "cpu/next_level.h"

#if defined(__x86_64__)

#define PVT_LEVEL PVT_LEVEL_AVX2
PVT_TARGET_BEGIN("avx2,fma,f16c")
namespace pvt::avx2 {
#include PVT_KERNEL_BODY
}
PVT_TARGET_END
#include "cpu/next_level.h"

#define PVT_LEVEL PVT_LEVEL_AVX512
PVT_TARGET_BEGIN(PVT_AVX512_FEATURES)
namespace pvt::avx512 {
#include PVT_KERNEL_BODY
}
PVT_TARGET_END
#include "cpu/next_level.h"

#define PVT_LEVEL PVT_LEVEL_AVX512_VNNI
PVT_TARGET_BEGIN(PVT_AVX512_VNNI_FEATURES)
namespace pvt::avx512_vnni {
#include PVT_KERNEL_BODY
}
PVT_TARGET_END
#include "cpu/next_level.h"

#define PVT_LEVEL PVT_LEVEL_AVX512_BF16
PVT_TARGET_BEGIN(PVT_AVX512_BF16_FEATURES)
namespace pvt::avx512_bf16 {
#include PVT_KERNEL_BODY
}
PVT_TARGET_END
#include "cpu/next_level.h"

#if defined(PVT_HAS_AMX)
#define PVT_LEVEL PVT_LEVEL_AMX
PVT_TARGET_BEGIN(PVT_AMX_FEATURES)
namespace pvt::amx {
#include PVT_KERNEL_BODY
}
PVT_TARGET_END
#include "cpu/next_level.h"
#else
namespace pvt {
namespace amx = avx512_bf16;  // never chosen
}
#endif

#define PVT_BEST_LEVEL(...)                                                 \
  (::pvt::cpu_level() == CpuLevel::kAmx          ? amx::__VA_ARGS__         \
   : ::pvt::cpu_level() == CpuLevel::kAvx512Bf16 ? avx512_bf16::__VA_ARGS__ \
   : ::pvt::cpu_level() == CpuLevel::kAvx512Vnni ? avx512_vnni::__VA_ARGS__ \
   : ::pvt::cpu_level() == CpuLevel::kAvx512     ? avx512::__VA_ARGS__      \
   : ::pvt::cpu_level() == CpuLevel::kAvx2       ? avx2::__VA_ARGS__        \
                                                 : baseline::__VA_ARGS__)
#else
#define PVT_BEST_LEVEL(...) (baseline::__VA_ARGS__)
#endif
