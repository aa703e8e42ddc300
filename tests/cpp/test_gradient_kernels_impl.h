// The bodies of the gradients on vectors of exactly the sizes they ask for. Part of a kernel body
// (foreach_level.h).

#include "cpu/dwconv_gelu_impl.h"
#include "cpu/mlp_backward_impl.h"
#include "cpu/spatial_reduction_backward_impl.h"
#include "cpu/sra_attention_backward_impl.h"

// Working memory: whatever is read before it is written spoils the result.
inline std::vector<float> unwritten(int64_t size) {
  return std::vector<float>(size, NAN);
}

struct Gradients {
  // Of one head, in two parts.   q, grad: [rows, head_dim]   kv: [2, kv_len, head_dim]
  static void attention(const std::vector<float>& q, const std::vector<float>& kv,
                        const std::vector<float>& grad, int64_t kv_len, int64_t head_dim,
                        float scale, std::vector<float>& d_q, std::vector<float>& d_kv) {
    const int64_t rows = static_cast<int64_t>(q.size()) / head_dim, half = rows / 2;
    const int64_t row_size = round_up(head_dim, kPanel), part_size = 2 * kv_len * row_size;
    std::vector<float> packed = unwritten(grad_packed_size(kv_len, head_dim));
    std::vector<float> scratch = unwritten(attend_backward_scratch_size(kv_len, head_dim));
    pack_grad_head(kv.data(), kv.data() + kv_len * head_dim, kv_len, head_dim, head_dim,
                   packed.data(), scratch.data());
    d_q = unwritten(rows * head_dim);
    d_kv = unwritten(2 * kv_len * head_dim);
    std::vector<float> parts = unwritten(2 * part_size);
    for (int64_t part = 0; part < 2; ++part) {
      const int64_t at = part * half * head_dim, count = part == 0 ? half : rows - half;
      attend_backward(packed.data(), q.data() + at, head_dim, grad.data() + at, head_dim, count,
                      kv_len, head_dim, scale, d_q.data() + at, head_dim,
                      parts.data() + part * part_size, scratch.data());
    }
    std::vector<float> sum = unwritten(row_size);
    for (int64_t row = 0; row < 2 * kv_len; ++row) {
      add_parts(parts.data() + row * row_size, 2, part_size, head_dim, d_kv.data() + row * head_dim,
                sum.data());
    }
  }

  // In chunks of `capacity` rows.   fc1: [hidden, C]   fc2: [C, hidden]
  //   d_fc1: [C, stride] transposed   d_fc2: [C, stride]   stride: hidden, rounded up to panels
  static int64_t mlp(const std::vector<float>& x, const std::vector<float>& grad,
                     const std::vector<float>& fc1, const std::vector<float>& fc1_bias,
                     const std::vector<float>& fc2, int64_t C, int64_t capacity,
                     std::vector<float>& d_x, std::vector<float>& d_fc1,
                     std::vector<float>& d_fc1_bias, std::vector<float>& d_fc2,
                     std::vector<float>& d_fc2_bias) {
    const int64_t hidden = static_cast<int64_t>(fc1_bias.size());
    const int64_t rows = static_cast<int64_t>(x.size()) / C, stride = round_up(hidden, kPanel);
    std::vector<float> fc1_columns = unwritten(stride * C), fc2_rows = unwritten(stride * C);
    std::vector<float> fc1_rows = unwritten(round_up(C, kPanel) * hidden);
    std::vector<float> four_rows = unwritten(4 * C);
    pack_columns<float>(fc1.data(), hidden, C, C, fc1_columns.data(), four_rows.data());
    pack_rows<float>(fc2.data(), C, hidden, hidden, fc2_rows.data(), C * kPanel);
    pack_rows<float>(fc1.data(), hidden, C, C, fc1_rows.data(), hidden * kPanel);
    const MlpGradArgs args{
        C, hidden, fc1_columns.data(), fc2_rows.data(), fc1_rows.data(), fc1_bias.data()};

    std::vector<float> x_columns = unwritten(C * capacity), grad_columns = unwritten(C * capacity);
    std::vector<float> after = unwritten(stride * capacity), before = unwritten(stride * capacity);
    const MlpGradChunk chunk{capacity, x_columns.data(), grad_columns.data(), after.data(),
                             before.data()};
    std::vector<float> scratch = unwritten(mlp_backward_scratch_size(C));
    d_x = unwritten(rows * C);
    d_fc1 = unwritten(C * stride), d_fc2 = unwritten(C * stride);
    d_fc1_bias = unwritten(stride), d_fc2_bias = unwritten(C);
    for (int64_t begin = 0; begin < rows; begin += capacity) {
      const int64_t count = std::min(capacity, rows - begin);
      for (int64_t first = 0; first < count; first += kMlpGradRows) {
        const int64_t at = (begin + first) * C;
        mlp_backward_rows(args, x.data() + at, grad.data() + at,
                          std::min(kMlpGradRows, count - first), first, &chunk, d_x.data() + at,
                          scratch.data());
      }
      for (int64_t column = 0; column < hidden; column += 64) {
        mlp_backward_columns(args, chunk, count, column, std::min<int64_t>(64, hidden - column),
                             begin > 0, d_fc1.data(), d_fc2.data(), stride, d_fc1_bias.data());
      }
      sum_rows(chunk.grad, capacity, C, count, begin > 0, d_fc2_bias.data());
    }
    // The same without the weights' part.
    std::vector<float> d_x_alone = unwritten(rows * C);
    for (int64_t first = 0; first < rows; first += kMlpGradRows) {
      mlp_backward_rows<float>(args, x.data() + first * C, grad.data() + first * C,
                               std::min(kMlpGradRows, rows - first), first, nullptr,
                               d_x_alone.data() + first * C, scratch.data());
    }
    REQUIRE(d_x_alone == d_x);
    return stride;
  }

