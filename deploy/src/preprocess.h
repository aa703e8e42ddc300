// The preprocessing that pvt.json describes, for files that bring no code for it.
#pragma once

#include <torch/types.h>

#include <pvt_ext/metadata.h>

namespace pvt {

// uint8 [H, W, 3] -> float32 [3, *crop] on the CPU; value for value what pvt_ext/preprocess.py
// computes. The operator pvt::resize must be registered.
torch::Tensor preprocess(const torch::Tensor& pixels, const Metadata::Preprocess& how);

}  // namespace pvt
