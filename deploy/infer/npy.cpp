#include "npy.h"

#include <bit>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace pvt {
namespace {

static_assert(std::endian::native == std::endian::little, "'<f4' is written as it is in memory");

// Room for any shape; the format asks for a multiple of 64.
constexpr size_t kHeaderSize = 192;
// What is read where the dictionary should be; NumPy quotes it.
constexpr char kUnfinished[] =
    "unfinished: the program that wrote this file did not get to its end";

[[noreturn]] void fail(const std::string& path) {
  throw std::runtime_error(
      path + ": cannot be written: " + (errno != 0 ? std::strerror(errno) : "unknown error"));
}

}  // namespace

NpyWriter::NpyWriter(const std::string& path) : path_(path) {
  errno = 0;
  file_.open(path, std::ios::binary | std::ios::trunc);
  write_header(kUnfinished);
}

void NpyWriter::write_header(const std::string& text) {
  std::string header("\x93NUMPY\x01\x00", 8);
  header.push_back(static_cast<char>((kHeaderSize - 10) & 0xff));
  header.push_back(static_cast<char>((kHeaderSize - 10) >> 8));
  header.append(text);
  header.resize(kHeaderSize - 1, ' ');
  header.push_back('\n');
  file_.write(header.data(), static_cast<std::streamsize>(header.size()));
  if (!file_.flush()) {
    fail(path_);
  }
}

void NpyWriter::append(const float* values, int64_t rows, const std::vector<int64_t>& row_shape) {
  if (rows_ > 0 && row_shape != row_shape_) {
    throw std::runtime_error(path_ + ": a row of another shape than the rows before it");
  }
  row_shape_ = row_shape;
  rows_ += rows;
  int64_t count = rows;
  for (const int64_t size : row_shape) {
    count *= size;
  }
  errno = 0;
  file_.write(reinterpret_cast<const char*>(values),
              static_cast<std::streamsize>(count * static_cast<int64_t>(sizeof(float))));
  if (!file_) {
    fail(path_);
  }
}

void NpyWriter::finish() {
  std::string shape = std::to_string(rows_) + ",";
  for (const int64_t size : row_shape_) {
    shape.append(" ").append(std::to_string(size)).append(",");
  }
  errno = 0;
  file_.seekp(0);
  write_header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + shape + "), }");
}

}  // namespace pvt
