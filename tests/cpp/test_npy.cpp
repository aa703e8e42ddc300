#include <doctest/doctest.h>

#include <cstring>

#include "npy.h"
#include "temporary.h"

using pvt_test::read_file;
using pvt_test::TemporaryFolder;

TEST_CASE("rows appended one batch at a time are one array") {
  const TemporaryFolder folder;
  const std::vector<float> values = {1, 2, 3, 4, 5, -6.5F};
  pvt::NpyWriter writer(folder / "a.npy");
  writer.append(values.data(), 2, {2});
  writer.append(values.data() + 4, 1, {2});
  writer.finish();
  const std::string file = read_file(folder / "a.npy");

  CHECK(file.substr(0, 8) == std::string("\x93NUMPY\x01\x00", 8));
  const size_t header_size = static_cast<uint8_t>(file[8]) + 256 * static_cast<uint8_t>(file[9]);
  CHECK((10 + header_size) % 64 == 0);
  CHECK(file[10 + header_size - 1] == '\n');
  const std::string header = file.substr(10, header_size);
  CHECK(header.rfind("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2,), }", 0) == 0);
  REQUIRE(file.size() == 10 + header_size + values.size() * sizeof(float));
  CHECK(std::memcmp(file.data() + 10 + header_size, values.data(), 24) == 0);
}

TEST_CASE("no rows are an empty array") {
  const TemporaryFolder folder;
  pvt::NpyWriter writer(folder / "a.npy");
  writer.finish();
  CHECK(read_file(folder / "a.npy").find("'shape': (0,)") != std::string::npos);
}

TEST_CASE("a file that was not finished is no array") {
  const TemporaryFolder folder;
  {
    pvt::NpyWriter writer(folder / "a.npy");
    CHECK(read_file(folder / "a.npy").find("shape") == std::string::npos);
    const float value = 1;
    writer.append(&value, 1, {1});
  }
  const std::string file = read_file(folder / "a.npy");
  CHECK(file.size() == 192 + sizeof(float));
  CHECK(file.find("shape") == std::string::npos);
  CHECK(file.find("unfinished") == 10);
}

TEST_CASE("failures name the file") {
  CHECK_THROWS_WITH(pvt::NpyWriter("/no/such/folder/a.npy"),
                    "/no/such/folder/a.npy: cannot be written: No such file or directory");
  const TemporaryFolder folder;
  pvt::NpyWriter writer(folder / "a.npy");
  const float value = 1;
  writer.append(&value, 1, {1});
  CHECK_THROWS(writer.append(&value, 1, {1, 1}));
}

TEST_CASE("a full disk is an error") {
  // /dev/full refuses every write.
  if (std::filesystem::exists("/dev/full")) {
    CHECK_THROWS_WITH(pvt::NpyWriter("/dev/full"),
                      "/dev/full: cannot be written: No space left on device");
  }
}
