// pvt::Model on files written here by torch itself, without Python. Exported models are tested from
// Python (tests/test_deploy.py).
#include <sys/stat.h>
#include <torch/csrc/jit/frontend/resolver.h>
#include <torch/csrc/jit/frontend/sugared_value.h>
#include <torch/script.h>

#include <atomic>
#include <fstream>
#include <thread>

#include <pvt_ext/ops.h>
#include <pvt_ext/runtime.h>

// torch and doctest both have a CHECK.
#undef CHECK
#include <doctest/doctest.h>

#include "temporary.h"

using pvt_test::TemporaryFolder;
using pvt_test::write_file;

namespace {

// Makes pvt.resize(...) in TorchScript source mean the operator pvt::resize.
struct OperatorResolver : torch::jit::Resolver {
  std::shared_ptr<torch::jit::SugaredValue> resolveValue(
      const std::string& name, torch::jit::GraphFunction& function,
      const torch::jit::SourceRange& range) override {
    if (name == "pvt") {
      return std::make_shared<torch::jit::BuiltinModule>("pvt");
    }
    return torch::jit::nativeResolver()->resolveValue(name, function, range);
  }
};

constexpr char kSource[] = R"(
def preprocess(self, image: Tensor) -> Tensor:
    image = pvt.resize(image, [8, 8], "bicubic", [0, 0, 8, 8])
    return image.permute(2, 0, 1).float() / 255

def forward(self, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    kv = torch.cat([tokens, tokens], -1)
    mixed = pvt.sra_attention(tokens.contiguous(), kv.contiguous(), 1, 0.5)
    return torch.linear(mixed.mean(1), self.weight)
)";

std::string metadata(const std::string& version, const std::string& required) {
  return R"({"format": 1, "library": "pvt_ext", "version": "9.9", "torch": "2.13.0",
    "variant": "test", "num_classes": 10, "in_chans": 3, "img_size": [8, 8], "dtype": "float32",
    "ops": {"version": )" +
         version + R"(, "required": [)" + required + R"(]},
    "preprocess": {"preset": "hf", "mode": "squash", "resize": 8, "crop": [8, 8],
                   "interpolation": "bicubic", "mean": [0, 0, 0], "std": [1, 1, 1]},
    "labels": null, "weights": {"source": "random"}, "command": null})";
}

constexpr char kOps[] = R"("pvt::resize", "pvt::sra_attention")";

void save(const std::string& path, const std::string& json, const char* source = kSource) {
  torch::manual_seed(0);
  torch::jit::Module module("model");
  module.register_parameter("weight", torch::randn({10, 3}), /*is_buffer=*/false);
  module.define(source, std::make_shared<OperatorResolver>());
  torch::jit::ExtraFilesMap extra;
  if (!json.empty()) {
    extra["pvt.json"] = json;
  }
  module.save(path, extra);
}

pvt::Image image(uint8_t seed) {
  pvt::Image result{12, 20, std::vector<uint8_t>(12 * 20 * 3)};
  for (size_t i = 0; i < result.rgb.size(); ++i) {
    result.rgb[i] = static_cast<uint8_t>((i * 7 + i / 60 * seed) % 251);
  }
  return result;
}

