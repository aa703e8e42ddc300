#include "output.h"

#include <iomanip>
#include <stdexcept>

#include <nlohmann/json.hpp>

namespace pvt {
namespace {

using nlohmann::ordered_json;

// One line; a path need not be UTF-8, JSON must be.
std::string dump(const ordered_json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, ordered_json::error_handler_t::replace);
}

std::string format_of(const Metadata& m) {
  if (!m.compiled.has_value()) {
    return "TorchScript";
  }
  return "package for " + m.compiled->machine + ", " + m.compiled->device;
}

}  // namespace

void print_text(std::ostream& out, const std::string& image, const std::vector<Prediction>& classes,
                const std::vector<std::string>& labels) {
  out << image << "\n" << std::fixed;
  for (size_t rank = 0; rank < classes.size(); ++rank) {
    const Prediction& p = classes[rank];
    out << std::setw(3) << rank + 1 << "  " << std::setprecision(4) << p.probability << "  "
        << std::setprecision(3) << std::setw(8) << p.logit << "  " << std::setw(4) << p.index;
    if (!labels.empty()) {
      out << "  " << labels.at(static_cast<size_t>(p.index));
    }
    out << "\n";
  }
}

void print_json(std::ostream& out, const std::string& image, const std::vector<Prediction>& classes,
                const std::vector<std::string>& labels) {
  ordered_json list = ordered_json::array();
  for (const Prediction& p : classes) {
    ordered_json entry;
    entry["index"] = p.index;
    entry["label"] = nullptr;
    if (!labels.empty()) {
      entry["label"] = labels.at(static_cast<size_t>(p.index));
    }
    entry["prob"] = p.probability;
    entry["logit"] = p.logit;
    list.push_back(std::move(entry));
  }
  ordered_json line;
  line["image"] = image;
  line["topk"] = std::move(list);
  out << dump(line) << "\n";
}

void flush(std::ostream& out) {
  if (!out.flush()) {
    throw std::runtime_error("stdout: cannot be written");
  }
}

void print_info(std::ostream& out, const Model& model, const std::string& path, bool as_json) {
  if (!model.metadata().has_value()) {
    if (as_json) {
      out << "null\n";
    } else {
      out << path << ": a TorchScript file without pvt.json\n";
    }
    return;
  }
  const Metadata& m = *model.metadata();
  if (as_json) {
    out << dump(ordered_json::parse(m.json)) << "\n";
    return;
  }
  const Metadata::Preprocess& p = m.preprocess;
  out << std::defaultfloat << std::setprecision(6);
  out << "model       " << path << "\n"
      << "variant     " << m.variant << ", " << m.num_classes << " classes, " << m.dtype << "\n"
      << "weights     " << m.weights_source << "\n"
      << "input       " << m.in_chans << " x " << m.img_size[0] << " x " << m.img_size[1] << "\n"
      << "preprocess  " << p.preset << ": "
      << (p.mode == "shorter" ? "shorter side to " + std::to_string(p.resize) + ", centre crop "
                              : std::string("straight to "))
      << p.crop[0] << " x " << p.crop[1] << ", " << p.interpolation << "\n"
      << "mean, std   " << p.mean[0] << " " << p.mean[1] << " " << p.mean[2] << ", " << p.std[0]
      << " " << p.std[1] << " " << p.std[2] << "\n"
      << "operators   version " << m.ops_version << ":";
  for (const std::string& name : m.required_ops) {
    out << " " << name;
  }
  out << "\nlabels      "
      << (m.labels.empty() ? std::string("none") : std::to_string(m.labels.size())) << "\n"
      << "format      " << format_of(m) << "\n"
      << "exported    by pvt_ext " << m.version << " with torch " << m.torch << "\n";
  if (!m.command.empty()) {
    out << "command     " << m.command << "\n";
  }
}

}  // namespace pvt
