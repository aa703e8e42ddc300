// The check of calls through LibTorch's stable C interface, under the name that it has since torch
// 2.13: with the message of what failed, where the headers know how to ask for it.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/shim_utils.h>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif
