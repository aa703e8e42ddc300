// Decoding by itself. That every pixel equals Pillow's, over many more files, is tested from Python
// (tests/test_deploy.py).
#include <doctest/doctest.h>
#include <png.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "image/decode.h"
#include "temporary.h"
#include "write_image.h"

using pvt_test::Bytes;
using pvt_test::gradient;
using pvt_test::TemporaryFolder;
using pvt_test::write_file;
using pvt_test::write_jpeg;
using pvt_test::write_png;

namespace {

pvt::Image decode(const Bytes& bytes) {
  return pvt::decode_image(bytes.data(), bytes.size());
}

std::string error_of(const Bytes& bytes, int64_t max_pixels = pvt::kMaxPixels) {
  try {
    pvt::decode_image(bytes.data(), bytes.size(), max_pixels);
  } catch (const pvt::DecodeError& error) {
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, const std::string& part) {
  INFO(text);
  CHECK(text.find(part) != std::string::npos);
  return text.find(part) != std::string::npos;
}

int max_difference(const Bytes& a, const Bytes& b) {
  REQUIRE(a.size() == b.size());
  int largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(a[i] - b[i]));
  }
  return largest;
}

}  // namespace

TEST_CASE("PNG RGB comes back as it went in") {
  const pvt::Image image = gradient(13, 17);
  const pvt::Image decoded = decode(write_png(image.rgb, 13, 17, 8, PNG_COLOR_TYPE_RGB));
  CHECK(decoded.height == 13);
  CHECK(decoded.width == 17);
  CHECK(decoded.rgb == image.rgb);
}

TEST_CASE("PNG grey of 16 bits is clipped, RGB of 16 bits keeps its high bytes") {
  const Bytes grey = {0x00, 0x00, 0x00, 0x7f, 0x00, 0xff, 0x01, 0x00, 0xff, 0xff};
  CHECK(decode(write_png(grey, 1, 5, 16, PNG_COLOR_TYPE_GRAY)).rgb ==
        Bytes{0, 0, 0, 127, 127, 127, 255, 255, 255, 255, 255, 255, 255, 255, 255});
  const Bytes rgb = {0x00, 0xff, 0x12, 0x34, 0xff, 0x00};
  CHECK(decode(write_png(rgb, 1, 1, 16, PNG_COLOR_TYPE_RGB)).rgb == Bytes{0, 0x12, 0xff});
}

TEST_CASE("PNG grey of 1, 2 and 4 bits spans 0 to 255") {
  CHECK(decode(write_png({0b01000000}, 1, 2, 1, PNG_COLOR_TYPE_GRAY)).rgb ==
        Bytes{0, 0, 0, 255, 255, 255});
  CHECK(decode(write_png({0b00011011}, 1, 4, 2, PNG_COLOR_TYPE_GRAY)).rgb ==
        Bytes{0, 0, 0, 85, 85, 85, 170, 170, 170, 255, 255, 255});
  CHECK(decode(write_png({0x1f}, 1, 2, 4, PNG_COLOR_TYPE_GRAY)).rgb ==
        Bytes{17, 17, 17, 255, 255, 255});
}

