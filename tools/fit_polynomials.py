"""Prints csrc/cpu/polynomials.h, fitted in 40 digits and rounded to float32: for GELU and for 2^x.

    python tools/fit_polynomials.py > csrc/cpu/polynomials.h

GELU(x) = x Phi(x) = x / 2 + |x| g(|x|) with g(a) = Phi(a) - 1/2, which rises from 0 to 1/2. Two
forms of g, for processors with and without a 32-entry table lookup, and two coarse ones for results
that are rounded to 8 bits or to bfloat16, of Phi and of 1/2 - g. mpmath comes with torch.
"""

import mpmath as mp

mp.mp.dps = 40

INTERVALS, WIDTH, DEGREE = 32, mp.mpf("0.25"), 4
LIMIT = mp.mpf("5.6")  # from there on g is 1/2 to 26 bits
DENSITY = mp.mpf("3.7")  # coarse pieces per unit of x
COARSE_LIMIT = mp.mpf("4.1")  # beyond it g is taken for 1/2
HEAD = """\
// Polynomials for GELU (gelu.h) and 2^x (vec.h), by tools/fit_polynomials.py: change that.
#pragma once

namespace pvt {
"""


def g(a: mp.mpf) -> mp.mpf:
    return mp.ncdf(a) - mp.mpf(1) / 2


def pieces() -> list[list[mp.mpf]]:
    """g(i / 4 + u), |u| <= 1/8, as a polynomial in u that is exact at the Chebyshev nodes."""
    half = WIDTH / 2
    count = DEGREE + 1
    nodes = [half * mp.cos(mp.pi * (2 * k + 1) / (2 * count)) for k in range(count)]
    powers = mp.matrix([[u**d for d in range(count)] for u in nodes])
    return [
        list(mp.lu_solve(powers, mp.matrix([g(WIDTH * i + u) for u in nodes])))
        for i in range(INTERVALS)
    ]


