// One check per operator, called by every kernel of it (cpu/, aten/), so that each caller meets the
// same sentence: operator, argument, what was expected, what came.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace pvt {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Like STD_TORCH_CHECK without the source location, which says nothing to a user.
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (!ok) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::runtime_error(message.str());
  }
}

// Sizes in a message, written only when it is: an operator checks a dozen tensors, and has a few
// microseconds in all.
template <class Range>
struct Sizes {
  Range sizes;
};
template <class Range>
Sizes(Range) -> Sizes<Range>;

template <class Range>
std::ostream& operator<<(std::ostream& out, const Sizes<Range>& list) {
  const char* before = "";
  out << "[";
  for (const int64_t size : list.sizes) {
    out << before << size;
    before = ", ";
  }
  return out << "]";
}

inline auto shape(const Tensor& tensor) {
  return Sizes{tensor.sizes()};
}

inline bool has_sizes(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  const auto found = tensor.sizes();
  return std::equal(found.begin(), found.end(), sizes.begin(), sizes.end());
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Byte:
      return "uint8";
    default:
      return torch::headeronly::toString(dtype);
  }
}

inline void check_floating(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  check(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
            dtype == ScalarType::BFloat16,
        op, ": expected ", name, " of dtype float32, float64, float16 or bfloat16, got ",
        dtype_name(dtype));
}

// `tensor` lives where `first` does and has its dtype.
inline void check_like(const char* op, const char* name, const Tensor& tensor,
                       const char* first_name, const Tensor& first) {
  check(tensor.scalar_type() == first.scalar_type(), op, ": expected ", name, " of dtype ",
        dtype_name(first.scalar_type()), " like ", first_name, ", got ",
        dtype_name(tensor.scalar_type()));
  check(tensor.device() == first.device(), op, ": expected ", name, " on the device of ",
        first_name, ", got another device");
}

// The tokens x [B, N, C] form a grid of H rows and W columns.
inline void check_grid(const char* op, const Tensor& x, int64_t H, int64_t W) {
  // By division: H * W may not fit.
  check(H >= 1 && W >= 1 && x.size(1) % H == 0 && x.size(1) / H == W, op,
        ": expected x of shape [B, H * W, C] with H = ", H, ", W = ", W, ", got ", shape(x));
}

struct SraShape {
  int64_t B, N, C, kv_len, num_heads, head_dim;
};

inline SraShape check_sra_attention(const Tensor& q, const Tensor& kv, int64_t num_heads) {
  constexpr const char* op = "sra_attention";
  check_floating(op, "q", q);
  check(q.dim() == 3, op, ": expected q of shape [B, N, C], got ", shape(q));
  check_like(op, "kv", kv, "q", q);
  const int64_t B = q.size(0), N = q.size(1), C = q.size(2);
  check(kv.dim() == 3 && kv.size(0) == B && kv.size(2) == 2 * C, op, ": expected kv of shape [", B,
        ", kv_len, ", 2 * C, "] (q is ", shape(q), "), got ", shape(kv));
  check(kv.size(1) >= 1, op, ": expected kv with at least one key, got ", shape(kv));
  check(num_heads >= 1 && C >= 1 && C % num_heads == 0, op,
        ": expected num_heads to divide C = ", C, ", got ", num_heads);
  return {B, N, C, kv.size(1), num_heads, C / num_heads};
}

struct ReductionShape {
  int64_t B, H, W, C, sr_ratio;
  int64_t out_H() const { return H / sr_ratio; }
  int64_t out_W() const { return W / sr_ratio; }
  int64_t kv_len() const { return out_H() * out_W(); }
};

inline ReductionShape check_spatial_reduction(const Tensor& x, int64_t H, int64_t W,
                                              const Tensor& weight, const Tensor& bias,
                                              const Tensor& norm_weight, const Tensor& norm_bias,
                                              int64_t sr_ratio) {
  constexpr const char* op = "spatial_reduction";
  check_floating(op, "x", x);
  check(x.dim() == 3, op, ": expected x of shape [B, H * W, C], got ", shape(x));
  check_grid(op, x, H, W);
  check(sr_ratio >= 1, op, ": expected sr_ratio of at least 1, got ", sr_ratio);
  check(H >= sr_ratio && W >= sr_ratio, op, ": expected a token grid of at least ", sr_ratio, "x",
        sr_ratio, " (sr_ratio), got ", H, "x", W);
  const int64_t C = x.size(2);
  check(weight.dim() == 4 && weight.size(0) == C && weight.size(1) == C &&
            weight.size(2) == sr_ratio && weight.size(3) == sr_ratio,
        op, ": expected weight of shape [", C, ", ", C, ", ", sr_ratio, ", ", sr_ratio, "], got ",
        shape(weight));
  check_like(op, "weight", weight, "x", x);
  const auto check_vector = [&](const char* name, const Tensor& vector) {
    check(vector.dim() == 1 && vector.size(0) == C, op, ": expected ", name, " of shape [", C,
          "], got ", shape(vector));
    check_like(op, name, vector, "x", x);
  };
  check_vector("bias", bias);
  check_vector("norm_weight", norm_weight);
  check_vector("norm_bias", norm_bias);
  return {x.size(0), H, W, C, sr_ratio};
}

