// The bodies of the packed operators on vectors of exactly the sizes they ask for. Part of a kernel
// body (foreach_level.h).

#include "cpu/attention_block_impl.h"
#include "cpu/conv_mlp_block_impl.h"
#include "cpu/convolve_impl.h"
#include "cpu/head_impl.h"
#include "cpu/mlp_block_impl.h"
#include "cpu/pool_kv_impl.h"

// Working memory: whatever is read before it is written spoils the result.
inline std::vector<float> memory(int64_t size) {
  return std::vector<float>(size, NAN);
}

struct Bodies {
  template <class scalar_t>
  static void mlp_by_rows(const MlpArgs& args, std::vector<float>& x, int64_t rows) {
    std::vector<float> scratch = memory(mlp_scratch_size<scalar_t>(rows, args.C));
    mlp_rows<scalar_t>(args, x.data(), rows, scratch.data());
  }

  template <class scalar_t>
  static void mlp_by_columns(const MlpArgs& args, std::vector<float>& x, int64_t rows) {
    constexpr int64_t width = kGeluColumns<scalar_t>;
    const int64_t hidden_units = row_units<scalar_t>(args.hidden);
    std::vector<float> tokens = memory(rows * row_units<scalar_t>(args.C));
    layer_norm_to_units<scalar_t>(x.data(), args.C, rows, args.C, args.norm, tokens.data());
    std::vector<float> hidden = memory(rows * hidden_units);
    for (int64_t j = 0; j < args.hidden; j += width) {
      std::vector<float> sums = memory(kHiddenScratchSize<scalar_t>);
      hidden_columns<scalar_t>(args, tokens.data(), rows, j, std::min(width, args.hidden - j),
                               hidden.data() + row_units<scalar_t>(j), hidden_units, sums.data(),
                               first_panels<scalar_t>(args.fc1, args.C, args.hidden, j + width, 0),
                               nullptr);
    }
    project<scalar_t>(args, hidden, rows, x);
  }

  template <class scalar_t>
  static void project(const MlpArgs& args, const std::vector<float>& hidden, int64_t rows,
                      std::vector<float>& x) {
    constexpr int64_t width = kMostColumns<scalar_t>;
    for (int64_t j = 0; j < args.C; j += width) {
      const int64_t columns = std::min(width, args.C - j);
      std::vector<float> sums = memory(rows * round_up(columns, kPanel));
      residual_columns<scalar_t>(args.fc2, hidden.data(), rows, args.hidden, j, columns, args.C,
                                 j + width, x.data(), sums.data());
    }
  }

  template <class scalar_t>
  static void conv_mlp_in_bands(const ConvMlpArgs& args, std::vector<float>& x, int64_t bands) {
    const std::vector<float> before = x;
    const int64_t row_size = args.W * args.mlp.C;
    for (int64_t band = 0; band < bands; ++band) {
      const int64_t begin = band * args.H / bands, end = (band + 1) * args.H / bands;
      std::vector<float> scratch = memory(conv_mlp_scratch_size<scalar_t>(args, end - begin));
      conv_mlp_band<scalar_t>(
          args,
          {x.data(), begin, end, begin > 0 ? before.data() + (begin - 1) * row_size : nullptr,
           end < args.H ? before.data() + end * row_size : nullptr},
          scratch.data());
    }
  }

  template <class scalar_t>
  static void conv_mlp_by_columns(const ConvMlpArgs& args, std::vector<float>& x) {
    const MlpArgs& mlp = args.mlp;
    constexpr int64_t width = kConvolvedColumns<scalar_t>;
    const int64_t rows = args.H * args.W, hidden_units = row_units<scalar_t>(mlp.hidden);
    std::vector<float> tokens = memory(rows * row_units<scalar_t>(mlp.C));
    std::vector<float> hidden = memory(rows * hidden_units);
    layer_norm_to_units<scalar_t>(x.data(), mlp.C, rows, mlp.C, mlp.norm, tokens.data());
    for (int64_t j = 0; j < mlp.hidden; j += width) {
      std::vector<float> scratch = memory(conv_columns_scratch_size<scalar_t>(args, 1));
      hidden_columns_of_images<scalar_t>(args, tokens.data(), 1, j, std::min(width, mlp.hidden - j),
                                         hidden.data() + row_units<scalar_t>(j), hidden_units,
                                         scratch.data());
    }
    project<scalar_t>(mlp, hidden, rows, x);
  }

