// The command line of pvt_infer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace pvt {

struct Options {
  std::string model;
  std::string ops_lib;
  std::vector<std::string> images;
  bool recursive = false;
  int64_t topk = 5;
  std::string format = "text";
  int64_t batch = 1;
  int threads = 0;  // 0: torch's choice
  std::string device = "cpu";
  int64_t warmup = 0;
  int64_t repeat = 1;
  bool overlap = false;
  bool cuda_graph = false;
  std::string logits;
  std::string dump_input;
  bool info = false;
};

// Returns an exit code if the program has nothing more to do: after --help and --version, and after
// a mistake, which has been explained on stderr.
std::optional<int> parse_options(int argc, char** argv, Options& options);

}  // namespace pvt
