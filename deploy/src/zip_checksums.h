// The checksums inside a zip archive, which torch's own reader does not look at. No torch here.
#pragma once

#include <istream>
#include <optional>
#include <string>

namespace pvt {

// Name of the first entry that cannot be read or whose bytes are not those of its CRC-32; none if
// all fit. An entry whose CRC-32 is 0 is taken as it is: torch can be told to write no checksums.
// Reads the file once, a piece at a time. ModelError, without the path, where the archive's list of
// entries itself is damaged.
std::optional<std::string> damaged_entry(const std::string& path);
std::optional<std::string> damaged_entry(std::istream& archive);

}  // namespace pvt
