#include "run.h"

#include <future>
#include <iostream>
#include <memory>

#include "exit_codes.h"
#include "npy.h"
#include "output.h"
#include "stats.h"

namespace pvt {
namespace {

// Images that go through the network together. Empty: there are no more.
struct Batch {
  torch::Tensor input;             // [images, 3, height, width]
  std::vector<std::string> paths;  // of each
};

class Runner {
 public:
  Runner(const Options& options, const ImageList& list, const Model& model)
      : options_(options), list_(list), model_(model) {
    if (!options.logits.empty()) {
      logits_file_ = std::make_unique<NpyWriter>(options.logits);
    }
    if (!options.dump_input.empty()) {
      input_file_ = std::make_unique<NpyWriter>(options.dump_input);
    }
  }

  int run() {
    for (const std::string& problem : list_.problems) {
      report(problem);
    }
    // One batch is read while another is in the network; reading is one thread's work.
    const auto when = options_.overlap || on_gpu() ? std::launch::async : std::launch::deferred;
    std::future<Batch> next = std::async(when, [this] { return read_batch(); });
    for (Batch batch = next.get(); !batch.paths.empty(); batch = next.get()) {
      next = std::async(when, [this] { return read_batch(); });
      answer(batch);
    }
    finish(logits_file_.get());
    finish(input_file_.get());
    std::cerr << "timing: decode + preprocess, per image: " << reading_.report() << "\n"
              << "timing: network, batch " << options_.batch << ": " << network_.report() << "\n";
    if (num_bad_ > 0) {
      std::cerr << "pvt_infer: " << num_answered_ << " answered, " << num_bad_
                << " could not be read\n";
      return kBadImage;
    }
    return kOk;
  }

 private:
  bool on_gpu() const { return model_.device().is_cuda(); }

  void report(const std::string& problem) {
    ++num_bad_;
    std::cerr << "pvt_infer: " << problem << "; skipped\n";
  }

  Batch read_batch() {
    Batch batch;
    std::vector<torch::Tensor> inputs;
    while (next_image_ < list_.images.size() &&
           static_cast<int64_t>(inputs.size()) < options_.batch) {
      const std::string& path = list_.images[next_image_++];
      if (const torch::Tensor input = read(path); input.defined()) {
        inputs.push_back(input);
        batch.paths.push_back(path);
      }
    }
    if (!inputs.empty()) {
      batch.input = torch::stack(inputs);
      if (on_gpu()) {
        batch.input = batch.input.pin_memory();  // from where a GPU copies it by itself
      }
    }
    return batch;
  }

  // Undefined if it could not be read.
  torch::Tensor read(const std::string& path) {
    torch::Tensor input;
    try {
      for (int64_t i = 0; i < options_.repeat; ++i) {
        const Timer timer;
        input = model_.preprocess(read_image(path));
        reading_.add(timer.milliseconds(), 1);
      }
    } catch (const std::exception& error) {
      // Unreadable, or too long and thin for the preprocessing: no reason to stop either way.
      report(path + ": " + error.what());
      return {};
    }
    return input;
  }

  void answer(const Batch& batch) {
    if (!warm_) {
      for (int64_t i = 0; i < options_.warmup; ++i) {
        model_.forward(batch.input);
      }
      warm_ = true;
    }
    torch::Tensor logits;
    for (int64_t i = 0; i < options_.repeat; ++i) {
      const Timer timer;
      logits = model_.forward(batch.input);
      network_.add(timer.milliseconds(), logits.size(0));
    }
    print(batch.paths, logits);
    write(input_file_.get(), batch.input);
    write(logits_file_.get(), logits);
    num_answered_ += logits.size(0);
  }

  void print(const std::vector<std::string>& paths, const torch::Tensor& logits) const {
    static const std::vector<std::string> kNoLabels;
    const auto& labels = model_.metadata().has_value() ? model_.metadata()->labels : kNoLabels;
    const auto rows = top_k(logits, options_.topk);
    for (size_t i = 0; i < rows.size(); ++i) {
      (options_.format == "json" ? print_json : print_text)(std::cout, paths[i], rows[i], labels);
    }
    // A reader of a pipe sees each batch when it is done, and a full disk ends the run.
    flush(std::cout);
  }

  static void write(NpyWriter* file, const torch::Tensor& rows) {
    if (file != nullptr) {
      const torch::Tensor values = rows.contiguous();
      file->append(values.const_data_ptr<float>(), rows.size(0), rows.sizes().slice(1).vec());
    }
  }

  void finish(NpyWriter* file) const {
    if (file != nullptr) {
      file->finish();
      std::cerr << file->path() << ": " << file->rows() << " rows, one per answered image"
                << (num_bad_ > 0 ? " (skipped ones have none)" : "") << "\n";
    }
  }

  const Options& options_;
  const ImageList& list_;
  const Model& model_;
  std::unique_ptr<NpyWriter> logits_file_, input_file_;
  size_t next_image_ = 0;  // of the list, to be read
  Stats reading_, network_;
  bool warm_ = false;
  int64_t num_answered_ = 0, num_bad_ = 0;
};

}  // namespace

int run(const Options& options, const ImageList& list, const Model& model) {
  return Runner(options, list, model).run();
}

}  // namespace pvt
