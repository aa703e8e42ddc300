// resize: the first step of every model file's preprocess. Two passes with 8-bit values between, as
// in Pillow. Only what the crop window needs is computed, so a 20000 x 50 panorama costs no more
// than its centre.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "checks.h"
#include "cpu/parallel.h"
#include "image/resample.h"

namespace pvt {

Tensor resize_cpu(const Tensor& image, const std::vector<int64_t>& size,
                  const std::string& interpolation, const std::vector<int64_t>& crop) {
  const ResizeShape s = check_resize(image, size, interpolation, crop);
  const Interpolation method =
      interpolation == "bicubic" ? Interpolation::kBicubic : Interpolation::kBilinear;
  const Tensor source = torch::stable::contiguous(image);
  const uint8_t* src = static_cast<const uint8_t*>(source.const_data_ptr());
  Tensor out = torch::stable::empty({s.crop_height, s.crop_width, s.channels}, ScalarType::Byte);
  uint8_t* dst = static_cast<uint8_t*>(out.mutable_data_ptr());

  const ResampleWeights x =
      resample_weights(s.in_width, s.width, s.left, s.left + s.crop_width, method);
  const ResampleWeights y =
      resample_weights(s.in_height, s.height, s.top, s.top + s.crop_height, method);
  const int64_t in_stride = s.in_width * s.channels;
  const int64_t out_stride = s.crop_width * s.channels;
  src += y.begin * in_stride + x.begin * s.channels;
  constexpr int64_t kGrain = 10000;  // values of a result: some 10 us of work
  const auto grain = [](int64_t row_size) { return std::max<int64_t>(kGrain / row_size, 1); };

  if (vertical_pass_first(s.in_height, s.in_width, s.height, s.width)) {
    // [y.in_size, x.in_size] -> [crop_height, x.in_size] -> [crop_height, crop_width], row by row
    const int64_t row_size = x.in_size() * s.channels;
    parallel_for(s.crop_height, grain(row_size), [&](int64_t begin, int64_t end) {
      std::vector<uint8_t> middle(row_size);
      for (int64_t row = begin; row < end; ++row) {
        resample_column(src, in_stride, row_size, y, row, middle.data());
        resample_row(middle.data(), s.channels, x, dst + row * out_stride);
      }
    });
  } else {
    // [y.in_size, x.in_size] -> [y.in_size, crop_width] -> [crop_height, crop_width]
    const Tensor middle =
        torch::stable::empty({y.in_size(), s.crop_width, s.channels}, ScalarType::Byte);
    uint8_t* rows = static_cast<uint8_t*>(middle.mutable_data_ptr());
    parallel_for(y.in_size(), grain(out_stride), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        resample_row(src + row * in_stride, s.channels, x, rows + row * out_stride);
      }
    });
    parallel_for(s.crop_height, grain(out_stride), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        resample_column(rows, out_stride, out_stride, y, row, dst + row * out_stride);
      }
    });
  }
  return out;
}

}  // namespace pvt

STABLE_TORCH_LIBRARY_IMPL(pvt, CPU, m) {
  m.impl("resize", TORCH_BOX(&pvt::resize_cpu));
}
