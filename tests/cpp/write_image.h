// JPEG and PNG files for the tests, written by libjpeg and libpng.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "image/decode.h"

namespace pvt_test {

using Bytes = std::vector<uint8_t>;

// Smooth colours, a different one in every corner.
inline pvt::Image gradient(int64_t height, int64_t width) {
  pvt::Image image{height, width, {}};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      image.rgb.push_back(static_cast<uint8_t>(255 * x / width));
      image.rgb.push_back(static_cast<uint8_t>(255 * y / height));
      image.rgb.push_back(static_cast<uint8_t>(128));
    }
  }
  return image;
}

// samples: [height, width, 1 (grey), 3 (RGB) or 4 (CMYK)]
Bytes write_jpeg(const uint8_t* samples, int64_t height, int64_t width, int channels,
                 bool progressive = false);

// color_type: libpng's; samples: rows of the packed format (16 bits: high byte first).
// palette: three bytes per entry, for a palette image.
Bytes write_png(const Bytes& samples, int64_t height, int64_t width, int depth, int color_type,
                const Bytes& palette = {});

}  // namespace pvt_test
