// What exists: every operator with its shapes. Kernels register themselves at the foot of their
// own file (cpu/, aten/); fakes and gradients are in pvt_ext/ops.py; the meaning of each operator
// in plain PyTorch is in pvt_ext/reference.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pvt, m) {
  // softmax(scale * q k^T) v for every head; C = num_heads * head_dim.
  //   q: [B, N, C]   kv: [B, kv_len, 2 * C], k then v   ->   [B, N, C]
  m.def("sra_attention(Tensor q, Tensor kv, int num_heads, float scale) -> Tensor");

  // LayerNorm(conv(x)) with kernel = stride = sr_ratio and no padding, straight from tokens.
  //   x: [B, H * W, C]   weight: [C, C, sr_ratio, sr_ratio]   bias, norm_weight, norm_bias: [C]
  //   -> [B, (H / sr_ratio) * (W / sr_ratio), C], rounded down
  m.def(
      "spatial_reduction(Tensor x, int H, int W, Tensor weight, Tensor bias, Tensor norm_weight, "
      "Tensor norm_bias, int sr_ratio, float eps) -> Tensor");

  // Pillow's Image.resize, value for value; only the crop window is computed.
  //   image: uint8 [H, W, channels], 1 to 4 channels   size: [height, width]
  //   interpolation: "bicubic" or "bilinear"   crop: [] or [top, left, height, width] of the result
  //   -> uint8 [height, width, channels]
  m.def("resize(Tensor image, int[] size, str interpolation, int[] crop) -> Tensor");
}
