// An image file's bytes as RGB, value for value what Pillow's Image.open(f).convert("RGB") gives.
// JPEG and PNG, told apart by their content. No torch here.
//
// What Pillow's rules are where a format leaves a choice:
//   alpha, PNG tRNS and an EXIF orientation are ignored; gamma and colour profiles too;
//   PNG grey with 16 bits is clipped at 255, every other 16-bit PNG keeps its high bytes;
//   a palette index beyond the palette is black; JPEG CMYK and YCCK are taken as Adobe's
//   (inverted).
// Stricter than Pillow: these damages of a PNG are errors here. A wrong checksum of image data,
// rows that are missing although the stream ends properly, a palette image without palette, an
// unknown critical chunk, a file cut inside the last bytes of its image data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#define PVT_RUNTIME_API __attribute__((visibility("default")))

namespace pvt {

struct Image {
  int64_t height = 0;
  int64_t width = 0;
  std::vector<uint8_t> rgb;  // [height, width, 3]
};

// One sentence about the bytes; whoever knows the file's name puts it in front.
class PVT_RUNTIME_API DecodeError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Where Pillow raises DecompressionBombError: twice 1 GiB / 4 / 3.
constexpr int64_t kMaxPixels = 2 * 89478485;

PVT_RUNTIME_API Image decode_image(const uint8_t* bytes, size_t size,
                                   int64_t max_pixels = kMaxPixels);

// More than any image of kMaxPixels takes; a larger file is not read into memory.
constexpr int64_t kMaxFileSize = int64_t{2} << 30;

// decode_image of a regular file; errors do not repeat the path. A file that does not start as an
// image does is not read any further.
PVT_RUNTIME_API Image read_image(const std::string& path);

}  // namespace pvt
