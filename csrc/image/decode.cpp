#include "image/decode.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

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

void check_start(const uint8_t* bytes, size_t size) {
  if (size == 0) {
    throw DecodeError("the file is empty (0 bytes)");
  }
  if (!starts_with(bytes, size, kJpegStart) && !starts_with(bytes, size, kPngStart)) {
    throw DecodeError("not a JPEG or PNG image: the first bytes are " + first_bytes(bytes, size));
  }
}

// Up to `size` bytes; fewer where the file ends.
size_t read_bytes(std::ifstream& file, uint8_t* bytes, size_t size) {
  file.read(reinterpret_cast<char*>(bytes), static_cast<std::streamsize>(size));
  if (file.bad()) {
    throw DecodeError("cannot be read to its end");
  }
  return static_cast<size_t>(file.gcount());
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
  check_start(bytes, size);
  return starts_with(bytes, size, kJpegStart) ? decode_jpeg(bytes, size, max_pixels)
                                              : decode_png(bytes, size, max_pixels);
}

Image read_image(const std::string& path) {
  namespace fs = std::filesystem;
  if (path.find('\0') != std::string::npos) {
    // The system would open what is in front of it.
    throw DecodeError("a path with a NUL byte, which no file has");
  }
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  if (fs::is_directory(status)) {
    throw DecodeError("a directory, not an image file");
  }
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    throw DecodeError("a pipe, device or socket, expected a regular file");
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw DecodeError(std::string("cannot be opened: ") + std::strerror(errno));
  }
  std::vector<uint8_t> bytes(sizeof kPngStart);
  size_t size = read_bytes(file, bytes.data(), bytes.size());
  check_start(bytes.data(), size);

  file.clear();  // of the end of a file with fewer bytes
  file.seekg(0, std::ios::end);
  const auto file_size = static_cast<int64_t>(file.tellg());
  if (file_size > kMaxFileSize) {
    throw DecodeError("file too large: " + std::to_string(file_size) + " bytes, the limit is " +
                      std::to_string(kMaxFileSize));
  }
  bytes.resize(static_cast<size_t>(std::max<int64_t>(file_size, 0)));
  file.seekg(0);
  size = read_bytes(file, bytes.data(), bytes.size());
  return decode_image(bytes.data(), size);
}

}  // namespace pvt
