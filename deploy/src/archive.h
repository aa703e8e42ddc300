// Looking into a model file before torch unpickles any of it.
#pragma once

#include <optional>
#include <string>

#include <pvt_ext/metadata.h>

namespace pvt {

// The model's pvt.json, which tells packages from TorchScript; empty for TorchScript without one.
// Anything else that people take for a model (a checkpoint, a damaged or empty file, a package
// without compiled code) is a ModelError that says what it is. A model with an entry that fails its
// checksum is damaged as well: all of the file is read.
std::optional<Metadata> inspect_model(const std::string& path);

}  // namespace pvt