// `grad` is the gradient of a result of this shape, of the dtype of `x`.
inline void check_grad(const char* op, const Tensor& grad, std::initializer_list<int64_t> sizes,
                       const char* x_name, const Tensor& x) {
  check(has_sizes(grad, sizes), op, ": expected grad of shape ", Sizes{sizes}, ", got ",
        shape(grad));
  check_like(op, "grad", grad, x_name, x);
}

inline SraShape check_sra_attention_backward(const Tensor& grad, const Tensor& q, const Tensor& kv,
                                             int64_t num_heads) {
  const SraShape s = check_sra_attention(q, kv, num_heads);
  check_grad("sra_attention_backward", grad, {s.B, s.N, s.C}, "q", q);
  return s;
}

inline ReductionShape check_spatial_reduction_backward(const Tensor& grad, const Tensor& x,
                                                       int64_t H, int64_t W, const Tensor& weight,
                                                       const Tensor& bias,
                                                       const Tensor& norm_weight,
                                                       int64_t sr_ratio) {
  const ReductionShape s =
      check_spatial_reduction(x, H, W, weight, bias, norm_weight, norm_weight, sr_ratio);
  check_grad("spatial_reduction_backward", grad, {s.B, s.kv_len(), s.C}, "x", x);
  return s;
}

struct MlpShape {
  int64_t rows, C, hidden;
};

inline MlpShape check_mlp(const char* op, const Tensor& x, const Tensor& fc1_weight,
                          const Tensor& fc1_bias, const Tensor& fc2_weight) {
  check_floating(op, "x", x);
  check(x.dim() == 3 && x.size(2) >= 1, op, ": expected x of shape [B, N, C], got ", shape(x));
  const int64_t C = x.size(2);
  check(fc1_weight.dim() == 2 && fc1_weight.size(0) >= 1 && fc1_weight.size(1) == C, op,
        ": expected fc1_weight of shape [hidden, ", C, "], got ", shape(fc1_weight));
  const int64_t hidden = fc1_weight.size(0);
  check(fc1_bias.dim() == 1 && fc1_bias.size(0) == hidden, op, ": expected fc1_bias of shape [",
        hidden, "], got ", shape(fc1_bias));
  check(fc2_weight.dim() == 2 && fc2_weight.size(0) == C && fc2_weight.size(1) == hidden, op,
        ": expected fc2_weight of shape [", C, ", ", hidden, "], got ", shape(fc2_weight));
  check_like(op, "fc1_weight", fc1_weight, "x", x);
  check_like(op, "fc1_bias", fc1_bias, "x", x);
  check_like(op, "fc2_weight", fc2_weight, "x", x);
  return {x.size(0) * x.size(1), C, hidden};
}

inline MlpShape check_mlp(const Tensor& x, const Tensor& fc1_weight, const Tensor& fc1_bias,
                          const Tensor& fc2_weight, const Tensor& fc2_bias) {
  constexpr const char* op = "mlp";
  const MlpShape s = check_mlp(op, x, fc1_weight, fc1_bias, fc2_weight);
  check(fc2_bias.dim() == 1 && fc2_bias.size(0) == s.C, op, ": expected fc2_bias of shape [", s.C,
        "], got ", shape(fc2_bias));
  check_like(op, "fc2_bias", fc2_bias, "x", x);
  return s;
}

inline MlpShape check_mlp_backward(const Tensor& grad, const Tensor& x, const Tensor& fc1_weight,
                                   const Tensor& fc1_bias, const Tensor& fc2_weight) {
  constexpr const char* op = "mlp_backward";
  const MlpShape s = check_mlp(op, x, fc1_weight, fc1_bias, fc2_weight);
  check_grad(op, grad, {x.size(0), x.size(1), s.C}, "x", x);
  return s;
}

