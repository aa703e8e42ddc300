// NumPy's .npy format, version 1.0, float32. No torch here.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

namespace pvt {

// Rows of one shape, appended as they come; the number of rows is filled in at the end, so nothing
// is kept in memory, and until then no reader takes the file for an array. Every failure to write
// is a std::runtime_error that names the file.
class NpyWriter {
 public:
  explicit NpyWriter(const std::string& path);

  // values: rows * (product of row_shape) numbers. row_shape must be the same at every call.
  void append(const float* values, int64_t rows, const std::vector<int64_t>& row_shape);

  // Completes the file. Without any row its shape is [0].
  void finish();

  int64_t rows() const { return rows_; }
  const std::string& path() const { return path_; }

 private:
  void write_header(const std::string& text);

  std::string path_;
  std::ofstream file_;
  int64_t rows_ = 0;
  std::vector<int64_t> row_shape_;
};

}  // namespace pvt
