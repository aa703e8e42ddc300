#include "run.h"

#include <iostream>
#include <memory>

#include "exit_codes.h"
#include "npy.h"
#include "output.h"
#include "stats.h"

namespace pvt {
namespace {

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
    for (const std::string& path : list_.images) {
      read(path);
      if (static_cast<int64_t>(inputs_.size()) == options_.batch) {
        answer();
      }
    }
    if (!inputs_.empty()) {
      answer();
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
  void report(const std::string& problem) {
    ++num_bad_;
    std::cerr << "pvt_infer: " << problem << "; skipped\n";
  }

  void read(const std::string& path) {
    try {
      torch::Tensor input;
      for (int64_t i = 0; i < options_.repeat; ++i) {
        const Timer timer;
        input = model_.preprocess(read_image(path));
        reading_.add(timer.milliseconds(), 1);
      }
      inputs_.push_back(input);
      paths_.push_back(path);
    } catch (const std::exception& error) {
      // Unreadable, or too long and thin for the preprocessing: no reason to stop either way.
      report(path + ": " + error.what());
    }
  }

  // Runs and prints the images read so far.
  void answer() {
    const torch::Tensor batch = torch::stack(inputs_);
    if (!warm_) {
      for (int64_t i = 0; i < options_.warmup; ++i) {
        model_.forward(batch);
      }
      warm_ = true;
    }
    torch::Tensor logits;
    for (int64_t i = 0; i < options_.repeat; ++i) {
      const Timer timer;
      logits = model_.forward(batch);
      network_.add(timer.milliseconds(), batch.size(0));
    }
    print(logits);
    write(input_file_.get(), batch);
    write(logits_file_.get(), logits);
    num_answered_ += batch.size(0);
    inputs_.clear();
    paths_.clear();
  }

  void print(const torch::Tensor& logits) const {
    static const std::vector<std::string> kNoLabels;
    const auto& labels = model_.metadata().has_value() ? model_.metadata()->labels : kNoLabels;
    const auto rows = top_k(logits, options_.topk);
    for (size_t i = 0; i < rows.size(); ++i) {
      (options_.format == "json" ? print_json : print_text)(std::cout, paths_[i], rows[i], labels);
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
  std::vector<torch::Tensor> inputs_;  // of the batch being filled, [3, height, width] each
  std::vector<std::string> paths_;
  Stats reading_, network_;
  bool warm_ = false;
  int64_t num_answered_ = 0, num_bad_ = 0;
};

}  // namespace

int run(const Options& options, const ImageList& list, const Model& model) {
  return Runner(options, list, model).run();
}

}  // namespace pvt
