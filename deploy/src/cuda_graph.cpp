// Recordings that are CUDA graphs: one launch instead of one per kernel. Built with the CUDA
// kernels.
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>

#include "recorded_network.h"

namespace pvt {
namespace {

// Libraries and TorchScript prepare themselves in the first runs, which a graph must not hold.
constexpr int kWarmUpRuns = 3;

// What the graphs of one network have in common. They share the memory of what is computed inside
// them, so each replay waits for the one before it, whatever their streams. (The allocator gives
// memory again to the stream that had it, so all are recorded on one.)
struct Shared {
  at::MempoolId_t pool = at::cuda::graph_pool_handle();
  std::optional<c10::Stream> stream;  // not the default one, which cannot be captured
  c10::Event replayed{c10::kCUDA};
};

void wait_for(const c10::Stream& before, const c10::Stream& after) {
  c10::Event event(c10::kCUDA);
  event.record(before);
  event.block(after);
}

c10::Stream current_stream(c10::Device device) {
  return c10::cuda::getCurrentCUDAStream(device.index()).unwrap();
}

class CudaGraph : public Recording {
 public:
  CudaGraph(std::shared_ptr<Shared> shared, const Network& network, const torch::Tensor& batch)
      : shared_(std::move(shared)), input_(batch.clone(at::MemoryFormat::Contiguous)) {
    const c10::Stream caller = current_stream(batch.device());
    if (!shared_->stream.has_value()) {
      shared_->stream =
          c10::cuda::getStreamFromPool(/*isHighPriority=*/false, batch.device().index()).unwrap();
    }
    const c10::Stream stream = *shared_->stream;
    wait_for(caller, stream);
    shared_->replayed.block(stream);
    {
      const c10::StreamGuard guard(stream);
      for (int i = 0; i < kWarmUpRuns; ++i) {
        network.forward(input_);
      }
      capture(network);
    }
    wait_for(stream, caller);
  }

  torch::Tensor replay(const torch::Tensor& batch) override {
    const c10::Stream stream = current_stream(batch.device());
    const c10::StreamGuard guard(stream);
    shared_->replayed.block(stream);
    input_.copy_(batch, /*non_blocking=*/true);
    graph_.replay();
    torch::Tensor output = output_.clone();
    shared_->replayed.record(stream);
    return output;
  }

 private:
  void capture(const Network& network) {
    // Other threads may allocate pinned memory meanwhile, which the default mode forbids them.
    graph_.capture_begin(shared_->pool, cudaStreamCaptureModeThreadLocal);
    try {
      output_ = network.forward(input_);
    } catch (...) {
      try {
        graph_.capture_end();
      } catch (const std::exception&) {
        // The first error says more than that of a capture which it broke.
      }
      throw;
    }
    graph_.capture_end();
  }

  std::shared_ptr<Shared> shared_;
  torch::Tensor input_, output_;
  at::cuda::CUDAGraph graph_;
};

}  // namespace

Recorder cuda_graph_recorder() {
  return [shared = std::make_shared<Shared>()](const Network& network, const torch::Tensor& batch) {
    return std::make_unique<CudaGraph>(shared, network, batch);
  };
}

}  // namespace pvt