struct DepthwiseShape {
  int64_t B, H, W, C;
};

inline DepthwiseShape check_dwconv_gelu(const Tensor& x, int64_t H, int64_t W, const Tensor& weight,
                                        const Tensor& bias) {
  constexpr const char* op = "dwconv_gelu";
  check_floating(op, "x", x);
  check(x.dim() == 3, op, ": expected x of shape [B, H * W, C], got ", shape(x));
  check_grid(op, x, H, W);
  const int64_t C = x.size(2);
  check(has_sizes(weight, {C, 1, 3, 3}), op, ": expected weight of shape [", C, ", 1, 3, 3], got ",
        shape(weight));
  check(bias.dim() == 1 && bias.size(0) == C, op, ": expected bias of shape [", C, "], got ",
        shape(bias));
  check_like(op, "weight", weight, "x", x);
  check_like(op, "bias", bias, "x", x);
  return {x.size(0), H, W, C};
}

inline DepthwiseShape check_dwconv_gelu_backward(const Tensor& grad, const Tensor& x, int64_t H,
                                                 int64_t W, const Tensor& weight,
                                                 const Tensor& bias) {
  const DepthwiseShape s = check_dwconv_gelu(x, H, W, weight, bias);
  check_grad("dwconv_gelu_backward", grad, {s.B, H * W, s.C}, "x", x);
  return s;
}

// Columns of a panel of packed weights.
constexpr int64_t kPackedColumns = 16;

// `x`, which an operator overwrites: tokens [B, N, C], contiguous.
inline void check_tokens(const char* op, const Tensor& x) {
  check_floating(op, "x", x);
  check(x.dim() == 3, op, ": expected x of shape [B, N, C], got ", shape(x));
  check(x.is_contiguous(), op, ": expected x contiguous, since it is changed in place");
}

inline void check_device(const char* op, const char* name, const Tensor& tensor, const Tensor& x) {
  check(tensor.device() == x.device(), op, ": expected ", name,
        " on the device of x, got another device");
}

// `tensor` lives where x does and is float32 or of x's dtype.
inline void check_float_or_like(const char* op, const char* name, const Tensor& tensor,
                                const Tensor& x) {
  check(tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == x.scalar_type(), op,
        ": expected ", name, " of dtype float32 or ", dtype_name(x.scalar_type()), " like x, got ",
        dtype_name(tensor.scalar_type()));
  check_device(op, name, tensor, x);
}

// `vector`: [size], float32 or the dtype of x.
inline void check_vector(const char* op, const char* name, const Tensor& vector, int64_t size,
                         const Tensor& x) {
  check(vector.dim() == 1 && vector.size(0) == size, op, ": expected ", name, " of shape [", size,
        "], got ", shape(vector));
  check_float_or_like(op, name, vector, x);
}

// `weight`: [rows, columns], packed: [panels, columns / group, 16, group], rounded up. Of x's
// dtype, or of 16 bits or 8-bit integers beside a float32 x. The latter are uint8 in groups of
// four, and a panel has one more row, its scales.
inline void check_packed(const char* op, const char* name, const Tensor& weight, int64_t rows,
                         int64_t columns, const Tensor& x) {
  const bool packed = weight.dim() == 4 && weight.size(2) == kPackedColumns && weight.size(3) >= 1;
  check(packed, op, ": expected ", name,
        " packed (pvt_ext.packing.pack_weight), [panels, columns, 16, group], got shape ",
        shape(weight));
  const ScalarType dtype = weight.scalar_type();
  const bool quantised = dtype == ScalarType::Byte;
  const int64_t group = quantised ? 4 : weight.size(3);
  const int64_t panels = (rows + kPackedColumns - 1) / kPackedColumns;
  const int64_t depth = (columns + group - 1) / group + (quantised ? 1 : 0);
  check(weight.size(0) == panels && weight.size(1) == depth && weight.size(3) == group, op,
        ": expected ", name, " packed from [", rows, ", ", columns, "], which is [", panels, ", ",
        depth, ", 16, ", group, "], got ", shape(weight));
  const bool is_16_bit = dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  if (x.scalar_type() == ScalarType::Float) {
    check(is_16_bit || quantised || dtype == ScalarType::Float, op, ": expected ", name,
          " of dtype float32 like x, bfloat16, float16 or uint8 (packed int8), got ",
          dtype_name(dtype));
  } else if (dtype != x.scalar_type()) {  // of the two, x is what a model is given
    const std::string expected =
        quantised   ? "float32 beside an int8 " + std::string(name)
        : is_16_bit ? "float32 or " + std::string(dtype_name(dtype)) + " like " + name
                    : std::string(dtype_name(dtype)) + " like " + name;
    check(false, op, ": expected x of dtype ", expected, ", got ", dtype_name(x.scalar_type()));
  }
  check_device(op, name, weight, x);
}

