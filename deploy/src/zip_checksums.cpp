// The list of entries stands at the end of a zip archive, and behind it the end record that says
// where. Each entry's bytes follow a header of their own, anywhere in the file. Field names and
// offsets are those of PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.7 to 4.5.3.
#include "zip_checksums.h"

#include <zlib.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string_view>
#include <vector>

#include <pvt_ext/errors.h>

namespace pvt {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are read as the file has them");

constexpr std::string_view kHeader("PK\x03\x04"), kEntry("PK\x01\x02"), kEnd("PK\x05\x06");
constexpr std::string_view kEnd64("PK\x06\x06"), kLocator64("PK\x06\x07");
// Of each of these without what has a length of its own.
constexpr size_t kHeaderSize = 30, kEntrySize = 46, kEndSize = 22, kEnd64Size = 56,
                 kLocatorSize = 20;
constexpr size_t kMaxComment = 0xffff;  // behind the end record
constexpr uint32_t kIn64 = 0xffffffff;  // "too large for 32 bits": stands in the extra field
constexpr uint16_t kStored = 0, kDeflated = 8;
// Large enough for the disk, small beside a model.
constexpr size_t kPiece = size_t{1} << 20;

[[noreturn]] void fail() {
  throw ModelError("truncated or damaged model file");
}

class File {
 public:
  explicit File(std::istream& stream) : stream_(stream) {
    stream_.seekg(0, std::ios::end);
    const auto end = static_cast<int64_t>(stream_.tellg());
    if (!stream_ || end < 0) {
      fail();
    }
    size_ = static_cast<uint64_t>(end);
  }

  uint64_t size() const { return size_; }

  void read(uint64_t offset, char* bytes, size_t size) {
    check_range(offset, size);
    stream_.seekg(static_cast<std::streamoff>(offset));
    if (!stream_.read(bytes, static_cast<std::streamsize>(size))) {
      stream_.clear();
      fail();
    }
  }

  std::string read(uint64_t offset, uint64_t size) {
    check_range(offset, size);  // before memory is asked for
    std::string bytes(static_cast<size_t>(size), '\0');
    read(offset, bytes.data(), bytes.size());
    return bytes;
  }

 private:
  void check_range(uint64_t offset, uint64_t size) const {
    if (offset > size_ || size > size_ - offset) {
      fail();
    }
  }

