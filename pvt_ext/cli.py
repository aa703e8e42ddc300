"""The command ``pvt``: list, summary, weights, convert, export, predict, bench, train, eval, info.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 bad arguments.
"""

import difflib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError as error:
    sys.exit(f"pvt: {error.name} is not installed; run: pip install typer rich")

import numpy as np
import torch
from torch import Tensor

import pvt_ext
from pvt_ext.backbone import Pyramid
from pvt_ext.bench import DTYPES, bench
from pvt_ext.checkpoint import Recorded, recorded, recorded_metadata
from pvt_ext.download import DownloadError
from pvt_ext.export import export_torchscript
from pvt_ext.exported import load_exported
from pvt_ext.model import create_backbone, create_model
from pvt_ext.onnx import export_onnx
from pvt_ext.preprocess import load_image
from pvt_ext.pt2 import export_pt2
from pvt_ext.published import PACKAGED, PUBLISHED
from pvt_ext.summary import summary
from pvt_ext.variants import VARIANTS, list_models, task_of
from pvt_ext.weights import LoadReport, load_official, load_published, load_weights, save_weights

app = typer.Typer(
    help="Pyramid Vision Transformer: models, export and prediction.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # errors and help as plain lines
    pretty_exceptions_enable=False,
)


def main(args: list[str] | None = None) -> None:
    """Entry point: an error of the library becomes one line on stderr and exit code 1."""
    try:
        app(args, prog_name="pvt")
    except (ValueError, RuntimeError, OSError) as error:
        print(f"pvt: {str(error).strip().partition(chr(10))[0]}", file=sys.stderr)
        sys.exit(1)


def parse_size(text: str) -> tuple[int, int]:
    """``224`` or ``224x896`` (height x width)."""
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise typer.BadParameter(f"expected a side such as 224 or HEIGHTxWIDTH, got {text!r}")
    return sides[0], sides[-1]


def check_name(name: str) -> str:
    if name not in VARIANTS:
        raise typer.BadParameter(f"unknown model {name!r}; there are {', '.join(list_models())}")
    return name


def check_dtypes(dtypes: list[str] | None) -> list[str] | None:
    for dtype in dtypes or ():
        if dtype not in DTYPES:
            raise typer.BadParameter(f"expected one of {', '.join(DTYPES)}, got {dtype!r}")
    return dtypes


Name = Annotated[
    str, typer.Argument(metavar="NAME", callback=check_name, help="Model, as in `pvt list`.")
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Image side, or HEIGHTxWIDTH; default the model's own, mostly 224."
    ),
]


@app.command("list")
def list_() -> None:
    """Table of the models: image side, work per image, accuracy of their weights.

    Accuracies of ImageNet-1k are those that the authors published; that of CIFAR-10 was measured.
    """
    table = Table("model", box=None)
    for heading in ("parameters", "image", "GMAC", "top-1 %", "weights, MB", "trained on"):
        table.add_column(heading, justify="right")
    for name in list_models():
        size, task = summary(name), task_of(name)
        columns = [f"{size.parameters:,}", f"{task.img_size}", f"{size.macs / 1e9:.3f}"]
        table.add_row(name, *columns, *_accuracy(name))
    Console().print(table)


@app.command("weights")
def weights_() -> None:
    """Table of the weight files that are published, by the authors and by others."""
    table = Table("name", "model", box=None)
    for heading in ("ImageNet top-1 %", "COCO box AP", "MB"):
        table.add_column(heading, justify="right")
    table.add_column("SHA-256")
    for name, file in PUBLISHED.items():
        numbers = (file.top1, file.box_ap, file.megabytes)
        table.add_row(
            name,
            file.variant,
            *("-" if number is None else f"{number}" for number in numbers),
            f"{file.sha256}..." if file.sha256 else "not recorded",
        )
    Console(width=max(Console().width, 110)).print(table)


