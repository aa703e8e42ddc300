// What can go wrong besides an unreadable image (DecodeError, decode.h). Every message is one line.
#pragma once

#include <stdexcept>

#include <pvt_ext/decode.h>

namespace pvt {

// The file is no exported model, is damaged, or says something this runtime does not understand.
class PVT_RUNTIME_API ModelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The operator library is missing, does not load, or is older than the model needs.
class PVT_RUNTIME_API OpsError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The model runs on no such device here.
class PVT_RUNTIME_API DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace pvt
