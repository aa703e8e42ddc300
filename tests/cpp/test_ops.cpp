// The operators in a plain LibTorch program. Nothing here names a function of libpvt_ops.so:
// linking pvt_ext::ops is enough.
#include <torch/torch.h>

#include <ATen/core/dispatch/Dispatcher.h>

// torch and doctest both have a CHECK.
#undef CHECK
#include <doctest/doctest.h>

namespace {

torch::Tensor call(const char* name, std::vector<c10::IValue> arguments) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  op.callBoxed(&arguments);
  return arguments.at(0).toTensor();
}

}  // namespace

TEST_CASE("sra_attention is softmax(scale q k^T) v per head") {
  torch::manual_seed(0);
  const int64_t B = 2, N = 13, C = 32, kv_len = 5, heads = 4, head_dim = C / heads;
  const auto q = torch::randn({B, N, C}), kv = torch::randn({B, kv_len, 2 * C});
  const double scale = 0.3;
  const auto out = call("pvt::sra_attention", {q, kv, heads, scale});

  const auto split = [&](const torch::Tensor& x) {  // B, n, C -> B, heads, n, head_dim
    return x.reshape({B, -1, heads, head_dim}).transpose(1, 2);
  };
  const auto k = split(kv.slice(2, 0, C)), v = split(kv.slice(2, C));
  const auto weights = (split(q).matmul(k.transpose(-2, -1)) * scale).softmax(-1);
  const auto expected = weights.matmul(v).transpose(1, 2).reshape({B, N, C});
  CHECK(torch::allclose(out, expected, 1e-5, 1e-6));
}

TEST_CASE("spatial_reduction is a strided convolution, then LayerNorm") {
  torch::manual_seed(1);
  const int64_t B = 2, H = 7, W = 9, C = 16, ratio = 2;  // odd sides: the rest is left out
  const auto x = torch::randn({B, H * W, C});
  const auto weight = torch::randn({C, C, ratio, ratio}) * 0.2, bias = torch::randn({C});
  const auto norm_weight = torch::rand({C}), norm_bias = torch::randn({C});
  const auto out =
      call("pvt::spatial_reduction", {x, H, W, weight, bias, norm_weight, norm_bias, ratio, 1e-5});
  const auto image = x.transpose(1, 2).reshape({B, C, H, W});
  const auto reduced = torch::conv2d(image, weight, bias, ratio).flatten(2).transpose(1, 2);
  const auto expected = torch::layer_norm(reduced, {C}, norm_weight, norm_bias, 1e-5);
  CHECK(out.sizes() == expected.sizes());
  CHECK(torch::allclose(out, expected, 1e-4, 1e-5));
}

TEST_CASE("resize keeps a constant image and takes the crop") {
  const auto image = torch::full({40, 30, 3}, 9, torch::kUInt8);
  const auto out = call("pvt::resize", {image, std::vector<int64_t>{20, 50}, "bicubic",
                                        std::vector<int64_t>{1, 2, 10, 11}});
  CHECK(out.equal(torch::full({10, 11, 3}, 9, torch::kUInt8)));
}

TEST_CASE("a wrong argument is an exception that names it") {
  CHECK_THROWS_WITH_AS(
      call("pvt::sra_attention", {torch::ones({2, 3}), torch::ones({1, 1, 1}), 1, 1.0}),
      doctest::Contains("sra_attention: expected q of shape [B, N, C], got [2, 3]"),
      std::exception);
}
