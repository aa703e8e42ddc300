"""The building blocks against PyTorch's own layers and against arithmetic written out."""

import pytest
import torch
from models import enliven, relative_error
from torch import Tensor, nn

from pvt_ext.nn import Attention, Block, DropPath, Mlp, PatchEmbed, as_map, as_tokens

TOLERANCE = 1e-5


def reduced_by_hand(attention: Attention, x: Tensor, H: int, W: int) -> Tensor:
    """Keys' tokens: each R x R patch times the convolution's weight, then LayerNorm."""
    R = attention.sr_ratio
    if R == 1:
        return x
    grid = x.view(x.shape[0], H, W, -1)
    cells = [
        torch.einsum("byxc,ocyx->bo", grid[:, r : r + R, c : c + R], attention.sr.weight)
        for r in range(0, H - R + 1, R)
        for c in range(0, W - R + 1, R)
    ]
    tokens = torch.stack(cells, dim=1) + attention.sr.bias
    centred = tokens - tokens.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + attention.norm.eps).sqrt()
    return normed * attention.norm.weight + attention.norm.bias


def attended_by_torch(attention: Attention, x: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
    """Output and per-head probabilities from ``nn.MultiheadAttention`` with the same weights."""
    torch_attention = nn.MultiheadAttention(attention.dim, attention.num_heads, batch_first=True)
    with torch.no_grad():
        torch_attention.in_proj_weight.copy_(torch.cat([attention.q.weight, attention.kv.weight]))
        torch_attention.in_proj_bias.copy_(torch.cat([attention.q.bias, attention.kv.bias]))
        torch_attention.out_proj.load_state_dict(attention.proj.state_dict())
    source = reduced_by_hand(attention, x, H, W)
    return torch_attention(x, source, source, average_attn_weights=False)


def make_attention(dim: int, heads: int, sr_ratio: int, **options: object) -> Attention:
    torch.manual_seed(0)
    attention = Attention(dim, heads, qkv_bias=True, sr_ratio=sr_ratio, **options)  # type: ignore[arg-type]
    enliven(attention)
    if attention.sr is not None:
        with torch.no_grad():  # a small result, so that the epsilon of the norm after it matters
            attention.sr.weight.mul_(0.01)
            attention.sr.bias.mul_(0.01)
    return attention.eval()


CASES = [
    (64, 1, 8, 16, 24),
    (64, 2, 4, 9, 11),
    (60, 5, 2, 5, 3),
    (48, 3, 1, 4, 7),
    (32, 4, 3, 3, 3),
]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("dim", "heads", "sr_ratio", "H", "W"), CASES)
def test_attention_equals_torch(
    dim: int, heads: int, sr_ratio: int, H: int, W: int, fused: bool
) -> None:
    attention = make_attention(dim, heads, sr_ratio, fused=fused)
    x = torch.randn(2, H * W, dim)
    with torch.no_grad():
        expected, probs = attended_by_torch(attention, x, H, W)
        assert relative_error(attention(x, H, W), expected) < TOLERANCE
        maps = attention.attention_map(x, H, W)
    assert maps.shape == (2, heads, H * W, (H // sr_ratio) * (W // sr_ratio))
    assert relative_error(maps, probs) < TOLERANCE
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, heads, H * W))


@pytest.mark.parametrize("sr_ratio", [1, 4])
def test_attention_has_published_names(sr_ratio: int) -> None:
    names = {f"{layer}.{p}" for layer in ("q", "kv", "proj") for p in ("weight", "bias")}
    if sr_ratio > 1:
        names |= {f"{layer}.{p}" for layer in ("sr", "norm") for p in ("weight", "bias")}
    assert set(make_attention(32, 4, sr_ratio).state_dict()) == names
    without_bias = Attention(32, 4, sr_ratio=sr_ratio).state_dict()
    assert set(without_bias) == names - {"q.bias", "kv.bias"}