inline MlpShape check_packed_mlp(const char* op, const Tensor& x, const Tensor& norm_weight,
                                 const Tensor& norm_bias, const Tensor& fc1_weight,
                                 const Tensor& fc1_bias, const Tensor& fc2_weight,
                                 const Tensor& fc2_bias) {
  check_tokens(op, x);
  const int64_t C = x.size(2);
  check(C >= 1, op, ": expected x with at least one channel, got ", shape(x));
  check(fc1_bias.dim() == 1 && fc1_bias.size(0) >= 1, op,
        ": expected fc1_bias of shape [hidden], got ", shape(fc1_bias));
  const int64_t hidden = fc1_bias.size(0);
  check_vector(op, "norm_weight", norm_weight, C, x);
  check_vector(op, "norm_bias", norm_bias, C, x);
  check_packed(op, "fc1_weight", fc1_weight, hidden, C, x);
  check_vector(op, "fc1_bias", fc1_bias, hidden, x);
  check_packed(op, "fc2_weight", fc2_weight, C, hidden, x);
  check_vector(op, "fc2_bias", fc2_bias, C, x);
  return {x.size(0) * x.size(1), C, hidden};
}

inline MlpShape check_mlp_block(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias,
                                const Tensor& fc1_weight, const Tensor& fc1_bias,
                                const Tensor& fc2_weight, const Tensor& fc2_bias) {
  return check_packed_mlp("mlp_block_", x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight,
                          fc2_bias);
}

inline MlpShape check_conv_mlp_block(const Tensor& x, int64_t H, int64_t W,
                                     const Tensor& norm_weight, const Tensor& norm_bias,
                                     const Tensor& fc1_weight, const Tensor& fc1_bias,
                                     const Tensor& dwconv_weight, const Tensor& dwconv_bias,
                                     const Tensor& fc2_weight, const Tensor& fc2_bias) {
  constexpr const char* op = "conv_mlp_block_";
  const MlpShape s =
      check_packed_mlp(op, x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias);
  check_grid(op, x, H, W);
  check(dwconv_weight.dim() == 3 && dwconv_weight.size(0) == 3 && dwconv_weight.size(1) == 3 &&
            dwconv_weight.size(2) == s.hidden,
        op, ": expected dwconv_weight of shape [3, 3, ", s.hidden, "], got ", shape(dwconv_weight));
  check_float_or_like(op, "dwconv_weight", dwconv_weight, x);
  check_vector(op, "dwconv_bias", dwconv_bias, s.hidden, x);
  return s;
}

inline SraShape check_attention_block(const Tensor& x, const Tensor& kv, const Tensor& norm_weight,
                                      const Tensor& norm_bias, const Tensor& q_weight,
                                      const Tensor& q_bias, const Tensor& proj_weight,
                                      const Tensor& proj_bias, int64_t num_heads) {
  constexpr const char* op = "attention_block_";
  check_tokens(op, x);
  const int64_t B = x.size(0), N = x.size(1), C = x.size(2);
  check_like(op, "kv", kv, "x", x);
  check(kv.dim() == 3 && kv.size(0) == B && kv.size(1) >= 1 && kv.size(2) == 2 * C, op,
        ": expected kv of shape [", B, ", kv_len, ", 2 * C, "] with at least one key (x is ",
        shape(x), "), got ", shape(kv));
  check(num_heads >= 1 && C >= 1 && C % num_heads == 0, op,
        ": expected num_heads to divide C = ", C, ", got ", num_heads);
  check_vector(op, "norm_weight", norm_weight, C, x);
  check_vector(op, "norm_bias", norm_bias, C, x);
  check_packed(op, "q_weight", q_weight, C, C, x);
  check_vector(op, "q_bias", q_bias, C, x);
  check_packed(op, "proj_weight", proj_weight, C, C, x);
  check_vector(op, "proj_bias", proj_bias, C, x);
  return {B, N, C, kv.size(1), num_heads, C / num_heads};
}

