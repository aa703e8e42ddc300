"""Packed models beside the models they were packed from."""

import random
import resource
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import MINI, MINI_V2, MINI_V2_LI, mini, relative_error
from running import in_a_process, in_eight_threads, same_bits_for_any_number_of_threads
from torch.nn.utils import prune

from pvt_ext.export import export_torchscript
from pvt_ext.inference import PackedHead, PackedPatchEmbed, pack
from pvt_ext.packing import pack_convolution, pack_weight, unpack_weight

FAMILY = pytest.mark.parametrize("specs", [MINI, MINI_V2, MINI_V2_LI], ids=["v1", "v2", "v2_li"])


@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_unpacking_gives_what_was_packed(rows, columns, dtype):
    weight = torch.randn(rows, columns).to(dtype)
    packed = pack_weight(weight)
    assert packed.is_contiguous()
    assert packed.dtype == dtype
    assert torch.equal(unpack_weight(packed, rows, columns), weight)
    assert packed.float().abs().sum() == pytest.approx(weight.float().abs().sum().item(), rel=1e-5)


@given(rows=st.integers(1, 70), columns=st.integers(1, 70))
def test_int8_weights_are_rounded_to_the_nearest_step(rows, columns):
    weight = torch.randn(rows, columns)
    weight[0] = 0
    packed = pack_weight(weight, torch.int8)
    assert packed.dtype == torch.uint8
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((unpack_weight(packed, rows, columns) - weight).abs() <= 0.501 * step).all()


def test_where_a_weight_lies():
    """The layout is part of the file format."""
    weight = torch.arange(20 * 6.0).reshape(20, 6)
    packed = pack_weight(weight)
    assert packed.shape == (2, 6, 16, 1)
    assert packed[1, 5, 3, 0] == weight[19, 5]
    assert packed[1, 5, 4, 0] == 0
    packed = pack_weight(weight[:, :5].bfloat16())
    assert packed.shape == (2, 3, 16, 2)
    assert packed[1, 1, 3].tolist() == weight[19, 2:4].tolist()
    assert packed[1, 2, 3].tolist() == [weight[19, 4], 0]
    packed = pack_weight(weight[:, :5], torch.int8)
    assert packed.shape == (2, 2 + 1, 16, 4)
    assert (
        packed[1, 0, 3].tolist() == (weight[19, :4] / weight[19, 4] * 127).round().add(128).tolist()
    )
    assert packed[1, 1, 3].tolist() == [127 + 128, 128, 128, 128]
    assert packed[1, 2].view(torch.float32)[3] == weight[19, 4] / 127
    kernel = torch.randn(4, 3, 2, 2)
    matrix = unpack_weight(pack_convolution(kernel), 4, 12)
    assert torch.equal(matrix[2].reshape(2, 2, 3), kernel[2].permute(1, 2, 0))


def test_shapes_that_cannot_be_packed():
    with pytest.raises(ValueError, match=r"weight: expected \[rows, columns\], got shape \[3\]"):
        pack_weight(torch.zeros(3))
    with pytest.raises(ValueError, match=r"weight: expected \[C_out, C_in, .* got shape \[3, 4\]"):
        pack_convolution(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"dtype: expected torch.float32, .*, got torch.float64"):
        pack(mini(), torch.float64)


def test_what_a_packed_model_cannot_do(tmp_path):
    packed = pack(mini())
    with pytest.raises(ValueError, match="model: expected one that is not packed yet"):
        pack(packed)
    with pytest.raises(ValueError, match="model: expected one that is not packed yet"):
        export_torchscript(packed, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="attention_maps: a packed model has none"):
        packed.attention_maps(torch.zeros(1, 3, 64, 64))


@FAMILY
@pytest.mark.parametrize("size", [(64, 64), (224, 224), (33, 65), (130, 50)], ids=str)
def test_same_answer(specs, size):
    model = mini(specs)
    packed = pack(model)
    x = torch.randn(2, 3, *size)
    with torch.inference_mode():
        assert relative_error(packed(x), model(x)) < 2e-6
        for ours, theirs in zip(packed.features(x), model.features(x), strict=True):
            assert ours.stride() == theirs.stride()
            assert relative_error(ours, theirs) < 1e-5


@FAMILY
def test_bfloat16_is_closer_than_pytorchs(specs):
    model = mini(specs)
    x = torch.randn(16, 3, 96, 96)
    with torch.inference_mode():
        truth = mini(specs).double()(x.double())
        ours = pack(model, torch.bfloat16)(x)
        torchs = mini(specs, fused=False).bfloat16()(x.bfloat16())
    assert (ours - truth).norm() < 0.8 * (torchs - truth).norm()


@FAMILY
def test_tokens_as_on_a_gpu(specs, monkeypatch):
    """There they are bfloat16 beside bfloat16 weights; what a model takes and gives is float32."""

    def as_on_a_gpu(embed: PackedPatchEmbed, x: torch.Tensor) -> torch.Tensor:
        seen.append(embed.narrow_on_gpu)
        return x.to(embed.proj_weight.dtype) if embed.narrow_on_gpu else x

    seen: list[bool] = []
    x = torch.randn(16, 3, 96, 96)
    with torch.inference_mode():
        in_float32 = pack(mini(specs), torch.bfloat16)(x)
    monkeypatch.setattr(PackedPatchEmbed, "as_tokens_dtype", as_on_a_gpu)
    with torch.inference_mode():
        truth = mini(specs).double()(x.double())
        model = pack(mini(specs), torch.bfloat16)
        ours, maps = model(x), model.features(x)
        torchs = mini(specs, fused=False).bfloat16()(x.bfloat16())
        assert all(seen)
        assert {t.dtype for t in (ours, *maps)} == {torch.float32}
        assert (ours - truth).norm() < 1.2 * (torchs - truth).norm()
        assert not torch.equal(ours, in_float32)
        seen.clear()
        pack(mini(specs), torch.int8)(x)
        assert not any(seen)


