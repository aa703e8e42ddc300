// The exit codes of pvt_infer, printed by --help.
#pragma once

namespace pvt {

enum ExitCode {
  kOk = 0,
  kFailure = 1,
  kBadArguments = 2,
  kBadImage = 3,
  kBadModel = 4,
  kBadOps = 5,
};

constexpr char kExitCodeHelp[] =
    "Exit codes:\n"
    "  0  every image was answered\n"
    "  1  inference or output failed\n"
    "  2  bad arguments\n"
    "  3  some images could not be read; the others were answered\n"
    "  4  bad model file\n"
    "  5  operator library missing or too old\n";

}  // namespace pvt
