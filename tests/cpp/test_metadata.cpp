#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include <pvt_ext/errors.h>
#include <pvt_ext/metadata.h>

using nlohmann::json;

namespace {

json example() {
  return json::parse(R"({
    "format": 1, "library": "pvt_ext", "version": "0.1.0", "torch": "2.13.0",
    "variant": "pvt_small", "num_classes": 2, "in_chans": 3, "img_size": [224, 448],
    "dtype": "bfloat16", "ops": {"version": 1, "required": ["pvt::resize"]},
    "preprocess": {"preset": "paper", "mode": "shorter", "resize": 256, "crop": [224, 448],
                   "interpolation": "bicubic", "mean": [0.485, 0.456, 0.406], "std": [1, 2, 3]},
    "labels": ["cat", "caf\u00e9"], "weights": {"source": "random", "seed": 0, "sha256": null},
    "command": "pvt export"})");
}

std::string error_of(const std::string& text) {
  try {
    pvt::parse_metadata(text);
  } catch (const pvt::ModelError& error) {
    return error.what();
  }
  return "no error";
}

std::string error_with(const char* pointer, const json& value) {
  json changed = example();
  changed[json::json_pointer(pointer)] = value;
  return error_of(changed.dump());
}

}  // namespace

TEST_CASE("every entry arrives") {
  const pvt::Metadata m = pvt::parse_metadata(example().dump());
  CHECK(m.variant == "pvt_small");
  CHECK(m.img_size == std::array<int64_t, 2>{224, 448});
  CHECK(m.dtype == "bfloat16");
  CHECK(m.ops_version == 1);
  CHECK(m.required_ops == std::vector<std::string>{"pvt::resize"});
  CHECK(m.preprocess.resize == 256);
  CHECK(m.preprocess.mean == std::array<double, 3>{0.485, 0.456, 0.406});
  CHECK(m.preprocess.std == std::array<double, 3>{1, 2, 3});
  CHECK(m.labels == std::vector<std::string>{"cat", "caf\xc3\xa9"});
  CHECK(m.weights_source == "random");
  CHECK(m.command == "pvt export");
}

TEST_CASE("labels and command may be null") {
  json changed = example();
  changed["labels"] = nullptr;
  changed["command"] = nullptr;
  const pvt::Metadata m = pvt::parse_metadata(changed.dump());
  CHECK(m.labels.empty());
  CHECK(m.command.empty());
}

TEST_CASE("a package says what it was compiled for") {
  CHECK(!pvt::parse_metadata(example().dump()).compiled.has_value());
  json package = example();
  package["compiled"] = json::parse(R"({"machine": "x86_64", "device": "cpu", "min_size": [32, 33],
    "library": "data/m.so", "crc32": 4294967295})");
  const pvt::Metadata m = pvt::parse_metadata(package.dump());
  CHECK(m.compiled->machine == "x86_64");
  CHECK(m.compiled->device == "cpu");
  CHECK(m.compiled->min_size == std::array<int64_t, 2>{32, 33});
  CHECK(m.compiled->library == "data/m.so");
  CHECK(m.compiled->crc32 == 4294967295);
  package["compiled"].erase("machine");
  CHECK(error_of(package.dump()) == "pvt.json inside the model: 'compiled.machine' is absent");
  package["compiled"] = nullptr;
  CHECK(error_of(package.dump()) ==
        "pvt.json inside the model: 'compiled' is expected to be an object, got null");
}

TEST_CASE("what is not JSON is one sentence") {
  for (const char* text : {"", "{", "[]", "null", "\xff", "{\"format\": 1,}", "\"pvt\""}) {
    CHECK(error_of(text) == "pvt.json inside the model: not a JSON object");
  }
}

TEST_CASE("what is nested too deeply to be printed is refused") {
  const auto nested = [](size_t depth) {
    json changed = example();
    changed["quotes"] = "\\\"[[[{";
    const std::string text = changed.dump();
    return text.substr(0, text.size() - 1) + ", \"x\": " + std::string(depth - 1, '[') +
           std::string(depth - 1, ']') + "}";
  };
  CHECK(error_of(nested(64)) == "no error");
  const std::string expected =
      "pvt.json inside the model: expected at most 64 levels of objects and lists in each other, "
      "got ";
  CHECK(error_of(nested(65)) == expected + "65");
  CHECK(error_of(nested(1000000)) == expected + "1000000");
}

TEST_CASE("wrong entries are named, with what was expected and what came") {
  CHECK(error_with("/format", 2) ==
        "pvt.json inside the model: format 2, this runtime reads format 1");
  CHECK(error_with("/library", "timm") ==
        "pvt.json inside the model: 'library' is expected to be pvt_ext, got timm");
  CHECK(error_with("/ops/version", "1") ==
        "pvt.json inside the model: 'ops.version' is expected to be a whole number, got string");
  CHECK(error_with("/ops", 7) ==
        "pvt.json inside the model: 'ops' is expected to be an object, got number");
  CHECK(error_with("/ops/required", json::array({"pvt::resize", 3})) ==
        "pvt.json inside the model: 'ops.required[1]' is expected to be a string, got number");
  CHECK(error_with("/preprocess/mean", json::array({1, 2})) ==
        "pvt.json inside the model: 'preprocess.mean' is expected to have 3 values, got 2");
  CHECK(error_with("/labels", json::array({"one"})) ==
        "pvt.json inside the model: 1 labels for 2 classes");
  CHECK(error_with("/num_classes", UINT64_MAX) ==
        "pvt.json inside the model: 'num_classes' is expected to be a whole number, got number");
  CHECK(error_with("/num_classes", 1.5) ==
        "pvt.json inside the model: 'num_classes' is expected to be a whole number, got number");
}

TEST_CASE("no entry can be left out or be null unnoticed") {
  const std::vector<const char*> entries = {"/format",          "/library",
                                            "/version",         "/torch",
                                            "/variant",         "/num_classes",
                                            "/in_chans",        "/img_size",
                                            "/dtype",           "/ops",
                                            "/ops/version",     "/ops/required",
                                            "/preprocess",      "/preprocess/preset",
                                            "/preprocess/mode", "/preprocess/resize",
                                            "/preprocess/crop", "/preprocess/interpolation",
                                            "/preprocess/mean", "/preprocess/std",
                                            "/weights",         "/weights/source"};
  for (const char* entry : entries) {
    INFO(entry);
    const json::json_pointer pointer(entry);
    json without = example();
    without[pointer.parent_pointer()].erase(pointer.back());
    CHECK(error_of(without.dump()).find("is absent") != std::string::npos);
    CHECK(error_with(entry, nullptr).find("got null") != std::string::npos);
  }
}
