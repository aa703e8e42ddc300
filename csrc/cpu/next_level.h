// Ends a CPU level in foreach_level.h: what the next one includes is compiled again.
#undef PVT_LEVEL
#undef PVT_BODY_VEC
#undef PVT_BODY_CONVERT
#undef PVT_BODY_OPERAND
#undef PVT_BODY_OPERAND_BF16
#undef PVT_BODY_OPERAND_INT8
#undef PVT_BODY_GEMM
#undef PVT_BODY_PACK
#undef PVT_BODY_COLUMN_SUM
#undef PVT_BODY_DEPTHWISE
#undef PVT_BODY_SPATIAL_REDUCTION
#undef PVT_BODY_GELU
#undef PVT_BODY_LAYER_NORM
#undef PVT_BODY_LINEAR
#undef PVT_BODY_MLP_BLOCK
#undef PVT_BODY_SRA_ATTENTION
