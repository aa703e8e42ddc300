"""The published recipe as tables: learning rate of every epoch, weight decay of every parameter."""

import pytest
import torch
from models import MINI, MINI_V2, mini

from pvt_ext.model import create_model
from pvt_ext.training.config import Optimizer, Schedule
from pvt_ext.training.recipe import learning_rate, make_optimizer, parameter_groups, peak_rate

# Millionths, ten epochs a line: 300 epochs, warm-up of 5 from 1e-6, cosine from 1e-3 to 1e-5, as
# the authors' main.py has it from timm's schedule, which it steps once after each epoch.
PUBLISHED_RATES = """
    1.000 1.000 200.800 400.600 600.400 800.200 999.322 999.023 998.671 998.264
    997.803 997.288 996.720 996.097 995.420 994.690 993.906 993.068 992.177 991.232
    990.234 989.183 988.079 986.922 985.711 984.449 983.133 981.765 980.345 978.873
    977.349 975.773 974.145 972.466 970.736 968.955 967.122 965.239 963.306 961.322
    959.289 957.205 955.072 952.889 950.658 948.377 946.048 943.671 941.245 938.772
    936.251 933.683 931.067 928.405 925.697 922.942 920.142 917.296 914.405 911.469
    908.488 905.463 902.395 899.282 896.127 892.928 889.687 886.404 883.079 879.713
    876.305 872.857 869.368 865.839 862.271 858.664 855.018 851.333 847.611 843.851
    840.054 836.220 832.349 828.443 824.502 820.525 816.514 812.468 808.389 804.277
    800.131 795.954 791.744 787.503 783.231 778.929 774.596 770.234 765.843 761.423
    756.976 752.500 747.997 743.468 738.913 734.332 729.725 725.094 720.439 715.761
    711.059 706.335 701.588 696.820 692.031 687.222 682.392 677.543 672.675 667.789
    662.885 657.963 653.025 648.071 643.101 638.115 633.115 628.101 623.074 618.034
    612.981 607.916 602.840 597.754 592.657 587.551 582.435 577.311 572.179 567.040
    561.894 556.742 551.584 546.421 541.253 536.081 530.906 525.728 520.548 515.366
    510.184 505.000 499.816 494.634 489.452 484.272 479.094 473.919 468.747 463.579
    458.416 453.258 448.106 442.960 437.821 432.689 427.565 422.449 417.343 412.246
    407.160 402.084 397.019 391.966 386.926 381.899 376.885 371.885 366.899 361.929
    356.975 352.037 347.115 342.211 337.325 332.457 327.608 322.778 317.969 313.180
    308.412 303.665 298.941 294.239 289.561 284.906 280.275 275.668 271.087 266.532
    262.003 257.500 253.024 248.577 244.157 239.766 235.404 231.071 226.769 222.497
    218.256 214.046 209.869 205.723 201.611 197.532 193.486 189.475 185.498 181.557
    177.651 173.780 169.946 166.149 162.389 158.667 154.982 151.336 147.729 144.161
    140.632 137.143 133.695 130.287 126.921 123.596 120.313 117.072 113.873 110.718
    107.605 104.537 101.512 98.531 95.595 92.704 89.858 87.058 84.303 81.595
    78.933 76.317 73.749 71.228 68.755 66.329 63.952 61.623 59.342 57.111
    54.928 52.795 50.711 48.678 46.694 44.761 42.878 41.045 39.264 37.534
    35.855 34.227 32.651 31.127 29.655 28.235 26.867 25.551 24.289 23.078
    21.921 20.817 19.766 18.768 17.823 16.932 16.094 15.310 14.580 13.903
    13.280 12.712 12.197 11.736 11.329 10.977 10.678 10.434 10.244 10.109
"""


def test_learning_rate_of_every_published_epoch() -> None:
    expected = [float(number) * 1e-6 for number in PUBLISHED_RATES.split()]
    peak = peak_rate(Optimizer(), images_per_step=8 * 128)
    assert peak == 1e-3
    rates = [learning_rate(Schedule(), peak, epoch) for epoch in range(300)]
    assert rates == pytest.approx(expected, abs=0.6e-9)
    assert rates[0] == rates[1] == 1e-6  # the trap: the first epoch comes twice