TEST_CASE("a PNG palette index without an entry is black") {
  const Bytes palette = {10, 20, 30, 40, 50, 60};
  CHECK(decode(write_png({1, 0, 2, 255}, 1, 4, 8, PNG_COLOR_TYPE_PALETTE, palette)).rgb ==
        Bytes{40, 50, 60, 10, 20, 30, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("PNG alpha is dropped, not blended") {
  CHECK(decode(write_png({1, 2, 3, 0}, 1, 1, 8, PNG_COLOR_TYPE_RGB_ALPHA)).rgb == Bytes{1, 2, 3});
  CHECK(decode(write_png({9, 0}, 1, 1, 8, PNG_COLOR_TYPE_GRAY_ALPHA)).rgb == Bytes{9, 9, 9});
}

TEST_CASE("JPEG comes back close to what went in, baseline and progressive alike") {
  const pvt::Image image = gradient(48, 40);
  const Bytes baseline = write_jpeg(image.rgb.data(), 48, 40, 3);
  const Bytes progressive = write_jpeg(image.rgb.data(), 48, 40, 3, /*progressive=*/true);
  CHECK(max_difference(decode(baseline).rgb, image.rgb) <= 12);
  CHECK(decode(baseline).rgb == decode(progressive).rgb);
}

TEST_CASE("JPEG grey fills three channels") {
  const Bytes grey(64, 90);
  CHECK(decode(write_jpeg(grey.data(), 8, 8, 1)).rgb == Bytes(64 * 3, 90));
}

TEST_CASE("JPEG CMYK is taken as inverted") {
  // Such a file holds 255 - ink: no cyan, magenta 100, all of yellow, black 55.
  Bytes cmyk, expected;
  for (int i = 0; i < 64; ++i) {
    cmyk.insert(cmyk.end(), {255, 155, 0, 200});
    expected.insert(expected.end(), {200, 122, 0});  // 200 - 200 * ink / 255
  }
  CHECK(max_difference(decode(write_jpeg(cmyk.data(), 8, 8, 4)).rgb, expected) <= 1);
}

TEST_CASE("what is no image is said to be none") {
  contains(error_of({}), "0 bytes");
  contains(error_of({'G', 'I', 'F', '8', '9', 'a'}), "first bytes are 47 49 46 38 39 61");
  contains(error_of({0xff}), "not a JPEG or PNG");
}

TEST_CASE("every truncation of a file is an error or, after its last row, the whole image") {
  const pvt::Image image = gradient(16, 16);
  const Bytes jpeg = write_jpeg(image.rgb.data(), 16, 16, 3);
  const Bytes progressive = write_jpeg(image.rgb.data(), 16, 16, 3, true);
  for (const Bytes& file : {jpeg, progressive}) {
    for (size_t size = 3; size < file.size(); ++size) {
      INFO(size);
      const std::string error = error_of(Bytes(file.begin(), file.begin() + long(size)));
      CHECK(error == "truncated JPEG: the file ends inside the image");
    }
  }
  const Bytes png = write_png(image.rgb, 16, 16, 8, PNG_COLOR_TYPE_RGB);
  constexpr size_t kEnd = 12;  // IEND, which carries nothing
  for (size_t size = 8; size < png.size() - kEnd; ++size) {
    INFO(size);
    const std::string error = error_of(Bytes(png.begin(), png.begin() + long(size)));
    CHECK(error == "truncated PNG: the file ends inside the image");
  }
  CHECK(decode(Bytes(png.begin(), png.end() - kEnd)).rgb == image.rgb);
}

TEST_CASE("a wrong checksum in a PNG is an error") {
  Bytes png = write_png(gradient(8, 8).rgb, 8, 8, 8, PNG_COLOR_TYPE_RGB);
  const size_t idat_checksum = png.size() - 12 - 1;
  png[idat_checksum] ^= 1;
  contains(error_of(png), "damaged PNG");
  png[idat_checksum] ^= 1;
  png[29] ^= 1;  // of the header
  contains(error_of(png), "damaged PNG");
}

TEST_CASE("the size is checked before memory is asked for") {
  const Bytes png = write_png(gradient(8, 8).rgb, 8, 8, 8, PNG_COLOR_TYPE_RGB);
  CHECK(error_of(png, 63) == "image too large: 8 x 8 pixels, the limit is 63 in all");
  CHECK(error_of(png, 64) == "no error");
  Bytes jpeg = write_jpeg(gradient(8, 8).rgb.data(), 8, 8, 3);
  const Bytes start_of_frame = {0xff, 0xc0};
  const auto frame =
      std::search(jpeg.begin(), jpeg.end(), start_of_frame.begin(), start_of_frame.end());
  REQUIRE(frame != jpeg.end());
  for (int i = 5; i < 9; ++i) {
    frame[i] = 0xf0;  // 61680 x 61680
  }
  CHECK(error_of(jpeg) == "image too large: 61680 x 61680 pixels, the limit is 178956970 in all");
}

TEST_CASE("a JPEG with two components is refused") {
  Bytes jpeg = write_jpeg(gradient(8, 8).rgb.data(), 8, 8, 3);
  const auto find = [&](uint8_t marker) {
    const Bytes start = {0xff, marker};
    const auto found = std::search(jpeg.begin(), jpeg.end(), start.begin(), start.end());
    REQUIRE(found != jpeg.end());
    return found;
  };
  // Both markers: length, then (after five bytes of sizes in the frame) a count and the components.
  const auto frame = find(0xc0);
  frame[3] = 14;
  frame[9] = 2;
  jpeg.erase(frame + 16, frame + 19);
  const auto scan = find(0xda);
  scan[3] = 10;
  scan[4] = 2;
  jpeg.erase(scan + 9, scan + 11);
  CHECK(error_of(jpeg) == "JPEG with 2 components, expected 1 (grey), 3 (colour) or 4 (CMYK)");
}

TEST_CASE("a file that cannot be read says why") {
  CHECK_THROWS_WITH_AS(pvt::read_image("no/such/file.jpg"),
                       "cannot be opened: No such file or directory", pvt::DecodeError);
  const std::string directory = std::filesystem::temp_directory_path().string();
  CHECK_THROWS_WITH_AS(pvt::read_image(directory), "a directory, not an image file",
                       pvt::DecodeError);
}

TEST_CASE("a path does not end at a NUL byte") {
  const TemporaryFolder folder;
  const Bytes png = write_png(gradient(9, 7).rgb, 9, 7, 8, PNG_COLOR_TYPE_RGB);
  write_file(folder / "a.png", {png.begin(), png.end()});
  CHECK_THROWS_WITH_AS(pvt::read_image((folder / "a.png") + '\0' + "b.png"),
                       "a path with a NUL byte, which no file has", pvt::DecodeError);
}

TEST_CASE("what is no regular file is refused without reading it") {
  constexpr char kMessage[] = "a pipe, device or socket, expected a regular file";
  CHECK_THROWS_WITH_AS(pvt::read_image("/dev/null"), kMessage, pvt::DecodeError);
  const TemporaryFolder folder;
  const std::string pipe = folder / "pipe.jpg";
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  CHECK_THROWS_WITH_AS(pvt::read_image(pipe), kMessage, pvt::DecodeError);
}

TEST_CASE("a large file that does not start as an image is not read") {
  const auto peak = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;  // KiB
  };
  const TemporaryFolder folder;
  write_file(folder / "zeros.jpg", "");
  std::filesystem::resize_file(folder / "zeros.jpg", uint64_t{256} << 20);
  const long before = peak();
  CHECK_THROWS_WITH_AS(pvt::read_image(folder / "zeros.jpg"),
                       "not a JPEG or PNG image: the first bytes are 00 00 00 00 00 00 00 00",
                       pvt::DecodeError);
  CHECK(peak() - before < 64 << 10);
}

TEST_CASE("a file above the limit is refused whatever it is") {
  const TemporaryFolder folder;
  write_file(folder / "huge.jpg", "\xff\xd8\xff");
  std::filesystem::resize_file(folder / "huge.jpg", (uint64_t{2} << 30) + 1);
  CHECK_THROWS_WITH_AS(pvt::read_image(folder / "huge.jpg"),
                       "file too large: 2147483649 bytes, the limit is 2147483648",
                       pvt::DecodeError);
}

TEST_CASE("a file gives the image that its bytes give, or their error") {
  const TemporaryFolder folder;
  const Bytes png = write_png(gradient(9, 7).rgb, 9, 7, 8, PNG_COLOR_TYPE_RGB);
  write_file(folder / "a.png", {png.begin(), png.end()});
  CHECK(pvt::read_image(folder / "a.png").rgb == gradient(9, 7).rgb);
  write_file(folder / "short.jpg", "\xff\xd8\xff");
  CHECK_THROWS_WITH_AS(pvt::read_image(folder / "short.jpg"),
                       "truncated JPEG: the file ends inside the image", pvt::DecodeError);
  write_file(folder / "empty.jpg", "");
  CHECK_THROWS_WITH_AS(pvt::read_image(folder / "empty.jpg"), "the file is empty (0 bytes)",
                       pvt::DecodeError);
}