@FAMILY
def test_int8_is_nearly_as_close_as_bfloat16(specs):
    """Its steps are twice those of bfloat16 at the largest inputs and far larger at others."""
    model = mini(specs)
    x = torch.randn(16, 3, 96, 96)
    with torch.inference_mode():
        truth = mini(specs).double()(x.double())
        error = relative_error(pack(model, torch.int8)(x), truth)
    assert 1e-4 < error < 2e-2


@FAMILY
def test_packing_copies(specs):
    model = mini(specs, drop_path_rate=0.3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packed = pack(model, torch.bfloat16)
    assert model.training
    assert not any(module.training for module in packed.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert list(packed.parameters()) == []
    stored = [
        {t.untyped_storage().data_ptr() for t in m.state_dict().values()} for m in (packed, model)
    ]
    assert not stored[0] & stored[1]


@FAMILY
def test_input_is_not_changed(specs):
    packed = pack(mini(specs))
    x = torch.randn(1, 3, 64, 64)
    copy = x.clone()
    first = packed(x)
    assert torch.equal(x, copy)
    assert torch.equal(packed(x), first)


@FAMILY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_batch_and_threads_do_not_change_a_bit(specs, dtype):
    packed = pack(mini(specs, num_classes=1000), dtype)
    x = torch.randn(5, 3, 96, 64)
    assert same_bits_for_any_number_of_threads(lambda: packed(x))
    assert torch.equal(packed(x), torch.cat([packed(x[i : i + 1]) for i in range(5)]))


class Adapted(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def hooked(module):
    module.register_forward_hook(lambda *_: None)


def pruned(module):
    prune.l1_unstructured(module, "weight", 0.5)


def adapted(module):
    module.__class__ = Adapted


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        (hooked, "stages.1.blocks.0", "no hooks"),
        (hooked, "stages.0.patch_embed", "no hooks"),
        (hooked, "stages.0.blocks.0.attn.sr", "no hooks"),
        (pruned, "stages.0.blocks.0.mlp.fc1", "no hooks.*prune.remove"),
        (adapted, "stages.0.blocks.0.attn.q", "got Adapted; merge"),
    ],
)
def test_layers_that_do_more_than_their_weights_say(change, name, expected):
    """A packed model has weights alone: it says so instead of answering differently."""
    model = mini()
    change(model.get_submodule(name))
    with pytest.raises(ValueError, match=f"model.{name}: expected.*{expected}"):
        pack(model)


def test_what_is_in_the_weights_already_is_packed():
    model, x = mini(), torch.randn(1, 3, 64, 64)
    torch.nn.utils.parametrizations.weight_norm(model.stages[0].blocks[0].mlp.fc1)
    pruned(model.stages[1].blocks[0].attn.q)
    prune.remove(model.stages[1].blocks[0].attn.q, "weight")
    with torch.inference_mode():
        assert relative_error(pack(model)(x), model(x)) < 2e-6


def test_heads():
    """A linear layer is packed; one that does more, or is another module, stays as it is."""
    x = torch.randn(1, 3, 64, 64)
    doubled = mini()
    doubled.head.register_forward_hook(lambda module, inputs, out: 2 * out)
    without_bias, deeper, none = mini(), mini(), mini(num_classes=0)
    without_bias.head = torch.nn.Linear(without_bias.num_features, 7, bias=False)
    deeper.head = torch.nn.Sequential(torch.nn.Dropout(), deeper.head)
    for model, is_packed in (
        (mini(), True),
        (without_bias, True),
        (doubled, False),
        (deeper, False),
        (none, False),
    ):
        packed = pack(model)
        assert isinstance(packed.head, PackedHead) == is_packed
        with torch.inference_mode():
            assert relative_error(packed(x), model.eval()(x)) < 2e-6


@settings(max_examples=30, deadline=None)
@given(H=st.integers(32, 130), W=st.integers(32, 130), B=st.integers(1, 3), v2=st.booleans())
def test_any_size(H, W, B, v2):
    model = mini(MINI_V2 if v2 else MINI)
    x = torch.randn(B, 3, H, W)
    with torch.inference_mode():
        assert relative_error(pack(model)(x), model(x)) < 2e-6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory")
@pytest.mark.parametrize(
    ("family", "dtype"),
    [("v1", "float32"), ("v2", "float32"), ("v2_li", "float32"), ("v1", "int8")],
)
def test_memory_is_flat(family, dtype):
    in_a_process("test_inference", f"check_memory_is_flat({family!r}, {dtype!r})")


def check_memory_is_flat(family: str, dtype: str) -> None:
    """1000 batches of random sizes: what is resident is what was after the largest."""
    random.seed(0)
    specs = {"v1": MINI, "v2": MINI_V2, "v2_li": MINI_V2_LI}[family]
    model = torch.jit.script(pack(mini(specs), getattr(torch, dtype)))
    with torch.inference_mode():
        for _ in range(5):
            model(torch.randn(2, 3, 256, 256))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(1000):
            H, W = random.randint(32, 256), random.randint(32, 256)
            model(torch.randn(random.randint(1, 2), 3, H, W))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 4 * 1024, f"{grown} KB"


def test_one_model_in_many_threads():
    packed = torch.jit.script(pack(mini()))
    x = torch.randn(2, 3, 64, 96)
    expected = packed(x)

    def work():
        for _ in range(10):
            assert torch.equal(packed(x), expected)

    in_eight_threads(work)
