// One check per operator, called by every kernel of it (cpu/, aten/), so that each caller meets the
// same sentence: operator, argument, what was expected, what came.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

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

inline std::string shape(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t size : tensor.sizes()) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return text + "]";
}

inline std::string dtype_name(ScalarType dtype) {
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

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
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

struct SraShape {
  int64_t B, N, C, kv_len, num_heads, head_dim;
};

inline SraShape check_sra_attention(const Tensor& q, const Tensor& kv, int64_t num_heads) {
  constexpr const char* op = "sra_attention";
  check(is_floating(q.scalar_type()), op,
        ": expected q of dtype float32, float64, float16 or bfloat16, got ",
        dtype_name(q.scalar_type()));
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
  check(is_floating(x.scalar_type()), op,
        ": expected x of dtype float32, float64, float16 or bfloat16, got ",
        dtype_name(x.scalar_type()));
  check(x.dim() == 3, op, ": expected x of shape [B, H * W, C], got ", shape(x));
  // By division: H * W may not fit.
  check(H >= 1 && W >= 1 && x.size(1) % H == 0 && x.size(1) / H == W, op,
        ": expected x of shape [B, H * W, C] with H = ", H, ", W = ", W, ", got ", shape(x));
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
  check(image.is_cpu(), op, ": expected image on the CPU, got another device");
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
