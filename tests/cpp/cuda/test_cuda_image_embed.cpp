// The CUDA kernel of patch_embed for images, run on the CPU against float64.
#include "cuda/cuda_test.h"
#include "cuda/image_embed_impl.h"

namespace pvt::cuda {
namespace {

struct Embed {
  int B, C_in, H, W;
  int kernel_size, stride, padding;
  bool position = true;
  bool channels_last = false;

  int out(int side) const { return (side + 2 * padding - kernel_size) / stride + 1; }
};

template <class Config>
void check_embed(const Embed& e, int64_t blocks) {
  using scalar_t = typename Config::scalar_t;
  constexpr int C = Config::C;
  const int out_H = e.out(e.H), out_W = e.out(e.W), inputs = e.kernel_size * e.kernel_size * e.C_in;
  const int64_t image_rows = int64_t{out_H} * out_W, rows = e.B * image_rows;
  const std::vector<double> x = random_numbers<scalar_t>(int64_t{e.B} * e.C_in * e.H * e.W, 1);
  const std::vector<double> weight =
      random_numbers<scalar_t>(int64_t{C} * inputs, 2, 1 / std::sqrt(inputs));
  const std::vector<double> bias = random_numbers<scalar_t>(C, 3, 0.1);
  const std::vector<double> norm_weight = random_numbers<scalar_t>(C, 4, 0.1, 1);
  const std::vector<double> norm_bias = random_numbers<scalar_t>(C, 5, 0.1);
  const std::vector<double> table = random_numbers<scalar_t>(image_rows * C, 6);
  const int64_t pixel = e.channels_last ? e.C_in : 1;
  const int64_t channel = e.channels_last ? 1 : int64_t{e.H} * e.W;

  // An odd number of inputs is filled up to pairs.
  const int even = inputs + inputs % 2;
  std::vector<double> rows_of_pairs(int64_t{C} * even);
  for (int c = 0; c < C; ++c)
    std::copy_n(&weight[c * inputs], inputs, &rows_of_pairs[c * even]);
  Bits<scalar_t> image(x), out(std::vector<double>(rows * C, NAN));
  const Bits<scalar_t> packed_weight = packed<scalar_t>(rows_of_pairs, C, even);
  const Floats bias_f(bias), norm_w(norm_weight), norm_b(norm_bias), table_f(table);
  ImageEmbedArgs args{};
  args.x = image.data();
  args.image_bytes = int64_t{2} * e.C_in * e.H * e.W, args.channel_bytes = 2 * channel;
  args.row_bytes = 2 * pixel * e.W, args.column_bytes = 2 * pixel;
  args.C_in = e.C_in, args.H = e.H, args.W = e.W;
  args.kernel_size = e.kernel_size, args.stride = e.stride, args.padding = e.padding;
  args.weight = packed_weight.bytes(), args.bias = bias_f.data();
  args.norm_weight = norm_w.data(), args.norm_bias = norm_b.data(), args.eps = 1e-5f;
  args.position = e.position ? table_f.data() : nullptr;
  args.out = out.data(), args.rows = rows, args.out_H = out_H, args.out_W = out_W;
  CHECK(args.has_quads() == Config::kQuads);
  const int64_t conflicts = launch_on_host<Config>(
      "image_embed", blocks, image_embed_shared_bytes<Config>(args.input_strips()), 15,
      [&](auto& block) { image_embed<Config>(block, args); });
  CHECK(conflicts == 0);

  Errors errors;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t b = row / image_rows, in_image = row % image_rows;
    std::vector<double> patch;
    for (int r = 0; r < e.kernel_size; ++r) {
      for (int s = 0; s < e.kernel_size; ++s) {
        const int64_t i = in_image / out_W * e.stride - e.padding + r;
        const int64_t j = in_image % out_W * e.stride - e.padding + s;
        const bool inside = 0 <= i && i < e.H && 0 <= j && j < e.W;
        for (int c = 0; c < e.C_in; ++c) {
          patch.push_back(inside ? x[b * e.C_in * e.H * e.W + c * channel + (i * e.W + j) * pixel]
                                 : 0);
        }
      }
    }
    const auto finish = [&](const auto& round) {
      const std::vector<double> sums = round(linear(patch, weight, bias));
      std::vector<double> token = round(layer_norm(sums.data(), C, norm_weight, norm_bias, 1e-5));
      for (int c = 0; c < C && e.position; ++c)
        token[c] += table[in_image * C + c];
      return round(token);
    };
    const std::vector<double> expected = finish(Exact()), parts = finish(Rounded<scalar_t>());
    for (int c = 0; c < C; ++c)
      errors.add(out[row * C + c], parts[c], expected[c]);
  }
  CAPTURE(e.kernel_size);
  CHECK(errors.ratio() < kMaxErrorRatio);
}

}  // namespace

TEST_CASE("patch_embed: of an image") {
  check_embed<ImageEmbedConfig<BFloat16, 64, true, 4>>({2, 3, 36, 28, 4, 4, 0}, 2);
  check_embed<ImageEmbedConfig<Half, 32, true, 4>>({1, 3, 11, 16, 4, 4, 0, false}, 1);
  check_embed<ImageEmbedConfig<BFloat16, 64, true, 4>>({1, 1, 17, 24, 8, 4, 0}, 1);
  check_embed<ImageEmbedConfig<BFloat16, 64, false, 4>>({1, 3, 9, 14, 4, 4, 0}, 1);
  check_embed<ImageEmbedConfig<Half, 64, false, 4>>({1, 3, 37, 30, 7, 4, 3, false}, 1);
  check_embed<ImageEmbedConfig<BFloat16, 32, false, 4>>({3, 3, 8, 9, 7, 4, 3, false, true}, 3);
  check_embed<ImageEmbedConfig<Half, 32, false, 4>>({1, 1, 5, 5, 3, 2, 1}, 1);
  check_embed<ImageEmbedConfig<BFloat16, 64, false, 4>>({1, 4, 16, 16, 2, 2, 0}, 1);
}

}  // namespace pvt::cuda