def test_qk_scale_replaces_the_default() -> None:
    x = torch.randn(1, 16, 32)
    default, scaled = make_attention(32, 4, 1), make_attention(32, 4, 1, qk_scale=8**-0.5)
    same = make_attention(32, 4, 1, qk_scale=0.1)
    assert torch.equal(default(x, 4, 4), scaled(x, 4, 4))
    assert not torch.allclose(default(x, 4, 4), same(x, 4, 4))


@pytest.mark.parametrize("scripted", [False, True])
def test_attention_dropout_acts_in_training_only(scripted: bool) -> None:
    plain, dropping = make_attention(32, 4, 2), make_attention(32, 4, 2, attn_drop=0.5)
    run = torch.jit.script(dropping) if scripted else dropping
    x = torch.randn(1, 36, 32)
    expected = plain(x, 6, 6)
    assert torch.equal(run(x, 6, 6), expected)
    run.train()
    # Every sample drops other probabilities, and the output is linear in them, so the mean of many
    # is the output without dropout.
    outputs = run(x.expand(2000, -1, -1), 6, 6)
    assert outputs.std(0).min() > 0.01
    assert relative_error(outputs.mean(0, keepdim=True), expected) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 30, "num_heads": 4}, r"dim: expected a multiple of num_heads \(4\), got 30"),
        ({"dim": 0}, "dim: expected at least 1, got 0"),
        ({"dim": 32.0}, "dim: expected a whole number, got 32.0"),
        ({"dim": 32, "num_heads": True}, "num_heads: expected a whole number, got True"),
        ({"dim": 32, "attn_drop": "0"}, "attn_drop: expected .* got '0'"),
        ({"dim": 32, "num_heads": 0}, "num_heads: expected at least 1, got 0"),
        ({"dim": 32, "sr_ratio": 0}, "sr_ratio: expected at least 1, got 0"),
        ({"dim": 32, "attn_drop": 1.5}, "attn_drop: expected 0 <= attn_drop < 1, got 1.5"),
        ({"dim": 32, "proj_drop": -0.1}, "proj_drop: expected .* got -0.1"),
    ],
)
def test_attention_refuses_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attention(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("fused", [True, False])
def test_attention_refuses_grids(fused: bool) -> None:
    attention = make_attention(32, 4, 4, fused=fused)
    with pytest.raises(ValueError, match=r"expected H \* W = 5 \* 5 tokens, got 24"):
        attention(torch.randn(1, 24, 32), 5, 5)
    with pytest.raises(ValueError, match=r"at least 4 x 4 \(sr_ratio\), got 3 x 8"):
        attention(torch.randn(1, 24, 32), 3, 8)


@pytest.mark.parametrize(
    ("patch", "H", "W"), [(4, 32, 48), (4, 35, 33), ((2, 3), 5, 7), (16, 16, 16)]
)
def test_patch_embed_equals_a_linear_layer_on_patches(
    patch: int | tuple[int, int], H: int, W: int
) -> None:
    torch.manual_seed(0)
    embed = PatchEmbed(64, patch, in_chans=3, embed_dim=24)
    enliven(embed)
    x = torch.randn(2, 3, H, W)
    tokens, grid = embed(x)
    ph, pw = embed.patch_size
    assert grid == (H // ph, W // pw)
    patches = x[:, :, : H // ph * ph, : W // pw * pw].unfold(2, ph, ph).unfold(3, pw, pw)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # B, N, 3 * ph * pw
    expected = embed.norm(patches @ embed.proj.weight.flatten(1).T + embed.proj.bias)
    assert relative_error(tokens, expected) < TOLERANCE


def test_patch_embed_has_published_attributes() -> None:
    embed = PatchEmbed((224, 112), 16)
    assert (embed.img_size, embed.patch_size) == ((224, 112), (16, 16))
    assert (embed.H, embed.W, embed.num_patches) == (14, 7, 98)
    assert set(embed.state_dict()) == {"proj.weight", "proj.bias", "norm.weight", "norm.bias"}
    assert embed.proj.weight.shape == (768, 3, 16, 16)
    assert embed.norm.eps == 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": -224}, "img_size: expected a positive int or .* got -224"),
        ({"img_size": (224, 0)}, r"img_size: .* got \(224, 0\)"),
        ({"patch_size": 0}, "patch_size: .* got 0"),
        ({"img_size": 8}, r"img_size: expected at least \(16, 16\), got \(8, 8\)"),
        ({"in_chans": 0}, "in_chans: expected at least 1, got 0"),
        ({"embed_dim": -1}, "embed_dim: expected at least 1, got -1"),
    ],
)
def test_patch_embed_refuses_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchEmbed(**arguments)


def test_overlapping_patches_are_those_of_a_convolution() -> None:
    """Kernel, stride and padding of PVT v2: 7, 4, 3 in stage 1 and 3, 2, 1 in the others."""
    for patch, kernel, padding in ((4, 7, 3), (2, 3, 1)):
        torch.manual_seed(0)
        embed = PatchEmbed(32, patch, in_chans=2, embed_dim=8, overlap=True)
        enliven(embed)
        assert embed.H == embed.W == 32 // patch
        for H in range(1, 20):
            x = torch.randn(2, 2, H, 21 - H)
            tokens, grid = embed(x)
            assert grid == tuple((side + 2 * padding - kernel) // patch + 1 for side in x.shape[2:])
            # Every patch by hand: a window of the padded map times the weight.
            padded = nn.functional.pad(x, [padding] * 4)
            windows = padded.unfold(2, kernel, patch).unfold(3, kernel, patch)
            expected = torch.einsum("bchwuv,ocuv->bhwo", windows, embed.proj.weight)
            expected = embed.norm((expected + embed.proj.bias).flatten(1, 2))
            assert relative_error(tokens, expected) < TOLERANCE


def test_patch_embed_refuses_inputs() -> None:
    with pytest.raises(ValueError, match="at least 1 x 1, got 0 x 5"):
        PatchEmbed(32, 4, overlap=True)(torch.zeros(1, 3, 0, 5))
    embed = PatchEmbed(32, 4)
    with pytest.raises(ValueError, match="at least 4 x 4, got 3 x 32"):
        embed(torch.zeros(1, 3, 3, 32))
    with pytest.raises(ValueError, match=r"expected x \[B, C, H, W\]"):
        embed(torch.zeros(3, 32, 32))


def test_drop_path_drops_whole_samples() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    out = drop(torch.ones(4000, 2, 3)).flatten(1)
    assert torch.equal(out, out[:, :1].expand_as(out)), "a sample was dropped in part"
    assert set(out[:, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(out.mean().item() - 1.0) < 0.05
    x = torch.randn(4, 2)
    assert torch.equal(drop.eval()(x), x)
    assert torch.equal(DropPath(0.0)(x), x)
    with pytest.raises(ValueError, match="drop_prob: expected 0 <= drop_prob < 1, got 1"):
        DropPath(1.0)


def test_mlp_uses_the_exact_gelu() -> None:
    torch.manual_seed(0)
    mlp = Mlp(8, 32).double()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)


@pytest.mark.parametrize("B", [1, 2])
def test_convolutions_of_tokens_stay_channels_last(B: int) -> None:
    """Else a depthwise convolution takes a path that is several times slower."""
    mlp, embed = Mlp(8, 16, dwconv=True), PatchEmbed(12, 2, 8, 16, overlap=True)
    for convolution, channels in ((mlp.dwconv, 16), (embed.proj, 8)):
        out = convolution(as_map(torch.randn(B, 12 * 12, channels), 12, 12))
        assert as_tokens(out).is_contiguous()


@pytest.mark.parametrize("scripted", [False, True])
def test_mlp_with_a_convolution_refuses_grids(scripted: bool) -> None:
    mlp = Mlp(8, 16, dwconv=True)
    run = torch.jit.script(mlp) if scripted else mlp
    assert run(torch.zeros(2, 12, 8), 3, 4).shape == (2, 12, 8)
    for args in ((), (3, 5)):
        with pytest.raises(
            (ValueError, torch.jit.Error), match=r"Mlp: expected H \* W = .* got 12"
        ):
            run(torch.zeros(2, 12, 8), *args)


@pytest.mark.parametrize("fused", [True, False])
def test_linear_attention_has_49_keys_on_every_grid(fused: bool) -> None:
    attention = make_attention(32, 4, 8, linear=True, fused=fused)
    for H, W in ((1, 1), (5, 3), (7, 7), (9, 22)):
        x = torch.randn(2, H * W, 32)
        probs = attention.attention_map(x, H, W)
        assert probs.shape == (2, 4, H * W, 49)
        assert attention(x, H, W).shape == x.shape
        assert attention(x[:0], H, W).shape == (0, H * W, 32)
    with pytest.raises(ValueError, match=r"expected H \* W = 9 \* 9 tokens, got 198"):
        attention(x, 9, 9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("sr_ratio", [1, 2])
def test_block_scripts(sr_ratio: int, fused: bool, training: bool) -> None:
    torch.manual_seed(0)
    block = Block(32, 4, sr_ratio=sr_ratio, drop_path=0.5, fused=fused).train(training)
    assert (block.norm1.eps, block.norm2.eps) == (1e-6, 1e-6)
    scripted = torch.jit.script(block)
    x = torch.randn(3, 20, 32)
    outputs = []
    for run in (block, scripted):
        torch.manual_seed(1)  # the same samples are dropped
        outputs.append(run(x, 4, 5))
    assert torch.equal(*outputs)


def test_scripted_patch_embed_returns_its_grid() -> None:
    embed = PatchEmbed(32, 4, embed_dim=8)
    x = torch.randn(1, 3, 33, 40)
    tokens, grid = torch.jit.script(embed)(x)
    assert grid == (8, 10)
    assert torch.equal(tokens, embed(x)[0])


@pytest.mark.parametrize("fused", [True, False])
def test_a_reduction_whose_layers_are_replaced_or_watched_runs_them(fused):
    class Adapted(torch.nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + self.weight.sum()

    attention, x = Attention(8, 2, sr_ratio=2, fused=fused), torch.randn(2, 24, 8)
    before = attention(x, 4, 6)
    seen = []
    for layer in (attention.sr, attention.norm):
        handle = layer.register_forward_hook(lambda module, *_: seen.append(module))
        torch.testing.assert_close(attention(x, 4, 6), before)
        handle.remove()
    assert seen == [attention.sr, attention.norm]
    adapted = Adapted(8, 8, 2, 2)
    adapted.load_state_dict(attention.sr.state_dict())
    attention.sr = adapted
    after = attention(x, 4, 6)
    adapted.bias.data += adapted.weight.sum()
    adapted.__class__ = torch.nn.Conv2d
    torch.testing.assert_close(attention(x, 4, 6), after)


@pytest.mark.parametrize("fused", [True, False])
def test_the_reduction_has_the_eps_of_its_norm(fused):
    """Files of other libraries have another than the published code."""
    attention, x = make_attention(8, 2, 2, fused=fused), torch.randn(2, 24, 8)
    attention.norm.eps = 0.1
    expected, _ = attended_by_torch(attention, x, 4, 6)
    torch.testing.assert_close(attention(x, 4, 6), expected)
    torch.testing.assert_close(torch.jit.script(attention)(x, 4, 6), expected)


@pytest.mark.parametrize("dwconv", [False, True])
def test_an_mlp_whose_layers_are_replaced_or_watched_runs_them(dwconv):
    """An adapter in place of a layer, or a hook on it, is not passed over by the operator."""

    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    mlp, x = Mlp(8, 16, dwconv=dwconv), torch.randn(2, 12, 8)
    before = mlp(x, 3, 4)
    seen = []
    watched = mlp.dwconv if dwconv else mlp.fc2
    handle = watched.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(mlp(x, 3, 4), before)
    assert seen == [1]
    handle.remove()
    adapted = Adapted(16, 8)
    adapted.load_state_dict(mlp.fc2.state_dict())
    mlp.fc2 = adapted
    torch.testing.assert_close(mlp(x, 3, 4), before + 1)
