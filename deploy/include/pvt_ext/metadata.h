// What a model file says about itself: its entry `pvt.json`. No torch here.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <pvt_ext/decode.h>

namespace pvt {

struct PVT_RUNTIME_API Metadata {
  struct Preprocess {
    std::string preset;  // "paper", "timm" or "hf"
    std::string mode;  // "shorter": shorter side to `resize`, then crop; "squash": straight to crop
    int64_t resize = 0;
    std::array<int64_t, 2> crop{};  // height, width
    std::string interpolation;
    std::array<double, 3> mean{}, std{};
  };

  // Of a package (.pt2): what it was compiled for, and the shared library in it.
  struct Compiled {
    std::string machine;                // "x86_64", as `uname -m` says
    std::string device;                 // "cpu"
    std::array<int64_t, 2> min_size{};  // height, width of an image
    std::string library;                // entry of the archive
    int64_t crc32 = 0;                  // of that entry
  };

  std::string version;  // of pvt_ext, which wrote the file
  std::string torch;
  std::string variant;
  int64_t num_classes = 0;
  int64_t in_chans = 0;
  std::array<int64_t, 2> img_size{};  // height, width
  std::string dtype;
  int64_t ops_version = 0;
  std::vector<std::string> required_ops;  // "pvt::resize", ...
  Preprocess preprocess;
  std::vector<std::string> labels;   // one per class, or none
  std::string weights_source;        // "official", "random" or "file"
  std::string command;               // what to type to export the file again, or ""
  std::optional<Compiled> compiled;  // of a package; none: TorchScript
  std::string json;                  // the entry itself
};

// ModelError names the entry that is absent or of the wrong type.
PVT_RUNTIME_API Metadata parse_metadata(std::string_view json);

}  // namespace pvt
