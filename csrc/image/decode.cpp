#include "image/decode.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "image/decode_formats.h"

namespace pvt {
namespace {

constexpr uint8_t kJpegStart[] = {0xff, 0xd8, 0xff};
constexpr uint8_t kPngStart[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

template <size_t kLength>
bool starts_with(const uint8_t* bytes, size_t size, const uint8_t (&start)[kLength]) {
  return size >= kLength && std::memcmp(bytes, start, kLength) == 0;
}

std::string first_bytes(const uint8_t* bytes, size_t size) {
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(size, 8); ++i) {
    char hex[4];
    std::snprintf(hex, sizeof hex, i == 0 ? "%02x" : " %02x", bytes[i]);
    text += hex;
  }
  return text;
}

}  // namespace

Image allocate_image(int64_t height, int64_t width, int64_t max_pixels) {
  const std::string size = std::to_string(width) + " x " + std::to_string(height);
  if (height < 1 || width < 1) {
    throw DecodeError("an image of " + size + " pixels has nothing in it");
  }
  // Both sides are below 2^31, so the product fits.
  if (height * width > max_pixels) {
    throw DecodeError("image too large: " + size + " pixels, the limit is " +
                      std::to_string(max_pixels) + " in all");
  }
  return {height, width, std::vector<uint8_t>(static_cast<size_t>(height * width) * 3)};
}

Image decode_image(const uint8_t* bytes, size_t size, int64_t max_pixels) {
  if (size == 0) {
    throw DecodeError("the file is empty (0 bytes)");
  }
  if (starts_with(bytes, size, kJpegStart)) {
    return decode_jpeg(bytes, size, max_pixels);
  }
  if (starts_with(bytes, size, kPngStart)) {
    return decode_png(bytes, size, max_pixels);
  }
  throw DecodeError("not a JPEG or PNG image: the first bytes are " + first_bytes(bytes, size));
}

Image read_image(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    throw DecodeError("a directory, not an image file");
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw DecodeError(std::string("cannot be opened: ") + std::strerror(errno));
  }
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) {
    throw DecodeError("cannot be read to its end");
  }
  return decode_image(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

}  // namespace pvt