@app.command()
def convert(
    name: Name,
    weights: Annotated[
        str, typer.Argument(metavar="WEIGHTS", help="A file, or a name in `pvt weights`.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="File to write: .safetensors or .pth.")
    ],
    to: Annotated[
        Literal["pvt_ext", "official", "timm"], typer.Option(help="Whose names to write.")
    ] = "pvt_ext",
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="Of the tensors that are written.")
    ] = "fp32",
    num_classes: Annotated[
        int | None, typer.Option(min=0, help="Classes of the weights; default as for export.")
    ] = None,
    backbone: Annotated[
        bool, typer.Option(help="Without head, class token and final norm, as a detector has it.")
    ] = False,
    img_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="That v1's positions are for; default as for export."),
    ] = None,
    in_chans: Annotated[int, typer.Option(min=1, help="Channels of the image.")] = 3,
) -> None:
    """Read weights of any library and write them with the names of another.

    Nothing is written unless every tensor of the model was found, and nothing else, and every
    number is finite in the dtype. What one .safetensors file says of itself, the other will.
    """
    _check_overwrites([output], [Path(weights)])
    file = _file_of(name, weights)
    defaults = _defaults(name, file)
    size = parse_size(img_size) if img_size else defaults.img_size
    model: Pyramid
    if backbone:
        model = create_backbone(name, in_chans=in_chans, img_size=size)
    else:
        classes = defaults.num_classes if num_classes is None else num_classes
        model = create_model(name, num_classes=classes, in_chans=in_chans, img_size=size)
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    report = _load(model.to(dtypes[dtype]), weights, adapt=())
    save_weights(model, output, format=to, metadata=recorded_metadata(file) if file else None)
    print(f"{report}; written to {output} ({to})", file=sys.stderr)


@app.command("summary")
def summary_(name: Name, size: Size = None) -> None:
    """Parameters and multiply-accumulates of each stage at an image size."""
    print(summary(name, parse_size(size) if size else None))


@app.command()
def info() -> None:
    """What is installed: versions, compiler, CPU instruction set in use."""
    facts = pvt_ext.build_info() | {
        "torch in use": torch.__version__,
        "cpu_level": pvt_ext.cpu_level(),
        "ops_library": pvt_ext.ops_library(),
    }
    for name, value in facts.items():
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
        print(f"{name}: {text}")


@app.command()
def export(
    name: Name,
    weights: Annotated[
        str,
        typer.Option(
            help="official (those of the model: downloaded, or in the package), random, a name in "
            "`pvt weights`, or a file."
        ),
    ] = "official",
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16", "int8"],
        typer.Option(help="Weights, arithmetic. fp16 is for GPUs; CPUs have no kernels for it."),
    ] = "fp32",
    preset: Annotated[
        Literal["paper", "timm", "hf"] | None, typer.Option(help="Preprocessing in the file.")
    ] = None,
    img_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Image side, or HEIGHTxWIDTH.")
    ] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Classes of the weights.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Text file, one class name per line.")] = None,
    format: Annotated[
        Literal["torchscript", "pt2", "onnx"] | None,
        typer.Option(help="Default: by the suffix of -o (.pt2, .onnx), else torchscript."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; default NAME.pt, .pt2 or .onnx."),
    ] = None,
) -> None:
    """Write a model as one file: TorchScript, compiled code (pt2) or ONNX.

    torchscript runs in Python and C++ on any machine. pt2 does on CPUs of this architecture,
    without TorchScript; compiling takes half a minute and a C++ compiler. onnx is plain float32
    operators for other runtimes.

    Weights that `pvt train` wrote say what --preset, --img-size, --num-classes and --labels are.
    For others they are those of the model's published weights: paper, 224, 1000, ImageNet's names.
    """
    if output == Path("-"):
        raise typer.BadParameter("-o: expected the name of a file, got - (stdout)")
    formats = {".pt": "torchscript", ".pt2": "pt2", ".onnx": "onnx"}
    form = format or formats.get((output and output.suffix) or ".pt")
    if form is None:
        raise typer.BadParameter(
            f"-o: expected the suffix {', '.join(formats)} or --format, got {output}"
        )
    if form == "onnx" and dtype != "fp32":
        raise typer.BadParameter(f"--dtype: expected fp32 for an ONNX file, got {dtype}")
    path = output or Path(name + {form: suffix for suffix, form in formats.items()}[form])
    defaults = _defaults(name, _file_of(name, weights))
    size = parse_size(img_size) if img_size else defaults.img_size
    classes = num_classes or defaults.num_classes
    view = preset or defaults.preset
    names = labels.read_text(encoding="utf-8").splitlines() if labels else defaults.labels
    command = ["pvt", "export", name, "--weights", weights, "--dtype", dtype, "--preset", view]
    command += ["--img-size", f"{size[0]}x{size[1]}", "--num-classes", str(classes)]
    command += ["--seed", str(seed)] if weights == "random" else []
    command += ["--labels", str(labels)] if labels else []
    command += ["--format", form] if form != "torchscript" else []

    torch.manual_seed(seed)
    model = create_model(name, img_size=size, num_classes=classes)
    try:
        report = None if weights == "random" else _load(model, weights)
    except DownloadError as error:
        raise DownloadError(f"{error}, or try it with --weights random") from error
    source = "file" if Path(weights).is_file() else weights
    options: dict[str, Any] = {
        "preset": view,
        "labels": names,
        "weights_source": source,
        "weights_sha256": report.sha256 if report else None,
        "seed": seed if weights == "random" else None,
        "command": shlex.join([*command, "-o", str(path)]),
    }
    if form == "onnx":
        export_onnx(model, path, **options)
    else:
        write = export_pt2 if form == "pt2" else export_torchscript
        write(model, path, dtype=dtype, **options)
    megabytes = path.stat().st_size / 1e6
    print(f"{path}: {name}, {dtype}, {source} weights, {megabytes:.1f} MB", file=sys.stderr)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="File written by `pvt export`.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    topk: Annotated[int, typer.Option(min=1, help="Classes to print.")] = 5,
    format: Annotated[
        Literal["text", "json"], typer.Option(help="json: one object per line.")
    ] = "text",
    logits: Annotated[
        Path | None, typer.Option(help="Write all class scores, [images, classes], as .npy.")
    ] = None,
    dump_input: Annotated[
        Path | None, typer.Option(help="Write the network's input, [images, 3, H, W], as .npy.")
    ] = None,
) -> None:
    """Classify images with an exported model (TorchScript or pt2), one at a time.

    An image that cannot be read is reported and skipped; the exit code is then 1.
    """
    _check_overwrites([path for path in (logits, dump_input) if path], [model, *images])
    network, metadata = load_exported(model)
    failures = 0
    with _npy_file(logits) as keep_logits, _npy_file(dump_input) as keep_input:
        for path in images:
            try:
                image = load_image(path)
            except ValueError as error:
                print(f"pvt: {error}", file=sys.stderr)
                failures += 1
                continue
            with torch.inference_mode():
                x = network.preprocess(image)
                y = network(x.unsqueeze(0))[0]
            if y.shape != (metadata["num_classes"],):
                raise ValueError(
                    f"{model}: expected {metadata['num_classes']} scores per image (num_classes), "
                    f"got {list(y.shape)}"
                )
            keep_logits(y)
            keep_input(x)
            answer = {"image": str(path), "topk": _top_classes(y, topk, metadata.get("labels"))}
            print(json.dumps(answer, ensure_ascii=False) if format == "json" else _as_text(answer))
    if failures:
        raise typer.Exit(1)


