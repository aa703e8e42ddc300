// The best class of one image: classify pvt_small.pt cat.jpg
#include <cstdio>
#include <exception>

#include <pvt_ext/runtime.h>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MODEL.pt IMAGE\n", argv[0]);
    return 2;
  }
  try {
    const pvt::Model model = pvt::Model::load(argv[1]);
    const torch::Tensor input = model.preprocess(pvt::read_image(argv[2]));  // [3, height, width]
    const pvt::Prediction best = pvt::top_k(model.forward(input.unsqueeze(0)), 1)[0][0];
    const auto index = static_cast<size_t>(best.index);
    const bool named = model.metadata() && !model.metadata()->labels.empty();
    std::printf("%s: %s (%.1f %%)\n", argv[2],
                named ? model.metadata()->labels[index].c_str() : std::to_string(index).c_str(),
                100 * best.probability);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[2], error.what());
    return 1;
  }
}
