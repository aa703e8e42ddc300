#include "options.h"

#include <algorithm>
#include <iostream>
#include <limits>
#include <utility>

#include <torch/version.h>
#include <CLI/CLI.hpp>

#include <pvt_ext/model.h>

#include "exit_codes.h"

namespace pvt {

namespace {

// The arguments (argv[1] onwards), with two notations of CLI11 taken back: of a name like [x] it
// would make a list, and after an option like "--logits=" take the next argument for the value.
std::vector<std::string> plain_arguments(int argc, char** argv) {
  std::vector<std::string> arguments;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    if (argument.starts_with("[") && argument.ends_with("]")) {
      argument.insert(0, "./");
    }
    const bool without_value =
        argument.starts_with("--") && argument.find('=') == argument.size() - 1;
    if (without_value) {
      argument.pop_back();
    }
    arguments.push_back(argument);
    if (without_value) {
      arguments.emplace_back();
    }
  }
  return arguments;
}

}  // namespace

std::optional<int> parse_options(int argc, char** argv, Options& options) {
  CLI::App app(
      "Classify JPEG and PNG images with a model exported by `pvt export`.\n"
      "Results go to stdout, everything else to stderr.",
      "pvt_infer");
  app.footer(kExitCodeHelp);
  app.get_formatter()->column_width(28);
  app.option_defaults()->always_capture_default();
  app.set_version_flag(
      "--version", std::string("pvt_infer ") + runtime_version() + " (torch " TORCH_VERSION ")");

  // Large enough for any use; counts beyond it are typing mistakes. Without a description, which
  // would repeat the bounds in every line of --help.
  const auto count = [](int64_t least) {
    return CLI::Range(least, int64_t{1} << 30).description("");
  };
  // Such as an unset variable of a shell gives.
  const CLI::Validator not_empty(
      [](const std::string& name) {
        return std::string(name.empty() ? "expected a file name, got an empty one" : "");
      },
      "");
  const auto one_of = [](const std::vector<std::string>& names) {
    return CLI::IsMember(names).description("");
  };

  app.add_option("images", options.images,
                 "image files, directories (their .jpg, .jpeg and .png files, by name),\n"
                 ".txt lists (one path per line), or - for such a list on stdin")
      ->type_name("");
  app.add_option("--model", options.model,
                 "exported model: TorchScript or a package of compiled code (.pt2),\n"
                 "told apart by content")
      ->type_name("FILE")
      ->required();
  app.add_option("--ops-lib", options.ops_lib,
                 "operator library; default: $PVT_OPS_LIB, else libpvt_ops.so beside\n"
                 "libpvt_runtime.so, else where the system's loader finds that name")
      ->type_name("FILE");
  app.add_flag("--recursive", options.recursive, "look into the directories of directories");
  app.add_option("--topk", options.topk, "classes per image")->type_name("N")->check(count(1));
  app.add_option("--format", options.format, "text: a table; json: one object per line and image")
      ->type_name("text|json")
      ->check(one_of({"text", "json"}));
  app.add_option("--batch", options.batch, "images per run of the network")
      ->type_name("N")
      ->check(count(1));
  app.add_option("--threads", options.threads, "CPU threads; 0: as many as torch chooses")
      ->type_name("N")
      ->check(CLI::Range(0, 4096).description(""));
  app.add_option("--device", options.device, "where the network runs")->type_name("cpu|cuda[:i]");
  app.add_option("--warmup", options.warmup, "runs of the first batch before anything is timed")
      ->type_name("N")
      ->check(count(0));
  app.add_option("--repeat", options.repeat, "times to read each image and to run each batch")
      ->type_name("N")
      ->check(count(1));
  app.add_flag("--overlap", options.overlap,
               "read the next batch while the network runs; always so on a GPU");
  app.add_flag("--cuda-graph", options.cuda_graph,
               "launch the network as a CUDA graph, recorded at the first batch of a size\n"
               "(--device cuda)");
  app.add_option("--logits", options.logits, "also write the logits, float32 [images, classes]")
      ->type_name("FILE.npy")
      ->check(not_empty);
  app.add_option("--dump-input", options.dump_input,
                 "also write the network's input, float32 [images, 3, height, width]")
      ->type_name("FILE.npy")
      ->check(not_empty);
  app.add_flag("--info", options.info, "print what the model file says about itself");

  try {
    std::vector<std::string> arguments = plain_arguments(argc, argv);
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kOk : kBadArguments;
  }
  if (options.images.empty() && !options.info) {
    std::cerr << "images: expected at least one image, directory or list (or --info)\n"
                 "Run with --help for more information.\n";
    return kBadArguments;
  }
  return std::nullopt;
}

}  // namespace pvt