  template <class scalar_t>
  static void attention(const AttentionArgs& args, const std::vector<float>& kv,
                        std::vector<float>& x, int64_t rows) {
    using Type = AttentionType<scalar_t>;
    const int64_t head_size = packed_head_size<Type>(args.kv_len, args.head_dim);
    std::vector<float> packed = memory(args.num_heads * head_size);
    for (int64_t h = 0; h < args.num_heads; ++h) {
      std::vector<float> keys = memory(prepare_scratch_size<Type>(args.head_dim));
      const float* k = kv.data() + h * args.head_dim;
      pack_head<Type>(k, k + args.C, args.kv_len, args.head_dim, 2 * args.C,
                      packed.data() + h * head_size, keys.data());
    }
    std::vector<float> scratch = memory(attention_scratch_size<scalar_t>(args, rows));
    attention_rows<scalar_t>(args, packed.data(), x.data(), rows, scratch.data());
  }

  template <class scalar_t>
  static void folded_attention(const AttentionArgs& args, const std::vector<float>& kv,
                               std::vector<float>& x, int64_t rows) {
    std::vector<float> folded = memory(folded_size<scalar_t>(args));
    for (int64_t h = 0; h < args.num_heads; ++h) {
      std::vector<float> query_rows = memory(args.C * args.head_dim);
      std::vector<float> scratch = memory(fold_scratch_size<scalar_t>(args));
      const float* k = kv.data() + h * args.head_dim;
      unpack_query_weight<scalar_t>(args, h, query_rows.data());
      fold_keys<scalar_t>(args, h, query_rows.data(), k, 2 * args.C, folded.data(), scratch.data());
      fold_values<scalar_t>(args, h, k + args.C, 2 * args.C, folded.data(), scratch.data());
    }
    std::vector<float> scratch = memory(folded_scratch_size<scalar_t>(args, rows));
    folded_attention_rows<scalar_t>(args, folded.data(), x.data(), rows, scratch.data());
  }

  static std::vector<float> pool(const PoolArgs& args, const std::vector<float>& x) {
    const int64_t P = args.pool_size;
    std::vector<float> out = memory(P * P * args.C);
    for (int64_t cell = 0; cell < P * P; ++cell) {
      std::vector<float> scratch = memory(pool_scratch_size(args));
      pool_cell(args, x.data(), cell / P, cell % P, out.data() + cell * args.C, scratch.data());
    }
    return out;
  }

  // In two parts, as two threads do it.
  static std::vector<float> head(const std::vector<float>& x, int64_t rows, int64_t C,
                                 const std::vector<float>& weight, const std::vector<float>& bias) {
    const int64_t size = int64_t(bias.size());
    const int64_t middle = std::min<int64_t>(size, (size / 2 + 3) / 4 * kHeadColumns);
    std::vector<float> out = memory(rows * size);
    head_columns(x.data(), rows, C, weight.data(), bias.data(), 0, middle, size, out.data());
    head_columns(x.data(), rows, C, weight.data(), bias.data(), middle, size, size, out.data());
    return out;
  }

  template <class scalar_t>
  static std::vector<float> convolve(const PatchArgs& args, const std::vector<float>& x,
                                     int64_t rows) {
    const int64_t stride = round_up(args.C_out, kPanel);
    std::vector<float> sums = memory(rows * stride), out;
    std::vector<float> scratch = memory(convolve_scratch_size<scalar_t>(args, rows));
    convolve_rows<scalar_t>(args, x.data(), 0, rows, 0, stride, sums.data(), stride,
                            scratch.data());
    complete<scalar_t>(args.conv, 0, args.C_out, rows, sums.data(), stride);
    for (int64_t i = 0; i < rows; ++i) {
      out.insert(out.end(), sums.begin() + i * stride, sums.begin() + i * stride + args.C_out);
    }
    return out;
  }
};
