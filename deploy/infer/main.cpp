// pvt_infer: an exported model on image files, without Python.
#include <fcntl.h>

#include <iostream>

#include <ATen/Parallel.h>
#include <torch/version.h>

#include "exit_codes.h"
#include "image_list.h"
#include "options.h"
#include "output.h"
#include "output_files.h"
#include "run.h"

namespace {

// A closed stream would lend its number to a file that is opened later: answers would be printed
// into the .npy file of --logits. Instead stdin is empty, printing fails, messages go nowhere.
void open_closed_streams() {
  for (const int fd : {0, 1, 2}) {
    if (fcntl(fd, F_GETFD) == -1) {
      // open takes the lowest free number, which is fd. Should it fail, all else will too.
      static_cast<void>(open("/dev/null", fd == 2 ? O_WRONLY : O_RDONLY));
    }
  }
}

// The first line on stderr; returns the operator library in use. Without the operator library its
// line goes on without a CPU level; whether the library is needed is for Model::load to say.
pvt::OpsLibrary print_system_info(const pvt::Options& options) {
  pvt::OpsLibrary library;
  library.cpu_level = "unknown (no operator library)";
  try {
    library = pvt::load_ops(options.ops_lib);
  } catch (const pvt::OpsError&) {
  }
  std::cerr << "system_info: pvt_ext " << pvt::runtime_version() << ", torch " << TORCH_VERSION
            << ", CPU level " << library.cpu_level << ", device " << options.device << ", threads "
            << at::get_num_threads() << std::endl;
  return library;
}

int fail(const std::exception& error, int code) {
  std::cout.flush();
  std::cerr << "pvt_infer: " << error.what() << "\n";
  return code;
}

int infer(const pvt::Options& options) {
  if (options.threads > 0) {
    at::set_num_threads(options.threads);
  }
  const pvt::OpsLibrary library = print_system_info(options);
  const torch::Device device = pvt::parse_device(options.device);
  if (options.cuda_graph && !device.is_cuda()) {
    throw pvt::ArgumentError("--cuda-graph: expected --device cuda, got " + options.device);
  }
  const pvt::ImageList list = pvt::list_images(options.images, options.recursive);
  pvt::check_output_files(options, list.images, library.path);
  pvt::Model model = pvt::Model::load(options.model, device, options.ops_lib);
  if (options.cuda_graph) {
    model = model.with_cuda_graphs();
  }
  if (options.info) {
    pvt::print_info(std::cout, model, options.model, options.format == "json");
    pvt::flush(std::cout);
  }
  return options.images.empty() ? pvt::kOk : pvt::run(options, list, model);
}

}  // namespace

int main(int argc, char** argv) {
  open_closed_streams();
  pvt::Options options;
  if (const auto code = pvt::parse_options(argc, argv, options)) {
    return *code;
  }
  try {
    return infer(options);
  } catch (const pvt::ArgumentError& error) {
    return fail(error, pvt::kBadArguments);
  } catch (const pvt::DeviceError& error) {
    return fail(error, pvt::kBadArguments);
  } catch (const pvt::ModelError& error) {
    return fail(error, pvt::kBadModel);
  } catch (const pvt::OpsError& error) {
    return fail(error, pvt::kBadOps);
  } catch (const c10::Error& error) {
    return fail(std::runtime_error(error.what_without_backtrace()), pvt::kFailure);
  } catch (const std::exception& error) {
    return fail(error, pvt::kFailure);
  }
}