@app.command("bench")
def bench_(
    name: Name,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            callback=check_dtypes, help="fp32, bf16 or int8; may be repeated; default all."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
    size: Size = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; default PyTorch's choice.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Time to measure for.")] = 5.0,
    format: Annotated[
        Literal["text", "json"], typer.Option(help="json: one object a line.")
    ] = "text",
) -> None:
    """Speed on this machine, packed in each precision, beside plain PyTorch.

    Weights and images are random: speed does not depend on them.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    H, W = parse_size(size) if size else (task_of(name).img_size,) * 2
    print(
        f"pvt: {name}, batch {batch}, {H}x{W}, {torch.get_num_threads()} threads, "
        f"CPU level {pvt_ext.cpu_level()}, torch {torch.__version__}",
        file=sys.stderr,
    )
    timings = bench(name, dtypes=dtype or tuple(DTYPES), batch=batch, size=(H, W), seconds=seconds)
    if format == "json":
        for timing in timings:
            print(json.dumps(timing.as_dict()))
        return
    table = Table("", box=None)
    for heading in ("median ms", "quartiles", "images/s", "ratio", "error"):
        table.add_column(heading, justify="right")
    for t in timings:
        quartiles = f"{t.low_ms:.1f}..{t.high_ms:.1f}"
        numbers = (f"{t.images_per_s:.1f}", f"{t.ratio:.2f}", f"{t.error:.1e}")
        table.add_row(t.name, f"{t.median_ms:.1f}", quartiles, *numbers)
    Console().print(table)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Experiment, a YAML file.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Changes to it, e.g. run.batch_size=64."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="auto: go on where run.output stopped, if it was begun; or a last.pth."),
    ] = None,
) -> None:
    """Train a classifier; several processes by torchrun -m pvt_ext train ..."""
    _training().run_train(config, changes or [], resume)


@app.command("eval")
def eval_(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Exported file, weights of a run, last.pth, or name."),
    ],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Folder of class folders, or tar shards.")
    ],
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 2,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where.")] = "auto",
    format: Annotated[Literal["text", "json"], typer.Option(help="json: one object.")] = "text",
) -> None:
    """Accuracy of a model on labelled images, each counted once, with the model's preprocessing."""
    _training().run_eval(model, data, batch, workers, device, format)


