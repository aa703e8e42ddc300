// PNG through libpng, which only unpacks and de-interlaces here: the step to RGB is Pillow's and
// differs from libpng's own transformations (see decode.h).
#include <png.h>

#include <algorithm>
#include <cstring>

#include "image/decode_formats.h"

namespace pvt {
namespace {

// libpng reports errors by a longjmp. The functions that can be left that way (read_header,
// read_rows) own nothing with a destructor; this object, which their caller owns, does.
struct PngReader {
  png_structp png = nullptr;
  png_infop info = nullptr;
  const uint8_t* next = nullptr;
  size_t left = 0;
  char message[160] = "";

  uint8_t palette[256 * 3] = {};  // black where the file has no entry
  int depth = 0, color_type = 0, passes = 0;
  int64_t height = 0, width = 0;
  size_t row_size = 0;

  PngReader() = default;
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;
  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
};

[[noreturn]] void exit_on_error(png_structp png, png_const_charp text) {
  auto& reader = *static_cast<PngReader*>(png_get_error_ptr(png));
  const bool truncated = std::strncmp(text, "truncated", 9) == 0;
  std::snprintf(reader.message, sizeof reader.message, "%s%s",
                truncated ? "" : "damaged PNG: ", text);
  png_longjmp(png, 1);
}

void read_bytes(png_structp png, png_bytep out, size_t count) {
  auto& reader = *static_cast<PngReader*>(png_get_io_ptr(png));
  if (count > reader.left) {
    png_error(png, "truncated PNG: the file ends inside the image");
  }
  std::memcpy(out, reader.next, count);
  reader.next += count;
  reader.left -= count;
}

bool read_header(PngReader& reader) {
  reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, exit_on_error,
                                      [](png_structp, png_const_charp) {});
  reader.info = reader.png == nullptr ? nullptr : png_create_info_struct(reader.png);
  if (reader.info == nullptr) {
    std::snprintf(reader.message, sizeof reader.message, "libpng could not be started");
    return false;
  }
  if (setjmp(png_jmpbuf(reader.png)) != 0) {
    return false;
  }
  png_set_read_fn(reader.png, &reader, read_bytes);
  // Sides are limited by their product alone (allocate_image).
  png_set_user_limits(reader.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
  // Texts, profiles and the like change no pixel, so they are skipped, after their checksum.
  png_set_keep_unknown_chunks(reader.png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
  png_set_crc_action(reader.png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  png_read_info(reader.png, reader.info);

  reader.height = png_get_image_height(reader.png, reader.info);
  reader.width = png_get_image_width(reader.png, reader.info);
  reader.depth = png_get_bit_depth(reader.png, reader.info);
  reader.color_type = png_get_color_type(reader.png, reader.info);
  png_colorp colors = nullptr;
  int num_colors = 0;
  png_get_PLTE(reader.png, reader.info, &colors, &num_colors);
  for (int i = 0; i < num_colors && i < 256; ++i) {
    reader.palette[3 * i] = colors[i].red;
    reader.palette[3 * i + 1] = colors[i].green;
    reader.palette[3 * i + 2] = colors[i].blue;
  }
  png_set_packing(reader.png);  // 1, 2 and 4 bits: one pixel per byte
  reader.passes = png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  reader.row_size = png_get_rowbytes(reader.png, reader.info);
  return true;
}

// Samples of one row (16-bit ones with the high byte first) to RGB.
void row_to_rgb(const PngReader& reader, const uint8_t* row, uint8_t* rgb) {
  const int bytes = reader.depth == 16 ? 2 : 1;
  switch (reader.color_type) {
    case PNG_COLOR_TYPE_PALETTE:
      for (int64_t x = 0; x < reader.width; ++x) {
        std::memcpy(rgb + 3 * x, reader.palette + 3 * row[x], 3);
      }
      return;
    case PNG_COLOR_TYPE_GRAY:
      for (int64_t x = 0; x < reader.width; ++x) {
        const uint8_t* pixel = row + x * bytes;
        uint8_t value = pixel[0];
        if (reader.depth == 16) {
          value = pixel[0] == 0 ? pixel[1] : 255;
        } else if (reader.depth < 8) {
          value = static_cast<uint8_t>(value * 255 / ((1 << reader.depth) - 1));
        }
        rgb[3 * x] = rgb[3 * x + 1] = rgb[3 * x + 2] = value;
      }
      return;
    case PNG_COLOR_TYPE_GRAY_ALPHA:
      for (int64_t x = 0; x < reader.width; ++x) {
        rgb[3 * x] = rgb[3 * x + 1] = rgb[3 * x + 2] = row[2 * x * bytes];
      }
      return;
    default: {  // RGB and RGBA
      const int samples = reader.color_type == PNG_COLOR_TYPE_RGB ? 3 : 4;
      for (int64_t x = 0; x < reader.width; ++x) {
        for (int c = 0; c < 3; ++c) {
          rgb[3 * x + c] = row[(x * samples + c) * bytes];
        }
      }
    }
  }
}

// samples: one row, or all rows of an interlaced image, whose passes refine the same rows.
bool read_rows(PngReader& reader, uint8_t* samples, uint8_t* rgb) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) {
    return false;
  }
  for (int pass = 0; pass < reader.passes; ++pass) {
    for (int64_t y = 0; y < reader.height; ++y) {
      uint8_t* row = samples + (reader.passes > 1 ? static_cast<size_t>(y) * reader.row_size : 0);
      png_read_row(reader.png, row, nullptr);
      if (pass == reader.passes - 1) {
        row_to_rgb(reader, row, rgb + y * reader.width * 3);
      }
    }
  }
  // Chunks after the image data are not read, as in Pillow: a missing end is no error.
  return true;
}

}  // namespace

Image decode_png(const uint8_t* bytes, size_t size, int64_t max_pixels) {
  PngReader reader;
  reader.next = bytes;
  reader.left = size;
  if (!read_header(reader)) {
    throw DecodeError(reader.message);
  }
  Image image = allocate_image(reader.height, reader.width, max_pixels);
  const size_t num_rows = reader.passes > 1 ? static_cast<size_t>(reader.height) : 1;
  std::vector<uint8_t> samples(num_rows * reader.row_size);
  if (!read_rows(reader, samples.data(), image.rgb.data())) {
    throw DecodeError(reader.message);
  }
  return image;
}

}  // namespace pvt