  std::istream& stream_;
  uint64_t size_ = 0;
};

template <class T>
T number(std::string_view bytes, size_t offset) {
  if (offset + sizeof(T) > bytes.size()) {
    fail();
  }
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

struct Directory {
  uint64_t count = 0, size = 0, offset = 0;
};

Directory find_directory(File& file) {
  const size_t tail_size =
      static_cast<size_t>(std::min<uint64_t>(file.size(), kEndSize + kMaxComment));
  const std::string tail = file.read(file.size() - tail_size, tail_size);
  if (tail_size < kEndSize) {
    fail();
  }
  const size_t at = tail.rfind(kEnd, tail_size - kEndSize);
  if (at == std::string::npos) {
    fail();
  }
  const uint64_t end = file.size() - tail_size + at;
  if (end >= kLocatorSize) {
    const std::string locator = file.read(end - kLocatorSize, kLocatorSize);
    if (locator.starts_with(kLocator64)) {
      const std::string end64 = file.read(number<uint64_t>(locator, 8), kEnd64Size);
      if (!end64.starts_with(kEnd64)) {
        fail();
      }
      return {number<uint64_t>(end64, 32), number<uint64_t>(end64, 40),
              number<uint64_t>(end64, 48)};
    }
  }
  return {number<uint16_t>(tail, at + 10), number<uint32_t>(tail, at + 12),
          number<uint32_t>(tail, at + 16)};
}

struct Entry {
  std::string name;
  uint16_t method = 0;
  uint32_t crc = 0;
  uint64_t packed_size = 0, size = 0, offset = 0;  // offset: of its header
};

// Values beyond 32 bits: block 1 of the extra field has those, and only those, in this order.
void read_extra(std::string_view extra, Entry& entry) {
  while (extra.size() >= 4) {
    const auto id = number<uint16_t>(extra, 0), size = number<uint16_t>(extra, 2);
    const std::string_view block = extra.substr(4, size);
    if (id == 1) {
      size_t at = 0;
      for (uint64_t* value : {&entry.size, &entry.packed_size, &entry.offset}) {
        if (*value == kIn64) {
          *value = number<uint64_t>(block, at);
          at += sizeof *value;
        }
      }
    }
    extra.remove_prefix(std::min<size_t>(extra.size(), size_t{4} + size));
  }
}

// The entry at the start of `bytes`, which then start at the next one.
Entry next_entry(std::string_view& bytes) {
  if (!bytes.starts_with(kEntry)) {
    fail();
  }
  const size_t name_size = number<uint16_t>(bytes, 28), extra_size = number<uint16_t>(bytes, 30);
  const size_t size = kEntrySize + name_size + extra_size + number<uint16_t>(bytes, 32);
  if (size > bytes.size()) {
    fail();
  }
  Entry entry;
  entry.name = bytes.substr(kEntrySize, name_size);
  entry.method = number<uint16_t>(bytes, 10);
  entry.crc = number<uint32_t>(bytes, 16);
  entry.packed_size = number<uint32_t>(bytes, 20);
  entry.size = number<uint32_t>(bytes, 24);
  entry.offset = number<uint32_t>(bytes, 42);
  read_extra(bytes.substr(kEntrySize + name_size, extra_size), entry);
  bytes.remove_prefix(size);
  return entry;
}

// Takes the bytes of an entry as the file has them, piece by piece.
class Checksum {
 public:
  explicit Checksum(bool deflated) {
    if (deflated) {
      // Raw deflate, without zlib's own header.
      if (inflateInit2(&stream_, -MAX_WBITS) != Z_OK) {
        throw std::bad_alloc();
      }
      plain_.resize(kPiece);
    }
  }
  Checksum(const Checksum&) = delete;
  Checksum& operator=(const Checksum&) = delete;
  ~Checksum() {
    if (!plain_.empty()) {
      inflateEnd(&stream_);
    }
  }

  void add(char* bytes, size_t size) {
    if (plain_.empty()) {
      add_plain(reinterpret_cast<const Bytef*>(bytes), size);
      return;
    }
    stream_.next_in = reinterpret_cast<Bytef*>(bytes);
    stream_.avail_in = static_cast<uInt>(size);
    do {
      stream_.next_out = plain_.data();
      stream_.avail_out = static_cast<uInt>(plain_.size());
      const int result = inflate(&stream_, Z_NO_FLUSH);
      if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
        fail();
      }
      add_plain(plain_.data(), plain_.size() - stream_.avail_out);
    } while (stream_.avail_out == 0);
  }

  // Whether that was all of it.
  bool fits(const Entry& entry) const { return size_ == entry.size && crc_ == entry.crc; }

 private:
  void add_plain(const Bytef* bytes, size_t size) {
    crc_ = crc32_z(crc_, bytes, size);
    size_ += size;
  }

  z_stream stream_{};
  std::vector<Bytef> plain_;  // of a deflated entry; else empty
  uLong crc_ = 0;
  uint64_t size_ = 0;
};

bool is_whole(File& file, const Entry& entry, std::vector<char>& piece) {
  const std::string header = file.read(entry.offset, kHeaderSize);
  if (!header.starts_with(kHeader) || (entry.method != kStored && entry.method != kDeflated)) {
    return false;
  }
  uint64_t at =
      entry.offset + kHeaderSize + number<uint16_t>(header, 26) + number<uint16_t>(header, 28);
  Checksum checksum(entry.method == kDeflated);
  for (uint64_t left = entry.packed_size; left > 0;) {
    const auto size = static_cast<size_t>(std::min<uint64_t>(left, piece.size()));
    file.read(at, piece.data(), size);
    checksum.add(piece.data(), size);
    at += size;
    left -= size;
  }
  return checksum.fits(entry);
}

}  // namespace

std::optional<std::string> damaged_entry(const std::string& path) {
  std::ifstream archive(path, std::ios::binary);
  return damaged_entry(archive);
}

std::optional<std::string> damaged_entry(std::istream& archive) {
  File file(archive);
  const Directory directory = find_directory(file);
  const std::string list = file.read(directory.offset, directory.size);
  std::string_view rest = list;
  std::vector<char> piece(kPiece);
  for (uint64_t i = 0; i < directory.count; ++i) {
    const Entry entry = next_entry(rest);
    if (entry.crc == 0) {
      continue;
    }
    try {
      if (is_whole(file, entry, piece)) {
        continue;
      }
    } catch (const ModelError&) {
      // Not within the file, or no deflated data.
    }
    return entry.name;
  }
  return std::nullopt;
}

}  // namespace pvt
