"""The runtimes that are compared: each prepares a job in its best honest configuration.

``prepare(job)`` returns what runs a float32 batch ``[batch, 3, H, W]`` to float32 logits, and one
line that says how it was configured. Imports of optional packages stand inside, so that one that is
missing costs one peer. Settings that were measured and lost are named where they would stand.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.fma_peak import FmaPeak
from benchmarks.job import Job, NotAvailableError, batches
from benchmarks.sdpa import with_sdpa
from pvt_ext import PVT, export_torchscript

Run = Callable[[Tensor], Tensor]
Prepare = Callable[[Job], tuple[Run, str]]


def ours(job: Job) -> tuple[Run, str]:
    path = job.folder / f"ours-{job.model}-{job.dtype}.pt"
    try:
        export_torchscript(job.load(fused=True), path, dtype=job.dtype)
    except ValueError as error:
        raise NotAvailableError(f"cannot be exported: {error}") from error
    return torch.jit.load(path), f"export_torchscript(dtype={job.dtype!r}), torch.jit.load"


def _in_dtype(model: PVT, dtype: torch.dtype) -> Run:
    model.to(dtype)
    return lambda x: model(x.to(dtype)).float()


def _torch_dtype(job: Job) -> torch.dtype:
    if job.dtype == "int8":
        raise NotAvailableError("PyTorch alone has no int8 path for this model")
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[job.dtype]


def eager(job: Job) -> tuple[Run, str]:
    return _in_dtype(job.load(fused=False), _torch_dtype(job)), "the reference, fused=False"


def sdpa(job: Job) -> tuple[Run, str]:
    model = with_sdpa(job.load(fused=False))
    return _in_dtype(model, _torch_dtype(job)), "eager with scaled_dot_product_attention"


def inductor(job: Job) -> tuple[Run, str]:
    from torch._inductor import config

    config.freezing = True  # constants folded, weights packed for oneDNN
    config.cpp_wrapper = True  # calls from kernel to kernel without Python
    run = _in_dtype(with_sdpa(job.load(fused=False)), _torch_dtype(job))
    torch._dynamo.config.error_on_recompile = True  # one shape: a second graph would be a mistake
    return torch.compile(run, fullgraph=True), "torch.compile, freezing, C++ wrapper, SDPA"


def _onnx_file(job: Job) -> Path:
    """The model as ONNX. The newer exporter's graph has LayerNormalization and Gelu as one node
    each and no shape arithmetic, and is as fast as or faster than the older one's."""
    path = job.folder / f"{job.model}-b{job.batch}.onnx"
    if not path.exists():
        model = with_sdpa(job.load(fused=False))
        torch.onnx.export(
            model,
            (job.input(),),
            path,
            dynamo=True,
            external_data=False,
            opset_version=20,
            input_names=["x"],
            output_names=["logits"],
        )
    return path


def onnxruntime(job: Job) -> tuple[Run, str]:
    import onnxruntime as ort

    if job.dtype == "bf16":
        raise NotAvailableError("ONNX Runtime has no bfloat16 kernels for the CPU")
    path = _onnx_file(job)
    config = "all optimisations, sequential (parallel is slower)"
    if job.dtype == "int8":
        path = _onnx_quantized(job, path)
        config += ", dynamic int8, weights per channel"
    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), config


def _onnx_quantized(job: Job, path: Path) -> Path:
    """Dynamic: at batch 1 1.9 times as fast as fp32, and the most exact; static quantisation
    (QDQ or QOperator, of all products or only those with a weight) gained 1.4 to 1.5."""
    import onnx
    from onnxruntime import quantization

    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    # Attention's products have no weight; they stay in floating point.
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    names = [node.name for node in products if weights.intersection(node.input)]
    target = path.with_suffix(".int8.onnx")
    quantization.quantize_dynamic(
        path,
        target,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_quantize=names,
        per_channel=True,
        reduce_range=_saturates(),
        weight_type=quantization.QuantType.QInt8,
    )
    return target


def _saturates() -> bool:
    """Whether products of 8 bits do, as there is no dot product for them. The runtimes have an
    option for it, weights of 7 bits, with which they are closer to float64 there."""
    return not FmaPeak("int8", 1).instruction


def openvino(job: Job) -> tuple[Run, str]:
    import openvino as ov

    core = ov.Core()
    capable = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if job.dtype == "bf16" and not capable:
        raise NotAvailableError("OpenVINO has no bfloat16 on this processor")
    # Converted from torch; its ONNX reader gives the same speed.
    shape = list(job.input().shape)
    model = with_sdpa(job.load(fused=False))
    network = ov.convert_model(model, example_input=job.input(), input=shape)
    del model
    # What int8 leaves in floating point runs in bfloat16 where that is the faster of the two.
    hint = "f32" if job.dtype == "fp32" or not capable else "bf16"
    if job.dtype == "int8" and FmaPeak("bf16", 1).measure() <= 1.2 * FmaPeak("fp32", 1).measure():
        hint = "f32"
    config = f"convert_model, LATENCY, precision hint {hint}"
    if job.dtype == "int8":
        network = _nncf_quantized(job, network)
        config = f"NNCF post-training int8 (transformer, no SmoothQuant), {config}"
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": hint,
    }
    request = core.compile_model(network, "CPU", options).create_infer_request()
    del network

    def run(x: Tensor) -> Tensor:
        request.infer([x.numpy()], share_inputs=True)
        # A view of the request's output: valid until the next run.
        return torch.from_numpy(request.get_output_tensor(0).data)

    return run, config


def _nncf_quantized(job: Job, network: object) -> object:
    """Without SmoothQuant, NNCF's default for transformers, which ruins v2 and makes the error of
    v1 larger (README.md has the numbers)."""
    import nncf
    from nncf.quantization import advanced_parameters as advanced

    images = [x.numpy() for x in batches(job.images()["calibration"], job.batch)]
    return nncf.quantize(
        network,
        nncf.Dataset(images),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
        advanced_parameters=advanced.AdvancedQuantizationParameters(
            overflow_fix=advanced.OverflowFix.ENABLE if _saturates() else None,
            smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
        ),
    )


PEERS: dict[str, Prepare] = {
    "ours": ours,
    "eager": eager,
    "sdpa": sdpa,
    "inductor": inductor,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}
PACKAGES = {
    "inductor": ["torch"],
    "onnxruntime": ["onnxruntime", "onnx", "onnxscript"],
    "openvino": ["openvino", "nncf"],
}
