// What a model file says about itself: its entry `pvt.json`. No torch here.
#pragma once

#include <array>
#include <cstdint>
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
  std::vector<std::string> labels;  // one per class, or none
  std::string weights_source;       // "official", "random" or "file"
  std::string command;              // what to type to export the file again, or ""
  std::string json;                 // the entry itself
};

// ModelError names the entry that is absent or of the wrong type.
PVT_RUNTIME_API Metadata parse_metadata(std::string_view json);

}  // namespace pvt