def test_learning_rate_is_timms() -> None:
    reason = "timm is not installed: the schedule was NOT compared with timm's"
    cosine_lr = pytest.importorskip("timm.scheduler.cosine_lr", reason=reason)
    for epochs, warmup in ((300, 5), (12, 3), (7, 0)):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        theirs = cosine_lr.CosineLRScheduler(
            optimizer, t_initial=epochs, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6
        )
        schedule = Schedule(epochs=epochs, warmup_epochs=warmup)
        for epoch in range(epochs):
            expected = optimizer.param_groups[0]["lr"]
            assert learning_rate(schedule, 1e-3, epoch) == pytest.approx(expected, rel=1e-12)
            theirs.step(epoch)


def test_learning_rate_per_step() -> None:
    schedule = Schedule(epochs=4, warmup_epochs=1, warmup_lr=0, min_lr=0, per="step")
    rates = [learning_rate(schedule, 8.0, epoch, share) for epoch in range(4) for share in (0, 0.5)]
    cosine = [8 * 0.85355339, 8 * 0.69134172, 4.0, 8 * 0.30865828, 8 * 0.14644661, 8 * 0.03806023]
    assert rates == pytest.approx([0, 4, *cosine])


def test_learning_rate_follows_the_images_of_a_step() -> None:
    assert peak_rate(Optimizer(), 512) == 5e-4
    assert peak_rate(Optimizer(), 64) == 5e-4 / 8
    assert peak_rate(Optimizer(lr_images=None), 64) == 5e-4


BLOCKS = ["0.blocks.0", "1.blocks.0", "1.blocks.1", "2.blocks.0", "3.blocks.0"]
IN_A_BLOCK = ["attn.q", "attn.kv", "attn.proj", "mlp.fc1", "mlp.fc2"]
DECAYED_V1 = [
    "head",
    *(f"stages.{i}.patch_embed.proj" for i in range(4)),
    *(f"stages.{block}.attn.sr" for block in BLOCKS[:4]),  # the last stage has none
    *(f"stages.{block}.{name}" for block in BLOCKS for name in IN_A_BLOCK),
]
DECAYED_V2 = [*DECAYED_V1, *(f"stages.{block}.mlp.dwconv" for block in BLOCKS)]


@pytest.mark.parametrize(
    ("specs", "decayed", "tables"),
    [(MINI, DECAYED_V1, [f"stages.{i}.pos_embed" for i in range(4)]), (MINI_V2, DECAYED_V2, [])],
)
def test_what_is_decayed(specs, decayed, tables) -> None:
    model = mini(specs)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    first, second = parameter_groups(model, 0.05)
    assert (first["weight_decay"], second["weight_decay"]) == (0.05, 0.0)
    expected = {f"{name}.weight" for name in decayed} | set(tables)  # pos_embed *is* decayed
    assert {names[id(p)] for p in first["params"]} == expected
    assert {names[id(p)] for p in second["params"]} == set(names.values()) - expected
    assert ("stages.3.cls_token" in names.values()) == (specs is MINI)
    assert "stages.3.cls_token" not in expected


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li"])
def test_what_is_decayed_is_timms(name: str) -> None:
    reason = "timm is not installed: the groups were NOT compared with timm's"
    timm_optim = pytest.importorskip("timm.optim", reason=reason)
    model = create_model(name)
    theirs = timm_optim.param_groups_weight_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay()
    )
    theirs = {group["weight_decay"]: {id(p) for p in group["params"]} for group in theirs}
    ours = parameter_groups(model, 0.05)
    assert {g["weight_decay"]: {id(p) for p in g["params"]} for g in ours} == theirs


def test_optimizer_is_the_published_one() -> None:
    optimizer = make_optimizer(mini(), Optimizer())
    assert type(optimizer) is torch.optim.AdamW
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.9, 0.999), 1e-8, False)
