// JPEG through libjpeg-turbo with its defaults (accurate integer DCT, smooth chroma upsampling),
// which are Pillow's. As in Pillow, libjpeg's warnings about damaged entropy data are passed over,
// while a file that ends early is an error.
#include <cstdio>

#include <jpeglib.h>

#include <csetjmp>

#include "image/decode_formats.h"

namespace pvt {
namespace {

// libjpeg reports errors by a longjmp to `on_error`. The functions that can be left that way
// (read_header, read_rows) own nothing with a destructor; this object, which their caller owns,
// does.
struct JpegReader {
  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr source{};
  std::jmp_buf on_error;
  char message[JMSG_LENGTH_MAX] = "";

  JpegReader() = default;
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;
  ~JpegReader() { jpeg_destroy_decompress(&jpeg); }
};

constexpr char kTruncated[] = "truncated JPEG: the file ends inside the image";

void fail(JpegReader& reader, const char* message) {
  std::snprintf(reader.message, sizeof reader.message, "%s", message);
}

void exit_on_error(j_common_ptr common) {
  auto& reader = *static_cast<JpegReader*>(common->client_data);
  char text[JMSG_LENGTH_MAX];
  common->err->format_message(common, text);
  std::snprintf(reader.message, sizeof reader.message, "damaged JPEG: %.*s",
                static_cast<int>(sizeof reader.message - 16), text);
  std::longjmp(reader.on_error, 1);
}

void skip_bytes(j_decompress_ptr jpeg, long count) {
  if (count > 0) {
    const size_t left = jpeg->src->bytes_in_buffer;
    const size_t step = static_cast<size_t>(count) < left ? static_cast<size_t>(count) : left;
    jpeg->src->next_input_byte += step;
    jpeg->src->bytes_in_buffer -= step;
  }
}

void set_source(JpegReader& reader, const uint8_t* bytes, size_t size) {
  jpeg_source_mgr& source = reader.source;
  source.next_input_byte = bytes;
  source.bytes_in_buffer = size;
  source.init_source = [](j_decompress_ptr) {};
  // "No more for now": libjpeg stops where it is, which tells a truncated file from a damaged one.
  source.fill_input_buffer = [](j_decompress_ptr) -> boolean { return FALSE; };
  source.skip_input_data = skip_bytes;
  source.resync_to_restart = jpeg_resync_to_restart;
  source.term_source = [](j_decompress_ptr) {};
  reader.jpeg.src = &source;
}

bool read_header(JpegReader& reader, const uint8_t* bytes, size_t size) {
  reader.jpeg.err = jpeg_std_error(&reader.errors);
  reader.errors.error_exit = exit_on_error;
  reader.errors.output_message = [](j_common_ptr) {};
  reader.jpeg.client_data = &reader;
  if (setjmp(reader.on_error) != 0) {
    return false;
  }
  jpeg_create_decompress(&reader.jpeg);
  set_source(reader, bytes, size);
  if (jpeg_read_header(&reader.jpeg, TRUE) != JPEG_HEADER_OK) {
    fail(reader, kTruncated);
    return false;
  }
  return true;
}

void grey_to_rgb(const uint8_t* row, int64_t width, uint8_t* rgb) {
  for (int64_t x = 0; x < width; ++x) {
    rgb[3 * x] = rgb[3 * x + 1] = rgb[3 * x + 2] = row[x];
  }
}

// Adobe's files hold 255 - ink, so `row` is already the light that each ink lets through.
void cmyk_to_rgb(const uint8_t* row, int64_t width, uint8_t* rgb) {
  for (int64_t x = 0; x < width; ++x) {
    const int light = row[4 * x + 3];
    for (int c = 0; c < 3; ++c) {
      const int product = (255 - row[4 * x + c]) * light + 128;
      // product / 255, rounded; at most `light`.
      rgb[3 * x + c] = static_cast<uint8_t>(light - (((product >> 8) + product) >> 8));
    }
  }
}

// row: room for one row of `components` channels.
bool read_rows(JpegReader& reader, uint8_t* row, uint8_t* rgb) {
  if (setjmp(reader.on_error) != 0) {
    return false;
  }
  jpeg_decompress_struct& jpeg = reader.jpeg;
  const int components = jpeg.num_components;
  jpeg.out_color_space = components == 1 ? JCS_GRAYSCALE : components == 3 ? JCS_RGB : JCS_CMYK;
  bool complete = jpeg_start_decompress(&jpeg) == TRUE;
  const auto width = static_cast<int64_t>(jpeg.image_width);
  while (complete && jpeg.output_scanline < jpeg.output_height) {
    uint8_t* out = rgb + static_cast<int64_t>(jpeg.output_scanline) * width * 3;
    JSAMPROW target = components == 3 ? out : row;
    complete = jpeg_read_scanlines(&jpeg, &target, 1) == 1;
    if (complete && components == 1) {
      grey_to_rgb(row, width, out);
    } else if (complete && components == 4) {
      cmyk_to_rgb(row, width, out);
    }
  }
  // The end marker counts: Pillow refuses a file without it.
  if (!complete || jpeg_finish_decompress(&jpeg) != TRUE) {
    fail(reader, kTruncated);
    return false;
  }
  return true;
}

}  // namespace

Image decode_jpeg(const uint8_t* bytes, size_t size, int64_t max_pixels) {
  JpegReader reader;
  if (!read_header(reader, bytes, size)) {
    throw DecodeError(reader.message);
  }
  const int components = reader.jpeg.num_components;
  if (components != 1 && components != 3 && components != 4) {
    throw DecodeError("JPEG with " + std::to_string(components) +
                      " components, expected 1 (grey), 3 (colour) or 4 (CMYK)");
  }
  Image image = allocate_image(reader.jpeg.image_height, reader.jpeg.image_width, max_pixels);
  std::vector<uint8_t> row(static_cast<size_t>(image.width * components));
  if (!read_rows(reader, row.data(), image.rgb.data())) {
    throw DecodeError(reader.message);
  }
  return image;
}

}  // namespace pvt
