// The C interface of libpvt_ops.so. Loading the library registers the operators of namespace `pvt`
// (torch.ops.pvt in Python); these functions describe the library that was loaded.
#pragma once

#include <stdint.h>

#define PVT_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// "0.1.0"
PVT_API const char* pvt_version(void);

// Raised whenever the schema or the meaning of an operator changes. A model file states the number
// it was exported with; a library with a smaller number cannot run it.
PVT_API int64_t pvt_ops_version(void);

// The instruction set in use: "baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16" or "amx".
// Chosen once from the processor; the environment variable PVT_CPU_LEVEL names another.
PVT_API const char* pvt_cpu_level(void);

// A JSON object: version, ops_version, compiler, cpu_levels, cuda_architectures, torch.
PVT_API const char* pvt_build_info(void);

// Does nothing. A program that calls it keeps a linker from dropping the library.
PVT_API void pvt_register_ops(void);

#ifdef __cplusplus
}
#endif
