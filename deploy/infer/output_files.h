// What --logits and --dump-input may overwrite.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "options.h"

namespace pvt {

// An argument that only looking at the files shows to be wrong.
class ArgumentError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Refuses (ArgumentError), before anything is written: one file for both, something that is there
// and is no regular file, and any file that the program reads from or prints to. images: what
// options.images stands for. ops_library: the one in use, or "".
void check_output_files(const Options& options, const std::vector<std::string>& images,
                        const std::string& ops_library);

}  // namespace pvt
