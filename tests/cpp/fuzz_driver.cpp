// A fuzzer in eighty lines for compilers without libFuzzer: files (or built-in seeds), and random
// but reproducible changes to them, for a given time. Usage: fuzz_decode [--seconds N] [FILE...]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include <png.h>
#include <zlib.h>

#include "temporary.h"
#include "write_image.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size);

namespace {

using pvt_test::Bytes;

// An archive of one entry, "a", as it is or deflated.
Bytes zip_of(const Bytes& content, bool deflated) {
  Bytes packed = content;
  if (deflated) {
    uLongf size = compressBound(content.size());
    packed.resize(size);
    compress(packed.data(), &size, content.data(), content.size());
    packed.resize(size - 4);                           // raw: without zlib's checksum
    packed.erase(packed.begin(), packed.begin() + 2);  // and header
  }
  Bytes zip;
  const auto put = [&zip](uint64_t value, int bytes) {
    for (; bytes > 0; --bytes, value >>= 8) {
      zip.push_back(static_cast<uint8_t>(value));
    }
  };
  // What the entry's own header and the list of entries have in common.
  const auto put_entry = [&] {
    put(0, 2), put(deflated ? 8 : 0, 2), put(0, 4);
    put(crc32_z(0, content.data(), content.size()), 4);
    put(packed.size(), 4), put(content.size(), 4), put(1, 2), put(0, 2);
  };
  put(0x04034b50, 4), put(20, 2), put_entry(), put('a', 1);
  zip.insert(zip.end(), packed.begin(), packed.end());
  const size_t list = zip.size();
  put(0x02014b50, 4), put(20, 2), put(20, 2), put_entry(), put(0, 14), put('a', 1);
  const size_t end = zip.size();
  put(0x06054b50, 4), put(0, 4), put(1, 2), put(1, 2), put(end - list, 4), put(list, 4), put(0, 2);
  return zip;
}

std::vector<Bytes> built_in_seeds() {
  const pvt::Image image = pvt_test::gradient(24, 24);
  const Bytes grey(24 * 24, 1), cmyk(24 * 24 * 4, 99), deep(24 * 24 * 2 * 4, 3);
  const std::string json =
      R"({"format": 1, "library": "pvt_ext", "version": "0.1.0", "torch": "2.13.0",
        "variant": "pvt_small", "num_classes": 1, "in_chans": 3, "img_size": [224, 224],
        "dtype": "float32", "ops": {"version": 1, "required": ["pvt::resize"]},
        "preprocess": {"preset": "paper", "mode": "shorter", "resize": 256, "crop": [224, 224],
        "interpolation": "bicubic", "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]},
        "labels": ["cat"], "weights": {"source": "random"}, "command": null})";
  return {pvt_test::write_jpeg(image.rgb.data(), 24, 24, 3),
          pvt_test::write_jpeg(image.rgb.data(), 24, 24, 3, /*progressive=*/true),
          pvt_test::write_jpeg(grey.data(), 24, 24, 1),
          pvt_test::write_jpeg(cmyk.data(), 24, 24, 4),
          pvt_test::write_png(image.rgb, 24, 24, 8, PNG_COLOR_TYPE_RGB),
          pvt_test::write_png(deep, 24, 24, 16, PNG_COLOR_TYPE_RGB_ALPHA),
          pvt_test::write_png(grey, 24, 24, 8, PNG_COLOR_TYPE_PALETTE, {1, 2, 3, 4, 5, 6}),
          Bytes(json.begin(), json.end()),
          zip_of(grey, /*deflated=*/false),
          zip_of(grey, /*deflated=*/true)};
}

// A few bytes set, a piece cut out or repeated: what breaks parsers most often.
Bytes mutate(Bytes bytes, std::mt19937& random) {
  const auto below = [&](size_t end) { return static_cast<size_t>(random() % (end + 1)); };
  for (size_t changes = 1 + below(3); changes > 0 && !bytes.empty(); --changes) {
    const size_t at = below(bytes.size() - 1);
    const auto where = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    const size_t length = std::min(below(32), bytes.size() - at);
    const auto end = where + static_cast<std::ptrdiff_t>(length);
    switch (random() % 5) {
      case 0:
        bytes[at] ^= static_cast<uint8_t>(1U << (random() % 8));
        break;
      case 1:
        bytes[at] = static_cast<uint8_t>(random() % 3 == 0 ? 0xff : random());
        break;
      case 2:
        bytes.erase(where, end);
        break;
      case 3: {
        const Bytes piece(where, end);
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(below(bytes.size())),
                     piece.begin(), piece.end());
        break;
      }
      default:
        bytes.resize(at);
    }
  }
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 0;
  std::vector<Bytes> seeds;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--seconds") == 0 && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else {
      if (!std::filesystem::is_regular_file(argv[i])) {
        std::fprintf(stderr, "%s: no such file\n", argv[i]);
        return 2;
      }
      const std::string file = pvt_test::read_file(argv[i]);
      seeds.emplace_back(file.begin(), file.end());
    }
  }
  if (seeds.empty()) {
    seeds = built_in_seeds();
  }
  for (const Bytes& seed : seeds) {
    LLVMFuzzerTestOneInput(seed.data(), seed.size());
  }
  std::mt19937 random(1);
  const auto start = std::chrono::steady_clock::now();
  int64_t runs = 0;
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
         seconds) {
    const Bytes bytes = mutate(seeds[static_cast<size_t>(runs) % seeds.size()], random);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    ++runs;
  }
  std::printf("%zu seeds, %lld mutations, nothing found\n", seeds.size(),
              static_cast<long long>(runs));
}
