"""Random shapes of the operators in training, for hypothesis: small, odd, beyond a block."""

import cases
from hypothesis import strategies as st

dtypes = st.sampled_from(cases.DTYPES)


@st.composite
def attention(draw: st.DrawFn) -> cases.AttentionCase:
    num_heads, head_dim = draw(st.integers(1, 4)), draw(st.integers(1, 70))
    B, N, kv_len = draw(st.integers(0, 3)), draw(st.integers(0, 110)), draw(st.integers(1, 140))
    return cases.AttentionCase(B, N, num_heads * head_dim, num_heads, kv_len)


@st.composite
def reduction(draw: st.DrawFn, least_batch: int = 0) -> cases.ReductionCase:
    B, R, C = draw(st.integers(least_batch, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 70))
    H, W = R + draw(st.integers(0, 9)), R + draw(st.integers(0, 9))
    return cases.ReductionCase(B, H, W, C, R, eps=cases.well_conditioned(C))


mlp = st.builds(
    cases.MlpCase,
    B=st.integers(0, 3),
    N=st.integers(0, 120),
    C=st.integers(1, 70),
    hidden=st.integers(1, 300),
)
depthwise = st.builds(
    cases.DepthwiseCase,
    B=st.integers(1, 3),
    H=st.integers(1, 20),
    W=st.integers(1, 20),
    C=st.integers(1, 70),
    relu=st.booleans(),
)


def draws(case: cases.MlpCase | cases.DepthwiseCase) -> int:
    """How many inputs of it to take: of a handful of values an error says little."""
    tokens = case.N if isinstance(case, cases.MlpCase) else case.H * case.W
    return 8 if case.B * tokens * case.C > 64 else 64
