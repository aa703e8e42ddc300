// What pvt_infer prints on stdout.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include <pvt_ext/model.h>

namespace pvt {

// text: the path, then one line per class: rank, probability, logit, index, label.
void print_text(std::ostream& out, const std::string& image, const std::vector<Prediction>& classes,
                const std::vector<std::string>& labels);

// One line: {"image": path, "topk": [{"index", "label" (null if unknown), "prob", "logit"}, ...]}.
void print_json(std::ostream& out, const std::string& image, const std::vector<Prediction>& classes,
                const std::vector<std::string>& labels);

// Sends what was printed so far; a std::runtime_error where stdout does not take it.
void flush(std::ostream& out);

// --info: the model's metadata, as sentences or as JSON.
void print_info(std::ostream& out, const Model& model, const std::string& path, bool as_json);

}  // namespace pvt
