// resize on CUDA: the CPU's two passes and its weights, which are computed on the CPU and copied.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/resample_impl.h"

namespace pvt::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) resample_kernel(ResamplePass pass) {
  begin_kernel();
  const int64_t value = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (value < pass.outer * pass.out_size * pass.inner) {
    resample_value(pass, value);
  }
}

// The weights of an axis, on a device.
class Table {
 public:
  Table(const ResampleWeights& axis, const Tensor& like)
      : out_size_(axis.out_size()), taps_(static_cast<int>(axis.taps)) {
    const Tensor table = torch::stable::empty({out_size_, 2 + axis.taps}, ScalarType::Int);
    int32_t* entry = static_cast<int32_t*>(table.mutable_data_ptr());
    for (int64_t i = 0; i < out_size_; ++i, entry += 2 + axis.taps) {
      entry[0] = static_cast<int32_t>(axis.first[i]);
      entry[1] = static_cast<int32_t>(axis.count[i]);
      std::copy_n(&axis.weights[i * axis.taps], axis.taps, entry + 2);
    }
    table_ = torch::stable::to(table, like.device());
  }

  // [outer, positions, inner] -> [outer, out_size, inner]; outer ones are outer_stride apart,
  // positions position_stride.
  void resample(const Device& device, const uint8_t* src, int64_t outer_stride,
                int64_t position_stride, int64_t outer, int64_t inner, uint8_t* dst) const {
    const ResamplePass pass{src,       outer_stride, position_stride, table(), outer,
                            out_size_, inner,        taps_,           dst};
    launch<resample_kernel>(device, (pass.values() + kThreads - 1) / kThreads, kThreads, 0, pass);
  }

 private:
  const int32_t* table() const { return static_cast<const int32_t*>(table_.const_data_ptr()); }

  int64_t out_size_;
  int taps_;
  Tensor table_;
};

}  // namespace

Tensor resize_cuda(const Tensor& image, const std::vector<int64_t>& size,
                   const std::string& interpolation, const std::vector<int64_t>& crop) {
  const ResizeShape s = check_resize(image, size, interpolation, crop);
  const Interpolation method =
      interpolation == "bicubic" ? Interpolation::kBicubic : Interpolation::kBilinear;
  const Device device("resize", image);
  const Tensor source = torch::stable::contiguous(image);
  Tensor out = torch::stable::new_empty(source, {s.crop_height, s.crop_width, s.channels});
  uint8_t* const dst = static_cast<uint8_t*>(out.mutable_data_ptr());

  const ResampleWeights x =
      resample_weights(s.in_width, s.width, s.left, s.left + s.crop_width, method);
  const ResampleWeights y =
      resample_weights(s.in_height, s.height, s.top, s.top + s.crop_height, method);
  const Table columns(x, source), rows(y, source);
  const int64_t in_stride = s.in_width * s.channels, out_stride = s.crop_width * s.channels;
  const uint8_t* const src = static_cast<const uint8_t*>(source.const_data_ptr()) +
                             y.begin * in_stride + x.begin * s.channels;
  if (vertical_pass_first(s.in_height, s.in_width, s.height, s.width)) {
    // [y.in_size, x.in_size] -> [crop_height, x.in_size] -> [crop_height, crop_width]
    const int64_t row_size = x.in_size() * s.channels;
    const Tensor middle = torch::stable::new_empty(source, {s.crop_height, row_size});
    uint8_t* const between = static_cast<uint8_t*>(middle.mutable_data_ptr());
    rows.resample(device, src, 0, in_stride, 1, row_size, between);
    columns.resample(device, between, row_size, s.channels, s.crop_height, s.channels, dst);
  } else {
    // [y.in_size, x.in_size] -> [y.in_size, crop_width] -> [crop_height, crop_width]
    const Tensor middle = torch::stable::new_empty(source, {y.in_size(), out_stride});
    uint8_t* const between = static_cast<uint8_t*>(middle.mutable_data_ptr());
    columns.resample(device, src, in_stride, s.channels, y.in_size(), s.channels, between);
    rows.resample(device, between, 0, out_stride, 1, out_stride, dst);
  }
  return out;
}

}  // namespace pvt::cuda

STABLE_TORCH_LIBRARY_IMPL(pvt, CUDA, m) {
  m.impl("resize", TORCH_BOX(&pvt::cuda::resize_cuda));
}
