#include "preprocess.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace pvt {
namespace {

// round(n / 2), a half to the even side as Python rounds: 1 -> 0, 3 -> 2, 5 -> 2.
int64_t half(int64_t n) {
  return n / 2 + (n % 2) * (n / 2 % 2);
}

torch::Tensor resize(const torch::Tensor& pixels, const std::vector<int64_t>& size,
                     const std::string& interpolation, const std::vector<int64_t>& window) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("pvt::resize", "");
  torch::jit::Stack stack{pixels, size, interpolation, window};
  op.callBoxed(stack);
  return stack.back().toTensor();
}

}  // namespace

torch::Tensor preprocess(const torch::Tensor& pixels, const Metadata::Preprocess& how) {
  const int64_t H = pixels.size(0), W = pixels.size(1);
  const auto [crop_h, crop_w] = how.crop;
  TORCH_CHECK(H >= 1 && W >= 1, "preprocess: expected an image of at least 1 x 1, got ", H, " x ",
              W);
  std::vector<int64_t> size{crop_h, crop_w}, window{0, 0, crop_h, crop_w};
  if (how.mode == "shorter") {
    size = {H <= W ? how.resize : how.resize * H / W, W <= H ? how.resize : how.resize * W / H};
    window = {half(size[0] - crop_h), half(size[1] - crop_w), crop_h, crop_w};
  }
  const torch::Tensor image = resize(pixels, size, how.interpolation, window);
  const auto per_channel = [](const std::array<double, 3>& values) {
    return torch::tensor(std::vector<double>(values.begin(), values.end()))
        .to(torch::kFloat)
        .view({3, 1, 1});
  };
  // In the order of pvt_ext/preprocess.py, and divided where it divides: bit for bit.
  const torch::Tensor x = image.permute({2, 0, 1}).contiguous().to(torch::kFloat).div(255);
  return x.sub(per_channel(how.mean)).div(per_channel(how.std));
}

}  // namespace pvt