  // x: [images, H * W, C]   grad: [windows, C]   weight: [C, C, R, R]
  //   d_weight: [R * R, C, row_size]   d_vectors: [3, row_size], bias, norm_weight, norm_bias
  static int64_t reduction(const std::vector<float>& x, const std::vector<float>& grad, int64_t H,
                           int64_t W, int64_t C, int64_t R, const std::vector<float>& weight,
                           const std::vector<float>& bias, const NormArgs& norm,
                           std::vector<float>& d_x, std::vector<float>& d_weight,
                           std::vector<float>& d_vectors) {
    ReduceGradArgs args;
    args.forward = {W, C, R, H / R, W / R, H * W * C, C, nullptr, bias.data(), norm};
    args.num_tokens = H * W;
    args.num_rows = static_cast<int64_t>(grad.size()) / C;
    args.row_size = round_up(C, kPanel);
    args.column_size = round_up(args.num_rows, 4);

    std::vector<float> packed = unwritten(packed_weight_size<float>(C, R));
    std::vector<float> pack_scratch = unwritten(pack_scratch_size(C, R));
    for (int64_t channel = 0; channel < args.row_size; channel += 4) {
      pack_four_channels(weight.data(), C, R, channel, packed.data(), pack_scratch.data());
    }
    args.forward.weight = packed.data();
    std::vector<float> weight_rows = unwritten(R * R * C * args.row_size);
    std::vector<float> filter = unwritten(filter_scratch_size(C, R));
    for (int64_t channel = 0; channel < C; ++channel) {
      pack_filter_rows(weight.data(), C, R, channel, weight_rows.data(), filter.data());
    }
    args.weight_rows = weight_rows.data();
    std::vector<float> d_conv = unwritten(args.column_size * args.row_size);
    std::vector<float> d_norm = unwritten(2 * args.num_rows * args.row_size);
    std::vector<float> d_conv_columns = unwritten(C * args.column_size);
    args.d_conv = d_conv.data(), args.d_norm = d_norm.data();
    args.d_conv_columns = d_conv_columns.data();

    std::vector<float> scratch = unwritten(reduce_scratch_size(C));
    reduce_rows_backward(args, x.data(), grad.data(), 0, args.num_rows, scratch.data());
    d_x.assign(x.size(), 0.f);
    std::vector<float> rows = unwritten(reduce_x_scratch_size(C));
    for (int64_t begin = 0; begin < args.num_rows; begin += kChunkRows) {
      reduce_x_backward(args, begin, std::min(begin + kChunkRows, args.num_rows), d_x.data(),
                        rows.data());
    }
    for (int64_t row = 0; row < args.num_rows; row += 4) {
      transpose_d_conv(args, row);
    }
    d_weight = unwritten(R * R * C * args.row_size);
    std::vector<float> panels = unwritten(args.num_rows * kWeightColumns);
    for (int64_t t = 0; t < R * R; ++t) {
      for (int64_t column = 0; column < C; column += kWeightColumns) {
        reduce_weight_backward(args, x.data(), t, column, d_weight.data(), panels.data());
      }
    }
    d_vectors = unwritten(3 * args.row_size);
    const float* const parts[3] = {args.d_conv, args.d_norm,
                                   args.d_norm + args.num_rows * args.row_size};
    for (int i = 0; i < 3; ++i) {
      for (int64_t column = 0; column < args.row_size; column += kPanel) {
        sum_columns(parts[i] + column, args.row_size, args.num_rows,
                    d_vectors.data() + i * args.row_size + column);
      }
    }
    return args.row_size;
  }

  // Of one image, tile by tile.   x, grad: [H * W, C]   d_weights: [10, C], taps, then bias
  static void depthwise(const DepthwiseArgs& args, const std::vector<float>& x,
                        const std::vector<float>& grad, std::vector<float>& out,
                        std::vector<float>& d_x, std::vector<float>& d_weights) {
    const int64_t C = args.C;
    out = unwritten(args.H * args.W * C), d_x = out, d_weights = unwritten(10 * C);
    for (int64_t begin = 0; begin < C; begin += kTileColumns) {
      const int64_t columns = std::min<int64_t>(kTileColumns, C - begin);
      std::vector<float> scratch = unwritten(dwconv_scratch_size(args.H, args.W));
      dwconv_gelu_tile(args, x.data(), C, begin, columns, out.data(), scratch.data());
      scratch = unwritten(dwconv_backward_scratch_size(args.H, args.W));
      dwconv_gelu_backward_tile(args, x.data(), C, grad.data(), C, begin, columns, d_x.data(),
                                d_weights.data(), C, scratch.data());
    }
  }
};
