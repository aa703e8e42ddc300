// The two decoders behind decode_image, and the size check they share.
#pragma once

#include "image/decode.h"

namespace pvt {

Image decode_jpeg(const uint8_t* bytes, size_t size, int64_t max_pixels);
Image decode_png(const uint8_t* bytes, size_t size, int64_t max_pixels);

// An image of the given size, or DecodeError when it has no or too many pixels.
Image allocate_image(int64_t height, int64_t width, int64_t max_pixels);

}  // namespace pvt