def _training() -> ModuleType:
    try:
        from pvt_ext.training import cli
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        advice = "pip install pydantic pyyaml matplotlib"
        raise RuntimeError(f"{library} is not installed; run: {advice}") from error
    return cli


def _accuracy(name: str) -> tuple[str, str, str]:
    """Of the weights that come with a model: top-1 in percent, megabytes, data set."""
    dataset = task_of(name).dataset
    if name in PACKAGED:
        top1 = float(recorded_metadata(PACKAGED[name])["top1"])
        return f"{top1:.1f}", f"{PACKAGED[name].stat().st_size / 1e6:.0f}", dataset
    file = PUBLISHED.get(f"official/{name}")
    return (f"{file.top1}", f"{file.megabytes}", dataset) if file else ("-", "-", "-")


class _Defaults(NamedTuple):
    """Options of an export that were not given."""

    img_size: tuple[int, int]
    preset: str
    num_classes: int
    labels: list[str] | None


def _defaults(name: str, file: Path | None) -> _Defaults:
    """From the weights' own record, where they have one, else as the published weights want."""
    task, found = task_of(name), recorded(file) if file else Recorded()
    return _Defaults(
        found.img_size or (task.img_size, task.img_size),
        found.preset or task.preset,
        len(found.labels) if found.labels else task.num_classes,
        found.labels,
    )


def _file_of(name: str, weights: str) -> Path | None:
    """The file that ``--weights`` means, unless it is yet to be downloaded."""
    file = PACKAGED.get(name) if weights == "official" else None
    return Path(weights) if Path(weights).is_file() else file


def _load(model: Pyramid, weights: str, adapt: Sequence[str] = ("positions",)) -> LoadReport:
    """Fill ``model`` from a file, a published file of that name, or its own ("official")."""
    if Path(weights).is_file():
        return load_weights(model, weights, adapt=adapt)
    if weights == "official":
        return load_official(model, adapt=adapt)
    if weights in PUBLISHED:
        return load_published(model, weights, adapt=adapt)
    close = difflib.get_close_matches(weights, PUBLISHED)
    advice = f"; did you mean {', '.join(close)}?" if close else ", or a name in `pvt weights`"
    raise ValueError(f"weights: expected a file, got {weights!r}{advice}")


def _check_overwrites(outputs: Sequence[Path], others: Sequence[Path]) -> None:
    for i, output in enumerate(outputs):
        for other in (*others, *outputs[:i]):
            both_exist = output.exists() and other.exists()
            if os.path.realpath(output) == os.path.realpath(other) or (
                both_exist and output.samefile(other)
            ):
                raise typer.BadParameter(f"{output}: expected a file of its own, got {other} again")


@contextmanager
def _npy_file(path: Path | None) -> Iterator[Callable[[Tensor], None]]:
    """A function that keeps a tensor for the array that is written to ``path`` at the end.

    The file is opened at once, so that no work is lost when it cannot be. Without any tensor the
    array has shape [0]; without a path nothing is kept.
    """
    if path is None:
        yield lambda tensor: None
        return
    with path.open("wb") as stream:  # np.save, given a name, would append .npy to it
        kept: list[Tensor] = []
        yield kept.append
        np.save(stream, torch.stack(kept).numpy() if kept else np.zeros(0, np.float32))


def _top_classes(logits: Tensor, topk: int, labels: list[str] | None) -> list[dict[str, Any]]:
    probs = logits.softmax(dim=0)
    indices = logits.topk(min(topk, len(logits))).indices.tolist()
    return [
        {
            "index": i,
            "label": labels[i] if labels else None,
            "prob": probs[i].item(),
            "logit": logits[i].item(),
        }
        for i in indices
    ]


def _as_text(answer: dict[str, Any]) -> str:
    lines = [answer["image"]]
    for rank, row in enumerate(answer["topk"], start=1):
        numbers = f"{rank:3}  {row['prob']:.4f}  {row['logit']:8.3f}  {row['index']:4}"
        lines.append(f"{numbers}  {row['label'] or ''}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