inline ReductionShape check_reduce_kv(
    const Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight, const Tensor& norm_bias,
    const std::optional<Tensor>& sr_weight, const std::optional<Tensor>& sr_bias,
    const std::optional<Tensor>& sr_norm_weight, const std::optional<Tensor>& sr_norm_bias,
    const Tensor& kv_weight, const Tensor& kv_bias, int64_t sr_ratio) {
  constexpr const char* op = "reduce_kv";
  check_floating(op, "x", x);
  check(x.dim() == 3 && x.size(2) >= 1, op, ": expected x of shape [B, N, C], got ", shape(x));
  const int64_t C = x.size(2);
  const bool reduces = sr_weight.has_value();
  check(sr_bias.has_value() == reduces && sr_norm_weight.has_value() == reduces &&
            sr_norm_bias.has_value() == reduces,
        op, ": expected all of sr_weight, sr_bias, sr_norm_weight and sr_norm_bias, or none");
  check_vector(op, "norm_weight", norm_weight, C, x);
  check_vector(op, "norm_bias", norm_bias, C, x);
  check_packed(op, "kv_weight", kv_weight, 2 * C, C, x);
  check_vector(op, "kv_bias", kv_bias, 2 * C, x);
  if (!reduces) {
    check(sr_ratio == 1, op, ": expected sr_ratio 1 without sr_weight, got ", sr_ratio);
    return {x.size(0), x.size(1), 1, C, 1};  // the grid plays no part
  }
  check_grid(op, x, H, W);
  check(sr_ratio >= 1 && H >= sr_ratio && W >= sr_ratio, op,
        ": expected sr_ratio from 1 to the sides of the token grid ", H, "x", W, ", got ",
        sr_ratio);
  check_packed(op, "sr_weight", *sr_weight, C, sr_ratio * sr_ratio * C, x);
  check_vector(op, "sr_bias", *sr_bias, C, x);
  check_vector(op, "sr_norm_weight", *sr_norm_weight, C, x);
  check_vector(op, "sr_norm_bias", *sr_norm_bias, C, x);
  return {x.size(0), H, W, C, sr_ratio};
}

struct PoolShape {
  int64_t B, C;
};

inline PoolShape check_pool_kv(const Tensor& x, int64_t H, int64_t W, const Tensor& norm_weight,
                               const Tensor& norm_bias, int64_t pool_size, const Tensor& sr_weight,
                               const Tensor& sr_bias, const Tensor& sr_norm_weight,
                               const Tensor& sr_norm_bias, const Tensor& kv_weight,
                               const Tensor& kv_bias) {
  constexpr const char* op = "pool_kv";
  constexpr int64_t kMaxPool = 1 << 12;  // its square times any number of channels fits
  check_floating(op, "x", x);
  check(x.dim() == 3 && x.size(2) >= 1, op, ": expected x of shape [B, H * W, C], got ", shape(x));
  check_grid(op, x, H, W);
  check(pool_size >= 1 && pool_size <= kMaxPool, op, ": expected pool_size from 1 to ", kMaxPool,
        ", got ", pool_size);
  const int64_t C = x.size(2);
  check_vector(op, "norm_weight", norm_weight, C, x);
  check_vector(op, "norm_bias", norm_bias, C, x);
  check_packed(op, "sr_weight", sr_weight, C, C, x);
  check_vector(op, "sr_bias", sr_bias, C, x);
  check_vector(op, "sr_norm_weight", sr_norm_weight, C, x);
  check_vector(op, "sr_norm_bias", sr_norm_bias, C, x);
  check_packed(op, "kv_weight", kv_weight, 2 * C, C, x);
  check_vector(op, "kv_bias", kv_bias, 2 * C, x);
  return {x.size(0), C};
}

struct PatchShape {
  int64_t B, C_in, H, W, C, out_H, out_W;
};

