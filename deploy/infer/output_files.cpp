#include "output_files.h"

#include <algorithm>
#include <filesystem>

namespace pvt {
namespace {

namespace fs = std::filesystem;

// Also by way of links; false where either is absent.
bool same_file(const std::string& a, const std::string& b) {
  std::error_code ignored;
  return fs::equivalent(a, b, ignored);
}

// Also of files that are yet to be written.
bool same_path(const std::string& a, const std::string& b) {
  std::error_code ignored;
  return fs::weakly_canonical(fs::absolute(a, ignored), ignored) ==
             fs::weakly_canonical(fs::absolute(b, ignored), ignored) ||
         same_file(a, b);
}

bool contains(const std::vector<std::string>& files, const std::string& file) {
  return std::any_of(files.begin(), files.end(),
                     [&](const std::string& other) { return same_file(other, file); });
}

void check(const std::string& option, const std::string& file, const Options& options,
           const std::vector<std::string>& images, const std::string& ops_library) {
  std::error_code ignored;
  const fs::file_status status = fs::status(file, ignored);
  if (!fs::exists(status)) {
    return;
  }
  const auto refuse = [&](const std::string& what) {
    throw ArgumentError(option + ": expected a file that may be overwritten, got " + file + ", " +
                        what);
  };
  if (!fs::is_regular_file(status)) {
    refuse("which is no regular file");
  }
  if (same_file(options.model, file)) {
    refuse("the model");
  }
  if (same_file(ops_library, file) || same_file(options.ops_lib, file)) {
    refuse("the operator library");
  }
  if (contains(options.images, file) || contains(images, file)) {
    refuse("one of the inputs");
  }
  if (same_file("/dev/stdin", file) || same_file("/dev/stdout", file) ||
      same_file("/dev/stderr", file)) {
    refuse("which this program has open already");
  }
}

}  // namespace

void check_output_files(const Options& options, const std::vector<std::string>& images,
                        const std::string& ops_library) {
  const std::string &logits = options.logits, &input = options.dump_input;
  if (!logits.empty() && !input.empty() && same_path(logits, input)) {
    throw ArgumentError("--logits and --dump-input: expected two files, got " + logits +
                        (logits == input ? "" : " and " + input) + ", the same file");
  }
  if (!logits.empty()) {
    check("--logits", logits, options, images, ops_library);
  }
  if (!input.empty()) {
    check("--dump-input", input, options, images, ops_library);
  }
}

}  // namespace pvt