template <class Error>
std::string error_of(const std::string& path) {
  try {
    pvt::Model::load(path);
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return error.what();
  } catch (const std::exception& error) {
    return std::string("another kind of error: ") + error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("the linked operator library is the one in use") {
  const pvt::OpsLibrary library = pvt::load_ops();
  CHECK(library.version == pvt_version());
  CHECK(library.ops_version == pvt_ops_version());
  CHECK(library.cpu_level == pvt_cpu_level());
  CHECK(library.version == pvt::runtime_version());
  CHECK(pvt::missing_ops({"pvt::resize", "pvt::none", "pvt::sra_attention"}) ==
        std::vector<std::string>{"pvt::none"});
  CHECK_THROWS_AS(pvt::load_ops("/no/such/libpvt_ops.so"), pvt::OpsError);
  CHECK(pvt::load_ops(library.path).path == library.path);
}

TEST_CASE("CUDA kernels are those beside the operator library") {
  const auto path =
      std::filesystem::path(pvt::load_ops().path).replace_filename("libpvt_ops_cuda.so");
  if (std::filesystem::exists(path)) {
    MESSAGE("NOT TESTED: this build has CUDA kernels");
    return;
  }
  CHECK_NOTHROW(pvt::load_cuda_kernels());
  std::ofstream(path) << "not a library";
  CHECK_THROWS_WITH_AS(pvt::load_cuda_kernels(), doctest::Contains("CUDA kernels: "),
                       pvt::OpsError);
  std::filesystem::remove(path);
}

TEST_CASE("a copy of the operator library is refused under any name") {
  const TemporaryFolder folder;
  const std::string copy = folder / "my_ops.so";
  std::filesystem::copy_file(pvt::load_ops().path, copy);
  CHECK_THROWS_WITH_AS(pvt::load_ops(copy),
                       doctest::Contains("cannot be loaded, this program has loaded"),
                       pvt::OpsError);
}

TEST_CASE("a model answers, and a batch equals its images one by one") {
  const TemporaryFolder folder;
  save(folder / "m.pt", metadata("1", kOps));
  const auto model = pvt::Model::load(folder / "m.pt");
  REQUIRE(model.metadata().has_value());
  CHECK(model.metadata()->variant == "test");

  const auto a = model.preprocess(image(1)), b = model.preprocess(image(2));
  CHECK(a.sizes().vec() == std::vector<int64_t>{3, 8, 8});
  CHECK(!a.equal(b));
  const auto together = model.forward(torch::stack({a, b}));
  CHECK(together.sizes().vec() == std::vector<int64_t>{2, 10});
  CHECK(torch::allclose(together[0], model.forward(a.unsqueeze(0))[0], 1e-5, 1e-6));
  CHECK(torch::allclose(together[1], model.forward(b.unsqueeze(0))[0], 1e-5, 1e-6));
}

TEST_CASE("eight threads on one model get the answers of one") {
  const TemporaryFolder folder;
  save(folder / "m.pt", metadata("1", kOps));
  const auto model = pvt::Model::load(folder / "m.pt");
  std::vector<torch::Tensor> expected;
  for (uint8_t i = 0; i < 8; ++i) {
    expected.push_back(model.forward(model.preprocess(image(i)).unsqueeze(0)));
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (uint8_t i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (int repeat = 0; repeat < 50; ++repeat) {
        if (!model.forward(model.preprocess(image(i)).unsqueeze(0)).equal(expected[i])) {
          ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  CHECK(wrong == 0);
}

TEST_CASE("top_k sorts, sums to one, and keeps the order of equals") {
  const auto logits = torch::tensor({{1.0F, 3.0F, 3.0F, 0.0F}, {9.0F, 0.0F, 0.0F, 0.0F}});
  const auto rows = pvt::top_k(logits, 10);
  REQUIRE(rows.size() == 2);
  REQUIRE(rows[0].size() == 4);
  CHECK(rows[0][0].index == 1);
  CHECK(rows[0][1].index == 2);
  CHECK(rows[0][3].index == 3);
  CHECK(rows[1][0].index == 0);
  CHECK(rows[1][0].logit == 9.0);
  double sum = 0;
  for (const auto& p : rows[0]) {
    sum += p.probability;
  }
  CHECK(sum == doctest::Approx(1.0));
  CHECK(pvt::top_k(logits, 1)[0].size() == 1);
}

TEST_CASE("TorchScript without pvt.json is taken if it has both methods") {
  const TemporaryFolder folder;
  save(folder / "plain.pt", "");
  const auto model = pvt::Model::load(folder / "plain.pt");
  CHECK(!model.metadata().has_value());
  CHECK(model.forward(torch::rand({1, 3, 8, 8})).size(1) == 10);

  save(folder / "other.pt", "", "def forward(self, x: Tensor) -> Tensor:\n    return x\n");
  CHECK(error_of<pvt::ModelError>(folder / "other.pt").find("without a method 'preprocess'") !=
        std::string::npos);
}

TEST_CASE("operators that this library lacks are named before anything is loaded") {
  const TemporaryFolder folder;
  save(folder / "new.pt", metadata("7", kOps));
  CHECK(error_of<pvt::OpsError>(folder / "new.pt").find("needs operator version 7") !=
        std::string::npos);
  save(folder / "other.pt", metadata("1", R"("pvt::resize", "pvt::teleport")"));
  CHECK(error_of<pvt::OpsError>(folder / "other.pt").find("needs the operators pvt::teleport") !=
        std::string::npos);
}

TEST_CASE("files that are no model say what they are") {
  const TemporaryFolder folder;
  const std::string path = folder / "m.pt";
  const auto expect = [&](const std::string& part) {
    const std::string error = error_of<pvt::ModelError>(path);
    INFO(error);
    CHECK(error.rfind(path, 0) == 0);
    CHECK(error.find(part) != std::string::npos);
  };
  expect("cannot be opened: No such file or directory");
  write_file(path, "");
  expect("is empty (0 bytes)");
  write_file(path, "hello");
  expect("no zip archive");
  std::filesystem::remove(path);
  REQUIRE(mkfifo(path.c_str(), 0600) == 0);
  {
    // With both ends open here, nobody who opens and reads the pipe after all would wait.
    std::fstream pipe(path);
    pipe << "something" << std::flush;
    expect("is a pipe, device or socket, expected a regular file");
  }
  std::filesystem::remove(path);
  write_file(path, "PK\x03\x04 and then nothing");
  expect("truncated or damaged");

  save(path, metadata("1", kOps));
  const std::string whole = pvt_test::read_file(path);
  for (const size_t size : {whole.size() - 1, whole.size() / 2, size_t{100}}) {
    write_file(path, whole.substr(0, size));
    expect("truncated or damaged");
  }
  save(path, "{\"format\": 1}");
  expect("'library' is absent");
}

TEST_CASE("devices are parsed strictly") {
  CHECK(pvt::parse_device("cpu") == torch::Device(torch::kCPU));
  for (const char* name : {"", "gpu", "cuda:", "cuda:x", "cuda:1x", "cuda0", "cuda:-1", "cpu:0"}) {
    INFO(name);
    CHECK_THROWS_AS(pvt::parse_device(name), pvt::DeviceError);
  }
  CHECK_THROWS_AS(pvt::parse_device("cuda:999"), pvt::DeviceError);
}

TEST_CASE("CUDA graphs are for models on a GPU") {
  const TemporaryFolder folder;
  save(folder / "m.pt", metadata("1", kOps));
  const auto model = pvt::Model::load(folder / "m.pt");
  try {
    model.with_cuda_graphs();
    FAIL("no error");
  } catch (const pvt::DeviceError& error) {
    CHECK(std::string(error.what()) ==
          "CUDA graphs: expected a model on a CUDA device, got one on cpu");
  }
}

TEST_CASE("what fails inside the module is one line") {
  const TemporaryFolder folder;
  save(folder / "m.pt", metadata("1", kOps));
  const auto model = pvt::Model::load(folder / "m.pt");
  try {
    model.forward(torch::rand({1, 5, 8, 8}));
    FAIL("no error");
  } catch (const std::runtime_error& error) {
    const std::string text = error.what();
    INFO(text);
    CHECK(text.rfind("forward failed: ", 0) == 0);
    CHECK(text.find('\n') == std::string::npos);
  }
}

TEST_CASE("a flipped bit anywhere in the file changes no answer") {
  const TemporaryFolder folder;
  const std::string path = folder / "m.pt";
  save(path, metadata("1", kOps));
  const std::string whole = pvt_test::read_file(path);
  const auto x = torch::rand({2, 3, 8, 8});
  const auto expected = pvt::Model::load(path).forward(x);
  int refused = 0;
  for (size_t at = 0; at < whole.size(); at += 61) {
    INFO("byte ", at);
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    write_file(path, damaged);
    bool right = false;
    try {
      right = pvt::Model::load(path).forward(x).equal(expected);  // in padding, or a time
    } catch (const pvt::ModelError& error) {
      right = std::string(error.what()).rfind(path + ": ", 0) == 0;
      ++refused;
    }
    CHECK(right);
  }
  CHECK(refused > 10);

  const torch::Tensor weight = [] {
    torch::manual_seed(0);
    return torch::randn({10, 3});
  }();
  const std::string bytes(static_cast<const char*>(weight.data_ptr()), weight.nbytes());
  const size_t at = whole.find(bytes);
  REQUIRE(at != std::string::npos);
  std::string damaged = whole;
  damaged.replace(at, 64, 64, '\0');
  write_file(path, damaged);
  CHECK(error_of<pvt::ModelError>(path) == path + ": damaged (checksum of m/data/0)");
}

TEST_CASE("entries without a checksum are taken as they are") {
  const TemporaryFolder folder;
  const std::string path = folder / "m.pt";
  save(path, metadata("1", kOps));
  std::string file = pvt_test::read_file(path);
  // In the list of entries, at the end: 46 bytes, then the name.
  const size_t name = file.rfind("m/data/0");
  REQUIRE(file.compare(name - 46, 4, "PK\x01\x02") == 0);
  file.replace(name - 30, 4, 4, '\0');
  write_file(path, file);
  CHECK(error_of<pvt::ModelError>(path) == "no error");
}

TEST_CASE("logits of another size than batch and pvt.json have are refused") {
  const TemporaryFolder folder;
  const std::string path = folder / "m.pt";
  const auto error_with = [&](const std::string& json, const std::string& result) {
    const std::string source =
        "def preprocess(self, image: Tensor) -> Tensor:\n    return image\n"
        "def forward(self, x: Tensor) -> Tensor:\n    return " +
        result + "\n";
    save(path, json, source.c_str());
    try {
      pvt::Model::load(path).forward(torch::rand({2, 3, 8, 8}));
    } catch (const pvt::ModelError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  const std::string described = metadata("1", kOps);
  CHECK(error_with("", "torch.zeros([2, 7])") == "no error");
  CHECK(error_with("", "torch.zeros([3, 7])") ==
        "forward failed: expected logits [2, num_classes], got [3, 7]");
  CHECK(error_with("", "torch.zeros([1, 7])") ==
        "forward failed: expected logits [2, num_classes], got [1, 7]");
  CHECK(error_with("", "torch.zeros([2])") ==
        "forward failed: expected logits [2, num_classes], got [2]");
  CHECK(error_with(described, "torch.zeros([2, 10])") == "no error");
  CHECK(error_with(described, "torch.zeros([2, 11])") ==
        "forward failed: expected logits [2, 10], got [2, 11]");
}