inline PatchShape check_patch_embed(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                    const Tensor& norm_weight, const Tensor& norm_bias,
                                    const std::optional<Tensor>& position, int64_t kernel_size,
                                    int64_t stride, int64_t padding) {
  constexpr const char* op = "patch_embed";
  constexpr int64_t kMaxKernel = 1 << 12;  // its square times any number of channels fits
  check_floating(op, "x", x);
  check(x.dim() == 4 && x.size(1) >= 1, op, ": expected x of shape [B, C_in, H, W], got ",
        shape(x));
  check(kernel_size >= 1 && kernel_size <= kMaxKernel, op, ": expected kernel_size from 1 to ",
        kMaxKernel, ", got ", kernel_size);
  check(stride >= 1, op, ": expected stride of at least 1, got ", stride);
  check(padding >= 0 && padding < kernel_size, op,
        ": expected padding from 0 to kernel_size - 1 = ", kernel_size - 1, ", got ", padding);
  const int64_t H = x.size(2), W = x.size(3);
  check(H + 2 * padding >= kernel_size && W + 2 * padding >= kernel_size, op,
        ": expected an input of at least ", kernel_size - 2 * padding, "x",
        kernel_size - 2 * padding, " (kernel_size - 2 * padding), got ", H, "x", W);
  check(bias.dim() == 1 && bias.size(0) >= 1, op, ": expected bias of shape [C], got ",
        shape(bias));
  const int64_t C = bias.size(0);
  const int64_t out_H = (H + 2 * padding - kernel_size) / stride + 1;
  const int64_t out_W = (W + 2 * padding - kernel_size) / stride + 1;
  check_packed(op, "weight", weight, C, kernel_size * kernel_size * x.size(1), x);
  check_vector(op, "bias", bias, C, x);
  check_vector(op, "norm_weight", norm_weight, C, x);
  check_vector(op, "norm_bias", norm_bias, C, x);
  if (position.has_value()) {
    check(position->dim() == 2 && position->size(0) == out_H * out_W && position->size(1) == C, op,
          ": expected position of shape [", out_H, " * ", out_W, ", ", C, "], got ",
          shape(*position));
    check_float_or_like(op, "position", *position, x);
  }
  return {x.size(0), x.size(1), H, W, C, out_H, out_W};
}

struct HeadShape {
  int64_t B, C, num_classes;
};

inline HeadShape check_head(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  constexpr const char* op = "head";
  check_floating(op, "x", x);
  check(x.dim() == 2 && x.size(1) >= 1, op, ": expected x of shape [B, C], got ", shape(x));
  const int64_t C = x.size(1);
  check(weight.dim() == 2 && weight.size(0) >= 1 && weight.size(1) == C, op,
        ": expected weight of shape [num_classes, ", C, "], got ", shape(weight));
  check_like(op, "weight", weight, "x", x);
  check_vector(op, "bias", bias, weight.size(0), x);
  return {x.size(0), C, weight.size(0)};
}

struct ResizeShape {
  int64_t in_height, in_width, channels;
  int64_t height, width;                       // of the whole resized image
  int64_t top, left, crop_height, crop_width;  // the window of it that is computed
};

inline ResizeShape check_resize(const Tensor& image, const std::vector<int64_t>& size,
                                const std::string& interpolation,
                                const std::vector<int64_t>& crop) {
  constexpr const char* op = "resize";
  // Pillow's own coordinates are 32-bit; sizes above this are a mistake, not an image.
  constexpr int64_t kMaxSide = 1 << 28;
  check(image.scalar_type() == ScalarType::Byte, op, ": expected image of dtype uint8, got ",
        dtype_name(image.scalar_type()));
  check(image.dim() == 3 && image.size(0) >= 1 && image.size(1) >= 1 && image.size(2) >= 1 &&
            image.size(2) <= 4,
        op, ": expected image of shape [H, W, channels] with 1 to 4 channels, got ", shape(image));
  check(interpolation == "bicubic" || interpolation == "bilinear", op,
        ": expected interpolation 'bicubic' or 'bilinear', got '", interpolation, "'");
  check(size.size() == 2, op, ": expected size as [height, width], got ", size.size(), " values");
  check(size[0] >= 1 && size[1] >= 1 && size[0] <= kMaxSide && size[1] <= kMaxSide, op,
        ": expected size from 1 to ", kMaxSide, ", got [", size[0], ", ", size[1], "]");
  ResizeShape s{image.size(0), image.size(1), image.size(2), size[0], size[1], 0, 0,
                size[0],       size[1]};
  if (!crop.empty()) {
    check(crop.size() == 4, op, ": expected crop as [] or [top, left, height, width], got ",
          crop.size(), " values");
    s.top = crop[0], s.left = crop[1], s.crop_height = crop[2], s.crop_width = crop[3];
    check(s.top >= 0 && s.left >= 0 && s.crop_height >= 1 && s.crop_width >= 1 &&
              s.top <= s.height - s.crop_height && s.left <= s.width - s.crop_width,
          op, ": expected crop inside the resized image [", s.height, ", ", s.width,
          "], got [top, left, height, width] = [", s.top, ", ", s.left, ", ", s.crop_height, ", ",
          s.crop_width, "]");
  }
  return s;
}

}  // namespace pvt