def coarse_pieces() -> list[list[mp.mpf]]:
    """Phi(x), k <= DENSITY x < k + 1, as a parabola in x, at index k modulo 32 for -16 <= k < 16.

    Exact at the Chebyshev nodes; the first and the last are 0 and 1, what Phi is taken for beyond.
    """
    table: list[list[mp.mpf]] = [[]] * INTERVALS
    for k in range(-INTERVALS // 2 + 1, INTERVALS // 2 - 1):
        nodes = [k + (1 + mp.cos(mp.pi * (2 * i + 1) / 6)) / 2 for i in range(3)]
        x = [node / DENSITY for node in nodes]
        powers = mp.matrix([[v**d for d in range(3)] for v in x])
        table[k % INTERVALS] = list(mp.lu_solve(powers, mp.matrix([mp.ncdf(v) for v in x])))
    table[INTERVALS // 2] = [mp.mpf(0)] * 3
    table[INTERVALS // 2 - 1] = [mp.mpf(1), mp.mpf(0), mp.mpf(0)]
    return table


def rational(degree: int = 5) -> tuple[list[mp.mpf], list[mp.mpf]]:
    """P and Q with a P(a^2) / Q(a^2) close to g(a) on [0, LIMIT], Q(0) = 1.

    Least squares of a (a P / Q - g), the error that GELU has, weighted again and again until the
    largest errors are almost equal (Lawson's method).
    """
    a = [LIMIT * (1 - mp.cos(mp.pi * (k + mp.mpf(1) / 2) / 400)) / 2 for k in range(400)]
    t = [(x / LIMIT) ** 2 for x in a]
    weights, previous_q = [mp.mpf(1)] * len(a), [mp.mpf(1)] * len(a)
    best = None
    for _ in range(25):
        rows, values = [], []
        for x, y, weight, q in zip(a, t, weights, previous_q, strict=True):
            scale = x * mp.sqrt(weight) / q
            above = [scale * x * y**k for k in range(degree + 1)]
            below = [-scale * g(x) * y**k for k in range(1, degree + 1)]
            rows.append(above + below)
            values.append(scale * g(x))
        system = mp.matrix(rows)
        solved = list(mp.lu_solve(system.T * system, system.T * mp.matrix(values)))
        p, q = solved[: degree + 1], [mp.mpf(1), *solved[degree + 1 :]]
        previous_q = [mp.polyval(q[::-1], y) for y in t]
        errors = [
            abs(x * (x * mp.polyval(p[::-1], y) / below - g(x)))
            for x, y, below in zip(a, t, previous_q, strict=True)
        ]
        worst = max(errors)
        if best is None or worst < best[0]:
            powers = [LIMIT ** (2 * k) for k in range(degree + 1)]
            best = worst, *([c / s for c, s in zip(f, powers, strict=True)] for f in (p, q))
        weights = [w * (e / worst + mp.mpf("0.05")) for w, e in zip(weights, errors, strict=True)]
        mean = mp.fsum(weights) / len(weights)
        weights = [w / mean for w in weights]
    assert best is not None
    return best[1], best[2]


def rounded_limit(p: list[mp.mpf], q: list[mp.mpf]) -> mp.mpf:
    """The first float32 from LIMIT on where a P(a^2) / Q(a^2) in float32 is exactly 1/2.

    With fused multiply-add and without: what is beyond needs no case of its own.
    """

    def rounded(value: mp.mpf) -> mp.mpf:
        with mp.workprec(24):
            return +value

    def horner(coefficients: list[mp.mpf], t: mp.mpf, fused: bool) -> mp.mpf:
        total = coefficients[-1]
        for c in coefficients[-2::-1]:
            total = rounded((total * t if fused else rounded(total * t)) + c)
        return total

    p, q = ([rounded(mp.mpf(mp.nstr(c, 9))) for c in f] for f in (p, q))  # as array() prints them
    limit = rounded(LIMIT)
    while True:
        t = rounded(limit * limit)
        values = [
            rounded(rounded(limit * horner(p, t, fused)) / horner(q, t, fused))
            for fused in (False, True)
        ]
        if values == [0.5, 0.5]:
            return limit
        limit += mp.mpf(2) ** -21  # the distance of float32 in [4, 8)


def coarse_polynomial(degree: int = 7) -> list[mp.mpf]:
    """Q with g(a) close to 1/2 - (c - a) Q(a) on [0, c], c = COARSE_LIMIT; weighted as rational().

    The errors that count are those of GELU relative to max(a, 1/2).
    """
    c = COARSE_LIMIT
    a = [c * (1 - mp.cos(mp.pi * (k + mp.mpf(1) / 2) / 400)) / 2 for k in range(400)]
    relative = [min(1, 2 * x) for x in a]
    weights = [mp.mpf(1)] * len(a)
    best = None
    for _ in range(60):
        rows, values = [], []
        for x, size, weight in zip(a, relative, weights, strict=True):
            scale = size * mp.sqrt(weight)
            rows.append([scale * (c - x) * (x / c) ** k for k in range(degree + 1)])
            values.append(scale * (mp.mpf(1) / 2 - g(x)))
        system = mp.matrix(rows)
        q = list(mp.lu_solve(system.T * system, system.T * mp.matrix(values)))
        errors = [
            abs(size * (mp.mpf(1) / 2 - (c - x) * mp.polyval(q[::-1], x / c) - g(x)))
            for x, size in zip(a, relative, strict=True)
        ]
        worst = max(errors)
        if best is None or worst < best[0]:
            best = worst, [coefficient / c**k for k, coefficient in enumerate(q)]
        weights = [w * (e / worst + mp.mpf("0.05")) for w, e in zip(weights, errors, strict=True)]
        mean = mp.fsum(weights) / len(weights)
        weights = [w / mean for w in weights]
    assert best is not None
    return best[1]


def power_of_two(degree: int = 5) -> list[mp.mpf]:
    """Q with 2^f close to 1 + f Q(f) for |f| <= 1/2, equal at the Chebyshev nodes."""
    count = degree + 1
    nodes = [mp.cos(mp.pi * (2 * k + 1) / (2 * count)) / 2 for k in range(count)]
    powers = mp.matrix([[f**d for d in range(count)] for f in nodes])
    return list(mp.lu_solve(powers, mp.matrix([mp.expm1(f * mp.ln(2)) / f for f in nodes])))


def array(values: list[mp.mpf], indent: str) -> str:
    lines = []
    for start in range(0, len(values), 4):
        row = (f"{mp.nstr(mp.chop(value, tol=1e-30), 9)}f" for value in values[start : start + 4])
        lines.append(indent + ", ".join(row))
    return ",\n".join(lines).replace("0.0f", "0.f")


def main() -> None:
    table = pieces()
    print(HEAD)
    print(f"// g(i / 4 + u) = sum_d kGeluPieces[d][i] u^d for |u| <= 1/8, i < {INTERVALS}")
    print(f"alignas(64) constexpr float kGeluPieces[{DEGREE + 1}][{INTERVALS}] = {{")
    for d in range(DEGREE + 1):
        print("    {\n" + array([piece[d] for piece in table], " " * 8) + "},")
    print("};\n")
    table = coarse_pieces()
    density = mp.nstr(DENSITY, 2)
    interval = f"k <= {density} x < k + 1, -16 <= k < 16"
    print(f"// Phi(x) = sum_d kPhiPieces[d][k mod 32] x^d for {interval}")
    print(f"constexpr float kPhiDensity = {density}f;")
    print(f"alignas(64) constexpr float kPhiPieces[3][{INTERVALS}] = {{")
    for d in range(3):
        print("    {\n" + array([piece[d] for piece in table], " " * 8) + "},")
    print("};\n")
    p, q = rational()
    limit = mp.nstr(rounded_limit(p, q), 9)
    print("// g(a) = a P(a^2) / Q(a^2) for 0 <= a <= kGeluLimit, where it is 1/2 to the last bit;")
    print("// lowest power first")
    print(f"constexpr float kGeluLimit = {limit}f;")
    for name, values in (("P", p), ("Q", q)):
        print(f"constexpr float kGelu{name}[{len(values)}] = {{\n" + array(values, "    ") + "};")
    limit = mp.nstr(COARSE_LIMIT, 2)
    q = coarse_polynomial()
    print(
        f"\n// g(a) = 1/2 - ({limit} - a) Q(a), roughly, for 0 <= a <= {limit}, lowest power first"
    )
    print(f"constexpr float kCoarseGeluLimit = {limit}f;")
    print(f"constexpr float kCoarseGeluQ[{len(q)}] = {{\n" + array(q, "    ") + "};")
    print("\n// 2^f = 1 + f Q(f) for |f| <= 1/2, lowest power first")
    for name, q in (("", power_of_two()), ("Coarse", power_of_two(degree=2))):
        print(f"constexpr float k{name}Exp2Q[{len(q)}] = {{\n" + array(q, "    ") + "};")
    print("\n}  // namespace pvt")


if __name__ == "__main__":
    main()
