// patch_embed on CUDA: which maps have kernels, and their launch. Of an image it is one; of tokens
// it is one too, or two: the convolution and the norm of what that leaves.
#include <torch/csrc/stable/library.h>

#include "aten/kernels.h"
#include "cuda/image_embed_impl.h"
#include "cuda/packed.h"
#include "cuda/patch_norm.h"

namespace pvt::cuda {
namespace {

// What a call is given, for both kinds of maps.
struct Embedding {
  const Device& device;
  const Tensor& x;
  const PatchShape& shape;
  int kernel_size, stride, padding;
  const char* weight;
  const float* bias;
  const float* norm_weight;
  const float* norm_bias;
  float eps;
  const float* position;  // or null
  void* out;

  int64_t image_rows() const { return shape.out_H * shape.out_W; }

  // Sets the members that convolutions of both kinds have.
  template <class Args>
  void fill(Args& args) const {
    args.x = x.const_data_ptr(), args.weight = weight;
    args.image_bytes = x.stride(0) * 2;
    args.row_bytes = x.stride(2) * 2, args.column_bytes = x.stride(3) * 2;
    args.H = static_cast<int>(shape.H), args.W = static_cast<int>(shape.W);
    args.kernel_size = kernel_size, args.stride = stride, args.padding = padding;
    args.rows = shape.B * image_rows();
    args.out_H = static_cast<int>(shape.out_H), args.out_W = static_cast<int>(shape.out_W);
  }
  // Those of the norm and what follows it.
  template <class Args>
  void fill_end(Args& args) const {
    args.bias = bias, args.norm_weight = norm_weight, args.norm_bias = norm_bias, args.eps = eps;
    args.position = position, args.out = out;
  }
};

// ---- of tokens ----

// Whether x [B, C, H, W] is tokens seen as a feature map, whose channels can be read 16 bytes at a
// time.
bool is_token_map(const Tensor& x) {
  constexpr int64_t kNumbers = kVector / 2;
  return is_aligned(x) && x.stride(1) == 1 && x.stride(0) % kNumbers == 0 &&
         x.stride(2) % kNumbers == 0 && x.stride(3) % kNumbers == 0;
}

template <class scalar_t, int C_in, int C>
void run_tokens(const Embedding& e) {
  ConvolveArgs args{};
  e.fill(args);
  e.fill_end(args.end);
  args.end.image_rows = e.image_rows();
  args.C_out = C;
  run_patches<scalar_t, C_in, C>(e.device, e.x, args);
}

// Runs kernels if there are some for so many channels.
template <class scalar_t>
bool embed_tokens(const Embedding& e) {
  if (e.shape.C > kMaxChannels) {
    return false;
  }
  switch (e.shape.C_in * 1000 + e.shape.C) {
    case 32064:
      return run_tokens<scalar_t, 32, 64>(e), true;
    case 64128:
      return run_tokens<scalar_t, 64, 128>(e), true;
    case 64160:
      return run_tokens<scalar_t, 64, 160>(e), true;
    case 128320:
      return run_tokens<scalar_t, 128, 320>(e), true;
    case 160256:
      return run_tokens<scalar_t, 160, 256>(e), true;
    case 320512:
      return run_tokens<scalar_t, 320, 512>(e), true;
    default:
      return false;
  }
}

// ---- of an image ----

// Inputs of a patch, so that their weights fit into the shared memory of any device.
constexpr int kMaxInputs = 512;

// Whether the kernel can reach the patches and their inputs.
bool is_image(const Tensor& x, int64_t patches, int64_t kernel_size) {
  const int64_t far = (kernel_size - 1) * (x.stride(2) + x.stride(3)) + x.size(1) * x.stride(1);
  return patches <= kMaxPatches && kernel_size * kernel_size * x.size(1) <= kMaxInputs &&
         2 * far <= INT32_MAX;
}

// Blocks of which a multiprocessor holds as many as hide each other's waiting.
constexpr int kImageBlocksPerMultiprocessor = 6;

template <class Config>
__global__ void __launch_bounds__(Config::kWarps* kLanes, kImageBlocksPerMultiprocessor)
    image_embed_kernel(ImageEmbedArgs args) {
  DeviceBlock<Config::kWarps> block;
  image_embed<Config>(block, args);
}

template <class scalar_t, int C, bool kQuads>
void launch_image(const Device& device, const ImageEmbedArgs& args) {
  using Config = ImageEmbedConfig<scalar_t, C, kQuads, /*kWarps=*/4>;
  constexpr int64_t kRows = kTile * Config::kWarps;
  const int64_t most_blocks = int64_t{kImageBlocksPerMultiprocessor} * device.multiprocessors();
  launch<image_embed_kernel<Config>>(device, std::min((args.rows + kRows - 1) / kRows, most_blocks),
                                     Config::kWarps * kLanes,
                                     image_embed_shared_bytes<Config>(args.input_strips()), args,
                                     image_embed_shared_bytes<Config>(kMaxInputs / kStrip));
}

template <class scalar_t, int C>
void run_image(const Embedding& e) {
  ImageEmbedArgs args{};
  e.fill(args);
  e.fill_end(args);
  args.C_in = static_cast<int>(e.shape.C_in), args.channel_bytes = e.x.stride(1) * 2;
  if (args.has_quads()) {
    launch_image<scalar_t, C, true>(e.device, args);
  } else {
    launch_image<scalar_t, C, false>(e.device, args);
  }
}

// Runs the kernel if there is one for so many channels.
template <class scalar_t>
bool embed_image(const Embedding& e) {
  switch (e.shape.C) {
    case 32:
      return run_image<scalar_t, 32>(e), true;
    case 64:
      return run_image<scalar_t, 64>(e), true;
    default:
      return false;
  }
}

}  // namespace

Tensor patch_embed_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                        const std::optional<Tensor>& position, int64_t kernel_size, int64_t stride,
                        int64_t padding) {
  const PatchShape s = check_patch_embed(x, weight, bias, norm_weight, norm_bias, position,
                                         kernel_size, stride, padding);
  const Device device("patch_embed", x);
  if (s.B > 0 && have_packed_kernel(device, x, {weight}) && s.H + 2 * padding <= INT32_MAX &&
      s.W + 2 * padding <= INT32_MAX && stride <= INT32_MAX && s.out_H * s.out_W <= INT32_MAX) {
    Tensor out = torch::stable::new_empty(x, {s.B, s.out_H * s.out_W, s.C});
    const Weight packed(weight);
    const Vector conv_bias(bias), norm_w(norm_weight), norm_b(norm_bias);
    const Vector table(position.value_or(bias));
    const Embedding e{device,
                      x,
                      s,
                      static_cast<int>(kernel_size),
                      static_cast<int>(stride),
                      static_cast<int>(padding),
                      packed.data(),
                      conv_bias.data(),
                      norm_w.data(),
                      norm_b.data(),
                      static_cast<float>(eps),
                      position.has_value() ? table.data() : nullptr,
                      out.mutable_data_ptr()};
    bool done = false;
    dispatch_16_bit(x.scalar_type(), [&](auto type) {
      using scalar_t = decltype(type);
      done = (is_token_map(x) && embed_tokens<scalar_t>(e)) ||
             (is_image(x, s.B * s.out_H * s.out_W, kernel_size) && embed_image<scalar_t>(e));
    });
    if (done) {
      return out;
    }
  }
  return patch_embed_aten(x, weight, bias, norm_weight, norm_bias, eps, position, kernel_size,
                          stride, padding);
}

}  // namespace pvt::cuda

STABLE_TORCH_LIBRARY_IMPL(pvt, CUDA, m) {
  m.impl("patch_embed", TORCH_BOX(&pvt::cuda::patch_embed_cuda));
}
