#include "archive.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <caffe2/serialize/inline_container.h>

#include <pvt_ext/errors.h>

#include "zip_checksums.h"

namespace pvt {
namespace {

using caffe2::serialize::PyTorchStreamReader;

constexpr char kEntry[] = "extra/pvt.json";
// More than any list of labels takes; a larger entry is not ours and is not read into memory.
constexpr size_t kMaxEntrySize = size_t{64} << 20;

constexpr char kSafetensors[] =
    "is a checkpoint (weights only), not an exported model; make one with: "
    "pvt export NAME --weights FILE -o model.pt";
// Which of the two it is only unpickling would tell.
constexpr char kTorchSave[] =
    "is a file of torch.save (a checkpoint or a pickled model), not an exported model; make one "
    "from a checkpoint (weights only) with: pvt export NAME --weights FILE -o model.pt";

const std::string kAsPackage = "make one with: pvt export NAME --format pt2";

std::string read_start(const std::string& path) {
  std::error_code ignored;
  const std::filesystem::file_status status = std::filesystem::status(path, ignored);
  if (std::filesystem::is_directory(status)) {
    throw ModelError(path + ": is a directory, not an exported model");
  }
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    throw ModelError(path + ": is a pipe, device or socket, expected a regular file");
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw ModelError(path + ": cannot be opened: " + std::strerror(errno));
  }
  std::string start(9, '\0');
  file.read(start.data(), static_cast<std::streamsize>(start.size()));
  start.resize(static_cast<size_t>(file.gcount()));
  return start;
}

// What a file that is no zip archive is.
[[noreturn]] void fail_no_archive(const std::string& path, const std::string& start) {
  if (start.empty()) {
    throw ModelError(path + ": is empty (0 bytes)");
  }
  // torch.save before 1.6 wrote bare pickles; a safetensors file has a length, then JSON.
  if (start[0] == '\x80') {
    throw ModelError(path + ": " + kTorchSave);
  }
  if (start.size() == 9 && start[8] == '{') {
    throw ModelError(path + ": " + kSafetensors);
  }
  throw ModelError(path + ": is not an exported model (no zip archive)");
}

bool has_any(const std::vector<std::string>& records, const std::string& start) {
  return std::any_of(records.begin(), records.end(), [&](const std::string& record) {
    return record.compare(0, start.size(), start) == 0;
  });
}

// A weight with a flipped bit is a number as well: nothing but its checksum tells.
void check_entries(const std::string& path) {
  if (const auto damaged = damaged_entry(path)) {
    throw ModelError("damaged (checksum of " + *damaged + ")");
  }
}

Metadata read_entry(PyTorchStreamReader& archive) {
  if (archive.getRecordSize(kEntry) > kMaxEntrySize) {
    throw ModelError("pvt.json inside the model is larger than 64 MiB");
  }
  const auto [data, size] = archive.getRecord(kEntry);
  return parse_metadata({static_cast<const char*>(data.get()), size});
}

}  // namespace

std::optional<Metadata> inspect_model(const std::string& path) {
  const std::string start = read_start(path);
  if (start.compare(0, 4, "PK\x03\x04") != 0) {
    fail_no_archive(path, start);
  }
  try {
    PyTorchStreamReader archive(path);
    if (archive.hasRecord(kEntry)) {
      check_entries(path);
      return read_entry(archive);
    }
    if (archive.hasRecord("constants.pkl")) {
      check_entries(path);
      return std::nullopt;
    }
    if (archive.hasRecord("data.pkl")) {
      throw ModelError(kTorchSave);
    }
    const auto records = archive.getAllRecords();
    if (has_any(records, "data/aotinductor/")) {
      throw ModelError("is a package of compiled code (.pt2) without pvt.json; " + kAsPackage);
    }
    if (has_any(records, "models/") || has_any(records, "archive_format")) {
      throw ModelError("is a package of torch.export without compiled code; " + kAsPackage);
    }
    throw ModelError("is a zip archive, but not an exported model");
  } catch (const ModelError& error) {
    throw ModelError(path + ": " + error.what());
  } catch (const c10::Error&) {
    // The reader's own text is about its C++ source; all it means is that the archive is incomplete
    // (its directory stands at the end of the file) or inconsistent.
    throw ModelError(path + ": truncated or damaged model file");
  }
}

}  // namespace pvt
