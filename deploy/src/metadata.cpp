#include <pvt_ext/metadata.h>

#include <algorithm>

#include <nlohmann/json.hpp>

#include <pvt_ext/errors.h>

namespace pvt {
namespace {

using nlohmann::json;

constexpr int64_t kFormat = 1;     // of pvt.json; raised when a reader must change
constexpr int64_t kMaxDepth = 64;  // of objects and lists in each other; ours is 3

[[noreturn]] void fail(const std::string& what) {
  throw ModelError("pvt.json inside the model: " + what);
}

// One entry of an object; `where` is the object's own name ("ops.") for messages.
const json& entry(const json& object, const std::string& where, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) {
    fail("'" + where + key + "' is absent");
  }
  return *found;
}

template <class T>
constexpr const char* kTypeName = nullptr;
template <>
constexpr const char* kTypeName<std::string> = "a string";
template <>
constexpr const char* kTypeName<int64_t> = "a whole number";
template <>
constexpr const char* kTypeName<double> = "a number";

template <class T>
T convert(const json& value, const std::string& name) {
  bool fits = false;
  if constexpr (std::is_same_v<T, std::string>) {
    fits = value.is_string();
  } else if constexpr (std::is_same_v<T, int64_t>) {
    // Unsigned values above INT64_MAX would wrap around.
    fits = value.is_number_integer() &&
           !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX});
  } else {
    fits = value.is_number();
  }
  if (!fits) {
    fail("'" + name + "' is expected to be " + kTypeName<T> + ", got " + value.type_name());
  }
  return value.get<T>();
}

template <class T>
T get(const json& object, const std::string& where, const char* key) {
  return convert<T>(entry(object, where, key), where + key);
}

const json& get_object(const json& object, const std::string& where, const char* key) {
  const json& value = entry(object, where, key);
  if (!value.is_object()) {
    fail("'" + where + key + "' is expected to be an object, got " + value.type_name());
  }
  return value;
}

template <class T>
std::vector<T> get_list(const json& object, const std::string& where, const char* key) {
  const json& value = entry(object, where, key);
  if (!value.is_array()) {
    fail("'" + where + key + "' is expected to be a list, got " + value.type_name());
  }
  std::vector<T> list;
  list.reserve(value.size());
  for (size_t i = 0; i < value.size(); ++i) {
    list.push_back(convert<T>(value[i], where + key + "[" + std::to_string(i) + "]"));
  }
  return list;
}

template <class T, size_t kLength>
std::array<T, kLength> get_array(const json& object, const std::string& where, const char* key) {
  const std::vector<T> list = get_list<T>(object, where, key);
  if (list.size() != kLength) {
    fail("'" + where + key + "' is expected to have " + std::to_string(kLength) + " values, got " +
         std::to_string(list.size()));
  }
  std::array<T, kLength> array{};
  std::copy(list.begin(), list.end(), array.begin());
  return array;
}

bool is_null(const json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null();
}

// Of objects and lists in each other, if the text is JSON.
int64_t depth_of(std::string_view text) {
  int64_t depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      i += c == '\\' ? 1 : 0;  // what is escaped is no quote
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      deepest = std::max(deepest, ++depth);
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return deepest;
}

Metadata::Preprocess parse_preprocess(const json& object) {
  const std::string where = "preprocess.";
  Metadata::Preprocess p;
  p.preset = get<std::string>(object, where, "preset");
  p.mode = get<std::string>(object, where, "mode");
  p.resize = get<int64_t>(object, where, "resize");
  p.crop = get_array<int64_t, 2>(object, where, "crop");
  p.interpolation = get<std::string>(object, where, "interpolation");
  p.mean = get_array<double, 3>(object, where, "mean");
  p.std = get_array<double, 3>(object, where, "std");
  return p;
}

Metadata::Compiled parse_compiled(const json& object) {
  const std::string where = "compiled.";
  Metadata::Compiled c;
  c.machine = get<std::string>(object, where, "machine");
  c.device = get<std::string>(object, where, "device");
  c.min_size = get_array<int64_t, 2>(object, where, "min_size");
  c.library = get<std::string>(object, where, "library");
  c.crc32 = get<int64_t>(object, where, "crc32");
  return c;
}

}  // namespace

Metadata parse_metadata(std::string_view text) {
  // Without exceptions from the parser, whose messages quote the text over several lines.
  const json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded() || !root.is_object()) {
    fail("not a JSON object");
  }
  // To print it takes a call per level: the stack would not do for millions.
  if (const int64_t depth = depth_of(text); depth > kMaxDepth) {
    fail("expected at most " + std::to_string(kMaxDepth) +
         " levels of objects and lists in each other, got " + std::to_string(depth));
  }
  Metadata m;
  if (const auto format = get<int64_t>(root, "", "format"); format != kFormat) {
    fail("format " + std::to_string(format) + ", this runtime reads format " +
         std::to_string(kFormat));
  }
  if (const auto library = get<std::string>(root, "", "library"); library != "pvt_ext") {
    fail("'library' is expected to be pvt_ext, got " + library);
  }
  m.version = get<std::string>(root, "", "version");
  m.torch = get<std::string>(root, "", "torch");
  m.variant = get<std::string>(root, "", "variant");
  m.num_classes = get<int64_t>(root, "", "num_classes");
  m.in_chans = get<int64_t>(root, "", "in_chans");
  m.img_size = get_array<int64_t, 2>(root, "", "img_size");
  m.dtype = get<std::string>(root, "", "dtype");
  const json& ops = get_object(root, "", "ops");
  m.ops_version = get<int64_t>(ops, "ops.", "version");
  m.required_ops = get_list<std::string>(ops, "ops.", "required");
  m.preprocess = parse_preprocess(get_object(root, "", "preprocess"));
  if (!is_null(root, "labels")) {
    m.labels = get_list<std::string>(root, "", "labels");
    if (static_cast<int64_t>(m.labels.size()) != m.num_classes) {
      fail(std::to_string(m.labels.size()) + " labels for " + std::to_string(m.num_classes) +
           " classes");
    }
  }
  m.weights_source = get<std::string>(get_object(root, "", "weights"), "weights.", "source");
  m.command = is_null(root, "command") ? "" : get<std::string>(root, "", "command");
  if (root.contains("compiled")) {
    m.compiled = parse_compiled(get_object(root, "", "compiled"));
  }
  m.json = text;
  return m;
}

}  // namespace pvt
