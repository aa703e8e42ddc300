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
      "spatial_reduction(Tensor x, SymInt H, SymInt W, Tensor weight, Tensor bias, Tensor "
      "norm_weight, "
      "Tensor norm_bias, int sr_ratio, float eps) -> Tensor");

  // fc2(gelu(fc1(x))), whose hidden tensor is not written to memory.
  //   x: [B, N, C]   fc1_weight: [hidden, C]   fc1_bias: [hidden]   fc2_weight: [C, hidden]
  //   fc2_bias: [C]   ->   [B, N, C]
  m.def(
      "mlp(Tensor x, Tensor fc1_weight, Tensor fc1_bias, Tensor fc2_weight, Tensor fc2_bias) "
      "-> Tensor");

  // gelu(dwconv(x)), or with a ReLU before the depthwise convolution of 3 x 3 tokens with zeros
  // around them: what PVT v2 has between the layers of its MLP.
  //   x: [B, H * W, C]   weight: [C, 1, 3, 3]   bias: [C]   ->   [B, H * W, C]
  m.def(
      "dwconv_gelu(Tensor x, SymInt H, SymInt W, Tensor weight, Tensor bias, bool relu) -> Tensor");

  // The gradients of the four above, for `grad`, that of their result. They keep nothing of the
  // forward pass but its inputs and compute the rest again. What is not needed comes back empty.
  //   -> those of q, kv
  m.def(
      "sra_attention_backward(Tensor grad, Tensor q, Tensor kv, int num_heads, float scale, "
      "bool need_q, bool need_kv) -> (Tensor, Tensor)");
  //   -> those of x, weight, bias, norm_weight, norm_bias
  m.def(
      "spatial_reduction_backward(Tensor grad, Tensor x, SymInt H, SymInt W, Tensor weight, Tensor "
      "bias, "
      "Tensor norm_weight, int sr_ratio, float eps, bool need_x, bool need_weights) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  //   -> those of x, fc1_weight, fc1_bias, fc2_weight, fc2_bias
  m.def(
      "mlp_backward(Tensor grad, Tensor x, Tensor fc1_weight, Tensor fc1_bias, Tensor fc2_weight, "
      "bool need_x, bool need_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");

  //   -> those of x, weight, bias
  m.def(
      "dwconv_gelu_backward(Tensor grad, Tensor x, SymInt H, SymInt W, Tensor weight, Tensor bias, "
      "bool relu, bool need_x, bool need_weights) -> (Tensor, Tensor, Tensor)");

  // The operators below are for inference: whole half-blocks, on weights in panels ("packed
  // [rows, columns]", pvt_ext/packing.py) of x's dtype, or of bfloat16 beside a float32 x, and
  // vectors of float32 or of x's dtype. Those that end in _ overwrite x, which is contiguous.

  // LayerNorm(conv(x)) + position, from pixels or from tokens seen as a feature map.
  //   x: [B, C_in, H, W], any strides
  //   weight: packed [C, kernel_size^2 * C_in], channels innermost
  //   bias, norm_weight, norm_bias: [C]   position: [H' * W', C]
  //   -> [B, H' * W', C],  H' = (H + 2 * padding - kernel_size) / stride + 1, rounded down
  m.def(
      "patch_embed(Tensor x, Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias, "
      "float eps, Tensor? position, int kernel_size, int stride, int padding) -> Tensor");

  // Keys and values of a block: kv(t), where t = LayerNorm(x) without sr_*, else
  // t = LayerNorm(conv(LayerNorm(x))) with kernel = stride = sr_ratio.
  //   x: [B, H * W, C] (without sr_*: [B, N, C], and H, W are 0)   norm_weight, norm_bias: [C]
  //   sr_weight: packed [C, sr_ratio^2 * C], channels innermost   sr_bias, sr_norm_*: [C]
  //   kv_weight: packed [2 * C, C]   kv_bias: [2 * C]
  //   -> [B, kv_len, 2 * C]
  m.def(
      "reduce_kv(Tensor x, SymInt H, SymInt W, Tensor norm_weight, Tensor norm_bias, float eps, "
      "Tensor? sr_weight, Tensor? sr_bias, Tensor? sr_norm_weight, Tensor? sr_norm_bias, "
      "float sr_eps, Tensor kv_weight, Tensor kv_bias, int sr_ratio) -> Tensor");

  // The same with the linear reduction of PVT v2: kv(gelu(LayerNorm(conv(pool(LayerNorm(x))))),
  // where pool is adaptive_avg_pool2d to pool_size x pool_size and conv is 1 x 1.
  //   x: [B, H * W, C]   norm_weight, norm_bias, sr_bias, sr_norm_*: [C]   sr_weight: packed [C, C]
  //   kv_weight: packed [2 * C, C]   kv_bias: [2 * C]   ->   [B, pool_size^2, 2 * C]
  m.def(
      "pool_kv(Tensor x, SymInt H, SymInt W, Tensor norm_weight, Tensor norm_bias, float eps, "
      "int pool_size, Tensor sr_weight, Tensor sr_bias, Tensor sr_norm_weight, "
      "Tensor sr_norm_bias, float sr_eps, Tensor kv_weight, Tensor kv_bias) -> Tensor");

  // x <- x + proj(sra_attention(q(LayerNorm(x)), kv)), in place.
  //   x: [B, N, C]   kv: [B, kv_len, 2 * C]   norm_weight, norm_bias, q_bias, proj_bias: [C]
  //   q_weight, proj_weight: packed [C, C]
  m.def(
      "attention_block_(Tensor(a!) x, Tensor kv, Tensor norm_weight, Tensor norm_bias, float eps, "
      "Tensor q_weight, Tensor q_bias, Tensor proj_weight, Tensor proj_bias, int num_heads, "
      "float scale) -> ()");

  // x <- x + fc2(gelu(fc1(LayerNorm(x)))), in place.
  //   x: [B, N, C]   norm_weight, norm_bias, fc2_bias: [C]   fc1_bias: [hidden]
  //   fc1_weight: packed [hidden, C]   fc2_weight: packed [C, hidden]
  m.def(
      "mlp_block_(Tensor(a!) x, Tensor norm_weight, Tensor norm_bias, float eps, "
      "Tensor fc1_weight, Tensor fc1_bias, Tensor fc2_weight, Tensor fc2_bias) -> ()");

  // x <- x + fc2(gelu(dwconv(fc1(LayerNorm(x))))), in place, or with a ReLU before the depthwise
  // convolution of 3 x 3 tokens with zeros around them.
  //   x: [B, H * W, C]   norm_weight, norm_bias, fc2_bias: [C]   fc1_bias, dwconv_bias: [hidden]
  //   fc1_weight: packed [hidden, C]   dwconv_weight: [3, 3, hidden]
  //   fc2_weight: packed [C, hidden]
  m.def(
      "conv_mlp_block_(Tensor(a!) x, SymInt H, SymInt W, Tensor norm_weight, Tensor norm_bias, "
      "float eps, Tensor fc1_weight, Tensor fc1_bias, bool relu, Tensor dwconv_weight, "
      "Tensor dwconv_bias, Tensor fc2_weight, Tensor fc2_bias) -> ()");

  // x weight^T + bias, the scores of every class; the weight as it is, not packed.
  //   x: [B, C]   weight: [num_classes, C]   bias: [num_classes]   ->   [B, num_classes]
  m.def("head(Tensor x, Tensor weight, Tensor bias) -> Tensor");

  // Pillow's Image.resize, value for value; only the crop window is computed.
  //   image: uint8 [H, W, channels], 1 to 4 channels   size: [height, width]
  //   interpolation: "bicubic" or "bilinear"   crop: [] or [top, left, height, width] of the result
  //   -> uint8 [height, width, channels]
  m.def("resize(Tensor image, int[] size, str interpolation, int[] crop) -> Tensor");
}
