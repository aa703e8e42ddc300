// Any bytes at all, given to the decoders and to the readers of pvt.json and of zip archives, end
// in a result or in their exception: no crash, no leak, no undefined behaviour.
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>
#include <string_view>

#include <pvt_ext/errors.h>
#include <pvt_ext/metadata.h>

#include "image/decode.h"
#include "zip_checksums.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  // Small, so that time goes into parsing rather than into filling rows.
  constexpr int64_t kPixels = 1 << 16;
  try {
    const pvt::Image image = pvt::decode_image(bytes, size, kPixels);
    if (image.rgb.size() != static_cast<size_t>(image.height * image.width * 3)) {
      std::abort();
    }
  } catch (const pvt::DecodeError&) {
  }
  try {
    pvt::parse_metadata({reinterpret_cast<const char*>(bytes), size});
  } catch (const pvt::ModelError&) {
  }
  std::istringstream archive(std::string(reinterpret_cast<const char*>(bytes), size));
  try {
    pvt::damaged_entry(archive);
  } catch (const pvt::ModelError&) {
  }
  return 0;
}
